"""A figure as one SVG file, for documents: its panels in a grid under their key, light and dark."""

from __future__ import annotations

import re

from .curves import Figure

WIDTH, HEIGHT, COLUMNS, KEY = 480, 290, 2, 22
STYLE = """<style>
svg { --ink: #1b1f24; --quiet: #8b939c; --grid: #e6e8eb; --font: system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { svg { --ink: #e6e8ea; --quiet: #7d8794; --grid: #2a2f36; } }
</style>"""


def sheet(figure: Figure) -> str:
    """The figure's key and panels."""
    key_rows = -(-len(figure.keys) // COLUMNS)
    top = key_rows * KEY + 10
    parts = []
    for index, (picture, label) in enumerate(figure.keys):
        x, y = index % COLUMNS * WIDTH + 20, index // COLUMNS * KEY + 4
        parts.append(_placed(picture, x, y, 42, 14))
        parts.append(f'<text x="{x + 52}" y="{y + 12}" style="font: 13px var(--font); fill: var(--ink)">{label}</text>')
    for index, picture in enumerate(figure.panels):
        parts.append(_placed(picture, index % COLUMNS * WIDTH, top + index // COLUMNS * HEIGHT, WIDTH, HEIGHT))
    width, height = COLUMNS * WIDTH, top + -(-len(figure.panels) // COLUMNS) * HEIGHT
    return (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {width} {height}">\n'
            f'<title>{figure.heading}</title>\n{STYLE}\n' + "\n".join(parts) + "\n</svg>\n")


def _placed(picture: str, x: int, y: int, width: int, height: int) -> str:
    return re.sub(r'^<svg class="\w+" aria-hidden="true"', f'<svg x="{x}" y="{y}" width="{width}" height="{height}"', picture)
