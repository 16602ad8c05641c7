"""The diagnosis in a terminal: the table, and the verdict in words under it."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .diagnosis import Diagnosis
from .rows import percent, sure, table
from .verdict import Level, Verdict, compare

LEVEL_STYLES: dict[Level, str] = {
    "unknown": "bold", "exact": "bold green", "small": "bold green", "raised": "bold yellow",
    "severe": "bold red",
}
WIDEST_PROSE = 100
MOST_ADVICE = 2  # of a cause; the report has all


def printable(text: str) -> str:
    """Text from a log or a path without control characters, which could drive the terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def render(diagnoses: Sequence[Diagnosis], verdicts: Sequence[Verdict], *, every: bool = False) -> Group:
    """Table and verdict, for `rich.console.Console.print`."""
    parts: list[RenderableType] = [_table(diagnoses, every), Text()]
    said: set[str] = set()
    for diagnosis, verdict in zip(diagnoses, verdicts, strict=True):
        parts.append(Text.assemble((printable(diagnosis.label), "bold"), "  ",
                                   (verdict.headline, LEVEL_STYLES[verdict.level])))
        for suspect in verdict.causes:
            explanation = suspect.explanation
            parts.append(_item("?", Text.assemble(
                (explanation.title, "bold"), f" ({sure(suspect.confidence)} sure, explains about"
                f" {percent(suspect.score)}). {explanation.what} {explanation.why}")))
            parts += [_item("→", Text(advice), 4) for advice in explanation.advice[:MOST_ADVICE]]
        for finding in verdict.findings:
            text = Text(finding.text + ".")
            if finding.source:
                text.append(f"  [{finding.source}]", "dim")
            parts.append(_item("·", text))
        for advice in verdict.advice:
            if advice not in said:
                parts.append(_item("→", Text(advice)))
                said.add(advice)
        parts.append(Text())
    if len(diagnoses) == 2:
        parts.append(Text(printable(compare(*diagnoses))))
    return Group(*parts)


def print_diagnosis(console: Console, diagnoses: Sequence[Diagnosis], verdicts: Sequence[Verdict], *,
                    every: bool = False) -> None:
    """Prints the table as wide as it needs where the output is a file, and prose no wider than reads well."""
    content = render(diagnoses, verdicts, every=every)
    if not console.is_terminal:
        console.width = max(WIDEST_PROSE, console.measure(content.renderables[0]).maximum)
    console.print(content.renderables[0])
    console.print(Group(*content.renderables[1:]), width=min(console.width, WIDEST_PROSE))


def _table(diagnoses: Sequence[Diagnosis], every: bool) -> Table:
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    out.add_column("", no_wrap=True)
    for diagnosis in diagnoses:
        out.add_column(Text(printable(diagnosis.label)), justify="right", overflow="fold")
    if len(diagnoses) == 2:
        out.add_column("first / second", justify="right", style="bold")
    group = None
    for line in table(diagnoses, every=every):
        if line.row.group != group:
            group = line.row.group
            out.add_row(Text(group, "dim"))
        cells = [Text(str(value)) for value in line.cells]
        out.add_row(Text("  " + line.row.name), *cells,
                    *([Text(str(line.ratio))] if line.ratio is not None else []))
    return out


def _item(mark: str, text: Text, indent: int = 2) -> Padding:
    """A bulleted paragraph with a hanging indent."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=1)
    grid.add_column(ratio=1)
    grid.add_row(mark, text)
    return Padding(grid, (0, 0, 0, indent))
