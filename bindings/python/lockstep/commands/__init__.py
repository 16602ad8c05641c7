"""The commands of `lockstep`, with click: small, settled, and its help text is ours to write.

One file a command. What a command computes is elsewhere; here are arguments, progress, output and exit
status (0 success, 2 usage or bad input, 70 an error in Lockstep itself; what else a command exits with is in its
help).
"""

from __future__ import annotations

import sys

import click

import lockstep

from .advise import advise
from .audit import audit
from .certify import certify
from .convert import convert
from .diagnose import diagnose
from .locate import locate
from .offline import offline
from .presets import presets
from .sanity import sanity
from .scaler import scaler
from .train import pretrain, train
from .watch import watch

__all__ = ["commands"]


@click.group()
@click.version_option(lockstep.__version__, prog_name="lockstep")
def commands() -> None:
    """Keep the policy you train and the policy you sample from the same policy."""
    for stream in (sys.stdout, sys.stderr):  # an old terminal without π shows ? instead of failing
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


for command in (diagnose, certify, advise, watch, convert, presets, audit, offline, locate, scaler, train, pretrain,
                sanity):
    commands.add_command(command)
