"""The site of documentation: nothing public is missing in it, and links lead somewhere, in the repository and in what is built."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys

import pytest

import lockstep
from conftest import ROOT

SITE = ROOT / "docs" / "site"
REFERENCE = ROOT / "docs" / "reference"
PAGES = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")] + [
    ROOT / "examples" / "data" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [each for each in PAGES if each.parent != SITE]


@pytest.fixture(scope="module")
def header():
    sys.path.insert(0, str(SITE))
    try:
        yield importlib.import_module("header")
    finally:
        sys.path.remove(str(SITE))


# The C manual --------------------------------------------------------------------------------------------------------


def test_the_manual_has_all_of_the_header(header, tmp_path):
    """Every function, type and constant has a place; every word of the comments between them is on a page."""
    text = (ROOT / "include" / "lockstep.h").read_text()
    anchors = header.anchors(text)
    code = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    code = code[code.index("#define LOCKSTEP_VERSION_MAJOR"):]
    names = set(re.findall(r"\b(?:lockstep|LOCKSTEP)_\w+", code)) - {"lockstep_head_s"}
    assert names <= set(anchors)
    header.write_pages(text, tmp_path)
    pages = {each.stem: each.read_text() for each in tmp_path.glob("*.rst")}
    assert len(pages) == 1 + len(re.findall(r"^ \* \d+\. ", text, flags=re.M))
    for name, (page, anchor) in anchors.items():
        assert re.search(rf"\b{name}\b", pages[page]) and re.search(rf"(^\.\. c:|^ {{8}}).*\b{anchor}\b", pages[page], flags=re.M)
    said = re.sub(r"[^a-z]+", " ", "".join(pages.values()).replace("\\ ", "").lower())
    for section in header.sections(text):
        for comment in [section.prose, *(block.comment for block in section.blocks)]:
            for sentence in re.split(r"\n\s*\n", comment):
                words = re.sub(r"[^a-z]+", " ", sentence.lower()).split()
                assert all(word in said for word in words), sentence


def test_a_comment_becomes_what_it_looks_like(header):
    text = header.prose(
        "Adds a_b to *c*.\n\n    x = 1\n\nname   [n]  what it is,\n               and more\nother  nothing\n\n- one\n  two\n- docs/Numerics.md")
    assert text == (
        "Adds ``a_b`` to \\*c\\*.\n\n.. code-block:: text\n\n   x = 1\n\n.. rst-class:: arguments\n\n``name`` ``[n]``\n"
        "   what it is, and more\n\n``other``\n   nothing\n\n- one two\n\n- :doc:`docs/Numerics.md </docs/Numerics>`")


def test_a_declaration_without_an_end_is_an_error(header):
    with pytest.raises(ValueError, match="does not end"):
        header.declarations("int32_t lockstep_version(void)")


# The Python reference ------------------------------------------------------------------------------------------------


def entries() -> list[str]:
    found = []
    for page in (REFERENCE / "python").glob("*.rst"):
        found += re.findall(r"^\.\. auto(?:function|class|data|exception):: (\S+)$", page.read_text(), flags=re.M)
    return found


def test_each_public_name_has_an_entry():
    found = entries()
    assert len(found) == len(set(found))
    assert {f"lockstep.{name}" for name in lockstep.__all__} <= set(found)
    for module in ("lockstep.logs", "lockstep.certificate"):
        names = {name for name in importlib.import_module(module).__all__ if not name.isupper()} - set(lockstep.__all__)
        assert {f"{module}.{name}" for name in names} <= set(found), module
    # These have no list: what stands in the file, but for what they share with each other.
    own = {"RolloutWorker", "cut", "merged", "read_part"}
    for module in ("parallel", "ray", "torch"):
        text = (ROOT / "bindings" / "python" / "lockstep" / f"{module}.py").read_text()
        names = set(re.findall(r"^(?:def|class) ([a-zA-Z]\w*)", text, flags=re.M)) - own
        assert len(names) > 2 and {f"lockstep.{module}.{name}" for name in names} <= set(found), module


@pytest.mark.parametrize("name", [each for each in entries() if not each.startswith(("lockstep.ray", "lockstep.torch"))])
def test_each_entry_is_there_and_documented(name):
    module, _, attribute = name.rpartition(".")
    thing = getattr(importlib.import_module(module), attribute)
    assert isinstance(thing, tuple) or inspect.getdoc(thing)


def test_pages_are_in_the_table_of_contents():
    index = (REFERENCE / "python" / "index.rst").read_text()
    assert all(re.search(rf"^   {each.stem}$", index, flags=re.M)
               for each in (REFERENCE / "python").glob("*.rst") if each.stem != "index")
    navigation, readme = (SITE / "navigation.md").read_text(), (ROOT / "README.md").read_text()
    for page in [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "guides").glob("*.md")]:
        name = page.relative_to(ROOT)
        assert f"{name.with_suffix('')}\n" in navigation and f"({name})" in readme[readme.index("## Where to read on"):], name


# The Swift reference -------------------------------------------------------------------------------------------------


def test_each_public_declaration_of_swift_has_its_place():
    """DocC makes a page of each; here, that the landing page has it under a subject."""
    public = set()
    for file in (ROOT / "Sources" / "Lockstep").rglob("*.swift"):
        public |= set(re.findall(
            r"^public (?:\w+ )*?(?:func|var|let|struct|class|enum|protocol|typealias) `?(\w+)", file.read_text(), flags=re.M))
    landing = (ROOT / "Sources" / "Lockstep" / "Lockstep.docc" / "Lockstep.md").read_text()
    placed = set(re.findall(r"^- ``(\w+)", landing[landing.index("## Topics"):], flags=re.M))
    assert len(public) > 150 and public == placed


# Blocks of code ------------------------------------------------------------------------------------------------------


def test_every_page_with_code_has_a_test():
    """What the blocks of a page do is checked by a test that reads the page; here, that there is one."""
    tests = "".join(each.read_text() for each in (ROOT / "Tests").rglob("*.py"))
    for page in PAGES:
        if re.search(r"^```(python|c|cpp|swift|rust|console|sh)$", page.read_text(), flags=re.M):
            known = rf"{page.stem}\.md|ROOT / \"docs\".*\"{page.stem}\"|\"{page.stem}\"|README"
            assert re.search(known, tests), f"no test reads {page.name}"


def test_swift_s_page_shows_the_example():
    shown = re.findall(r"^```swift\n(.*?)^```", (REFERENCE / "Swift.md").read_text(), flags=re.S | re.M)
    assert shown[1] == (ROOT / "examples" / "swift" / "Sources" / "first" / "main.swift").read_text()
    assert 'package(path: "' in shown[0] and '.library(name: "Lockstep"' in (ROOT / "Package.swift").read_text()
    landing = (ROOT / "Sources" / "Lockstep" / "Lockstep.docc" / "Lockstep.md").read_text()
    [block] = re.findall(r"^```swift\n(.*?)^```", landing, flags=re.S | re.M)
    assert all(line in shown[1] for line in block.splitlines() if not line.startswith("print"))


# Links ---------------------------------------------------------------------------------------------------------------


def headings(text: str) -> set[str]:
    """The anchors that GitHub gives headings."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    plain = [re.sub(r"[^\w\- ]", "", title.lower()) for title in re.findall(r"^#+ +(.*?) *$", text, flags=re.M)]
    return {title.replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_the_repository(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        path = (page.parent / target).resolve() if target else page
        if (REFERENCE / "c") in path.parents:
            continue  # written by header.py; the site's own check sees them
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in headings(path.read_text()), f"{page.name}: {target}#{anchor}"


def test_the_checker_finds_what_is_wrong(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">1</a><a href="b.html#gone">2</a><a href="c.html">3</a><a href="https://example.org">4</a>'
        '<a href="swift/a/index.html">5</a><a href="swift/a/">6</a>'
        '<link rel="stylesheet" href="https://fonts.example.org/x.css"><script src="//cdn.example.org/x.js"></script>')
    (tmp_path / "b.html").write_text('<p id="here"></p>')
    (tmp_path / "swift" / "a").mkdir(parents=True)
    (tmp_path / "swift" / "a" / "index.html").touch()
    done = subprocess.run([sys.executable, SITE / "check_links.py", tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "a.html: loads https://fonts.example.org/x.css", "a.html: loads //cdn.example.org/x.js",
        "a.html: b.html#gone: no such place in b.html", "a.html: c.html leads nowhere",
        "a.html: swift/a/index.html: DocC's script knows a page by its folder alone", "5 links looked at, 5 wrong"]


def test_the_site_is_built_without_a_warning_and_its_links_lead_somewhere(tmp_path):
    """All but DocC's pages, which `make docs` adds and whose place is held here by an empty page."""
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    out = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-b", "site", "-c", SITE, "-d", tmp_path / "doctrees", "-j", "auto", "-W",
         "--keep-going", "-q", ROOT, out], check=True)
    swift = out / "swift" / "documentation" / "lockstep" / "index.html"
    swift.parent.mkdir(parents=True)
    swift.touch()
    done = subprocess.run([sys.executable, SITE / "check_links.py", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert (out / "index.html").read_text().count("Keeps the policy you") == 1
