"""What the site needs of Sphinx beyond its own: see each function.

Links between languages are found, not written: a name of the C library or of the Python package in `code` becomes a link
to where it is explained, and a Python page says which C functions it calls.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shutil
from functools import cache
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.util.docutils import SphinxDirective

import header

SITE = Path(__file__).resolve().parent
ROOT = SITE.parents[1]


class SiteBuilder(StandaloneHTMLBuilder):
    """HTML whose home, README, is index.html."""

    name = "site"

    def get_target_uri(self, docname: str, typ: str | None = None) -> str:
        return super().get_target_uri("index" if docname == self.config.root_doc else docname, typ)

    def get_output_path(self, page_name: str, /) -> Path:
        return super().get_output_path("index" if page_name == self.config.root_doc else page_name)

    def get_outfilename(self, pagename: str) -> Path:
        return super().get_outfilename("index" if pagename == self.config.root_doc else pagename)

    def finish(self) -> None:
        """The search knows the home by its own name."""
        super().finish()
        shutil.copyfile(Path(self.outdir) / "index.html", Path(self.outdir) / f"{self.config.root_doc}.html")


def library_version(root: Path) -> str:
    text = (root / "Sources" / "Lockstep" / "Version.swift").read_text()
    return re.search(r'versionString: StaticString = "(.+)"', text)[1]


def add_navigation(app: Sphinx, docname: str, source: list[str]) -> None:
    """The table of contents under README, which on its own needs none; a page of docs/ not named in it comes last."""
    if docname == app.config.root_doc:
        navigation = (SITE / "navigation.md").read_text()
        rest = sorted(f"docs/{each.stem}" for each in (ROOT / "docs").glob("*.md"))
        rest = [each for each in rest if not re.search(rf"^{each}$", navigation, flags=re.M)]
        if rest:
            navigation += "\n```{toctree}\n:hidden:\n:caption: More\n\n" + "\n".join(rest) + "\n```\n"
        source[0] += "\n" + navigation


@cache
def names_of_the_header() -> dict[str, tuple[str, str]]:
    return header.anchors((ROOT / "include" / "lockstep.h").read_text())


def link_names(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Makes links of names in code: of C everywhere, of Python with `lockstep.`, on Python's pages without it too."""
    objects = app.env.domains["py"].objects
    for node in list(doctree.findall(nodes.literal)):
        if isinstance(node.parent, nodes.reference) or any(
                isinstance(each, nodes.reference) for each in ancestors(node)):
            continue
        text = re.sub(r"\(.*\)$", "", node.astext())
        if text in names_of_the_header():
            page, name = names_of_the_header()[text]
            target, anchor = f"docs/reference/c/{page}", f"c.{name}"
        else:
            names = [text] if text.startswith("lockstep.") else []
            if docname.startswith("docs/reference/python/"):
                names += [f"lockstep.{text}"]
            known = next((name for name in names if name in objects), None)
            if known is None:
                continue
            target, anchor = objects[known].docname, objects[known].node_id
        if (docname, anchor) == (target, within(node)):
            continue
        uri = app.builder.get_relative_uri(docname, target) + "#" + anchor
        link = nodes.reference("", "", internal=True, refuri=uri)
        node.replace_self(link)
        link += node


def ancestors(node: nodes.Node):
    while node.parent is not None:
        node = node.parent
        yield node


def within(node: nodes.Node) -> str | None:
    """The anchor of the description that a node is part of: a link to it would lead nowhere new."""
    for each in ancestors(node):
        if each.tagname == "desc":
            return next((one for sign in each.children if sign.tagname == "desc_signature" for one in sign["ids"]), None)
    return None


@cache
def calls(module: str) -> dict[str, tuple[set[str], set[str]]]:
    """For each top-level name of a module: the C functions it calls, and the names of the module it uses."""
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    found = {}
    for item in tree.body:
        if isinstance(item, ast.FunctionDef | ast.ClassDef):
            own = {each.attr for each in ast.walk(item)
                   if isinstance(each, ast.Attribute) and each.attr in names_of_the_header()}
            used = {each.id for each in ast.walk(item) if isinstance(each, ast.Name)} - {item.name}
            found[item.name] = own, used
    return found


def functions_called(module: str, name: str) -> list[str]:
    """The C functions that a name of a module calls, by itself or through others of its module."""
    known, seen, todo, functions = calls(module), set(), [name], set()
    while todo:
        each = todo.pop()
        if each in known and each not in seen:
            seen.add(each)
            functions |= known[each][0]
            todo += sorted(known[each][1])
    return sorted(functions)


COLON = "\ue000"


def prepare_docstring(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Before Napoleon: |d| is a magnitude and no substitution; what stands before a colon in a comment is no type."""
    literal_at = None
    for index, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if line.strip() and literal_at is not None and indent <= literal_at:
            literal_at = None
        if literal_at is None and not line.lstrip().startswith(">>>"):
            pieces = re.split(r"(`[^`]*`)", line)
            pieces[::2] = [re.sub(r"(?<!\\)([|]|\*+(?=[\w]))", r"\\\1", piece) for piece in pieces[::2]]
            pieces[1::2] = [piece + "\\ " * (len(piece) > 2 and pieces[place + 1][:1].isalpha())  # `LogBatch`es
                            for place, piece in zip(range(1, len(pieces), 2), pieces[1::2])]
            lines[index] = "".join(pieces)
            if line.rstrip().endswith("::"):
                literal_at = indent
    if what in ("attribute", "property", "data"):
        lines[:] = [line.replace(":", COLON) for line in lines]


def finish_docstring(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """After Napoleon: takes out what says nothing, and says which C functions do the work."""
    lines[:] = [line.replace(COLON, ":") for line in lines if not re.match(r"Alias for field number \d+$", line)]
    if what in ("function", "class") and getattr(thing, "__module__", "").startswith("lockstep"):
        functions = functions_called(thing.__module__, thing.__name__)
        if functions:
            lines += ["", "In C: " + ", ".join(f"``{each}``" for each in functions) + "."]


def finish_signature(app: Sphinx, what: str, name: str, thing: object, options: object, signature: str | None,
                     result: str | None) -> tuple[str, str | None] | None:
    """A record of results is not made by its reader: its fields are listed, not how it is called."""
    fields = getattr(thing, "__dataclass_fields__", None) or getattr(thing, "_fields", None)
    if what == "class" and fields and signature and "=" not in signature:
        return "", None
    return None


class CommandHelp(SphinxDirective):
    """What each command says with --help."""

    def run(self) -> list[nodes.Node]:
        from click.testing import CliRunner
        from lockstep.commands import commands

        found: list[nodes.Node] = []
        for name in commands.list_commands(None):
            said = CliRunner(env={"COLUMNS": "90"}).invoke(commands, [name, "--help"], prog_name="lockstep")
            section = nodes.section(ids=[name], names=[name])
            text = said.output.strip() + "\n"
            section += [nodes.title("", name), nodes.literal_block(text, text, language="text")]
            found.append(section)
        return found


def setup(app: Sphinx) -> dict:
    app.add_builder(SiteBuilder)
    app.connect("source-read", add_navigation)
    app.connect("doctree-resolved", link_names)
    app.connect("autodoc-process-docstring", prepare_docstring, priority=400)
    app.connect("autodoc-process-docstring", finish_docstring, priority=600)
    app.connect("autodoc-process-signature", finish_signature)
    app.add_directive("commands", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
