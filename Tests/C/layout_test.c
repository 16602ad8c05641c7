/* Sizes, offsets and constants that callers have compiled into their programs. A change here is a change
 * of the ABI: a new soname, or, for a struct that may grow, an addition at its end. */
#include "test.h"

/* C99 has no _Static_assert: an array of negative size says it too. */
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define STATIC_CHECK(condition) typedef char JOIN(static_check_, __LINE__)[(condition) ? 1 : -1]
#define OFFSET(type, member, offset) STATIC_CHECK(offsetof(type, member) == (offset))
#define SIZE(type, size) STATIC_CHECK(sizeof(type) == (size))

SIZE(lockstep_status, 4);
SIZE(lockstep_fp16, 2);
SIZE(lockstep_bf16, 2);
SIZE(lockstep_fp8_e4m3fn, 1);
SIZE(lockstep_fp8_e5m2, 1);

/* DLPack's DLDataType, DLDevice and DLTensor. */
SIZE(lockstep_dtype, 4);
OFFSET(lockstep_dtype, code, 0);
OFFSET(lockstep_dtype, bits, 1);
OFFSET(lockstep_dtype, lanes, 2);
SIZE(lockstep_device, 8);
OFFSET(lockstep_device, device_type, 0);
OFFSET(lockstep_device, device_id, 4);
SIZE(lockstep_tensor, 48);
OFFSET(lockstep_tensor, data, 0);
OFFSET(lockstep_tensor, device, 8);
OFFSET(lockstep_tensor, ndim, 16);
OFFSET(lockstep_tensor, dtype, 20);
OFFSET(lockstep_tensor, shape, 24);
OFFSET(lockstep_tensor, strides, 32);
OFFSET(lockstep_tensor, byte_offset, 40);

/* Frozen structs. */
SIZE(lockstep_convert_counts, 24);
SIZE(lockstep_estimate, 16);
SIZE(lockstep_mismatch_sequence, 56);
SIZE(lockstep_mismatch_bucket, 48);
SIZE(lockstep_divergence, 40);
SIZE(lockstep_rejection, 32);
SIZE(lockstep_weight_statistics, 48);
SIZE(lockstep_rejection_count, 64);
SIZE(lockstep_cause_finding, 24);
OFFSET(lockstep_cause_finding, cause, 0);
OFFSET(lockstep_cause_finding, score, 8);
OFFSET(lockstep_cause_finding, confidence, 16);
SIZE(lockstep_mismatch_sequence_bin, 40);
SIZE(lockstep_mismatch_sample, 64);
SIZE(lockstep_mismatch_token, 32);
SIZE(lockstep_monitor_reading, 48);

