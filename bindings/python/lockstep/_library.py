"""The shared library as include/lockstep.h declares it: constants, structs, functions, and where it is.

Names are the header's without their prefix, except for functions, which keep theirs. A test reads
the header and compares every name, value, size, offset and signature.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import (
    POINTER, Structure, c_char, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint8,
    c_uint16, c_uint32, c_uint64, c_void_p,
)
from typing import Any, Callable

from ._binding import fast, places
from ._errors import InvalidArgumentError, error_of

# 1. Version, status, errors

VERSION_MAJOR, VERSION_MINOR, VERSION_PATCH = 1, 0, 0

OK = 0
ERROR_INVALID_ARGUMENT = 1
ERROR_UNSUPPORTED = 2
ERROR_NON_FINITE = 3
ERROR_OUT_OF_MEMORY = 4
ERROR_INTERNAL = 5
ERROR_FILE = 6
ERROR_BAD_DATA = 7

INSTRUCTION_SET_BEST = 0
INSTRUCTION_SET_BASELINE = 1
INSTRUCTION_SET_AVX2 = 2
INSTRUCTION_SET_AVX512 = 3
INSTRUCTION_SET_NEON = 4

# 2. Tensors and number formats


class Fp16(Structure):
    _fields_ = [("bits", c_uint16)]


class Bf16(Structure):
    _fields_ = [("bits", c_uint16)]


class Fp8E4m3fn(Structure):
    _fields_ = [("bits", c_uint8)]


class Fp8E5m2(Structure):
    _fields_ = [("bits", c_uint8)]


class Dtype(Structure):
    _fields_ = [("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16)]


def _dtype_code(code: int, bits: int) -> int:
    return code | bits << 8 | 1 << 16


FLOAT32 = _dtype_code(2, 32)
FLOAT64 = _dtype_code(2, 64)
FLOAT16 = _dtype_code(2, 16)
BFLOAT16 = _dtype_code(4, 16)
FLOAT8_E4M3FN = _dtype_code(10, 8)
FLOAT8_E5M2 = _dtype_code(12, 8)
E8M = _dtype_code(192, 32)
E5M = _dtype_code(224, 32)
INT32 = _dtype_code(0, 32)
INT64 = _dtype_code(0, 64)
UINT8 = _dtype_code(1, 8)
UINT64 = _dtype_code(1, 64)
BOOL = _dtype_code(6, 8)


class Device(Structure):
    _fields_ = [("device_type", c_int32), ("device_id", c_int32)]


class Tensor(Structure):
    # shape and strides are int64 pointers; as plain addresses they cost less to fill in.
    _fields_ = [
        ("data", c_void_p), ("device", Device), ("ndim", c_int32), ("dtype", Dtype),
        ("shape", c_void_p), ("strides", c_void_p), ("byte_offset", c_uint64),
    ]


ROUND_NEAREST_EVEN = 0
ROUND_TOWARD_ZERO = 1
ROUND_STOCHASTIC = 2


class ConvertOptions(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("rounding", c_int32), ("seed", c_uint64),
        ("first_index", c_uint64), ("threads", c_int32), ("instruction_set", c_int32),
    ]


class ConvertCounts(Structure):
    _fields_ = [("overflow", c_int64), ("underflow", c_int64), ("nan", c_int64)]


# 3. Log-probs


class LogProbsOptions(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("ignore_index", c_int32), ("temperature", c_double),
        ("soft_cap", c_double), ("top_p", c_double), ("top_k", c_int32), ("logits_dtype", c_int32),
        ("threads", c_int32), ("instruction_set", c_int32), ("min_p", c_double),
    ]


# 4. Mismatch

NON_FINITE_STRICT = 0
NON_FINITE_EXCLUDE = 1


class MismatchOptions(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("non_finite", c_int32), ("threads", c_int32),
        ("instruction_set", c_int32),
    ]


class Estimate(Structure):
    _fields_ = [("value", c_double), ("standard_error", c_double)]


class Mismatch(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("tokens", c_int64),
        ("masked_tokens", c_int64),
        ("excluded_tokens", c_int64),
        ("sequences", c_int64),
        ("empty_sequences", c_int64),
        ("mean_log_ratio", Estimate),
        ("k1", Estimate),
        ("k2", Estimate),
        ("k3", Estimate),
        ("mean_abs_log_ratio", Estimate),
        ("rms_log_ratio", Estimate),
        ("max_abs_log_ratio", c_double),
        ("max_abs_sequence", c_int64),
        ("max_abs_position", c_int64),
        ("mean_abs_prob_diff", Estimate),
        ("max_abs_prob_diff", c_double),
        ("pearson", c_double),
        ("one_minus_pearson", c_double),
        ("share_differing", Estimate),
        ("share_outside_mlperf", Estimate),
        ("share_outside_1pct", Estimate),
        ("share_outside_5pct", Estimate),
        ("share_outside_10pct", Estimate),
        ("chi_square", Estimate),
        ("mean_ratio", Estimate),
        ("ess", c_double),
        ("mean_exp_abs_log_ratio", Estimate),
        ("trainer_perplexity", c_double),
        ("rollout_perplexity", c_double),
        ("perplexity_ratio", c_double),
        ("mean_rollout_log_prob", Estimate),
        ("log_ratio_quantiles", c_double * 9),
        ("sequence_log_ratio", Estimate),
        ("sequence_log_ratio_std", c_double),
        ("sequence_mean_log_ratio", Estimate),
        ("sequence_mean_exp_abs", Estimate),
        ("sequence_ess", c_double),
        ("share_sequences_masked", Estimate),
        ("slope_per_1000", Estimate),
        ("mean_sequence_length", c_double),
        ("max_sequence_length", c_int64),
        ("ess_standard_error", c_double),
        ("trainer_perplexity_standard_error", c_double),
        ("rollout_perplexity_standard_error", c_double),
        ("perplexity_ratio_standard_error", c_double),
        ("sequence_log_ratio_std_standard_error", c_double),
        ("share_sequences_outside_mlperf", Estimate),
    ]


class MismatchSequence(Structure):
    _fields_ = [
        ("tokens", c_int64), ("log_ratio", c_double), ("mean_log_ratio", c_double),
        ("mean_abs_log_ratio", c_double), ("max_abs_log_ratio", c_double),
        ("mean_exp_abs", c_double), ("k3", c_double),
    ]


AXIS_POSITION = 0
AXIS_PROBABILITY = 1
AXIS_LOG_RATIO = 2


class MismatchBucket(Structure):
    _fields_ = [
        ("lower", c_double), ("upper", c_double), ("tokens", c_int64), ("mean_log_ratio", c_double),
        ("mean_abs_log_ratio", c_double), ("k3", c_double),
    ]


class MismatchAccumulatorOptions(Structure):
    _fields_ = [("struct_size", c_uint32), ("exact_quantiles", c_int32), ("summary", c_int32)]


SEQUENCE_LOG_RATIO = 0
SEQUENCE_MEAN_LOG_RATIO = 1


class MismatchSequenceBin(Structure):
    _fields_ = [
        ("min_tokens", c_int64), ("max_tokens", c_int64), ("lower", c_double), ("upper", c_double),
        ("sequences", c_int64),
    ]


class MismatchSample(Structure):
    _fields_ = [
        ("id", c_uint64), ("tokens", c_int64), ("log_ratio", c_double), ("mean_log_ratio", c_double),
        ("mean_abs_log_ratio", c_double), ("max_abs_log_ratio", c_double), ("mean_exp_abs", c_double),
        ("k3", c_double),
    ]


class MismatchToken(Structure):
    _fields_ = [
        ("id", c_uint64), ("position", c_int64), ("log_ratio", c_double), ("rollout_log_prob", c_double),
    ]


CAUSE_TEMPERATURE = 1
CAUSE_RAW_LOG_PROBS = 2
CAUSE_TRUNCATION = 3
CAUSE_STORED_IN_16_BITS = 4
CAUSE_MISALIGNMENT = 5
CAUSE_ENDS = 6
CAUSE_OUTLIERS = 7
CAUSE_OTHER_WEIGHTS = 8
CAUSE_ROUNDING = 9
CAUSE_UNKNOWN = 10
CAUSE_COUNT = 10


class CauseFinding(Structure):
    _fields_ = [
        ("cause", c_int32), ("reserved", c_uint32), ("score", c_double), ("confidence", c_double),
    ]


class MismatchEvidence(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("tokens", c_int64),
        ("sequences", c_int64),
        ("trainer_bf16_share", c_double),
        ("trainer_fp16_share", c_double),
        ("rollout_bf16_share", c_double),
        ("rollout_fp16_share", c_double),
        ("stored_share", c_double),
        ("trainer_above_zero", c_int64),
        ("rollout_above_zero", c_int64),
        ("trainer_marks", c_int64),
        ("rollout_marks", c_int64),
        ("trainer_zeros", c_int64),
        ("trainer_zeros_far", c_int64),
        ("rollout_zeros", c_int64),
        ("rollout_zeros_far", c_int64),
        ("sequences_ahead", c_int64),
        ("sequences_behind", c_int64),
        ("pearson", c_double),
        ("first_tokens", c_int64),
        ("first_far", c_int64),
        ("last_tokens", c_int64),
        ("last_far", c_int64),
        ("noise_scale", c_double),
        ("noise_rms", c_double),
        ("noise_bits", c_double),
        ("noise_growth", c_double),
        ("far_share", c_double),
        ("far_down", c_int64),
        ("far_up", c_int64),
        ("far_square_share", c_double),
        ("slope", c_double),
        ("slope_r2", c_double),
        ("slope_t", c_double),
        ("entropy_scale", c_double),
        ("slope_square_share", c_double),
        ("mean_ratio_excess", c_double),
        ("mean_ratio_t", c_double),
        ("share_up", c_double),
        ("one_sidedness", c_double),
        ("square_one_sidedness", c_double),
        ("clustering", c_double),
        ("plain_square_share", c_double),
        ("ends_square_share", c_double),
        ("misaligned_square_share", c_double),
    ]


class Divergence(Structure):
    _fields_ = [
        ("kl_rollout_trainer", c_double), ("kl_trainer_rollout", c_double),
        ("total_variation", c_double), ("jensen_shannon", c_double), ("same_top1", c_double),
    ]


MONITOR_LEARNING = 0
MONITOR_OK = 1
MONITOR_WATCH = 2
MONITOR_ALARM = 3

MONITOR_K3 = 0
MONITOR_CHI_SQUARE = 1
MONITOR_ESS_LOSS = 2
MONITOR_MAX_ABS_LOG_RATIO = 3


class MonitorOptions(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("learning_steps", c_int32), ("false_alarms_per_1000", c_double),
    ]


class MonitorAlarm(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("level", c_int32), ("statistic", c_int32),
        ("steps_to_learn", c_int32), ("step", c_int64), ("since_step", c_int64), ("value", c_double),
        ("floor", c_double), ("score", c_double), ("threshold", c_double),
        ("false_alarms_per_1000", c_double), ("false_alarm_probability", c_double),
    ]


class MonitorReading(Structure):
    _fields_ = [
        ("value", c_double), ("floor", c_double), ("scale", c_double), ("score", c_double),
        ("threshold", c_double), ("since_step", c_int64),
    ]


# 5. Logs

LOG_PROB_UNKNOWN = 0
LOG_PROB_RAW = 1
LOG_PROB_PROCESSED = 2


class LogHeader(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("log_prob_mode", c_int32), ("temperature", c_double), ("top_p", c_double),
        ("min_p", c_double), ("top_k", c_int32), ("format_version", c_int32), ("created", c_int64),
        ("model", c_char_p), ("trainer_engine", c_char_p), ("trainer_version", c_char_p),
        ("trainer_weights", c_char_p), ("trainer_body", c_char_p), ("trainer_head", c_char_p),
        ("trainer_logits", c_char_p), ("rollout_engine", c_char_p), ("rollout_version", c_char_p),
        ("rollout_weights", c_char_p), ("rollout_body", c_char_p), ("rollout_head", c_char_p),
        ("rollout_logits", c_char_p), ("pairs", c_size_t), ("keys", POINTER(c_char_p)),
        ("values", POINTER(c_char_p)),
    ]


class LogSequence(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("reserved", c_uint32), ("id", c_uint64), ("step", c_int64),
        ("prompt_tokens", c_int64), ("reward", POINTER(c_float)), ("advantage", POINTER(c_float)),
        ("token_ids", c_void_p), ("rollout_log_probs", c_void_p),
        ("trainer_log_probs", c_void_p), ("mask", c_void_p),
    ]


LOG_CREATE = 0
LOG_APPEND = 1
LOG_REPLACE = 2


class LogWriterOptions(Structure):
    _fields_ = [("struct_size", c_uint32), ("mode", c_int32), ("sync_every", c_int64)]


LOG_DAMAGE_STRICT = 0
LOG_DAMAGE_SKIP = 1


class LogReaderOptions(Structure):
    _fields_ = [("struct_size", c_uint32), ("damage", c_int32)]


class LogBatch(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("reserved", c_uint32), ("sequences", c_int64), ("tokens", c_int64),
        ("trainer_log_probs", Tensor), ("rollout_log_probs", Tensor), ("mask", Tensor), ("offsets", Tensor),
        ("token_ids", Tensor), ("ids", Tensor), ("steps", Tensor), ("prompt_tokens", Tensor),
        ("rewards", Tensor), ("advantages", Tensor), ("columns", Tensor), ("positions", Tensor),
    ]


LOG_HAS_TOKEN_IDS = 1
LOG_HAS_ROLLOUT = 2
LOG_HAS_TRAINER = 4


class LogSummary(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("is_closed", c_int32), ("sequences", c_int64), ("tokens", c_int64),
        ("position", c_int64), ("size", c_int64), ("cut_off_bytes", c_int64), ("damaged_places", c_int64),
        ("skipped_bytes", c_int64),
    ]


# 6. Corrections

LEVEL_TOKEN = 0
LEVEL_SEQUENCE_SUM = 1
LEVEL_SEQUENCE_MEAN = 2
LEVEL_SEGMENT_SUM = 3
LEVEL_SEGMENT_MEAN = 4
LEVEL_SEQUENCE_EVERY = 5

WEIGHTS_ONE = 0
WEIGHTS_RAW = 1
WEIGHTS_TRUNCATE = 2
WEIGHTS_CLIP = 3
WEIGHTS_MASK = 4

STATISTIC_RATIO = 0
STATISTIC_K2 = 1
STATISTIC_K3 = 2
STATISTIC_EXP_ABS = 3
STATISTIC_PROBABILITY_DIFFERENCE = 4
STATISTIC_BINARY_KL = 5

POLICIES_TRAINER_ROLLOUT = 0
POLICIES_CURRENT_ROLLOUT = 1
POLICIES_CURRENT_TRAINER = 2

SIDE_BOTH = 0
SIDE_BY_ADVANTAGE = 1
SIDE_NEGATIVE_ADVANTAGE = 2


class Batch(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("reserved", c_uint32), ("trainer_log_probs", c_void_p),
        ("rollout_log_probs", c_void_p), ("current_log_probs", c_void_p),
        ("reference_log_probs", c_void_p), ("entropies", c_void_p),
        ("advantages", c_void_p), ("weights", c_void_p), ("mask", c_void_p),
        ("kept", c_void_p), ("selected", c_void_p), ("offsets", c_void_p),
        ("groups", c_void_p), ("ids", c_void_p),
    ]


class Rejection(Structure):
    _fields_ = [
        ("statistic", c_int32), ("level", c_int32), ("policies", c_int32), ("side", c_int32),
        ("low", c_double), ("high", c_double),
    ]


class CorrectionOptions(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("weights", c_int32), ("level", c_int32), ("non_finite", c_int32),
        ("low", c_double), ("high", c_double), ("log_ratio_min", c_double), ("log_ratio_max", c_double),
        ("normalize", c_int32), ("threads", c_int32), ("instruction_set", c_int32), ("reserved", c_uint32),
        ("second_moment", c_double), ("rejections", POINTER(Rejection)), ("rejection_count", c_size_t),
    ]


class WeightStatistics(Structure):
    _fields_ = [
        ("units", c_int64), ("mean", c_double), ("std", c_double), ("min", c_double), ("max", c_double),
        ("ess", c_double),
    ]


class Correction(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("empty", c_int32), ("tokens", c_int64), ("masked_tokens", c_int64),
        ("excluded_tokens", c_int64), ("sequences", c_int64), ("empty_sequences", c_int64),
        ("rejected_tokens", c_int64), ("rejected_sequences", c_int64), ("touched_sequences", c_int64),
        ("clamped", c_int64), ("below", c_int64), ("above", c_int64), ("second_moment_tokens", c_int64),
        ("max_sequence_length", c_int64), ("mean_sequence_length", c_double),
        ("second_moment_cut", c_double), ("normalizer", c_double), ("ratio", WeightStatistics),
        ("weight", WeightStatistics), ("kept_weight", WeightStatistics),
    ]


class RejectionCount(Structure):
    _fields_ = [
        ("tokens", c_int64), ("sequences", c_int64), ("touched_sequences", c_int64), ("clamped", c_int64),
        ("units", c_int64), ("mean", c_double), ("min", c_double), ("max", c_double),
    ]


# 7. Advantages

ADVANTAGE_GRPO = 0
ADVANTAGE_DR_GRPO = 1
ADVANTAGE_LEAVE_ONE_OUT = 2
ADVANTAGE_REINFORCE_PLUS_PLUS = 3
ADVANTAGE_REINFORCE_PLUS_PLUS_BASELINE = 4
ADVANTAGE_OPO = 5
ADVANTAGE_REMAX = 6
ADVANTAGE_GPG = 7
ADVANTAGE_PASS_AT_K = 8
ADVANTAGE_MAX_RL = 9
ADVANTAGE_GDPO = 10
ADVANTAGE_GAE = 11
ADVANTAGE_OPTIMAL_TOKEN_BASELINE = 12
ADVANTAGE_MULTI_TURN_TOKEN_BASELINE = 13

SCALE_OF_ESTIMATOR = 0
SCALE_NONE = 1
SCALE_GROUP_STD = 2
SCALE_OTHERS_STD = 3
SCALE_BATCH_STD = 4
SCALE_GROUP_MEAN = 5
SCALE_NON_ZERO_SHARE = 6

WHITEN_AS_ESTIMATOR = 0
WHITEN_NO = 1
WHITEN_YES = 2

SINGLE_ZERO = 0
SINGLE_RAW = 1

TRUNCATED_KEEP = 0
TRUNCATED_ZERO = 1
TRUNCATED_DROP = 2


class Rewards(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("reserved", c_uint32), ("rewards", c_void_p),
        ("truncated", c_void_p), ("baselines", c_void_p), ("values", c_void_p),
        ("squared_mass", c_void_p), ("kind_weights", c_void_p),
    ]


class AdvantageOptions(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("estimator", c_int32), ("scale", c_int32), ("whiten", c_int32),
        ("singles", c_int32), ("truncated", c_int32), ("population_std", c_int32),
        ("tail_baseline", c_int32), ("epsilon", c_double), ("gamma", c_double),
        ("lambda", c_double),
    ]


# 8. Objectives

TERM_CLIP = 0
TERM_REINFORCE = 1
TERM_RATIO = 2
TERM_CISPO = 3
TERM_SAPO = 4
TERM_TOPR = 5
TERM_SQUARED = 6
TERM_KL_COV = 7
TERM_GMPO = 8
TERM_VESPO = 9

RATIO_TOKEN = 0
RATIO_SEQUENCE = 1
RATIO_SEQUENCE_TOKEN = 2
RATIO_SEQUENCE_SUM = 3

TOKEN_MEAN = 0
TOKEN_SUM = 1
SEQ_MEAN_TOKEN_SUM = 2
SEQ_MEAN_TOKEN_MEAN = 3
SEQ_MEAN_TOKEN_SUM_NORM = 4
PROMPT_MEAN = 5

DENOMINATOR_ORIGINAL = 0
DENOMINATOR_KEPT = 1

KL_NONE = 0
KL_K1 = 1
KL_K2 = 2
KL_K3 = 3
KL_ABS = 4

KL_GRADIENT_DIRECT = 0
KL_GRADIENT_RATIO = 1
KL_GRADIENT_SCORE_FUNCTION = 2
KL_GRADIENT_K2 = 3

COVARIANCE_CLIP = 0
COVARIANCE_KL = 1


class ObjectiveOptions(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("term", c_int32), ("ratio_level", c_int32), ("aggregation", c_int32),
        ("denominator", c_int32), ("kl", c_int32), ("kl_gradient", c_int32), ("non_finite", c_int32),
        ("low", c_double), ("high", c_double), ("dual", c_double), ("ratio_max", c_double),
        ("coefficient", c_double), ("tau_positive", c_double), ("tau_negative", c_double),
        ("shape_positive", c_double), ("rate_positive", c_double), ("shape_negative", c_double),
        ("rate_negative", c_double), ("log_ratio_min", c_double), ("log_ratio_max", c_double),
        ("kl_coefficient", c_double), ("kl_input_max", c_double), ("kl_output_max", c_double),
        ("entropy_coefficient", c_double), ("length", c_double), ("scale", c_double),
        ("threads", c_int32), ("instruction_set", c_int32),
    ]


class ObjectiveReport(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("empty", c_int32), ("loss", c_double), ("policy_loss", c_double),
        ("kl_loss", c_double), ("entropy_loss", c_double), ("tokens", c_int64), ("masked_tokens", c_int64),
        ("excluded_tokens", c_int64), ("rejected_tokens", c_int64), ("sequences", c_int64),
        ("empty_sequences", c_int64), ("rejected_sequences", c_int64), ("clamped_tokens", c_int64),
        ("kl_clamped_tokens", c_int64), ("ratio_mean", c_double), ("ratio_min", c_double),
        ("ratio_max", c_double), ("clip_low", c_double), ("clip_high", c_double), ("clip_dual", c_double),
        ("approx_kl_k1", c_double), ("approx_kl_k3", c_double), ("kl", c_double), ("entropy", c_double),
    ]


class ObjectiveCounts(Structure):
    _fields_ = [("tokens", c_int64), ("sequences", c_int64), ("prompts", c_int64)]


class CovarianceOptions(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("rule", c_int32), ("share", c_double), ("low", c_double),
        ("high", c_double), ("ratio_low", c_double), ("ratio_high", c_double), ("seed", c_uint64),
    ]


# 9. Presets

PRESET_THREE_POLICIES = 0
PRESET_TWO_POLICIES = 1


class Preset(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("policies", c_int32), ("name", c_char_p), ("summary", c_char_p),
        ("source", c_char_p), ("doubts", c_char_p), ("text", c_char_p), ("reference_is_rollout", c_int32),
        ("reserved", c_uint32),
    ]


# 10. Models and engines


class Recipe(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("parameters", c_int32), ("activations", c_int32), ("cache", c_int32),
        ("probabilities", c_int32), ("logits", c_int32), ("order", c_int32), ("gradients", c_int32),
    ]


class ModelInfo(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("layers", c_int32), ("vocab", c_int64), ("hidden_size", c_int64),
        ("positions", c_int64), ("parameters", c_int64), ("family", c_char_p),
    ]


class ScoreOptions(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("threads", c_int32), ("instruction_set", c_int32),
        ("reserved", c_uint32), ("temperature", c_double),
    ]


class TrainerOptions(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("threads", c_int32), ("instruction_set", c_int32), ("recomputes", c_int32),
        ("adapter", c_char_p), ("rank", c_int64), ("alpha", c_double), ("targets", c_char_p), ("seed", c_uint64),
        ("deviation", c_double),
    ]


class Parameter(Structure):
    _fields_ = [
        ("name", c_char_p), ("offset", c_size_t), ("count", c_size_t), ("shape", c_int64 * 2),
        ("dimensions", c_int32), ("decays", c_int32),
    ]


class BackwardReport(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("overflow_layer", c_int32), ("sequences", c_int64), ("overflows", c_int64),
        ("overflow_sequence", c_int64), ("overflow_operation", c_char * 48),
    ]


class EngineOptions(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("top_k", c_int32), ("temperature", c_double), ("top_p", c_double),
        ("min_p", c_double), ("seed", c_uint64), ("stop_ids", c_void_p), ("stop_id_count", c_size_t),
        ("max_tokens", c_int64), ("capacity", c_int64), ("threads", c_int32),
        ("instruction_set", c_int32),
    ]


ORDER_LOCKSTEP, ORDER_SPLIT_K, ORDER_FLASH, ORDER_EAGER, ORDER_FUSED = range(5)
SWAP_NONE, SWAP_HEAD_ALONE, SWAP_BODY_ALONE, SWAP_FP32_HEADS = range(4)
SWAP_FP32_HEAD_OF_TRAINER, SWAP_FP32_HEAD_OF_ROLLOUT, SWAP_LAYERS = 4, 5, 6
FINISH_RUNNING = 0
FINISH_STOP = 1
FINISH_LENGTH = 2


class Rollout(Structure):
    _fields_ = [
        ("id", c_uint64), ("token_count", c_int64), ("tokens", c_void_p), ("raw_log_probs", c_void_p),
        ("processed_log_probs", c_void_p), ("kept_mass", c_void_p), ("finish", c_int32),
        ("reserved", c_int32),
    ]


class ScoreReport(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("overflow_layer", c_int32), ("sequences", c_int64), ("overflows", c_int64),
        ("overflow_tokens", c_int64), ("overflow_sequence", c_int64), ("overflow_operation", c_char_p),
    ]


HEADROOM_ACTIVATION = 0
HEADROOM_WEIGHT = 1
HEADROOM_GRADIENT = 2
HEADROOM_WEIGHT_GRADIENT = 3
HEADROOM_KINDS = {
    HEADROOM_ACTIVATION: "activation", HEADROOM_WEIGHT: "weight", HEADROOM_GRADIENT: "gradient",
    HEADROOM_WEIGHT_GRADIENT: "weight gradient",
}

LoadingObserver = ctypes.CFUNCTYPE(None, c_void_p, c_int64, c_int64)


class Headroom(Structure):
    _fields_ = [
        ("name", c_char_p), ("kind", c_int32), ("layer", c_int32), ("count", c_int64),
        ("largest", c_double), ("subnormal", c_int64), ("vanishing", c_int64), ("overflowing", c_int64),
        ("non_finite", c_int64),
    ]


class Difference(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("layer", c_int32), ("operation", c_char_p), ("rows", c_int64),
        ("columns", c_int64), ("differing", c_int64), ("non_finite", c_int64), ("first_row", c_int64),
        ("first_column", c_int64), ("max_abs", c_double), ("mean_abs", c_double), ("rms", c_double),
        ("relative_rms", c_double),
    ]


class LocaliserOptions(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("threads", c_int32), ("instruction_set", c_int32),
        ("reserved", c_uint32), ("reference", c_void_p), ("ranges", c_void_p), ("range_count", c_size_t),
    ]


# 11. Loss scalers and optimiser

SCALER_CONSTANT = 0
SCALER_TORCH = 1
SCALER_DEEPSPEED = 2
SCALER_MEGATRON = 3


class ScalerOptions(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("kind", c_int32), ("initial_scale", c_double),
        ("growth_factor", c_double), ("backoff_factor", c_double), ("minimum_scale", c_double),
        ("maximum_scale", c_double), ("growth_interval", c_int64), ("hysteresis", c_int32),
        ("consecutive_hysteresis", c_int32),
    ]


class ScalerReport(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("skip", c_int32), ("scale", c_double), ("at_floor", c_int32),
        ("reserved", c_uint32), ("steps", c_int64), ("skipped", c_int64), ("growths", c_int64),
        ("backoffs", c_int64), ("floor_overflows", c_int64), ("skipped_in_a_row", c_int64),
        ("longest_skip", c_int64), ("last_skipped", c_int64),
    ]


class GradientOptions(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("threads", c_int32), ("instruction_set", c_int32),
        ("reserved", c_uint32), ("max_norm", c_double), ("scale", c_double),
    ]


class GradientNorm(Structure):
    _fields_ = [
        ("norm", c_double), ("largest", c_double), ("factor", c_double), ("non_finite", c_int64),
    ]


MASTER_NEAREST = 0
MASTER_STOCHASTIC = 1
MASTER_KAHAN = 2


class AdamwOptions(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("threads", c_int32), ("instruction_set", c_int32),
        ("rounding", c_int32), ("step", c_int64), ("learning_rate", c_double), ("beta1", c_double),
        ("beta2", c_double), ("epsilon", c_double), ("weight_decay", c_double),
        ("gradient_scale", c_double), ("largest", c_double), ("seed", c_uint64),
    ]


SCHEDULE_CONSTANT = 0
SCHEDULE_LINEAR = 1
SCHEDULE_COSINE = 2


class ScheduleOptions(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("shape", c_int32), ("peak", c_double), ("warmup_steps", c_int64),
        ("total_steps", c_int64), ("final_share", c_double),
    ]


# 12. Tasks


class TaskOptions(Structure):
    _fields_ = [("struct_size", c_uint32), ("size", c_int32)]


class TaskInfo(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("vocab", c_int32), ("stop_id", c_int32), ("reserved", c_uint32),
        ("longest_prompt", c_int64), ("longest_response", c_int64), ("problems", c_int64),
    ]


# 14. Runs

#: `lockstep_prompt_callback` and `lockstep_reward_callback`.
PROMPT_CALLBACK = ctypes.CFUNCTYPE(
    c_int32, c_void_p, POINTER(c_int32), POINTER(c_size_t), c_size_t, c_int64)
REWARD_CALLBACK = ctypes.CFUNCTYPE(
    c_int32, c_void_p, POINTER(c_double), c_int64, c_int64, c_int64, POINTER(c_int32), c_size_t,
    POINTER(c_int32), c_size_t)


class Environment(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("max_tokens", c_int32), ("task", c_void_p), ("task_seed", c_uint64),
        ("problems", c_void_p), ("problem_count", c_size_t), ("context", c_void_p), ("prompt", PROMPT_CALLBACK),
        ("reward", REWARD_CALLBACK), ("stop_ids", c_void_p), ("stop_id_count", c_size_t), ("name", c_char_p),
    ]


class RolloutRequest(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("max_tokens", c_int32), ("step", c_int64), ("problem", c_int64),
        ("first_id", c_uint64), ("samples", c_int64), ("prompt", c_void_p), ("prompt_count", c_size_t),
        ("stop_ids", c_void_p), ("stop_id_count", c_size_t), ("temperature", c_double), ("seed", c_uint64),
    ]


class RunOptions(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("prompts", c_int32), ("samples", c_int32), ("updates", c_int32),
        ("model", c_char_p), ("adapter", c_char_p), ("model_seed", c_uint64), ("deviation", c_double),
        ("lora_rank", c_int32), ("recompute", c_int32), ("lora_alpha", c_double), ("trainer", POINTER(Recipe)),
        ("rollout", POINTER(Recipe)), ("algorithm", c_char_p), ("correction", POINTER(CorrectionOptions)),
        ("advantages", POINTER(AdvantageOptions)), ("objective", POINTER(ObjectiveOptions)),
        ("policies", c_int32), ("threads", c_int32), ("temperature", c_double), ("seed", c_uint64),
        ("beta1", c_double), ("beta2", c_double), ("epsilon", c_double), ("weight_decay", c_double),
        ("schedule", POINTER(ScheduleOptions)), ("max_norm", c_double), ("scaler", POINTER(ScalerOptions)),
        ("learning_steps", c_int32), ("instruction_set", c_int32), ("false_alarms_per_1000", c_double),
    ]


class RunMetrics(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("scale_at_floor", c_int32), ("step", c_int64), ("responses", c_int64),
        ("tokens", c_int64), ("equal_groups", c_int64), ("updates", c_int64), ("skipped", c_int64),
        ("skipped_total", c_int64), ("reward_mean", c_double), ("share_right", c_double),
        ("response_length", c_double), ("share_truncated", c_double), ("k3", c_double),
        ("mean_abs_log_ratio", c_double), ("max_abs_log_ratio", c_double), ("ess", c_double),
        ("sequence_ess", c_double), ("sequence_log_ratio_std", c_double), ("entropy", c_double),
        ("loss", c_double), ("clip_share", c_double), ("share_masked", c_double), ("gradient_norm", c_double),
        ("learning_rate", c_double), ("loss_scale", c_double), ("monitor_score", c_double),
        ("monitor", c_int32), ("monitor_statistic", c_int32), ("max_abs_prob_diff", c_double),
    ]


class SupervisedOptions(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("batch", c_int32), ("task", c_void_p), ("model", c_char_p),
        ("model_seed", c_uint64), ("deviation", c_double), ("recipe", POINTER(Recipe)), ("steps", c_int64),
        ("seed", c_uint64), ("error_rate", c_double), ("learning_rate", c_double), ("threads", c_int32),
        ("lora_rank", c_int32), ("lora_alpha", c_double), ("adapter", c_char_p),
    ]


class SupervisedMetrics(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("skipped", c_int32), ("step", c_int64), ("tokens", c_int64),
        ("loss", c_double), ("gradient_norm", c_double), ("learning_rate", c_double), ("loss_scale", c_double),
    ]


# Functions: name -> (result, arguments), in the header's order. Arrays of structs are plain addresses.

_tensor = POINTER(Tensor)
_log_probs_options = POINTER(LogProbsOptions)
_mismatch_options = POINTER(MismatchOptions)

SIGNATURES = {
    "lockstep_version": (c_int32, []),
    "lockstep_version_string": (c_char_p, []),
    "lockstep_status_name": (c_char_p, [c_int32]),
    "lockstep_last_error": (c_char_p, []),
    "lockstep_has_instruction_set": (c_int32, [c_int32]),
    "lockstep_convert": (
        c_int32, [_tensor, POINTER(ConvertCounts), _tensor, POINTER(ConvertOptions)]),
    "lockstep_ulp_distance": (c_int32, [_tensor] * 3),
    "lockstep_fp16_to_float": (c_float, [Fp16]),
    "lockstep_bf16_to_float": (c_float, [Bf16]),
    "lockstep_fp8_e4m3fn_to_float": (c_float, [Fp8E4m3fn]),
    "lockstep_fp8_e5m2_to_float": (c_float, [Fp8E5m2]),
    "lockstep_fp16_from_float": (Fp16, [c_float]),
    "lockstep_bf16_from_float": (Bf16, [c_float]),
    "lockstep_fp8_e4m3fn_from_float": (Fp8E4m3fn, [c_float]),
    "lockstep_fp8_e5m2_from_float": (Fp8E5m2, [c_float]),
    "lockstep_log_probs": (c_int32, [_tensor] * 6 + [_log_probs_options]),
    "lockstep_log_probs_backward": (c_int32, [_tensor] * 6 + [_log_probs_options]),
    "lockstep_linear_log_probs": (c_int32, [_tensor] * 7 + [_log_probs_options]),
    "lockstep_linear_log_probs_backward": (c_int32, [_tensor] * 10 + [_log_probs_options]),
    "lockstep_head_create": (c_int32, [POINTER(c_void_p), _tensor, _tensor]),
    "lockstep_head_destroy": (None, [c_void_p]),
    "lockstep_head_log_probs": (
        c_int32, [_tensor] * 3 + [c_void_p] + [_tensor] * 2 + [_log_probs_options]),
    "lockstep_mismatch_measure": (
        c_int32, [POINTER(Mismatch)] + [_tensor] * 4 + [_mismatch_options]),
    "lockstep_mismatch_sequences": (
        c_int32, [c_void_p, c_size_t] + [_tensor] * 4 + [_mismatch_options]),
    "lockstep_mismatch_profile": (
        c_int32, [c_void_p, c_size_t, c_void_p, c_int32] + [_tensor] * 4 + [_mismatch_options]),
    "lockstep_mismatch_accumulator_create": (
        c_int32, [POINTER(c_void_p), POINTER(MismatchAccumulatorOptions)]),
    "lockstep_mismatch_accumulator_destroy": (None, [c_void_p]),
    "lockstep_mismatch_accumulator_update": (
        c_int32, [c_void_p] + [_tensor] * 5 + [_mismatch_options]),
    "lockstep_mismatch_accumulator_merge": (c_int32, [c_void_p, c_void_p]),
    "lockstep_mismatch_accumulator_report": (c_int32, [POINTER(Mismatch), c_void_p]),
    "lockstep_mismatch_accumulator_profile": (
        c_int32, [c_void_p, POINTER(c_size_t), c_void_p, c_int32]),
    "lockstep_mismatch_accumulator_histogram": (
        c_int32, [c_void_p, POINTER(c_size_t), c_void_p, c_int32]),
    "lockstep_mismatch_accumulator_sample": (c_int32, [c_void_p, POINTER(c_size_t), c_void_p]),
    "lockstep_mismatch_accumulator_worst": (c_int32, [c_void_p, POINTER(c_size_t), c_void_p]),
    "lockstep_mismatch_accumulator_worst_sequences": (c_int32, [c_void_p, POINTER(c_size_t), c_void_p]),
    "lockstep_mismatch_accumulator_save": (c_int32, [c_void_p, POINTER(c_size_t), c_void_p]),
    "lockstep_mismatch_accumulator_load": (c_int32, [POINTER(c_void_p), c_void_p, c_size_t]),
    "lockstep_mismatch_accumulator_causes": (c_int32, [c_void_p, POINTER(MismatchEvidence), c_void_p]),
    "lockstep_mismatch_exact": (
        c_int32, [POINTER(Divergence), c_void_p, c_size_t] + [_tensor] * 3 + [_log_probs_options]),
    "lockstep_monitor_create": (c_int32, [POINTER(c_void_p), POINTER(MonitorOptions)]),
    "lockstep_monitor_destroy": (None, [c_void_p]),
    "lockstep_monitor_update": (
        c_int32, [POINTER(MonitorAlarm), c_void_p, c_int64, POINTER(Mismatch)]),
    "lockstep_monitor_read": (c_int32, [POINTER(MonitorReading), c_void_p, c_int32]),
    "lockstep_monitor_reset": (c_int32, [c_void_p]),
    "lockstep_monitor_save": (c_int32, [c_void_p, POINTER(c_size_t), c_void_p]),
    "lockstep_monitor_load": (c_int32, [POINTER(c_void_p), c_void_p, c_size_t]),
    "lockstep_log_writer_create": (
        c_int32, [POINTER(c_void_p), c_char_p, POINTER(LogHeader), POINTER(LogWriterOptions)]),
    "lockstep_log_writer_append": (c_int32, [c_void_p, POINTER(LogSequence)]),
    "lockstep_log_writer_sync": (c_int32, [c_void_p]),
    "lockstep_log_writer_close": (c_int32, [c_void_p]),
    "lockstep_log_writer_destroy": (None, [c_void_p]),
    "lockstep_log_reader_open": (c_int32, [POINTER(c_void_p), c_char_p, POINTER(LogReaderOptions)]),
    "lockstep_log_reader_open_memory": (
        c_int32, [POINTER(c_void_p), c_void_p, c_size_t, POINTER(LogReaderOptions)]),
    "lockstep_log_reader_header": (c_int32, [POINTER(LogHeader), c_void_p]),
    "lockstep_log_reader_next": (c_int32, [POINTER(LogBatch), c_void_p, c_int64]),
    "lockstep_log_reader_seek": (c_int32, [c_void_p, c_int64]),
    "lockstep_log_reader_summary": (c_int32, [POINTER(LogSummary), c_void_p]),
    "lockstep_log_reader_destroy": (None, [c_void_p]),
    "lockstep_correct": (
        c_int32, [_tensor] * 2 + [POINTER(Correction), c_void_p, POINTER(Batch), POINTER(CorrectionOptions)]),
    "lockstep_advantages": (
        c_int32, [_tensor] * 2 + [POINTER(Rewards), POINTER(Batch), POINTER(AdvantageOptions)]),
    "lockstep_overlong_penalty": (c_int32, [_tensor] * 2 + [c_int64, c_int64, c_double]),
    "lockstep_objective_loss": (
        c_int32, [POINTER(ObjectiveReport)] + [_tensor] * 2 + [POINTER(Batch), POINTER(ObjectiveOptions)]),
    "lockstep_objective_create": (c_int32, [POINTER(c_void_p), POINTER(ObjectiveOptions)]),
    "lockstep_objective_destroy": (None, [c_void_p]),
    "lockstep_objective_count": (c_int32, [c_void_p, POINTER(Batch)]),
    "lockstep_objective_counted": (c_int32, [POINTER(ObjectiveCounts), c_void_p]),
    "lockstep_objective_add_counts": (c_int32, [c_void_p, POINTER(ObjectiveCounts)]),
    "lockstep_objective_evaluate": (c_int32, [c_void_p] + [_tensor] * 2 + [POINTER(Batch)]),
    "lockstep_objective_read": (c_int32, [POINTER(ObjectiveReport), c_void_p]),
    "lockstep_objective_reset": (c_int32, [c_void_p]),
    "lockstep_kl_penalty": (c_int32, [_tensor] * 2 + [POINTER(Batch), POINTER(ObjectiveOptions)]),
    "lockstep_kl_coefficient_update": (c_int32, [c_void_p] + [c_double] * 4),
    "lockstep_covariance_select": (
        c_int32, [_tensor, POINTER(c_size_t), POINTER(Batch), POINTER(CovarianceOptions)]),
    "lockstep_preset_name": (c_char_p, [c_size_t]),
    "lockstep_preset_read": (
        c_int32, [POINTER(Preset), POINTER(CorrectionOptions), POINTER(AdvantageOptions),
                  POINTER(ObjectiveOptions), c_char_p]),
    "lockstep_recipe_named": (c_int32, [POINTER(Recipe), c_char_p]),
    "lockstep_recipe_text": (c_int32, [c_char_p, c_size_t, POINTER(c_size_t), POINTER(Recipe)]),
    "lockstep_recipe_matches": (c_int32, [POINTER(c_int32), POINTER(Recipe), POINTER(Recipe)]),
    "lockstep_model_load": (c_int32, [POINTER(c_void_p), c_char_p, c_char_p, POINTER(Recipe)]),
    "lockstep_model_load_bytes": (c_int32, [POINTER(c_void_p), c_void_p, c_size_t, POINTER(Recipe)]),
    "lockstep_model_get_info": (c_int32, [POINTER(ModelInfo), c_void_p]),
    "lockstep_model_destroy": (None, [c_void_p]),
    "lockstep_model_score": (
        c_int32, [_tensor, _tensor, c_void_p, _tensor, _tensor, POINTER(ScoreOptions)]),
    "lockstep_model_score_counting": (
        c_int32, [POINTER(ScoreReport), _tensor, _tensor, c_void_p, _tensor, _tensor, POINTER(ScoreOptions)]),
    "lockstep_observe_loading": (None, [LoadingObserver, c_void_p]),
    "lockstep_model_logits": (c_int32, [_tensor, c_void_p, _tensor, _tensor, POINTER(ScoreOptions)]),
    "lockstep_engine_create": (c_int32, [POINTER(c_void_p), c_void_p, POINTER(EngineOptions)]),
    "lockstep_engine_add": (c_int32, [c_void_p, _tensor, c_void_p, c_size_t]),
    "lockstep_engine_step": (c_int32, [c_void_p, POINTER(c_size_t), POINTER(c_size_t)]),
    "lockstep_engine_take": (c_int32, [POINTER(Rollout), c_void_p, c_int32]),
    "lockstep_engine_destroy": (None, [c_void_p]),
    "lockstep_trainer_create": (
        c_int32, [POINTER(c_void_p), c_char_p, POINTER(Recipe), POINTER(TrainerOptions)]),
    "lockstep_trainer_parameter": (
        c_int32, [POINTER(Parameter), POINTER(c_size_t), POINTER(c_size_t), c_void_p, c_size_t]),
    "lockstep_trainer_masters": (c_int32, [POINTER(c_void_p), POINTER(c_size_t), c_void_p]),
    "lockstep_trainer_accumulate": (
        c_int32, [POINTER(BackwardReport), _tensor, _tensor, c_void_p, *[_tensor] * 4, c_double, c_double]),
    "lockstep_trainer_gradients": (c_int32, [_tensor, c_void_p]),
    "lockstep_trainer_clear": (c_int32, [c_void_p]),
    "lockstep_trainer_snapshot": (c_int32, [POINTER(c_void_p), c_void_p]),
    "lockstep_trainer_destroy": (None, [c_void_p]),
    "lockstep_audit_create": (
        c_int32, [POINTER(c_void_p), c_char_p, _tensor, _tensor, POINTER(ScoreOptions)]),
    "lockstep_audit_create_backward": (
        c_int32, [POINTER(c_void_p), c_char_p, _tensor, _tensor, c_double, POINTER(ScoreOptions)]),
    "lockstep_audit_read": (c_int32, [POINTER(Headroom), POINTER(c_size_t), c_void_p, c_size_t]),
    "lockstep_audit_destroy": (None, [c_void_p]),
    "lockstep_scaler_options_named": (c_int32, [POINTER(ScalerOptions), c_char_p]),
    "lockstep_scaler_create": (c_int32, [POINTER(c_void_p), POINTER(ScalerOptions)]),
    "lockstep_scaler_destroy": (None, [c_void_p]),
    "lockstep_scaler_update": (c_int32, [POINTER(ScalerReport), c_void_p, c_int32]),
    "lockstep_scaler_read": (c_int32, [POINTER(ScalerReport), c_void_p]),
    "lockstep_scaler_get_options": (c_int32, [POINTER(ScalerOptions), c_void_p]),
    "lockstep_scaler_save": (c_int32, [c_void_p, POINTER(c_size_t), c_void_p]),
    "lockstep_scaler_load": (c_int32, [POINTER(c_void_p), c_void_p, c_size_t]),
    "lockstep_scaler_replay": (
        c_int32, [POINTER(ScalerReport)] + [_tensor] * 3 + [c_double, POINTER(ScalerOptions)]),
    "lockstep_gradients_measure": (
        c_int32, [POINTER(GradientNorm), _tensor, c_size_t, POINTER(GradientOptions)]),
    "lockstep_adamw_step": (c_int32, [_tensor] * 5 + [POINTER(AdamwOptions)]),
    "lockstep_learning_rate": (c_int32, [c_void_p, c_int64, POINTER(ScheduleOptions)]),
    "lockstep_task_create": (c_int32, [POINTER(c_void_p), c_char_p, POINTER(TaskOptions)]),
    "lockstep_task_destroy": (None, [c_void_p]),
    "lockstep_task_get_info": (c_int32, [POINTER(TaskInfo), c_void_p]),
    "lockstep_task_prompt": (c_int32, [c_void_p, POINTER(c_size_t), c_void_p, c_int64, c_uint64]),
    "lockstep_task_demonstration": (
        c_int32, [c_void_p, POINTER(c_size_t), c_void_p, c_int64, c_uint64, c_double]),
    "lockstep_task_reward": (c_int32, [c_void_p, c_void_p, _tensor, _tensor]),
    "lockstep_task_encode": (c_int32, [c_void_p, POINTER(c_size_t), c_void_p, c_char_p]),
    "lockstep_task_decode": (c_int32, [c_char_p, POINTER(c_size_t), c_void_p, _tensor]),
    "lockstep_difference_measure": (c_int32, [POINTER(Difference), _tensor, _tensor]),
    "lockstep_model_dump": (c_int32, [c_char_p, c_void_p, _tensor, _tensor, POINTER(ScoreOptions)]),
    "lockstep_localiser_create": (
        c_int32,
        [POINTER(c_void_p), c_void_p, c_void_p, _tensor, _tensor, POINTER(LocaliserOptions)]),
    "lockstep_localiser_step": (c_int32, [c_void_p, POINTER(c_size_t), POINTER(c_size_t)]),
    "lockstep_localiser_read": (c_int32, [POINTER(Difference), POINTER(c_size_t), c_void_p, c_size_t]),
    "lockstep_localiser_log_probs": (c_int32, [_tensor, _tensor, c_void_p, c_int32]),
    "lockstep_localiser_destroy": (None, [c_void_p]),
    "lockstep_run_create": (c_int32, [POINTER(c_void_p), POINTER(RunOptions), POINTER(Environment)]),
    "lockstep_run_step": (c_int32, [POINTER(RunMetrics), c_void_p]),
    "lockstep_run_request": (c_int32, [POINTER(RolloutRequest), POINTER(c_size_t), c_void_p, c_size_t]),
    "lockstep_run_give": (c_int32, [c_void_p, c_int64, POINTER(Rollout), c_size_t]),
    "lockstep_run_policy": (c_int32, [c_void_p, POINTER(c_size_t), c_void_p]),
    "lockstep_run_evaluate": (
        c_int32, [c_void_p, c_void_p, c_void_p, c_size_t, c_int64, c_uint64, c_double]),
    "lockstep_run_save": (c_int32, [c_void_p, c_char_p, c_int64]),
    "lockstep_run_resume": (c_int32, [c_void_p, c_void_p, c_char_p, c_int32]),
    "lockstep_run_destroy": (None, [c_void_p]),
    "lockstep_find_perfectible": (
        c_int32, [
            c_void_p, c_size_t, c_void_p, POINTER(Environment), c_int64, c_int64, c_double, c_double, c_uint64,
            c_int32]),
    "lockstep_supervised_create": (c_int32, [POINTER(c_void_p), POINTER(SupervisedOptions)]),
    "lockstep_supervised_step": (c_int32, [POINTER(SupervisedMetrics), c_void_p]),
    "lockstep_supervised_save": (c_int32, [c_void_p, c_char_p, c_int64]),
    "lockstep_supervised_resume": (c_int32, [c_void_p, c_void_p, c_char_p, c_int32]),
    "lockstep_supervised_save_model": (c_int32, [c_void_p, c_char_p]),
    "lockstep_supervised_destroy": (None, [c_void_p]),
}

FILE_NAME = "liblockstep.so.1"


class Library:
    """The functions of one shared library, each bound at its first use. Calls release the GIL."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._handle = ctypes.CDLL(path)
        except OSError as error:
            raise ImportError(f"lockstep: cannot load {path}: {error}", path=path) from error
        loaded = self.lockstep_version()
        wanted = VERSION_MAJOR * 10000 + VERSION_MINOR * 100 + VERSION_PATCH
        if loaded // 10000 != VERSION_MAJOR or loaded < wanted:
            raise ImportError(
                f"lockstep: {path} is version {self.lockstep_version_string().decode()}, but this "
                f"package needs {VERSION_MAJOR}.{VERSION_MINOR}.{VERSION_PATCH} or a newer "
                f"{VERSION_MAJOR}.x; build or install the library that belongs to it", path=path)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in SIGNATURES:
            raise AttributeError(name)
        try:
            function = getattr(self._handle, name)
        except AttributeError:
            raise ImportError(
                f"lockstep: {self.path} has no function {name}; build it again", path=self.path
            ) from None
        function.restype, function.argtypes = SIGNATURES[name]
        function = _quick(name, function) or function
        setattr(self, name, function)
        return function


