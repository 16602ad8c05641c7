"""The commands of `lockstep`, with click: small, settled, and its help text is ours to write.

One file a command. What a command computes is elsewhere; here are arguments, progress, output and exit
status (0 success, 2 usage or bad input, 70 an error in Lockstep itself; what else a command exits with is in its
help).
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

import lockstep

__all__ = ["commands"]

# Each command, and the file that it is in.
FILES = {
    name: name
    for name in ("advise", "audit", "certify", "convert", "diagnose", "locate", "offline", "presets", "sanity", "scaler",
                 "train", "watch")
} | {"pretrain": "train"}


class Commands(click.Group):
    """A command's file is imported when the command is wanted: the others would take time, and megabytes."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted(FILES)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name in FILES and name not in self.commands:
            self.add_command(getattr(import_module(f".{FILES[name]}", __package__), name))
        return super().get_command(context, name)


@click.group(cls=Commands)
@click.version_option(
    lockstep.__version__, prog_name="lockstep", message=f"%(prog)s, version %(version)s ({lockstep.binding})")
def commands() -> None:
    """Keep the policy you train and the policy you sample from the same policy."""
    for stream in (sys.stdout, sys.stderr):  # an old terminal without π shows ? instead of failing
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
