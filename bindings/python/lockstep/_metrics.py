"""The statistics as a flat dictionary, for TensorBoard, W&B and MLflow."""

from __future__ import annotations

import math

from ._mismatch import LOG_RATIO_QUANTILES, Estimate, Mismatch


def metrics(mismatch: Mismatch, prefix: str = "lockstep/") -> dict[str, float]:
    """Names every number of a `Mismatch`, for loggers that take a flat dictionary of floats.

    A field keeps its name. Its standard error is ``..._se``; quantiles of d are ``log_ratio_p50``,
    ``log_ratio_p99_9`` and so on. A value that is undefined (NaN: no token counts, or fewer than two
    sequences for an error) is left out, because loggers disagree on what NaN is, and ``undefined`` counts
    how many were. Infinity stays: it is a value. Names never change meaning and are never taken away.

    Args:
        mismatch: what `mismatch` returned.
        prefix: put before each name.

    Returns:
        Name to value, in the order of the fields.

    Raises:
        Nothing.

    Example:
        >>> found = metrics(mismatch([[-1.0, -2.0]], [[-1.5, -2.0]]))
        >>> found["lockstep/mean_log_ratio"], found["lockstep/log_ratio_p50"]
        (0.25, 0.25)
        >>> "lockstep/mean_log_ratio_se" in found  # one sequence says nothing about the spread of sequences
        False
    """
    named: dict[str, float] = {}
    for name, value in vars(mismatch).items():
        if isinstance(value, Estimate):
            named[name], named[name + "_se"] = value
        elif name == "log_ratio_quantiles":
            named |= {f"log_ratio_p{_percent(share)}": each for share, each in zip(LOG_RATIO_QUANTILES, value)}
        elif name.endswith("_standard_error"):
            named[name.removesuffix("standard_error") + "se"] = value
        else:
            named[name] = value
    known = {prefix + name: float(value) for name, value in named.items() if not math.isnan(value)}
    return known | {prefix + "undefined": float(len(named) - len(known))}


def _percent(share: float) -> str:
    """0.999 is 99_9."""
    return f"{100 * share:.6g}".replace(".", "_")
