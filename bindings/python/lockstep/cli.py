"""The entry point of the `lockstep` command."""

from __future__ import annotations

import sys

# What `pip install 'lockstep[report]'` adds to the library's NumPy.
REPORT_PACKAGES = {"click", "jinja2", "markupsafe", "matplotlib", "orjson", "rich"}


def main() -> None:
    """Runs the command; without its packages, says in one line how to install them."""
    try:
        from .commands import commands
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in REPORT_PACKAGES:
            raise
        print(f"lockstep: the command line needs {missing.name}: pip install 'lockstep[report]'", file=sys.stderr)
        sys.exit(2)
    commands(prog_name="lockstep")


if __name__ == "__main__":
    main()