/* Structs that may grow, as they were in 0.1.0: these offsets stay. */
STATIC_CHECK(sizeof(lockstep_convert_options) >= 32);
OFFSET(lockstep_convert_options, rounding, 4);
OFFSET(lockstep_convert_options, seed, 8);
OFFSET(lockstep_convert_options, first_index, 16);
OFFSET(lockstep_convert_options, threads, 24);
OFFSET(lockstep_convert_options, instruction_set, 28);
STATIC_CHECK(sizeof(lockstep_log_probs_options) >= 48);
OFFSET(lockstep_log_probs_options, ignore_index, 4);
OFFSET(lockstep_log_probs_options, temperature, 8);
OFFSET(lockstep_log_probs_options, soft_cap, 16);
OFFSET(lockstep_log_probs_options, top_p, 24);
OFFSET(lockstep_log_probs_options, top_k, 32);
OFFSET(lockstep_log_probs_options, logits_dtype, 36);
OFFSET(lockstep_log_probs_options, threads, 40);
OFFSET(lockstep_log_probs_options, instruction_set, 44);
OFFSET(lockstep_log_probs_options, min_p, 48);
STATIC_CHECK(sizeof(lockstep_mismatch_evidence) >= 360);
OFFSET(lockstep_mismatch_evidence, tokens, 8);
OFFSET(lockstep_mismatch_evidence, sequences, 16);
OFFSET(lockstep_mismatch_evidence, trainer_bf16_share, 24);
OFFSET(lockstep_mismatch_evidence, trainer_fp16_share, 32);
OFFSET(lockstep_mismatch_evidence, rollout_bf16_share, 40);
OFFSET(lockstep_mismatch_evidence, rollout_fp16_share, 48);
OFFSET(lockstep_mismatch_evidence, stored_share, 56);
OFFSET(lockstep_mismatch_evidence, trainer_above_zero, 64);
OFFSET(lockstep_mismatch_evidence, rollout_above_zero, 72);
OFFSET(lockstep_mismatch_evidence, trainer_marks, 80);
OFFSET(lockstep_mismatch_evidence, rollout_marks, 88);
OFFSET(lockstep_mismatch_evidence, trainer_zeros, 96);
OFFSET(lockstep_mismatch_evidence, trainer_zeros_far, 104);
OFFSET(lockstep_mismatch_evidence, rollout_zeros, 112);
OFFSET(lockstep_mismatch_evidence, rollout_zeros_far, 120);
OFFSET(lockstep_mismatch_evidence, sequences_ahead, 128);
OFFSET(lockstep_mismatch_evidence, sequences_behind, 136);
OFFSET(lockstep_mismatch_evidence, pearson, 144);
OFFSET(lockstep_mismatch_evidence, first_tokens, 152);
OFFSET(lockstep_mismatch_evidence, first_far, 160);
OFFSET(lockstep_mismatch_evidence, last_tokens, 168);
OFFSET(lockstep_mismatch_evidence, last_far, 176);
OFFSET(lockstep_mismatch_evidence, noise_scale, 184);
OFFSET(lockstep_mismatch_evidence, noise_rms, 192);
OFFSET(lockstep_mismatch_evidence, noise_bits, 200);
OFFSET(lockstep_mismatch_evidence, noise_growth, 208);
OFFSET(lockstep_mismatch_evidence, far_share, 216);
OFFSET(lockstep_mismatch_evidence, far_down, 224);
OFFSET(lockstep_mismatch_evidence, far_up, 232);
OFFSET(lockstep_mismatch_evidence, far_square_share, 240);
OFFSET(lockstep_mismatch_evidence, slope, 248);
OFFSET(lockstep_mismatch_evidence, slope_r2, 256);
OFFSET(lockstep_mismatch_evidence, slope_t, 264);
OFFSET(lockstep_mismatch_evidence, entropy_scale, 272);
OFFSET(lockstep_mismatch_evidence, slope_square_share, 280);
OFFSET(lockstep_mismatch_evidence, mean_ratio_excess, 288);
OFFSET(lockstep_mismatch_evidence, mean_ratio_t, 296);
OFFSET(lockstep_mismatch_evidence, share_up, 304);
OFFSET(lockstep_mismatch_evidence, one_sidedness, 312);
OFFSET(lockstep_mismatch_evidence, square_one_sidedness, 320);
OFFSET(lockstep_mismatch_evidence, clustering, 328);
OFFSET(lockstep_mismatch_evidence, plain_square_share, 336);
OFFSET(lockstep_mismatch_evidence, ends_square_share, 344);
OFFSET(lockstep_mismatch_evidence, misaligned_square_share, 352);
STATIC_CHECK(sizeof(lockstep_mismatch_options) >= 16);
OFFSET(lockstep_mismatch_options, non_finite, 4);
OFFSET(lockstep_mismatch_options, threads, 8);
OFFSET(lockstep_mismatch_options, instruction_set, 12);
STATIC_CHECK(sizeof(lockstep_mismatch_accumulator_options) >= 8);
OFFSET(lockstep_mismatch_accumulator_options, exact_quantiles, 4);
OFFSET(lockstep_mismatch, tokens, 8);
OFFSET(lockstep_mismatch, mean_log_ratio, 48);
OFFSET(lockstep_mismatch, max_abs_log_ratio, 144);
STATIC_CHECK(sizeof(lockstep_log_header) >= 176);
OFFSET(lockstep_log_header, temperature, 8);
OFFSET(lockstep_log_header, top_k, 32);
OFFSET(lockstep_log_header, format_version, 36);
OFFSET(lockstep_log_header, created, 40);
OFFSET(lockstep_log_header, model, 48);
OFFSET(lockstep_log_header, trainer_engine, 56);
OFFSET(lockstep_log_header, rollout_engine, 104);
OFFSET(lockstep_log_header, pairs, 152);
OFFSET(lockstep_log_header, values, 168);
STATIC_CHECK(sizeof(lockstep_log_sequence) >= 80);
OFFSET(lockstep_log_sequence, id, 8);
OFFSET(lockstep_log_sequence, prompt_tokens, 24);
OFFSET(lockstep_log_sequence, reward, 32);
OFFSET(lockstep_log_sequence, token_ids, 48);
OFFSET(lockstep_log_sequence, mask, 72);
STATIC_CHECK(sizeof(lockstep_log_writer_options) >= 16);
OFFSET(lockstep_log_writer_options, mode, 4);
OFFSET(lockstep_log_writer_options, sync_every, 8);
STATIC_CHECK(sizeof(lockstep_log_reader_options) >= 8);
OFFSET(lockstep_log_reader_options, damage, 4);
STATIC_CHECK(sizeof(lockstep_log_batch) >= 600);
OFFSET(lockstep_log_batch, sequences, 8);
OFFSET(lockstep_log_batch, trainer_log_probs, 24);
OFFSET(lockstep_log_batch, positions, 552);
STATIC_CHECK(sizeof(lockstep_log_summary) >= 64);
OFFSET(lockstep_log_summary, is_closed, 4);
OFFSET(lockstep_log_summary, cut_off_bytes, 40);
OFFSET(lockstep_log_summary, skipped_bytes, 56);
STATIC_CHECK(sizeof(lockstep_headroom) == 64);
OFFSET(lockstep_headroom, largest, 24);
OFFSET(lockstep_headroom, non_finite, 56);
STATIC_CHECK(sizeof(lockstep_difference) >= 96);
OFFSET(lockstep_difference, operation, 8);
OFFSET(lockstep_difference, first_row, 48);
OFFSET(lockstep_difference, relative_rms, 88);
STATIC_CHECK(sizeof(lockstep_localiser_options) >= 40);
OFFSET(lockstep_localiser_options, reference, 16);
OFFSET(lockstep_localiser_options, range_count, 32);
STATIC_CHECK(sizeof(lockstep_recipe) == 32);
OFFSET(lockstep_recipe, logits, 20);
OFFSET(lockstep_recipe, order, 24);
OFFSET(lockstep_recipe, gradients, 28);
STATIC_CHECK(sizeof(lockstep_environment) == 88);
OFFSET(lockstep_environment, problems, 24);
OFFSET(lockstep_environment, name, 80);
STATIC_CHECK(sizeof(lockstep_run_options) == 208);
OFFSET(lockstep_run_options, trainer, 64);
OFFSET(lockstep_run_options, temperature, 120);
OFFSET(lockstep_run_options, false_alarms_per_1000, 200);
STATIC_CHECK(sizeof(lockstep_run_metrics) == 224);
OFFSET(lockstep_run_metrics, reward_mean, 64);
OFFSET(lockstep_run_metrics, monitor, 208);
OFFSET(lockstep_run_metrics, max_abs_prob_diff, 216);
STATIC_CHECK(sizeof(lockstep_rollout_request) == 88);
OFFSET(lockstep_rollout_request, prompt, 40);
STATIC_CHECK(sizeof(lockstep_supervised_options) == 104);
STATIC_CHECK(sizeof(lockstep_supervised_metrics) == 56);
STATIC_CHECK(sizeof(lockstep_trainer_options) == 64);
OFFSET(lockstep_trainer_options, adapter, 16);
OFFSET(lockstep_trainer_options, deviation, 56);
STATIC_CHECK(sizeof(lockstep_parameter) == 48);
OFFSET(lockstep_parameter, shape, 24);
STATIC_CHECK(sizeof(lockstep_backward_report) == 80);
OFFSET(lockstep_backward_report, overflow_operation, 32);
STATIC_CHECK(sizeof(lockstep_model_info) == 48);
OFFSET(lockstep_model_info, family, 40);
STATIC_CHECK(sizeof(lockstep_score_options) == 24);
OFFSET(lockstep_score_options, temperature, 16);
STATIC_CHECK(sizeof(lockstep_engine_options) == 80);
OFFSET(lockstep_engine_options, stop_ids, 40);
OFFSET(lockstep_engine_options, threads, 72);
STATIC_CHECK(sizeof(lockstep_rollout) == 56);
OFFSET(lockstep_rollout, finish, 48);
STATIC_CHECK(sizeof(lockstep_batch) == 112);
OFFSET(lockstep_batch, trainer_log_probs, 8);
OFFSET(lockstep_batch, mask, 64);
OFFSET(lockstep_batch, ids, 104);
STATIC_CHECK(sizeof(lockstep_correction_options) >= 88);
OFFSET(lockstep_correction_options, low, 16);
OFFSET(lockstep_correction_options, normalize, 48);
OFFSET(lockstep_correction_options, second_moment, 64);
OFFSET(lockstep_correction_options, rejection_count, 80);
STATIC_CHECK(sizeof(lockstep_correction) >= 280);
OFFSET(lockstep_correction, tokens, 8);
OFFSET(lockstep_correction, mean_sequence_length, 112);
OFFSET(lockstep_correction, ratio, 136);
OFFSET(lockstep_correction, kept_weight, 232);
STATIC_CHECK(sizeof(lockstep_rewards) == 56);
OFFSET(lockstep_rewards, rewards, 8);
OFFSET(lockstep_rewards, squared_mass, 40);
OFFSET(lockstep_rewards, kind_weights, 48);
STATIC_CHECK(sizeof(lockstep_advantage_options) == 56);
OFFSET(lockstep_advantage_options, estimator, 4);
OFFSET(lockstep_advantage_options, tail_baseline, 28);
OFFSET(lockstep_advantage_options, epsilon, 32);
OFFSET(lockstep_advantage_options, lambda, 48);
OFFSET(lockstep_mismatch, max_sequence_length, 560);
OFFSET(lockstep_mismatch, ess_standard_error, 568);
STATIC_CHECK(sizeof(lockstep_monitor_options) >= 16);
OFFSET(lockstep_monitor_options, learning_steps, 4);
OFFSET(lockstep_monitor_options, false_alarms_per_1000, 8);
STATIC_CHECK(sizeof(lockstep_monitor_alarm) >= 80);
OFFSET(lockstep_monitor_alarm, level, 4);
OFFSET(lockstep_monitor_alarm, step, 16);
OFFSET(lockstep_monitor_alarm, value, 32);
OFFSET(lockstep_monitor_alarm, false_alarm_probability, 72);

