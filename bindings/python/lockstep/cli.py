"""The entry point of the `lockstep` command."""

from __future__ import annotations

import sys

# What `pip install 'lockstep[report]'` adds to the library's NumPy.
REPORT_PACKAGES = {"click", "jinja2", "markupsafe", "matplotlib", "rich"}


def main() -> None:
    """Runs the command; without its packages, says in one line how to install them."""
    try:
        from .commands import commands

        commands(prog_name="lockstep")
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in REPORT_PACKAGES:
            raise
        print(f"lockstep: the command line needs {package}: pip install 'lockstep[report]'", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
