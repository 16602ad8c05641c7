"""The diagnosis for machines: one JSON document with every statistic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import lockstep

from ..step_lines import finite
from .diagnosis import Diagnosis
from .verdict import LENGTHS, Verdict, compare

SCHEMA = "lockstep-diagnose/1"


def document(diagnoses: Sequence[Diagnosis], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Plain dicts, lists, numbers and strings. NaN and infinities are None, as JSON has neither.

    ``logs[i].mismatch`` has the fields of lockstep_mismatch in lockstep.h under their names; keys are only
    ever added. ``comparison`` is None unless there are exactly two logs.
    """
    return finite({
        "schema": SCHEMA,
        "lockstep_version": lockstep.__version__,
        "logs": [_log(diagnosis, verdict) for diagnosis, verdict in zip(diagnoses, verdicts, strict=True)],
        "comparison": _comparison(*diagnoses) if len(diagnoses) == 2 else None,
    })


def _log(diagnosis: Diagnosis, verdict: Verdict) -> dict[str, Any]:
    survey, weight = diagnosis.survey, diagnosis.sequence_weight
    return {
        "label": survey.label,
        "files": [asdict(survey.files[index]) for index in sorted(survey.files)],
        "header": survey.header,
        "skipped_lines": survey.skipped_lines,
        "mismatch": diagnosis.statistics.to_dict(),
        "log_ratio_quantile_levels": list(lockstep.LOG_RATIO_QUANTILES),
        "sequence_weight": {
            "variance_per_token": weight.variance_per_token,
            "half_life": weight.half_life,
            "ess_by_length": {str(length): weight.ess(length) for length in LENGTHS},
        },
        "causes": [{"name": cause.name, "found": cause.found, "confidence": cause.confidence, "score": cause.score}
                   for cause in diagnosis.causes],
        "evidence": asdict(diagnosis.evidence),
        "steps": [{"step": step, "mismatch": values.to_dict(), "alarm": asdict(alarm)}
                  for (step, values), alarm in zip(diagnosis.steps, diagnosis.alarms, strict=True)],
        "verdict": asdict(verdict),
    }


def _comparison(first: Diagnosis, second: Diagnosis) -> dict[str, Any]:
    def ratio(key: str) -> float:
        above, below = (getattr(d.statistics, key).value for d in (first, second))
        return above / below if below else math.nan

    return {
        "first": first.label,
        "second": second.label,
        "mean_abs_log_ratio_ratio": ratio("mean_abs_log_ratio"),
        "k3_ratio": ratio("k3"),
        "text": compare(first, second),
    }