STATIC_CHECK(sizeof(lockstep_objective_options) >= 192);
OFFSET(lockstep_objective_options, term, 4);
OFFSET(lockstep_objective_options, low, 32);
OFFSET(lockstep_objective_options, log_ratio_min, 120);
OFFSET(lockstep_objective_options, scale, 176);
OFFSET(lockstep_objective_options, instruction_set, 188);
STATIC_CHECK(sizeof(lockstep_objective_report) >= 192);
OFFSET(lockstep_objective_report, loss, 8);
OFFSET(lockstep_objective_report, tokens, 40);
OFFSET(lockstep_objective_report, ratio_mean, 112);
OFFSET(lockstep_objective_report, entropy, 184);
STATIC_CHECK(sizeof(lockstep_objective_counts) == 24);
OFFSET(lockstep_objective_counts, prompts, 16);
STATIC_CHECK(sizeof(lockstep_covariance_options) >= 56);
OFFSET(lockstep_covariance_options, seed, 48);
STATIC_CHECK(sizeof(lockstep_preset) >= 56);
OFFSET(lockstep_preset, policies, 4);
OFFSET(lockstep_preset, name, 8);
OFFSET(lockstep_preset, text, 40);
OFFSET(lockstep_preset, reference_is_rollout, 48);

STATIC_CHECK(LOCKSTEP_OK == 0 && LOCKSTEP_ERROR_INVALID_ARGUMENT == 1 && LOCKSTEP_ERROR_UNSUPPORTED == 2 &&
             LOCKSTEP_ERROR_NON_FINITE == 3 && LOCKSTEP_ERROR_OUT_OF_MEMORY == 4 &&
             LOCKSTEP_ERROR_INTERNAL == 5 && LOCKSTEP_ERROR_FILE == 6 && LOCKSTEP_ERROR_BAD_DATA == 7);
