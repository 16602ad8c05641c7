"""The HTML report: complete, self-contained, safe against what stands in a log, never half written."""

import json
import os
import re
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner
from rollouts import SHIPPED, sequence, write

from lockstep.commands import commands
from lockstep.logs import open_log
from lockstep.report import page, plots
from lockstep.report.diagnosis import Diagnosis
from lockstep.report.verdict import judge
from lockstep.survey import survey


def report(paths, labels=None, **options):
    labels = labels or [f"log {index}" for index in range(len(paths))]
    diagnoses = [
        Diagnosis(survey(open_log(path, label=label)))
        for path, label in zip(paths, labels, strict=True)
    ]
    return page.page(diagnoses, [judge(diagnosis) for diagnosis in diagnoses], **options)


@pytest.fixture(scope="module")
def shipped():
    return report([SHIPPED["bf16"], SHIPPED["fp16"]], ["bf16", "fp16"])


class Outline(HTMLParser):
    """The tags of a page, with a check that they nest."""

    VOID = {"meta", "link", "br", "hr", "img", "input"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)
        assert self.open == [], "a tag is not closed"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text.append(data)


def test_it_has_every_section_and_picture(shipped):
    outline = Outline(shipped)
    headings = re.findall(r"<h2>(.*?)</h2>", shipped)
    assert headings == [
        "Verdict",
        "Causes",
        "Token probabilities",
        "Sequences",
        "Distribution of the log ratio",
        "Where the mismatch is",
        "The figures",
        "The worst tokens and sequences",
        "How it was computed",
    ]
    pictures = [attributes["class"] for tag, attributes in outline.tags if tag == "svg"]
    assert pictures.count("picture") == 8, "two of two logs, two of places, and two alone"
    assert pictures.count("key") == 6, "a legend of two logs where they share a picture"
    assert all("aria-label" in attributes for tag, attributes in outline.tags if tag == "figure")
    text = "".join(outline.text)
    for words in (
        "Raised mismatch",
        "Small mismatch",
        "7.8 times the mean |d|",
        "smollm2-135m.bf16.jsonl.gz",
    ):
        assert words in text


def test_it_needs_no_network(shipped):
    for tag, attributes in Outline(shipped).tags:
        assert tag not in ("script", "link", "iframe", "object"), tag
        for name in ("src", "href", "xlink:href"):
            target = attributes.get(name)
            assert target is None or tag == "a" or target.startswith(("#", "data:image/png;base64,")), target
    assert "@import" not in shipped and not re.search(r"url\((?!#)", shipped)


def test_ids_are_unique_and_every_reference_is_there(shipped):
    ids = re.findall(r'\bid="([^"]*)"', shipped)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', shipped)) <= set(ids)


def test_ink_is_the_page_s(shipped):
    for stand_in in plots.VARIABLES:
        assert stand_in not in shipped
    assert "var(--ink)" in shipped and "prefers-color-scheme: dark" in shipped and "@media print" in shipped
    assert "DejaVu" not in shipped, "text in pictures is in the page's font"


def test_the_same_logs_give_the_same_bytes(shipped):
    assert report([SHIPPED["bf16"], SHIPPED["fp16"]], ["bf16", "fp16"]) == shipped


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7*7 }}",
    "--><svg onload=alert(1)>",
    "$\\frac{$ _x",
    "_hidden",
    "&amp;",
    "長い名前の環境",
    "x" * 300,
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_from_a_log_stay_text(tmp_path, name):
    """In the label, in env_name, in the path, and in the error of a line that was left out."""
    path = tmp_path / (re.sub("/", "∕", name)[:60] + ".jsonl")
    write(path, *[sequence(env_name=name) for _ in range(3)], json.dumps({name: 1}) + "\n")
    diagnosis = Diagnosis(survey(open_log(path, label=name, skip_bad=True)))
    text = page.page([diagnosis], [judge(diagnosis)], options=["--skip-bad"])
    outline = Outline(text)
    assert {tag for tag, _ in outline.tags} <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "section",
        "h4",
        "article",
        "h1",
        "h2",
        "h3",
        "p",
        "a",
        "strong",
        "span",
        "ul",
        "li",
        "div",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "code",
        "details",
        "summary",
        "figure",
        "figcaption",
        "br",
        "sup",
        "footer",
        "svg",
        "g",
        "path",
        "defs",
        "clippath",
        "rect",
        "text",
        "tspan",
        "use",
        "image",
    }
    assert not any(attribute.startswith("on") for _, attributes in outline.tags for attribute in attributes)
    assert "".join(outline.text).count(name) >= 4, "the name itself is shown as it is"


def test_odd_logs_still_make_a_page(tmp_path):
    one = write(tmp_path / "one.jsonl", sequence())
    none = write(
        tmp_path / "none.jsonl",
        sequence(loss_mask=[False] * 4),
        sequence(loss_mask=[], trainer_logprobs=[], inference_logprobs=[], token_ids=[]),
    )
    same = write(tmp_path / "same.jsonl", *[sequence(trainer_logprobs=[0, -1, -2.5, -0.125])] * 3)
    far = write(tmp_path / "far.jsonl", *[sequence(trainer_logprobs=[0, -800, -1e30, -0.1])] * 3)
    ids = write(tmp_path / "ids.jsonl", sequence(token_ids=None, env_name=None))
    for path in (one, none, same, far, ids):
        Outline(report([path]))
    Outline(report([one, none, same, far, ids, one, one]))


def test_the_default_is_a_report_in_this_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(commands, ["diagnose", str(SHIPPED["fp16"])])
    assert result.exit_code == 0 and result.stdout.endswith("Report: lockstep-report.html\n")
    assert (tmp_path / "lockstep-report.html").read_text().startswith("<!doctype html>")
    assert CliRunner().invoke(commands, ["diagnose", str(SHIPPED["fp16"]), "--no-html"]).exit_code == 0


def test_a_report_of_ours_is_replaced_and_nothing_else(tmp_path):
    target = tmp_path / "report.html"
    page.write(target, report([SHIPPED["fp16"]]))
    page.write(target, "<!doctype html>\n" + page.GENERATOR + "\nnew")
    assert target.read_text().endswith("new")
    target.write_text("my thesis")
    result = CliRunner().invoke(commands, ["diagnose", str(SHIPPED["fp16"]), "--html", str(target)])
    assert result.exit_code == 2 and "is not a report of lockstep" in result.stderr
    assert target.read_text() == "my thesis"


def test_a_report_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "report.html"
    page.write(target, "<!doctype html>\n" + page.GENERATOR + "\nold")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        page.write(target, "new")
    assert target.read_text().endswith("old") and list(tmp_path.iterdir()) == [target]


def test_a_report_is_readable_as_other_files_are(tmp_path):
    target = tmp_path / "report.html"
    old = os.umask(0o022)
    try:
        page.write(target, page.GENERATOR)
    finally:
        os.umask(old)
    assert target.stat().st_mode & 0o777 == 0o644
