"""The HTML report: one file that needs no network, safe against whatever stands in a log."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

import lockstep

from .._memory import give_back_memory
from ..whole_files import write_whole
from .diagnosis import Diagnosis
from .rows import number, percent, sure, table
from .verdict import LENGTHS, SOURCES, Verdict, compare

# It takes a third of the memory of a whole report, so it is loaded when the log has been read, but missed before.
if find_spec("matplotlib") is None:
    raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

# By this line, near the top of every report, a file is known to be one of ours and may be replaced.
GENERATOR = '<meta name="generator" content="lockstep">'
WORST = 12


def check_path(path: Path) -> None:
    """Raises OSError where a report cannot or must not be written; to be asked before hours of reading."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; give the name of a file")
    if path.exists():
        with open(path, "rb") as file:
            if GENERATOR.encode() not in file.read(1024):
                raise FileExistsError(
                    f"{path}: exists and is not a report of lockstep; move it, or give another --html PATH")


def template(name: str) -> Template:
    """A page of this folder, everything in it escaped."""
    folder = files(__package__)
    environment = Environment(
        loader=FunctionLoader(lambda part: folder.joinpath(part).read_text(encoding="utf-8")), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=number, percent=percent, sure=sure)
    environment.globals.update(
        generator=Markup(GENERATOR), version=lockstep.__version__,
        style=Markup(folder.joinpath("style.css").read_text(encoding="utf-8")))
    return environment.get_template(name)


def page(diagnoses: Sequence[Diagnosis], verdicts: Sequence[Verdict], *, options: Sequence[str] = ()) -> str:
    """The report as one HTML document. The same logs give the same bytes.

    Args:
        diagnoses, verdicts: one of each a log, in the order of the columns.
        options: the options that changed what was measured, as they were given.
    """
    give_back_memory()  # reading leaves much
    from . import plots

    scatter = [Markup(panel) for panel in plots.scatter(diagnoses)]  # of all pictures the one that takes most
    has_steps = any(len(each.steps) > 1 for each in diagnoses)
    distribution, outside = plots.distribution(diagnoses)
    return template("page.html").render(
        options=options,
        logs=list(zip(diagnoses, verdicts, strict=True)),
        colours=plots.COLOURS,
        key=lambda index, place: Markup(plots.key(index, place)),
        comparison=compare(*diagnoses) if len(diagnoses) == 2 else None,
        main_rows=table(diagnoses),
        all_rows=table(diagnoses, every=True),
        sources=SOURCES,
        lengths=LENGTHS,
        scatter=scatter,
        sequences=[Markup(panel) for panel in plots.sequences(diagnoses)],
        distribution=Markup(distribution),
        outside=outside,
        where=[Markup(panel) for panel in plots.where(diagnoses)],
        fewest=plots.FEWEST_IN_BUCKET,
        weight=Markup(plots.sequence_weight(diagnoses)),
        worst_tokens=[diagnosis.worst_tokens[:WORST] for diagnosis in diagnoses],
        worst_sequences=[diagnosis.worst_sequences[:WORST] for diagnosis in diagnoses],
        steps=[Markup(panel) for panel in plots.steps(diagnoses)] if has_steps else [],
    )


def write(path: Path, text: str) -> None:
    """Writes the report whole or not at all: a reader never sees half of one."""
    check_path(path)
    write_whole(path, text)