STATIC_CHECK(LOCKSTEP_INSTRUCTION_SET_BEST == 0 && LOCKSTEP_INSTRUCTION_SET_BASELINE == 1 &&
             LOCKSTEP_INSTRUCTION_SET_AVX2 == 2 && LOCKSTEP_INSTRUCTION_SET_AVX512 == 3 &&
             LOCKSTEP_INSTRUCTION_SET_NEON == 4);
STATIC_CHECK(LOCKSTEP_ROUND_NEAREST_EVEN == 0 && LOCKSTEP_ROUND_TOWARD_ZERO == 1 &&
             LOCKSTEP_ROUND_STOCHASTIC == 2);
STATIC_CHECK(LOCKSTEP_TERM_CLIP == 0 && LOCKSTEP_TERM_REINFORCE == 1 && LOCKSTEP_TERM_RATIO == 2 &&
             LOCKSTEP_TERM_CISPO == 3 && LOCKSTEP_TERM_SAPO == 4 && LOCKSTEP_TERM_TOPR == 5 &&
             LOCKSTEP_TERM_SQUARED == 6 && LOCKSTEP_TERM_KL_COV == 7 && LOCKSTEP_TERM_GMPO == 8 &&
             LOCKSTEP_TERM_VESPO == 9);
STATIC_CHECK(LOCKSTEP_PRESET_THREE_POLICIES == 0 && LOCKSTEP_PRESET_TWO_POLICIES == 1);
STATIC_CHECK(LOCKSTEP_RATIO_TOKEN == 0 && LOCKSTEP_RATIO_SEQUENCE == 1 && LOCKSTEP_RATIO_SEQUENCE_TOKEN == 2 &&
             LOCKSTEP_RATIO_SEQUENCE_SUM == 3);