# Types of arguments, as the letters the extension knows; every other is a pointer.
_LETTERS = {c_int32: "i", c_int64: "l", c_uint64: "l", c_size_t: "l", c_double: "d", c_float: "-"}


def _quick(name: str, function: Any) -> Callable[..., Any] | None:
    """The same function called by the extension, if that can."""
    if fast is None or function.restype not in (None, c_int32):
        return None
    letters = "".join(
        _LETTERS.get(kind, "-" if issubclass(kind, Structure) else "p") for kind in function.argtypes)
    return fast.function(name, ctypes.cast(function, c_void_p).value, letters, tuple(function.argtypes), Tensor)


def argument_address(declared: Any, value: Any) -> int:
    """What ctypes passes for a pointer argument: the extension asks for kinds that it does not know itself."""
    declared.from_param(value)  # refuses what does not fit
    if isinstance(value, Structure):
        return ctypes.addressof(value)
    return ctypes.cast(value, c_void_p).value or 0


def _find() -> str:
    """The path of the library: LOCKSTEP_LIBRARY, beside this file (a wheel), or build/ (a checkout)."""
    override = os.environ.get("LOCKSTEP_LIBRARY")
    if override:
        return override
    for place in places():
        path = os.path.join(place, FILE_NAME)
        if os.path.exists(path):
            return path
    raise ImportError(
        f"lockstep: {FILE_NAME} is neither in {' nor in '.join(places())}; build it with "
        "bindings/c/build-library.sh, or set LOCKSTEP_LIBRARY to its path")


