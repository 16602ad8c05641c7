"""Keeps the policy you train and the policy you sample from numerically the same policy.

In RL fine-tuning one engine samples (the rollout policy mu) and another trains (the trainer policy pi).
Same weights, different rounding: mu != pi. This package computes log-probs whose bits depend on their
inputs alone, and measures how far two engines are apart.

    >>> import lockstep, numpy as np
    >>> logits = np.array([[1, 2, 3, 4], [0, 0, 8, 0]], np.float32)
    >>> lockstep.log_probs(logits, [3, 2])
    array([-0.44018972, -0.00100588], dtype=float32)

Arrays are NumPy arrays, PyTorch CPU tensors, or anything with ``__dlpack__`` or
``__array_interface__``; they are read in place, and results come back as NumPy arrays, or as PyTorch
tensors where PyTorch tensors were given. Letters in shapes: tokens (rows), vocab (columns of the
logits), H (hidden size); ``[...]`` is any number of leading dimensions. Logarithms are natural.
Calls release the GIL, and may be made from many threads at once; `binding` says which way they are made, by
the "extension" where it is built, else by "ctypes". `lockstep.torch` has the same
log-probs for PyTorch's autograd.
"""

from . import _library
from ._accumulator import MismatchAccumulator
from ._advantages import advantages, overlong_penalty
from ._audit import Headroom, audit_headroom
from ._binding import binding
from ._causes import Cause, CauseEvidence
from ._corrections import Correction, Rejection, RejectionCount, WeightStatistics, correct
from ._errors import (
    BadDataError, FileError, InternalError, InvalidArgumentError, LockstepError, NonFiniteError,
    OutOfMemoryError, UnsupportedError,
)
from ._formats import Converted, ConvertCounts, convert, ulp_distance
from ._log_file import LogHeader, LogReader, LogRecords, LogSummary, LogWriter
from ._log_probs import (
    Head, LinearGradients, LogProbs, linear_log_probs, linear_log_probs_backward, log_probs,
    log_probs_backward,
)
from ._loading import loading
from ._locate import Difference, Location, dump, locate, measure_difference
from ._metrics import metrics
from ._mismatch import (
    LOG_RATIO_QUANTILES, Divergence, Estimate, ExactMismatch, Mismatch, exact_mismatch, mismatch,
    mismatch_profile, mismatch_sequences,
)
from ._models import ORDERS, CountedScores, Model, Overflows, Recipe, Rollout, RolloutEngine, Scores
from ._monitor import Alarm, Monitor, Reading
from ._objectives import (
    Objective, ObjectiveCounts, ObjectiveLoss, ObjectiveReport, adapted_kl_coefficient, covariance_select,
    kl_penalty, objective_loss,
)
from ._optimizer import (
    AdamW, AdamWStep, GradientNorm, LossScaler, Replay, ScalerReport, adamw_step, gradient_norm, learning_rate,
    loss_scaler_names, replay_loss_scaler,
)
from ._presets import Preset, preset, presets
from ._runs import (
    Environment, RolloutRequest, Run, StepMetrics, SupervisedMetrics, SupervisedRun, draw_rollouts, perfectible,
)
from ._tasks import Task, task_names
from ._trainer import Backward, Parameter, Trainer
from .advice import Advice, advise
from .certificate import Certificate, certify

__all__ = [
    "AdamW", "AdamWStep", "Advice", "Alarm", "Backward", "BadDataError", "Cause", "CauseEvidence", "Certificate",
    "ConvertCounts", "Converted", "Correction", "CountedScores", "Difference", "Divergence", "Environment",
    "Estimate", "ExactMismatch", "FileError", "GradientNorm", "Head", "Headroom", "InternalError",
    "InvalidArgumentError", "LOG_RATIO_QUANTILES", "LinearGradients", "Location", "LockstepError", "LogHeader",
    "LogProbs", "LogReader", "LogRecords", "LogSummary", "LogWriter", "LossScaler", "Mismatch",
    "MismatchAccumulator", "Model", "Monitor", "NonFiniteError", "ORDERS", "Objective", "ObjectiveCounts",
    "ObjectiveLoss", "ObjectiveReport", "OutOfMemoryError", "Overflows", "Parameter", "Preset", "Reading",
    "Recipe", "Rejection", "RejectionCount", "Replay", "Rollout", "RolloutEngine", "RolloutRequest", "Run",
    "ScalerReport", "Scores", "StepMetrics", "SupervisedMetrics", "SupervisedRun", "Task", "Trainer",
    "UnsupportedError", "WeightStatistics", "adamw_step", "adapted_kl_coefficient", "advantages", "advise",
    "audit_headroom", "binding", "certify", "convert", "correct", "covariance_select", "draw_rollouts", "dump",
    "exact_mismatch", "gradient_norm", "has_instruction_set", "kl_penalty", "learning_rate", "linear_log_probs",
    "linear_log_probs_backward", "loading", "locate", "log_probs", "log_probs_backward", "loss_scaler_names",
    "measure_difference", "metrics", "mismatch", "mismatch_profile", "mismatch_sequences", "objective_loss",
    "overlong_penalty", "perfectible", "preset", "presets", "replay_loss_scaler", "task_names", "ulp_distance",
]

#: The version of the library that is loaded.
__version__: str = _library.library.lockstep_version_string().decode()


def has_instruction_set(name: str) -> bool:
    """Whether this machine can run "baseline", "avx2", "avx512" or "neon" ("best" always).

    Results are the same bits on all of them: the choice is for tests and benchmarks.
    """
    return bool(_library.library.lockstep_has_instruction_set(
        _library.choice(_library.INSTRUCTION_SETS, name, "instruction_set")))