STATIC_CHECK(LOCKSTEP_TOKEN_MEAN == 0 && LOCKSTEP_TOKEN_SUM == 1 && LOCKSTEP_SEQ_MEAN_TOKEN_SUM == 2 &&
             LOCKSTEP_SEQ_MEAN_TOKEN_MEAN == 3 && LOCKSTEP_SEQ_MEAN_TOKEN_SUM_NORM == 4 &&
             LOCKSTEP_PROMPT_MEAN == 5);
STATIC_CHECK(LOCKSTEP_KL_NONE == 0 && LOCKSTEP_KL_K1 == 1 && LOCKSTEP_KL_K2 == 2 && LOCKSTEP_KL_K3 == 3 &&
             LOCKSTEP_KL_ABS == 4 && LOCKSTEP_KL_GRADIENT_DIRECT == 0 && LOCKSTEP_KL_GRADIENT_RATIO == 1 &&
             LOCKSTEP_KL_GRADIENT_SCORE_FUNCTION == 2 && LOCKSTEP_KL_GRADIENT_K2 == 3);
STATIC_CHECK(LOCKSTEP_NON_FINITE_STRICT == 0 && LOCKSTEP_NON_FINITE_EXCLUDE == 1);
STATIC_CHECK(LOCKSTEP_SEQUENCE_LOG_RATIO == 0 && LOCKSTEP_SEQUENCE_MEAN_LOG_RATIO == 1);
STATIC_CHECK(LOCKSTEP_AXIS_POSITION == 0 && LOCKSTEP_AXIS_PROBABILITY == 1 && LOCKSTEP_AXIS_LOG_RATIO == 2);
STATIC_CHECK(LOCKSTEP_LOG_PROB_UNKNOWN == 0 && LOCKSTEP_LOG_PROB_RAW == 1 && LOCKSTEP_LOG_PROB_PROCESSED == 2);
STATIC_CHECK(LOCKSTEP_LOG_CREATE == 0 && LOCKSTEP_LOG_APPEND == 1 && LOCKSTEP_LOG_REPLACE == 2);
STATIC_CHECK(LOCKSTEP_LOG_DAMAGE_STRICT == 0 && LOCKSTEP_LOG_DAMAGE_SKIP == 1);
STATIC_CHECK(LOCKSTEP_LOG_HAS_TOKEN_IDS == 1 && LOCKSTEP_LOG_HAS_ROLLOUT == 2 && LOCKSTEP_LOG_HAS_TRAINER == 4);
STATIC_CHECK(LOCKSTEP_MONITOR_LEARNING == 0 && LOCKSTEP_MONITOR_OK == 1 && LOCKSTEP_MONITOR_WATCH == 2 &&
             LOCKSTEP_MONITOR_ALARM == 3);
