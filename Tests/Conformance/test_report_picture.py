"""What the HTML report looks like, in a browser: light and dark, on a desk and on a phone.

A headless Chromium draws it; without one, or without Pillow, the tests are skipped. Some of them must hold of any
report: nothing sticks out, colours are the theme's, no picture is empty, no part of the page is blank, and text in
pictures is legible. The last compares verdicts and pictures with small stored ones in expected/, block by block, so
that another font passes, and a line, a picture or a colour that is lost does not. After a change that is meant:

    LOCKSTEP_UPDATE_PICTURES=1 python -m pytest Tests/Conformance/test_report_picture.py

writes these anew; look at them before you commit them.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import sanity_runs
from click.testing import CliRunner
from conftest import VECTORS
from report_logs import write_run
from rollouts import SHIPPED

from lockstep.commands import commands
from lockstep.logs import open_log
from lockstep.report import page, sanity
from lockstep.report.diagnosis import Diagnosis
from lockstep.report.verdict import judge
from lockstep.survey import survey

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

EXPECTED = Path(__file__).parent / "expected"
SCHEMES = {"dark": 0, "light": 1}  # as Chromium counts them
WIDTHS = {"wide": 1100, "phone": 400}
# Pictures of each report.
PICTURES = {"sanity": 14, "logs": 8, "run": 10, "offline": 8, "locate": 1, "scaler": 7}
TILE = (24, 16)  # blocks a picture is compared in
# How far a block may be off, of 255, in the mean over a tile. Tones are text as much as pictures: another font moves
# those of verdicts by up to 11, of pictures by 1.5 (measured with serif and monospaced ones). Colours are clouds, lines
# and marks alone: fonts move them by up to 0.3, a cloud that is lost by 0.55 or more.
TONES, COLOURS = {"verdicts": 15.0, "pictures": 3.0}, 0.5

# A script that a copy of the page gets, as the page itself has none: it tells where things are. The copy stands in
# a frame, as a window of Chromium has a smallest width, which is wider than a phone.
MEASURE = """<script>addEventListener("load", () => {
  const all = pattern => [...document.querySelectorAll(pattern)];
  const box = element => { const {left, top, right, bottom} = element.getBoundingClientRect();
    return [left, top, right, bottom].map(Math.round); };
  parent.postMessage({seen_at: innerWidth,
    width: document.documentElement.scrollWidth, height: document.documentElement.scrollHeight,
    verdicts: all(".verdict").map(box), pictures: all(".picture").map(box),
    text: all(".picture text").map(each => each.getBoundingClientRect().height),
    sticking_out: all("body *").filter(each => !each.closest(".scroll, svg")
      && each.getBoundingClientRect().right > innerWidth).map(each => each.outerHTML.slice(0, 80))}, "*");
});</script>"""
FRAMES = """<!doctype html><title>frames</title><body><script>
const found = {}; onmessage = message => { found[message.data.seen_at] = message.data; };
setTimeout(() => { document.body.textContent = JSON.stringify(found); }, 5000);</script>"""


@dataclass(frozen=True)
class View:
    """A report as it is seen."""

    name: str
    width: int
    found: dict
    pixels: np.ndarray
    """[height, width, 3], uint8."""
    written: np.ndarray
    """[height, width], where something else than paper is."""
    theme: dict[str, tuple[int, ...]]
    """The colours that the page's style gives this scheme."""

    def cut(self, box: list[int], of: np.ndarray) -> np.ndarray:
        left, top, right, bottom = box
        return of[top:bottom, left:right]


def chromium(profile: Path, *arguments: str) -> str:
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}",
         *arguments], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def theme(text: str, scheme: str) -> dict[str, tuple[int, ...]]:
    """The colour variables of the page's style sheet, as RGB."""
    before_print = text[:text.index("@media print")]
    blocks = re.findall(r":root \{(.*?)\}", before_print, re.DOTALL)
    colours: dict[str, tuple[int, ...]] = {}
    for block in blocks[: 2 if scheme == "dark" else 1]:
        for name, digits in re.findall(r"--(\w+): #([0-9a-f]{3,6});", block):
            digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
            colours[name] = tuple(bytes.fromhex(digits))
    return colours


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, Path]:
    """A report on two logs, one on a training run with many steps, and the pages of other commands."""
    folder = tmp_path_factory.mktemp("reports")
    logs = {"logs": [(SHIPPED["bf16"], "bf16"), (SHIPPED["fp16"], "fp16")],
            "run": [(write_run(folder / "run.jsonl"), "run")]}
    for name, paths in logs.items():
        diagnoses = [Diagnosis(survey(open_log(path, label=label))) for path, label in paths]
        (folder / f"{name}.html").write_text(page.page(diagnoses, [judge(each) for each in diagnoses]))
    model, prompts = VECTORS / "models" / "llama_untied", folder / "prompts.txt"
    prompts.write_text("11 3 58 7\n5 1 2\n96\n20 21 22 23\n")
    rng = np.random.default_rng(5)
    maxima = np.exp(rng.normal(-3, 1, 3000))
    maxima[::400] *= 1e3
    (folder / "gradients.jsonl").write_text("".join(json.dumps({"max_abs_grad": float(each)}) + "\n" for each in maxima))
    for name, arguments in {
        "offline": (model, "--prompts", prompts, "--samples", 8, "--max-tokens", 60, "--recipe", "bf16", "--recipe", "fp16"),
        "locate": (model, "--trainer", "bf16", "--rollout", "fp16"),
        "scaler": (folder / "gradients.jsonl",),
    }.items():
        done = CliRunner().invoke(commands, [name, *map(str, arguments), "--html", str(folder / f"{name}.html")])
        assert done.exit_code == 0, done.output
    runs = sanity_runs.write(tmp_path_factory.mktemp("sanity"))
    (folder / "sanity.html").write_text(sanity.page(sanity.PRECISION, runs))
    return {name: folder / f"{name}.html" for name in PICTURES}


