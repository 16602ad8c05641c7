"""`lockstep presets`: the field's named algorithms, and what each means."""

from __future__ import annotations

import json
import math
from typing import Any

import click

import lockstep

from .shared import told

SCHEMA = "lockstep-presets/1"


@click.command(short_help="The field's named algorithms, and what each means.")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True,
              help="Print one JSON document with every option (null: no bound), not the text.")
def presets(name: str | None, as_json: bool) -> None:
    """What does a named algorithm mean?

    Lists the presets; with NAME prints its weights, mask, advantage, term and aggregation, and what of it is not
    confirmed. In Python lockstep.preset(NAME) computes with it.

    \b
    All names:
        lockstep presets
    The paper's GRPO with truncated importance weights of tokens:
        lockstep presets paper/grpo-token-tis
    """
    with told():
        found = [lockstep.preset(each) for each in ([name] if name else lockstep.presets())]
    if as_json:
        document = {"schema": SCHEMA, "lockstep_version": lockstep.__version__,
                    "presets": [_finite(each.to_dict()) for each in found]}
        click.echo(json.dumps(document, indent=2, allow_nan=False))
    elif name:
        click.echo(found[0].text)
    else:
        width = max(len(each.name) for each in found)
        for each in found:
            click.echo(f"{each.name:{width}}  {each.summary}")


def _finite(value: Any) -> Any:
    """The value with null for infinities, which are no bounds."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and math.isinf(value) else value