STATIC_CHECK(LOCKSTEP_MONITOR_K3 == 0 && LOCKSTEP_MONITOR_CHI_SQUARE == 1 && LOCKSTEP_MONITOR_ESS_LOSS == 2 &&
             LOCKSTEP_MONITOR_MAX_ABS_LOG_RATIO == 3);
STATIC_CHECK(LOCKSTEP_ADVANTAGE_GRPO == 0 && LOCKSTEP_ADVANTAGE_DR_GRPO == 1 &&
             LOCKSTEP_ADVANTAGE_LEAVE_ONE_OUT == 2 && LOCKSTEP_ADVANTAGE_REINFORCE_PLUS_PLUS == 3 &&
             LOCKSTEP_ADVANTAGE_REINFORCE_PLUS_PLUS_BASELINE == 4 && LOCKSTEP_ADVANTAGE_OPO == 5 &&
             LOCKSTEP_ADVANTAGE_REMAX == 6 && LOCKSTEP_ADVANTAGE_GPG == 7 && LOCKSTEP_ADVANTAGE_PASS_AT_K == 8 &&
             LOCKSTEP_ADVANTAGE_MAX_RL == 9 && LOCKSTEP_ADVANTAGE_GDPO == 10 && LOCKSTEP_ADVANTAGE_GAE == 11 &&
             LOCKSTEP_ADVANTAGE_OPTIMAL_TOKEN_BASELINE == 12 && LOCKSTEP_ADVANTAGE_MULTI_TURN_TOKEN_BASELINE == 13);
STATIC_CHECK(LOCKSTEP_SCALE_OF_ESTIMATOR == 0 && LOCKSTEP_SCALE_NONE == 1 && LOCKSTEP_SCALE_GROUP_STD == 2 &&
             LOCKSTEP_SCALE_OTHERS_STD == 3 && LOCKSTEP_SCALE_BATCH_STD == 4 && LOCKSTEP_SCALE_GROUP_MEAN == 5 &&
             LOCKSTEP_SCALE_NON_ZERO_SHARE == 6);
STATIC_CHECK(LOCKSTEP_WHITEN_AS_ESTIMATOR == 0 && LOCKSTEP_WHITEN_NO == 1 && LOCKSTEP_WHITEN_YES == 2);
STATIC_CHECK(LOCKSTEP_SINGLE_ZERO == 0 && LOCKSTEP_SINGLE_RAW == 1);
STATIC_CHECK(LOCKSTEP_TRUNCATED_KEEP == 0 && LOCKSTEP_TRUNCATED_ZERO == 1 && LOCKSTEP_TRUNCATED_DROP == 2);