@pytest.fixture(scope="module")
def places(reports, tmp_path_factory) -> dict[str, dict[str, dict]]:
    """Where things are in each report, at each width."""
    folder, found = tmp_path_factory.mktemp("places"), {}
    for name, path in reports.items():
        copy = folder / f"{name}.html"
        copy.write_text(path.read_text().replace("</head>", MEASURE + "</head>"))
        frames = [f'<iframe src="{copy.as_uri()}" style="border: 0; width: {width}px"></iframe>'
                  for width in WIDTHS.values()]
        (folder / "frames.html").write_text(FRAMES + "".join(frames))
        dom = chromium(folder / "profile", "--window-size=1600,1000", "--virtual-time-budget=10000", "--dump-dom",
                       (folder / "frames.html").as_uri())
        by_width = json.loads(html.unescape(re.search(r"<body>(.*)</body>", dom, re.DOTALL).group(1)))
        found[name] = {kind: by_width[str(width)] for kind, width in WIDTHS.items()}
    return found


@pytest.fixture(scope="module", params=[
    (report, scheme, width) for report in PICTURES for scheme in SCHEMES for width in WIDTHS],
    ids="-".join)
def view(request, reports, places, tmp_path_factory) -> View:
    report, scheme, name = request.param
    folder, found = tmp_path_factory.mktemp("view"), places[report][name]
    chromium(folder / "profile", f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
             f"--window-size={WIDTHS[name]},{found['height']}", f"--screenshot={folder / 'page.png'}",
             reports[report].as_uri())
    with Image.open(folder / "page.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    colours = theme(reports[report].read_text(), scheme)
    paper = np.array(colours["paper"], np.int16)
    return View("-".join(request.param), WIDTHS[name], found, pixels, (np.abs(pixels - paper) > 8).any(axis=2), colours)


def test_nothing_sticks_out(view):
    assert view.found["sticking_out"] == []
    assert view.found["width"] == view.width and view.pixels.shape == (view.found["height"], view.width, 3)
    assert not view.written[:, -8:].any(), "the right margin is paper"


def test_colours_are_the_theme_s(view):
    assert (view.pixels == view.theme["paper"]).all(axis=2).mean() > 0.5, "most of the page is paper"
    assert (view.pixels == view.theme["ink"]).all(axis=2).sum() > 1000, "text and lines have the ink's colour"


def test_no_picture_is_empty(view):
    """Each has ink in every quarter, and a series' colour, which is no grey, somewhere."""
    assert len(view.found["pictures"]) == PICTURES[view.name.split("-")[0]]
    for box in view.found["pictures"]:
        written, picture = view.cut(box, view.written), view.cut(box, view.pixels)
        assert written.shape[1] >= 0.8 * min(view.width, 480) and written.shape[0] > 150
        for half in np.array_split(written, 2):
            for quarter in np.array_split(half, 2, axis=1):
                assert quarter.mean() > 0.005
        assert (np.ptp(picture, axis=2) > 60).mean() > 0.0005


def test_text_in_pictures_is_legible(view):
    """A line of it is as high as one of 9 pixels' type, or higher."""
    assert min(view.found["text"]) >= 9


def test_no_part_of_the_page_is_blank(view):
    """Nowhere is a band without ink higher than 120 pixels."""
    written = np.flatnonzero(view.written.any(axis=1))
    assert np.diff(written, prepend=0, append=len(view.written)).max() <= 120


def test_it_looks_as_it_did(view):
    """Verdicts and pictures, block by block, beside those in expected/."""
    kinds = {kind: view.found[kind] for kind in TONES}
    strip = np.concatenate([
        np.asarray(Image.fromarray(view.cut(box, view.pixels)).resize(TILE, Image.Resampling.BOX))
        for boxes in kinds.values() for box in boxes])
    path = EXPECTED / f"report-{view.name}.png"
    if os.environ.get("LOCKSTEP_UPDATE_PICTURES"):
        Image.fromarray(strip).save(path, optimize=True)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    assert strip.shape == expected.shape, "as many verdicts and pictures as there were"
    off = (strip.astype(float) - expected).reshape(-1, TILE[0] * TILE[1], 3)
    tones = np.abs(off.mean(axis=2)).mean(axis=1)
    colours = np.abs(off - off.mean(axis=2, keepdims=True)).mean(axis=(1, 2))
    allowed = [TONES[kind] for kind, boxes in kinds.items() for _ in boxes]
    assert (tones < allowed).all(), tones.round(1)
    assert colours.max() < COLOURS, colours.round(2)
