"""docs/Objectives.md: its code is that of the examples and the kernels, or runs; its picture is drawn from the library."""

import re

import numpy as np

from conftest import ROOT

PAGE = (ROOT / "docs" / "Objectives.md").read_text()


def snippets(language):
    return [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)]


def test_snippets_are_of_files_that_run():
    """`examples/run.sh` runs the examples; each shown part is one of theirs, or of the kernels'."""
    files = {
        "python": ["examples/python/objectives.py"], "swift": ["examples/swift/Sources/objectives/main.swift"],
        "c": ["examples/c/objectives.c", "Sources/CLockstepKernels/Body/objective_terms.h"]}
    for language, names in files.items():
        texts = "".join((ROOT / name).read_text() for name in names)
        shown = [each for each in snippets(language) if "lockstep.torch" not in each]
        assert shown
        for each in shown:
            assert each in texts, each


def test_the_pytorch_snippet(torch):
    import lockstep.torch

    rng = np.random.default_rng(1)
    trainer = torch.tensor(-rng.random((3, 4)))
    names = {
        "lockstep": lockstep, "trainer": trainer, "current": (trainer + 0.1).requires_grad_(),
        "advantages": torch.tensor(rng.normal(size=3)), "mask": torch.ones(3, 4, dtype=torch.bool),
        "weights": torch.ones(3, 4, dtype=torch.float64)}
    (text,) = [each for each in snippets("python") if "lockstep.torch" in each]
    exec(text, names)
    assert names["current"].grad.abs().sum() > 0 and names["report"].tokens == 12


def test_every_term_is_on_the_page():
    from lockstep import _library as c

    for words in (c.TERMS, c.AGGREGATIONS, c.DENOMINATORS):
        assert all(f"`{word}`" in PAGE for word in words)


def test_the_picture_shows_the_formulas(monkeypatch):
    """What its curves are, where a formula is at hand."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("picture", ROOT / "docs" / "pictures" / "objectives.py")
    picture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(picture)
    ratio = np.array([0.5, 1.0, 2.0, 5.0])
    clip = dict(next(iter(picture.TERMS.values())))
    assert np.allclose(picture.weights(clip, ratio, 1.0), [0.5, 1, 0, 0])
    assert np.allclose(picture.weights(clip, ratio, -1.0), [0, 1, 2, 0])
    assert np.allclose(picture.weights({"term": "topr"}, ratio, -1.0), [0.5, 1, 1, 1])
    assert np.allclose(picture.weights({"term": "reinforce"}, ratio, 1.0), 1)