/* The code of a dtype is the bytes of DLPack's struct: code, bits, lanes. */
static void dtype_codes_are_dlpacks(void) {
    static const struct { int32_t code; uint8_t kind, bits; } known[] = {
        {LOCKSTEP_FLOAT32, 2, 32},      {LOCKSTEP_FLOAT64, 2, 64},    {LOCKSTEP_FLOAT16, 2, 16},
        {LOCKSTEP_BFLOAT16, 4, 16},     {LOCKSTEP_INT32, 0, 32},      {LOCKSTEP_INT64, 0, 64},
        {LOCKSTEP_UINT8, 1, 8},         {LOCKSTEP_UINT64, 1, 64},     {LOCKSTEP_BOOL, 6, 8},
        {LOCKSTEP_FLOAT8_E4M3FN, 10, 8}, {LOCKSTEP_FLOAT8_E5M2, 12, 8},
        {LOCKSTEP_E8M + 23, 215, 32},   {LOCKSTEP_E5M + 10, 234, 32},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        lockstep_dtype dtype = lockstep_dtype_of(known[i].code);
        CHECK(dtype.code == known[i].kind && dtype.bits == known[i].bits && dtype.lanes == 1);
        CHECK(memcmp(&dtype, &known[i].code, 4) == 0);
    }
}

static void tensor_of_describes_the_buffer(void) {
    float data[6];
    int64_t shape[2] = {2, 3};
    lockstep_tensor tensor = lockstep_tensor_of(data, LOCKSTEP_FLOAT32, 2, shape);
    CHECK(tensor.data == data && tensor.ndim == 2 && tensor.shape == shape);
    CHECK(tensor.device.device_type == 1 && tensor.device.device_id == 0);
    CHECK(tensor.strides == NULL && tensor.byte_offset == 0 && tensor.dtype.bits == 32);
}

static void init_macros_hold_the_defaults(void) {
    lockstep_log_probs_options log_probs = LOCKSTEP_LOG_PROBS_OPTIONS_INIT;
    CHECK(log_probs.struct_size == sizeof log_probs && log_probs.temperature == 1 && log_probs.soft_cap == 0);
    CHECK(log_probs.ignore_index == -100 && log_probs.top_k == 0 && log_probs.top_p == 1);
    CHECK(log_probs.min_p == 0 && log_probs.logits_dtype == 0 && log_probs.threads == 0 && log_probs.instruction_set == 0);
    lockstep_convert_options convert = LOCKSTEP_CONVERT_OPTIONS_INIT;
    CHECK(convert.struct_size == sizeof convert && convert.rounding == LOCKSTEP_ROUND_NEAREST_EVEN);
    lockstep_mismatch_options mismatch = LOCKSTEP_MISMATCH_OPTIONS_INIT;
    CHECK(mismatch.struct_size == sizeof mismatch && mismatch.non_finite == LOCKSTEP_NON_FINITE_STRICT);
    lockstep_log_header header = LOCKSTEP_LOG_HEADER_INIT;
    CHECK(header.struct_size == sizeof header && header.temperature == -1 && header.top_p == -1);
    CHECK(header.min_p == -1 && header.top_k == -1 && header.created == 0 && header.model == NULL);
    CHECK(header.rollout_logits == NULL && header.pairs == 0 && header.keys == NULL && header.values == NULL);
    lockstep_log_sequence sequence = LOCKSTEP_LOG_SEQUENCE_INIT;
    CHECK(sequence.struct_size == sizeof sequence && sequence.id == 0 && sequence.step == -1);
    CHECK(sequence.prompt_tokens == -1 && sequence.reward == NULL && sequence.mask == NULL);
    lockstep_log_writer_options writer = LOCKSTEP_LOG_WRITER_OPTIONS_INIT;
    CHECK(writer.struct_size == sizeof writer && writer.mode == LOCKSTEP_LOG_CREATE && writer.sync_every == 0);
    lockstep_log_reader_options reader = LOCKSTEP_LOG_READER_OPTIONS_INIT;
    CHECK(reader.struct_size == sizeof reader && reader.damage == LOCKSTEP_LOG_DAMAGE_STRICT);
    lockstep_rewards rewards = LOCKSTEP_REWARDS_INIT;
    CHECK(rewards.struct_size == sizeof rewards && rewards.rewards == NULL && rewards.kind_weights == NULL);
    lockstep_advantage_options advantages = LOCKSTEP_ADVANTAGE_OPTIONS_INIT;
    CHECK(advantages.struct_size == sizeof advantages && advantages.estimator == LOCKSTEP_ADVANTAGE_GRPO);
    CHECK(advantages.epsilon == -1 && advantages.gamma == 1 && advantages.lambda == 1);
    lockstep_monitor_options monitor = LOCKSTEP_MONITOR_OPTIONS_INIT;
    CHECK(monitor.struct_size == sizeof monitor && monitor.learning_steps == 40 &&
          monitor.false_alarms_per_1000 == 1);
}

