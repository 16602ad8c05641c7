"""Files that are written whole or not at all: the one home of what a command leaves behind beside logs and checkpoints."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all: a reader never sees half of one, and what was there stays until then.

    What UTF-8 does not have becomes "?". What is neither a file nor free, such as /dev/stdout, is written to as it is; of a
    link, what it leads to is replaced.
    """
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8", errors="replace")
        return
    path = Path(os.path.realpath(path))
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes it private; this is a file like others
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_json(path: Path, document: Any) -> None:
    """Writes a JSON document as `write_whole` does; NaN and infinity, which JSON does not have, are a ValueError."""
    write_whole(path, json.dumps(document, indent=2, allow_nan=False) + "\n")
