/* Section 6 of the header: corrections. */
#include "arguments.h"

#include <math.h>

enum { TOKENS = 6, SEQUENCES = 2, RULES = 2 };

typedef struct {
    argument trainer_log_probs, rollout_log_probs, current_log_probs, advantages, mask, offsets;
    argument weights, kept;
    growable options;
    lockstep_batch batch;
    lockstep_rejection rejections[RULES];
    int null_batch, null_outputs;
    double trainer[TOKENS], rollout[TOKENS], current[TOKENS];
    float advantage[SEQUENCES];
    uint8_t mask_data[TOKENS];
    int64_t offsets_data[SEQUENCES + 1];
    struct {
        double weights[TOKENS];
        uint8_t kept[TOKENS];
        lockstep_rejection_count counts[RULES];
        lockstep_correction correction;
    } outputs;
} fixture;

/* Both rules keep everything; between them they need every part of the batch. */
static void fixture_init(fixture *f) {
    static const lockstep_correction_options options = LOCKSTEP_CORRECTION_OPTIONS_INIT;
    static const lockstep_batch batch = LOCKSTEP_BATCH_INIT;
    static const double trainer[TOKENS] = {-0.5, -1, -1.5, -0.25, -2, -0.125};
    static const double rollout[TOKENS] = {-0.5, -1.25, -1, -0.5, -2, -0.25};
    static const lockstep_rejection veto = {LOCKSTEP_STATISTIC_RATIO, LOCKSTEP_LEVEL_SEQUENCE_EVERY, 0, 0, 1e-4, INFINITY};
    static const lockstep_rejection sided = {LOCKSTEP_STATISTIC_BINARY_KL, LOCKSTEP_LEVEL_TOKEN,
                                             LOCKSTEP_POLICIES_CURRENT_ROLLOUT, LOCKSTEP_SIDE_BY_ADVANTAGE, -50, 50};
    memset(f, 0, sizeof *f);
    f->options.correction = options;
    f->options.correction.rejections = f->rejections;
    f->options.correction.rejection_count = RULES;
    f->rejections[0] = veto;
    f->rejections[1] = sided;
    memcpy(f->trainer, trainer, sizeof trainer);
    memcpy(f->rollout, rollout, sizeof rollout);
    memcpy(f->current, trainer, sizeof trainer);
    f->advantage[0] = 1;
    f->advantage[1] = -1;
    memset(f->mask_data, 1, sizeof f->mask_data);
    f->offsets_data[1] = 4;
    f->offsets_data[2] = TOKENS;
    argument_init(&f->trainer_log_probs, f->trainer, LOCKSTEP_FLOAT64, TOKENS, 0);
    argument_init(&f->rollout_log_probs, f->rollout, LOCKSTEP_FLOAT64, TOKENS, 0);
    argument_init(&f->current_log_probs, f->current, LOCKSTEP_FLOAT64, TOKENS, 0);
    argument_init(&f->advantages, f->advantage, LOCKSTEP_FLOAT32, SEQUENCES, 0);
    argument_init(&f->mask, f->mask_data, LOCKSTEP_UINT8, TOKENS, 0);
    argument_init(&f->offsets, f->offsets_data, LOCKSTEP_INT64, SEQUENCES + 1, 0);
    argument_init(&f->weights, f->outputs.weights, LOCKSTEP_FLOAT64, TOKENS, 0);
    argument_init(&f->kept, f->outputs.kept, LOCKSTEP_BOOL, TOKENS, 0);
    f->batch = batch;
}

static lockstep_status correct(fixture *f) {
    lockstep_correction *out = &f->outputs.correction;
    out->struct_size = sizeof *out;
    f->batch.trainer_log_probs = given(&f->trainer_log_probs);
    f->batch.rollout_log_probs = given(&f->rollout_log_probs);
    f->batch.current_log_probs = given(&f->current_log_probs);
    f->batch.advantages = given(&f->advantages);
    f->batch.mask = given(&f->mask);
    f->batch.offsets = given(&f->offsets);
    lockstep_status status = lockstep_correct(
        f->null_outputs ? NULL : given(&f->weights), f->null_outputs ? NULL : given(&f->kept),
        f->null_outputs ? NULL : out, f->null_outputs ? NULL : f->outputs.counts,
        f->null_batch ? NULL : &f->batch, &f->options.correction);
    if (status != LOCKSTEP_OK) memset(&out->struct_size, TEST_CANARY, sizeof out->struct_size);
    return status;
}

