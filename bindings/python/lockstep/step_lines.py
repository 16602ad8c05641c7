"""The steps of a run as lines of JSON: written one by one, and cut back to a checkpoint when a run goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from .whole_files import write_whole


class StepLines:
    """A file of JSON lines, each of which has a "step"."""

    def __init__(self, path: Path, last_step: int) -> None:
        """Opens the file for what comes after a step, 0 to begin anew; later lines are dropped."""
        kept = []
        if path.exists() and last_step:
            kept = [line for line in path.read_text().splitlines(keepends=True) if _step(line) <= last_step]
        write_whole(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8")

    def add(self, line: dict[str, Any]) -> None:
        """Writes a line; what is not finite becomes null."""
        self._file.write(json.dumps(finite(line)) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _step(line: str) -> float:
    """The step of a line; infinite where the line was cut off."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf


def finite(value: Any) -> Any:
    """Plain values, with None for what is not finite, which JSON has not."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