static void library_has_the_headers_version(void) {
    char text[32];
    CHECK(lockstep_version() ==
          LOCKSTEP_VERSION_MAJOR * 10000 + LOCKSTEP_VERSION_MINOR * 100 + LOCKSTEP_VERSION_PATCH);
    snprintf(text, sizeof text, "%d.%d.%d", LOCKSTEP_VERSION_MAJOR, LOCKSTEP_VERSION_MINOR,
             LOCKSTEP_VERSION_PATCH);
    CHECK(strcmp(lockstep_version_string(), text) == 0);
}

static void every_status_has_its_name(void) {
    CHECK(strcmp(lockstep_status_name(LOCKSTEP_OK), "LOCKSTEP_OK") == 0);
    CHECK(strcmp(lockstep_status_name(LOCKSTEP_ERROR_INVALID_ARGUMENT), "LOCKSTEP_ERROR_INVALID_ARGUMENT") == 0);
    CHECK(strcmp(lockstep_status_name(LOCKSTEP_ERROR_UNSUPPORTED), "LOCKSTEP_ERROR_UNSUPPORTED") == 0);
    CHECK(strcmp(lockstep_status_name(LOCKSTEP_ERROR_NON_FINITE), "LOCKSTEP_ERROR_NON_FINITE") == 0);
    CHECK(strcmp(lockstep_status_name(LOCKSTEP_ERROR_OUT_OF_MEMORY), "LOCKSTEP_ERROR_OUT_OF_MEMORY") == 0);
    CHECK(strcmp(lockstep_status_name(LOCKSTEP_ERROR_INTERNAL), "LOCKSTEP_ERROR_INTERNAL") == 0);
    CHECK(strcmp(lockstep_status_name(LOCKSTEP_ERROR_FILE), "LOCKSTEP_ERROR_FILE") == 0);
    CHECK(strcmp(lockstep_status_name(LOCKSTEP_ERROR_BAD_DATA), "LOCKSTEP_ERROR_BAD_DATA") == 0);
    CHECK(strcmp(lockstep_status_name(8), "unknown status") == 0);
    CHECK(strcmp(lockstep_status_name(INT32_MIN), "unknown status") == 0);
}

static void instruction_sets_are_known_or_absent(void) {
    CHECK(lockstep_has_instruction_set(LOCKSTEP_INSTRUCTION_SET_BEST) == 1);
    CHECK(lockstep_has_instruction_set(LOCKSTEP_INSTRUCTION_SET_BASELINE) == 1);
    CHECK(lockstep_has_instruction_set(5) == 0);
    CHECK(lockstep_has_instruction_set(-1) == 0);
    CHECK(lockstep_has_instruction_set(INT32_MAX) == 0);
    /* No machine has both families. */
    CHECK(!(lockstep_has_instruction_set(LOCKSTEP_INSTRUCTION_SET_AVX2) &&
            lockstep_has_instruction_set(LOCKSTEP_INSTRUCTION_SET_NEON)));
}

int main(void) {
    TEST(dtype_codes_are_dlpacks);
    TEST(tensor_of_describes_the_buffer);
    TEST(init_macros_hold_the_defaults);
    TEST(library_has_the_headers_version);
    TEST(every_status_has_its_name);
    TEST(instruction_sets_are_known_or_absent);
    return test_report();
}