static const argument_place all[] = {
    PLACE(trainer_log_probs, REQUIRED), PLACE(rollout_log_probs, REQUIRED), PLACE(current_log_probs, REQUIRED),
    PLACE(advantages, REQUIRED), PLACE(mask, 0), PLACE(offsets, 0), PLACE(weights, OUTPUT), PLACE(kept, OUTPUT)};

static void refuses_bad_input(void) {
    ACCEPTED(correct, (void)0);
    ACCEPTED(correct, f.null_outputs = 1);
    REFUSES_SPOILED_ARGUMENTS(correct, all);
    REFUSES_SPOILED_OPTIONS(correct, correction);
    REFUSED(correct, INVALID_ARGUMENT, "batch", f.null_batch = 1);
    REFUSED(correct, INVALID_ARGUMENT, "struct_size", f.batch.struct_size = 8);
    REFUSED(correct, INVALID_ARGUMENT, "reserved", f.batch.reserved = 1);
    REFUSED(correct, INVALID_ARGUMENT, "rollout_log_probs", f.rollout_log_probs.shape[0] = TOKENS - 1);
    REFUSED(correct, INVALID_ARGUMENT, "mask", f.mask.shape[0] = TOKENS - 1);
    REFUSED(correct, INVALID_ARGUMENT, "advantages", f.advantages.shape[0] = SEQUENCES + 1);
    REFUSED(correct, INVALID_ARGUMENT, "weights", f.weights.shape[0] = TOKENS - 1);
    REFUSED(correct, INVALID_ARGUMENT, "kept", f.kept.shape[0] = TOKENS + 1);
    REFUSED(correct, INVALID_ARGUMENT, "offsets", f.offsets_data[2] = TOKENS - 1);
    REFUSED(correct, NON_FINITE, "trainer_log_probs", f.trainer[0] = NAN);
    REFUSED(correct, NON_FINITE, "sequence 1, position 1", f.rollout[5] = -INFINITY);
    REFUSED(correct, NON_FINITE, "current_log_probs", f.current[3] = INFINITY);
    REFUSED(correct, NON_FINITE, "advantages", f.advantage[1] = NAN);
    ACCEPTED(correct, f.options.correction.non_finite = LOCKSTEP_NON_FINITE_EXCLUDE, f.advantage[1] = NAN);
}

#define OPTION(field, value) f.options.correction.field = value

