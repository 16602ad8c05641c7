"""Tables in blocks: a block for each of something, in it a line for each statistic, a column for each case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from .rows import Cell


@dataclass(frozen=True)
class Line:
    """A statistic, with a cell for each column."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Block:
    """The lines under a heading."""

    heading: str
    lines: tuple[Line, ...]


def render(title: str, columns: Sequence[str], blocks: Sequence[Block]) -> Table:
    """The table in a terminal."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0), title_justify="left",
                  title=title, title_style="bold")
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for block in blocks:
        table.add_row(Text(block.heading, "bold"))
        for line in block.lines:
            table.add_row("  " + line.name, *map(str, line.cells))
    return table