library = Library(_find())


def check(status: int, where: str = "") -> None:
    """Raises the exception of a status that is not OK, with the library's text after `where`."""
    if status:
        raise error_of(status, where + library.lockstep_last_error().decode("utf-8", "replace"))


# Values of options, by the names Python uses

INSTRUCTION_SETS = {
    "best": INSTRUCTION_SET_BEST, "baseline": INSTRUCTION_SET_BASELINE,
    "avx2": INSTRUCTION_SET_AVX2, "avx512": INSTRUCTION_SET_AVX512, "neon": INSTRUCTION_SET_NEON,
}
ROUNDINGS = {
    "nearest_even": ROUND_NEAREST_EVEN, "toward_zero": ROUND_TOWARD_ZERO,
    "stochastic": ROUND_STOCHASTIC,
}
NON_FINITE = {"strict": NON_FINITE_STRICT, "exclude": NON_FINITE_EXCLUDE}
CAUSES = {
    "temperature": CAUSE_TEMPERATURE, "raw_log_probs": CAUSE_RAW_LOG_PROBS,
    "truncation": CAUSE_TRUNCATION, "stored_in_16_bits": CAUSE_STORED_IN_16_BITS,
    "misalignment": CAUSE_MISALIGNMENT, "ends": CAUSE_ENDS, "outliers": CAUSE_OUTLIERS,
    "other_weights": CAUSE_OTHER_WEIGHTS, "rounding": CAUSE_ROUNDING, "unknown": CAUSE_UNKNOWN,
}
LEVELS = {
    "token": LEVEL_TOKEN, "sequence_sum": LEVEL_SEQUENCE_SUM, "sequence_mean": LEVEL_SEQUENCE_MEAN,
    "segment_sum": LEVEL_SEGMENT_SUM, "segment_mean": LEVEL_SEGMENT_MEAN,
    "sequence_every": LEVEL_SEQUENCE_EVERY,
}
WEIGHTS = {
    "one": WEIGHTS_ONE, "raw": WEIGHTS_RAW, "truncate": WEIGHTS_TRUNCATE, "clip": WEIGHTS_CLIP,
    "mask": WEIGHTS_MASK,
}
STATISTICS = {
    "ratio": STATISTIC_RATIO, "k2": STATISTIC_K2, "k3": STATISTIC_K3, "exp_abs": STATISTIC_EXP_ABS,
    "probability_difference": STATISTIC_PROBABILITY_DIFFERENCE, "binary_kl": STATISTIC_BINARY_KL,
}
POLICIES = {
    "trainer_rollout": POLICIES_TRAINER_ROLLOUT, "current_rollout": POLICIES_CURRENT_ROLLOUT,
    "current_trainer": POLICIES_CURRENT_TRAINER,
}
SIDES = {
    "both": SIDE_BOTH, "by_advantage": SIDE_BY_ADVANTAGE, "negative_advantage": SIDE_NEGATIVE_ADVANTAGE,
}
TERMS = {
    "clip": TERM_CLIP, "reinforce": TERM_REINFORCE, "ratio": TERM_RATIO, "cispo": TERM_CISPO,
    "sapo": TERM_SAPO, "topr": TERM_TOPR, "squared": TERM_SQUARED, "kl_cov": TERM_KL_COV,
    "gmpo": TERM_GMPO, "vespo": TERM_VESPO,
}
RATIO_LEVELS = {
    "token": RATIO_TOKEN, "sequence": RATIO_SEQUENCE, "sequence_token": RATIO_SEQUENCE_TOKEN,
    "sequence_sum": RATIO_SEQUENCE_SUM,
}
AGGREGATIONS = {
    "token_mean": TOKEN_MEAN, "token_sum": TOKEN_SUM, "seq_mean_token_sum": SEQ_MEAN_TOKEN_SUM,
    "seq_mean_token_mean": SEQ_MEAN_TOKEN_MEAN, "seq_mean_token_sum_norm": SEQ_MEAN_TOKEN_SUM_NORM,
    "prompt_mean": PROMPT_MEAN,
}
DENOMINATORS = {"original": DENOMINATOR_ORIGINAL, "kept": DENOMINATOR_KEPT}
KL_ESTIMATORS = {"none": KL_NONE, "k1": KL_K1, "k2": KL_K2, "k3": KL_K3, "abs": KL_ABS}
KL_GRADIENTS = {
    "direct": KL_GRADIENT_DIRECT, "ratio": KL_GRADIENT_RATIO,
    "score_function": KL_GRADIENT_SCORE_FUNCTION, "k2": KL_GRADIENT_K2,
}
COVARIANCE_RULES = {"clip": COVARIANCE_CLIP, "kl": COVARIANCE_KL}
SWAPS = {
    "none": SWAP_NONE, "head_alone": SWAP_HEAD_ALONE, "body_alone": SWAP_BODY_ALONE,
    "fp32_heads": SWAP_FP32_HEADS, "fp32_head_of_trainer": SWAP_FP32_HEAD_OF_TRAINER,
    "fp32_head_of_rollout": SWAP_FP32_HEAD_OF_ROLLOUT,
}
SCALERS = {
    "constant": SCALER_CONSTANT, "torch": SCALER_TORCH, "deepspeed": SCALER_DEEPSPEED,
    "megatron": SCALER_MEGATRON,
}
MASTER_ROUNDINGS = {
    "nearest": MASTER_NEAREST, "stochastic": MASTER_STOCHASTIC, "kahan": MASTER_KAHAN,
}
SCHEDULES = {
    "constant": SCHEDULE_CONSTANT, "linear": SCHEDULE_LINEAR, "cosine": SCHEDULE_COSINE,
}
ORDERS = {
    "lockstep": ORDER_LOCKSTEP, "split-k": ORDER_SPLIT_K, "flash": ORDER_FLASH, "eager": ORDER_EAGER,
    "fused": ORDER_FUSED,
}
FINISHES = {"running": FINISH_RUNNING, "stop": FINISH_STOP, "length": FINISH_LENGTH}
AXES = {
    "position": AXIS_POSITION, "probability": AXIS_PROBABILITY, "log_ratio": AXIS_LOG_RATIO,
}
ADVANTAGES = {
    "grpo": ADVANTAGE_GRPO, "dr_grpo": ADVANTAGE_DR_GRPO, "leave_one_out": ADVANTAGE_LEAVE_ONE_OUT,
    "reinforce_plus_plus": ADVANTAGE_REINFORCE_PLUS_PLUS,
    "reinforce_plus_plus_baseline": ADVANTAGE_REINFORCE_PLUS_PLUS_BASELINE, "opo": ADVANTAGE_OPO,
    "remax": ADVANTAGE_REMAX, "gpg": ADVANTAGE_GPG, "pass_at_k": ADVANTAGE_PASS_AT_K,
    "max_rl": ADVANTAGE_MAX_RL, "gdpo": ADVANTAGE_GDPO, "gae": ADVANTAGE_GAE,
    "optimal_token_baseline": ADVANTAGE_OPTIMAL_TOKEN_BASELINE,
    "multi_turn_token_baseline": ADVANTAGE_MULTI_TURN_TOKEN_BASELINE,
}
ADVANTAGE_SCALES = {
    "none": SCALE_NONE, "group_std": SCALE_GROUP_STD, "others_std": SCALE_OTHERS_STD,
    "batch_std": SCALE_BATCH_STD, "group_mean": SCALE_GROUP_MEAN, "non_zero_share": SCALE_NON_ZERO_SHARE,
}
SINGLES = {"zero": SINGLE_ZERO, "raw": SINGLE_RAW}
TRUNCATED = {"keep": TRUNCATED_KEEP, "zero": TRUNCATED_ZERO, "drop": TRUNCATED_DROP}
LOG_MODES = {"create": LOG_CREATE, "append": LOG_APPEND, "replace": LOG_REPLACE}
LOG_DAMAGE = {"strict": LOG_DAMAGE_STRICT, "skip": LOG_DAMAGE_SKIP}
MONITOR_LEVELS = {
    "learning": MONITOR_LEARNING, "ok": MONITOR_OK, "watch": MONITOR_WATCH, "alarm": MONITOR_ALARM,
}
MONITOR_STATISTICS = {
    "k3": MONITOR_K3, "chi_square": MONITOR_CHI_SQUARE, "ess_loss": MONITOR_ESS_LOSS,
    "max_abs_log_ratio": MONITOR_MAX_ABS_LOG_RATIO,
}

SEQUENCE_QUANTITIES = {
    "log_ratio": SEQUENCE_LOG_RATIO, "mean_log_ratio": SEQUENCE_MEAN_LOG_RATIO,
}


def choice(values: dict[str, int], value: str, name: str) -> int:
    """The constant a word stands for."""
    try:
        return values[value]
    except (KeyError, TypeError):
        words = ", ".join(map(repr, values))
        raise InvalidArgumentError(f"{name} is {value!r}; give one of {words}") from None


def integer(value: int, name: str, lowest: int, highest: int) -> int:
    """`value` if it is an integer within bounds (ctypes would cut off the higher bits)."""
    try:
        number = value.__index__()
    except AttributeError:
        raise InvalidArgumentError(f"{name} is {value!r}; give an integer") from None
    if not lowest <= number <= highest:
        raise InvalidArgumentError(f"{name} is {number}; give {lowest} to {highest}")
    return number


def int32(value: int, name: str) -> int:
    """`value` if an int32 holds it."""
    return integer(value, name, -(2**31), 2**31 - 1)


def real(value: float, name: str) -> float:
    """`value` as a float."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InvalidArgumentError(f"{name} is {value!r}; give a number") from None