static void refuses_bad_options(void) {
    REFUSED(correct, INVALID_ARGUMENT, "weights is 5", OPTION(weights, 5));
    REFUSED(correct, INVALID_ARGUMENT, "weights is -1", OPTION(weights, -1));
    REFUSED(correct, INVALID_ARGUMENT, "level is 6", OPTION(level, 6));
    REFUSED(correct, INVALID_ARGUMENT, "level", OPTION(level, LOCKSTEP_LEVEL_SEQUENCE_EVERY));
    REFUSED(correct, INVALID_ARGUMENT, "non_finite", OPTION(non_finite, 2));
    REFUSED(correct, INVALID_ARGUMENT, "normalize", OPTION(normalize, 2));
    REFUSED(correct, INVALID_ARGUMENT, "reserved", OPTION(reserved, 1));
    REFUSED(correct, INVALID_ARGUMENT, "low", OPTION(low, 3));
    REFUSED(correct, INVALID_ARGUMENT, "low", OPTION(low, -0.5));
    REFUSED(correct, INVALID_ARGUMENT, "low", OPTION(low, NAN));
    REFUSED(correct, INVALID_ARGUMENT, "high", OPTION(high, NAN));
    REFUSED(correct, INVALID_ARGUMENT, "high", OPTION(high, -1));
    REFUSED(correct, INVALID_ARGUMENT, "log_ratio_min", OPTION(log_ratio_min, 1));
    REFUSED(correct, INVALID_ARGUMENT, "log_ratio_max", OPTION(log_ratio_max, -1));
    REFUSED(correct, INVALID_ARGUMENT, "log_ratio_min", OPTION(log_ratio_min, NAN));
    REFUSED(correct, INVALID_ARGUMENT, "log_ratio_max", OPTION(log_ratio_max, NAN));
    /* Nothing would bound the weights. */
    REFUSED(correct, INVALID_ARGUMENT, "log_ratio_max", OPTION(log_ratio_max, INFINITY), OPTION(high, INFINITY));
    REFUSED(correct, INVALID_ARGUMENT, "log_ratio_max", OPTION(log_ratio_max, 90),
            OPTION(weights, LOCKSTEP_WEIGHTS_RAW));
    ACCEPTED(correct, OPTION(log_ratio_max, INFINITY), OPTION(log_ratio_min, -INFINITY));
    REFUSED(correct, INVALID_ARGUMENT, "second_moment", OPTION(second_moment, -1));
    REFUSED(correct, INVALID_ARGUMENT, "second_moment", OPTION(second_moment, NAN));
    REFUSED(correct, INVALID_ARGUMENT, "second_moment", OPTION(second_moment, INFINITY));
    REFUSED(correct, INVALID_ARGUMENT, "rejections", OPTION(rejections, NULL));
    REFUSED(correct, INVALID_ARGUMENT, "rejection", OPTION(rejection_count, 17));
    REFUSED(correct, INVALID_ARGUMENT, "rejection_count", OPTION(rejection_count, SIZE_MAX));
    REFUSED(correct, INVALID_ARGUMENT, "rejections[1]: statistic", f.rejections[1].statistic = 6);
    REFUSED(correct, INVALID_ARGUMENT, "rejections[1]: level", f.rejections[1].level = -1);
    REFUSED(correct, INVALID_ARGUMENT, "rejections[0]: policies", f.rejections[0].policies = 3);
    REFUSED(correct, INVALID_ARGUMENT, "rejections[0]: side", f.rejections[0].side = 3);
    REFUSED(correct, INVALID_ARGUMENT, "rejections[0]", f.rejections[0].low = NAN);
    REFUSED(correct, INVALID_ARGUMENT, "rejections[0]", f.rejections[0].high = NAN);
    REFUSED(correct, INVALID_ARGUMENT, "rejections[1]", f.rejections[1].low = 51);
    REFUSED(correct, INVALID_ARGUMENT, "rejections[1]", f.rejections[1].low = INFINITY, f.rejections[1].high = INFINITY);
    REFUSED(correct, INVALID_ARGUMENT, "rejections[0]", f.rejections[0].low = -1);
    REFUSED(correct, INVALID_ARGUMENT, "rejections[0]", f.rejections[0].low = -INFINITY, f.rejections[0].high = -1);
    /* The size of the report is the caller's. */
    fixture f;
    fixture_init(&f);
    CHECK_OK(correct(&f));
    f.outputs.correction.struct_size = 8;
    CHECK(lockstep_correct(NULL, NULL, &f.outputs.correction, NULL, &f.batch, NULL) ==
          LOCKSTEP_ERROR_INVALID_ARGUMENT);
}

static void weights_follow_the_formulas(void) {
    fixture f;
    fixture_init(&f);
    f.options.correction.high = 1.2;
    CHECK_OK(correct(&f));
    const lockstep_correction *report = &f.outputs.correction;
    double sum = 0, square = 0;
    for (int i = 0; i < TOKENS; i++) {
        double weight = fmin(exp(f.trainer[i] - f.rollout[i]), 1.2);
        CHECK(fabs(f.outputs.weights[i] - weight) < 1e-15 && f.outputs.kept[i] == 1);
        sum += weight;
        square += weight * weight;
    }
    CHECK(report->tokens == TOKENS && report->sequences == SEQUENCES && report->empty == 0);
    CHECK(report->above == 2 && report->below == 0 && report->clamped == 0 && report->rejected_tokens == 0);
    CHECK(fabs(report->weight.mean - sum / TOKENS) < 1e-15);
    CHECK(fabs(report->weight.ess - sum * sum / (TOKENS * square)) < 1e-15);
    CHECK(report->weight.max == 1.2 && report->normalizer == 1 && isinf(report->second_moment_cut));
    CHECK(report->mean_sequence_length == 3 && report->max_sequence_length == 4);

    /* The batch mean becomes 1. The second sequence: S = 0.125. */
    f.options.correction.normalize = 1;
    f.options.correction.level = LOCKSTEP_LEVEL_SEQUENCE_SUM;
    f.options.correction.high = 2;
    CHECK_OK(correct(&f));
    CHECK(fabs(f.outputs.weights[0] + f.outputs.weights[5] - 2) < 1e-15 && f.outputs.weights[4] == f.outputs.weights[5]);
    CHECK(fabs(report->normalizer - (1 + exp(0.125)) / 2) < 1e-15 && report->weight.units == 2);

    /* Where the advantage is negative and the current policy has moved away, the sequence goes. */
    fixture_init(&f);
    f.options.correction.rejection_count = 1;
    f.rejections[0].level = LOCKSTEP_LEVEL_SEQUENCE_MEAN;
    f.rejections[0].policies = LOCKSTEP_POLICIES_CURRENT_ROLLOUT;
    f.rejections[0].side = LOCKSTEP_SIDE_NEGATIVE_ADVANTAGE;
    f.rejections[0].low = 0.9;
    for (int i = 0; i < TOKENS; i++) f.current[i] = f.rollout[i] - 0.2;
    CHECK_OK(correct(&f));
    CHECK(f.outputs.kept[0] == 1 && f.outputs.kept[3] == 1 && f.outputs.kept[4] == 0 && f.outputs.kept[5] == 0);
    CHECK(report->rejected_sequences == 1 && report->rejected_tokens == 2 && f.outputs.counts[0].units == 2);
    CHECK(fabs(f.outputs.counts[0].mean - exp(-0.2)) < 1e-15 && f.outputs.weights[5] > 0);
}

