"""How well causes are found in logs whose causes are known: the confusion matrix of docs/Causes.md.

    python Tests/Conformance/causes_validation.py [--to benchmarks/results/causes.json]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from causes_logs import LabelledLog, pairs, singles  # noqa: E402

import lockstep  # noqa: E402


@dataclass
class Result:
    """What was found in a set of logs."""

    logs: int = 0
    exact: int = 0
    """Logs in which what was found is what was there, no more and no less."""
    first: int = 0
    """Logs in which the cause ranked first is one that was there."""
    there: Counter = field(default_factory=Counter)
    found: Counter = field(default_factory=Counter)
    """Of the causes that were there."""
    false: Counter = field(default_factory=Counter)
    matrix: Counter = field(default_factory=Counter)
    misses: list[str] = field(default_factory=list)

    def to_dict(self) -> dict:
        return {
            "logs": self.logs, "exact": self.exact, "first": self.first,
            "found": {cause: [self.found[cause], self.there[cause]] for cause in sorted(self.there)},
            "false": dict(sorted(self.false.items())),
            "matrix": [{"is": true, "found": found, "logs": count}
                       for (true, found), count in sorted(self.matrix.items())],
            "misses": self.misses,
        }


def judge(log: LabelledLog) -> list[lockstep.Cause]:
    accumulator = lockstep.MismatchAccumulator()
    accumulator.update(log.trainer, log.rollout, offsets=log.offsets, threads=1)
    return accumulator.causes()


def faults(causes: list[lockstep.Cause]) -> frozenset[str]:
    """What was found, "rounding" only where it is alone."""
    found = {cause.name for cause in causes if cause.found}
    return frozenset(found - {"rounding"} or found)


def validate(logs: Iterable[LabelledLog]) -> Result:
    result = Result()
    for log in logs:
        causes = judge(log)
        true, found = log.causes or frozenset({"rounding"}), faults(causes)
        result.logs += 1
        result.first += next((c.name for c in causes if c.name in found), "nothing") in true
        result.exact += true == found
        result.there.update(true)
        result.found.update(true & found)
        result.false.update(found - true)
        result.matrix[" + ".join(sorted(true)), " + ".join(sorted(found)) or "nothing"] += 1
        if true != found:
            result.misses.append(f"{log.name}: found {', '.join(sorted(found)) or 'nothing'}")
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, metavar="FILE.json")
    arguments = parser.parse_args()
    results = {}
    for part, name in ((0, "development"), (1, "held out")):
        for kind, logs in (("single", singles(part, 10 + part)), ("pairs", pairs(part, 20 + part))):
            result = results[f"{name}, {kind}"] = validate(logs).to_dict()
            print(f"{name}, {kind}: {result['exact']} of {result['logs']} exactly, {result['first']} first;",
                  ", ".join(f"{cause} {a}/{b}" for cause, (a, b) in result["found"].items()),
                  "; false:", result["false"])
    if arguments.to:
        arguments.to.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
