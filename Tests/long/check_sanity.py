"""The built-in experiment, whole: check_sanity.py RESULTS OUTPUT

RESULTS is a folder of `lockstep sanity` with the pairs bf16, fp16 and fp32 (independent engines) and GRPO, 500 steps. In
every format the mean reward over the last 100 steps is at least 0.95, and the mismatch is as the mantissa bits have it. What
was found is written to OUTPUT. `make check-long` makes the runs first. Minutes, not seconds.
"""

import json
import sys
from pathlib import Path


def main(folder, output):
    summary = json.loads((Path(folder) / "summary.json").read_text())
    assert summary["config"]["settings"]["steps"] == 500, "the experiment is 500 steps"
    cells = {cell["pair"]: cell["figures"] for cell in summary["cells"] if cell["algorithm"] == "grpo"}
    checks = [
        (cells[pair]["reward, at the end"]["value"] >= 0.95,
         f"{pair}: reward {cells[pair]['reward, at the end']['value']:.3f} over the last 100 steps")
        for pair in ("bf16", "fp16", "fp32")]
    for figure, low, high in (("KL, k3", 30, 130), ("KL, exact", 30, 130), ("mean |d|", 5, 12), ("rounding of a pass", 4, 16)):
        ratio = cells["bf16"][figure]["value"] / cells["fp16"][figure]["value"]
        checks.append((low <= ratio <= high, f"{figure}: bf16 over fp16 is {ratio:.1f}, in [{low}, {high}]"))
    for holds, text in checks:
        print("ok  " if holds else "FAIL", text)
    passed = sum(holds for holds, _ in checks)
    print(f"{passed} passed, {len(checks) - passed} failed")
    Path(output).write_text(json.dumps(summary | {"how": "make check-long"}, indent=2) + "\n")
    return passed != len(checks)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