/* Nothing left is an answer. */
static void everything_rejected_is_defined(void) {
    fixture f;
    fixture_init(&f);
    f.options.correction.weights = LOCKSTEP_WEIGHTS_MASK;
    f.options.correction.low = 5;
    f.options.correction.high = 6;
    f.options.correction.normalize = 1;
    f.rejections[0].low = 5;
    CHECK_OK(correct(&f));
    const lockstep_correction *report = &f.outputs.correction;
    CHECK(report->empty == 1 && report->rejected_tokens == TOKENS && report->rejected_sequences == SEQUENCES);
    CHECK(report->weight.mean == 0 && report->weight.ess == 0 && report->weight.std == 0 && report->normalizer == 1);
    CHECK(report->kept_weight.units == 0 && isnan(report->kept_weight.mean));
    for (int i = 0; i < TOKENS; i++) CHECK(f.outputs.weights[i] == 0 && f.outputs.kept[i] == 0);

    fixture_init(&f);
    memset(f.mask_data, 0, sizeof f.mask_data);
    for (int i = 0; i < TOKENS; i++) f.trainer[i] = NAN;
    CHECK_OK(correct(&f));
    CHECK(report->empty == 1 && report->tokens == 0 && report->empty_sequences == SEQUENCES);
    CHECK(isnan(report->weight.mean) && report->masked_tokens == TOKENS);
    for (int i = 0; i < TOKENS; i++) CHECK(f.outputs.weights[i] == 0 && f.outputs.kept[i] == 0);

    /* No tokens, and no sequences. */
    static const int64_t none[1] = {0};
    lockstep_tensor empty = lockstep_tensor_of(f.trainer, LOCKSTEP_FLOAT64, 1, none);
    lockstep_batch batch = LOCKSTEP_BATCH_INIT;
    batch.trainer_log_probs = batch.rollout_log_probs = &empty;
    CHECK_OK(lockstep_correct(NULL, NULL, &f.outputs.correction, NULL, &batch, NULL));
    CHECK(report->empty == 1 && report->sequences == 0 && report->empty_sequences == 1);
}

static void extreme_values_do_not_trap(void) {
    static const double values[] = {0, -1e-320, -1e308, 1e308, -745, 700, 1e-300};
    enum { VALUES = sizeof values / sizeof *values };
    for (int a = 0; a < VALUES; a++)
        for (int b = 0; b < VALUES; b++)
            for (int32_t statistic = 0; statistic <= LOCKSTEP_STATISTIC_BINARY_KL; statistic++)
                for (int32_t level = 0; level <= LOCKSTEP_LEVEL_SEQUENCE_EVERY; level++) {
                    fixture f;
                    fixture_init(&f);
                    f.trainer[1] = f.current[1] = values[a];
                    f.rollout[1] = values[b];
                    f.rejections[1].statistic = statistic;
                    f.rejections[1].level = level;
                    f.rejections[1].low = -INFINITY;
                    f.options.correction.second_moment = 0.5;
                    f.options.correction.log_ratio_max = INFINITY;
                    f.options.correction.log_ratio_min = -INFINITY;
                    CHECK_OK(correct(&f));
                    for (int i = 0; i < TOKENS; i++)
                        CHECK(f.outputs.weights[i] >= 0 && f.outputs.weights[i] <= 2 && f.outputs.kept[i] <= 1);
                }
}

int main(void) {
    TEST(refuses_bad_input);
    TEST(refuses_bad_options);
    TEST(weights_follow_the_formulas);
    TEST(everything_rejected_is_defined);
    TEST(extreme_values_do_not_trap);
    return test_report();
}
