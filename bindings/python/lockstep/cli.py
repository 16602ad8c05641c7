"""The entry point of the `lockstep` command."""

from __future__ import annotations

import os
import sys
import traceback

# What `pip install 'lockstep[report]'` adds to the library's NumPy.
REPORT_PACKAGES = {"click", "jinja2", "markupsafe", "matplotlib", "rich"}


# Exit statuses of the command itself, beside those of its commands: an error in Lockstep (sysexits.h, EX_SOFTWARE),
# and, as shells have it, the end by SIGINT and SIGPIPE. None is 1, which certify exits with where a log fails.
INTERNAL_ERROR, INTERRUPTED, PIPE_CLOSED = 70, 130, 141


def main() -> None:
    """Runs the command; without its packages, says in one line how to install them."""
    try:
        sys.exit(_run())
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in REPORT_PACKAGES:
            sys.exit(_unexpected())
        print(f"lockstep: the command line needs {package}: pip install 'lockstep[report]'", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `lockstep … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        sys.exit(PIPE_CLOSED)
    except Exception:
        sys.exit(_unexpected())


def _run() -> int | None:
    import click

    from .commands import commands

    try:
        status = commands(prog_name="lockstep", standalone_mode=False)
        sys.stdout.flush()
        return status
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        print("Aborted!", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as ended:  # with 1, click or rich, which met a closed pipe: a command's own 1 is returned
        return PIPE_CLOSED if ended.code == 1 else ended.code


def _unexpected() -> int:
    traceback.print_exc()
    print("lockstep: an error in Lockstep itself, not in its input: please report the lines above", file=sys.stderr)
    return INTERNAL_ERROR


if __name__ == "__main__":
    main()
