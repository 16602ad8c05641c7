"""The page of `lockstep locate`: one file that needs no network."""

from __future__ import annotations

import math

from markupsafe import Markup

from .locate import Finding
from .page import template

# What the picture shows: ends of the branches of a layer, and the stream they are added to.
LINES = ("attention output", "MLP down", "mixture of experts", "residual sum after the MLP")


def page(finding: Finding) -> str:
    """The report as one HTML document. The same finding gives the same bytes."""
    from . import plots  # matplotlib, for which nobody should wait who wants no page

    lines = []
    for name in LINES:
        found = [each for each in finding.differences if each.operation == name]
        if found:
            lines.append((name, [each.layer for each in found], [each.relative_rms for each in found]))
    return template("locate.html").render(finding=finding, growth=Markup(plots.growth(lines)), inf=math.inf)
