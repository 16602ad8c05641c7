/* Section 4 of the header: mismatch of two log-prob arrays and of two logits matrices. */
#include "arguments.h"

#include <math.h>

enum { TOKENS = 6, SEQUENCES = 2, VOCAB = 3, BUCKETS = 4 };

typedef struct {
    argument trainer_log_probs, rollout_log_probs, mask, offsets;
    argument trainer_logits, rollout_logits, row_mask;
    growable options;
    lockstep_mismatch_axis axis;
    size_t count;
    int null_output;
    double edges[BUCKETS + 1];
    double trainer[TOKENS], rollout[TOKENS];
    uint8_t mask_data[TOKENS];
    int64_t offsets_data[SEQUENCES + 1];
    float logits[2][SEQUENCES * VOCAB];
    struct {
        lockstep_mismatch_sequence sequences[SEQUENCES];
        lockstep_mismatch_bucket buckets[BUCKETS];
        lockstep_divergence mean, rows[SEQUENCES];
        lockstep_mismatch mismatch;
    } outputs;
} fixture;

static void fixture_init_for(fixture *f, int exact) {
    static const lockstep_mismatch_options mismatch = LOCKSTEP_MISMATCH_OPTIONS_INIT;
    static const lockstep_log_probs_options log_probs = LOCKSTEP_LOG_PROBS_OPTIONS_INIT;
    static const double trainer[TOKENS] = {-0.5, -1, -1.5, -0.25, -2, -0.125};
    static const double rollout[TOKENS] = {-0.5, -1.25, -1, -0.5, -2, -0.25};
    memset(f, 0, sizeof *f);
    if (exact) f->options.log_probs = log_probs; else f->options.mismatch = mismatch;
    f->count = SEQUENCES;
    memcpy(f->trainer, trainer, sizeof trainer);
    memcpy(f->rollout, rollout, sizeof rollout);
    memset(f->mask_data, 1, sizeof f->mask_data);
    f->offsets_data[1] = 4;
    f->offsets_data[2] = TOKENS;
    for (int i = 0; i <= BUCKETS; i++) f->edges[i] = i;
    for (int i = 0; i < SEQUENCES * VOCAB; i++) {
        f->logits[0][i] = (float)i * 0.5f;
        f->logits[1][i] = (float)i * 0.25f;
    }
    argument_init(&f->trainer_log_probs, f->trainer, LOCKSTEP_FLOAT64, TOKENS, 0);
    argument_init(&f->rollout_log_probs, f->rollout, LOCKSTEP_FLOAT64, TOKENS, 0);
    argument_init(&f->mask, f->mask_data, LOCKSTEP_UINT8, TOKENS, 0);
    argument_init(&f->offsets, f->offsets_data, LOCKSTEP_INT64, SEQUENCES + 1, 0);
    argument_init(&f->trainer_logits, f->logits[0], LOCKSTEP_FLOAT32, SEQUENCES, VOCAB);
    argument_init(&f->rollout_logits, f->logits[1], LOCKSTEP_FLOAT32, SEQUENCES, VOCAB);
    argument_init(&f->row_mask, f->mask_data, LOCKSTEP_BOOL, SEQUENCES, 0);
}

/* The members of two files' fixtures in one: `exact` takes the options of log-probs. */
#define fixture_init(f) fixture_init_for(f, 0)

/* The growable result: struct_size is set by the caller, so canaries start behind it. */
static lockstep_status measure(fixture *f) {
    lockstep_mismatch *out = &f->outputs.mismatch;
    out->struct_size = sizeof *out;
    lockstep_status status = lockstep_mismatch_measure(
        f->null_output ? NULL : out, given(&f->trainer_log_probs), given(&f->rollout_log_probs),
        given(&f->mask), given(&f->offsets), &f->options.mismatch);
    if (status != LOCKSTEP_OK) memset(&out->struct_size, TEST_CANARY, sizeof out->struct_size);
    return status;
}

static lockstep_status sequences(fixture *f) {
    return lockstep_mismatch_sequences(f->null_output ? NULL : f->outputs.sequences, f->count,
                                       given(&f->trainer_log_probs), given(&f->rollout_log_probs),
                                       given(&f->mask), given(&f->offsets), &f->options.mismatch);
}

static lockstep_status profile(fixture *f) {
    size_t count = f->count == SEQUENCES ? BUCKETS : f->count;
    return lockstep_mismatch_profile(f->null_output ? NULL : f->outputs.buckets, count, f->edges, f->axis,
                                     given(&f->trainer_log_probs), given(&f->rollout_log_probs),
                                     given(&f->mask), given(&f->offsets), &f->options.mismatch);
}

static const argument_place two_logs[] = {PLACE(trainer_log_probs, REQUIRED), PLACE(rollout_log_probs, REQUIRED),
                                          PLACE(mask, 0), PLACE(offsets, 0)};

/* What the three functions over two logs have in common. */
#define REFUSES_BAD_LOGS(call, output) \
    do { \
        ACCEPTED(call, (void)0); \
        REFUSES_SPOILED_ARGUMENTS(call, two_logs); \
        REFUSES_SPOILED_OPTIONS(call, mismatch); \
        REFUSED(call, INVALID_ARGUMENT, "non_finite", f.options.mismatch.non_finite = 2); \
        REFUSED(call, INVALID_ARGUMENT, "non_finite", f.options.mismatch.non_finite = -1); \
        REFUSED(call, INVALID_ARGUMENT, "rollout_log_probs", f.rollout_log_probs.shape[0] = TOKENS - 1); \
        REFUSED(call, INVALID_ARGUMENT, "mask", f.mask.shape[0] = TOKENS - 1); \
        REFUSED(call, INVALID_ARGUMENT, "mask", f.mask.tensor.dtype = lockstep_dtype_of(LOCKSTEP_INT32)); \
        REFUSED(call, INVALID_ARGUMENT, "offsets", f.offsets.tensor.dtype = lockstep_dtype_of(LOCKSTEP_INT32)); \
        REFUSED(call, INVALID_ARGUMENT, "offsets", f.offsets_data[0] = 1); \
        REFUSED(call, INVALID_ARGUMENT, "offsets", f.offsets_data[0] = -1); \
        REFUSED(call, INVALID_ARGUMENT, "offsets", f.offsets_data[1] = TOKENS + 1); \
        REFUSED(call, INVALID_ARGUMENT, "offsets", f.offsets_data[1] = -1); \
        REFUSED(call, INVALID_ARGUMENT, "offsets", f.offsets_data[2] = TOKENS - 1); \
        REFUSED(call, INVALID_ARGUMENT, "offsets", f.offsets_data[2] = INT64_MAX); \
        REFUSED(call, INVALID_ARGUMENT, "offsets", f.offsets.shape[0] = 0); \
        REFUSED(call, NON_FINITE, "trainer_log_probs", f.trainer[5] = NAN); \
        REFUSED(call, NON_FINITE, "sequence 1", f.trainer[5] = -INFINITY); \
        REFUSED(call, NON_FINITE, "position 1", f.rollout[5] = INFINITY); \
        REFUSED(call, NON_FINITE, "rollout_log_probs", f.rollout[0] = NAN); \
        ACCEPTED(call, f.options.mismatch.non_finite = LOCKSTEP_NON_FINITE_EXCLUDE, f.rollout[0] = NAN); \
        REFUSED(call, INVALID_ARGUMENT, output, f.null_output = 1); \
    } while (0)

static void measure_refuses_bad_input(void) {
    REFUSES_BAD_LOGS(measure, "mismatch");
}

static void sequences_refuses_bad_input(void) {
    REFUSES_BAD_LOGS(sequences, "sequences");
    REFUSED(sequences, INVALID_ARGUMENT, "count", f.count = 3);
    REFUSED(sequences, INVALID_ARGUMENT, "count", f.count = 0);
    REFUSED(sequences, INVALID_ARGUMENT, "count", f.count = SIZE_MAX);
    REFUSED(sequences, INVALID_ARGUMENT, "count", f.count = SIZE_MAX / 2 + 1);
}

static void profile_refuses_bad_input(void) {
    REFUSES_BAD_LOGS(profile, "buckets");
    REFUSED(profile, INVALID_ARGUMENT, "axis", f.axis = 3);
    REFUSED(profile, INVALID_ARGUMENT, "axis", f.axis = -1);
    REFUSED(profile, INVALID_ARGUMENT, "edges", f.edges[2] = f.edges[1]);
    REFUSED(profile, INVALID_ARGUMENT, "edges", f.edges[4] = 0);
    REFUSED(profile, INVALID_ARGUMENT, "edges", f.edges[0] = NAN);
    REFUSED(profile, INVALID_ARGUMENT, "edges", f.edges[2] = NAN);
    REFUSED(profile, INVALID_ARGUMENT, "edges", f.edges[3] = INFINITY);
    ACCEPTED(profile, f.edges[0] = -INFINITY, f.edges[4] = INFINITY);
    ACCEPTED(profile, f.count = 0);
    REFUSED(profile, INVALID_ARGUMENT, "bucket_count", f.count = SIZE_MAX);
    REFUSED(profile, INVALID_ARGUMENT, "bucket_count", f.count = SIZE_MAX / 2 + 1);
}

static void result_size_is_checked(void) {
    static const uint32_t sizes[] = {0, 4, UINT32_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        fixture f;
        fixture_init(&f);
        memset(&f.outputs, TEST_CANARY, sizeof f.outputs);
        f.outputs.mismatch.struct_size = sizes[i];
        lockstep_status status =
            lockstep_mismatch_measure(&f.outputs.mismatch, given(&f.trainer_log_probs),
                                      given(&f.rollout_log_probs), NULL, NULL, NULL);
        CHECK(f.outputs.mismatch.struct_size == sizes[i]);
        memset(&f.outputs.mismatch.struct_size, TEST_CANARY, 4);
        test_refused(__FILE__, __LINE__, "mismatch.struct_size", status, LOCKSTEP_ERROR_INVALID_ARGUMENT,
                     "struct_size", &f.outputs, sizeof f.outputs);
    }
}

static int same(double a, double b) { return fabs(a - b) <= 1e-12; }

/* d = 0, 0.25, -0.5, 0.25 | 0, 0.125 */
static void statistics_follow_the_formulas(void) {
    fixture f;
    fixture_init(&f);
    CHECK_OK(measure(&f));
    const lockstep_mismatch *m = &f.outputs.mismatch;
    CHECK(m->tokens == 6 && m->sequences == 2 && m->masked_tokens == 0 && m->empty_sequences == 0);
    CHECK(same(m->mean_log_ratio.value, 0.125 / 6) && same(m->k1.value, -0.125 / 6));
    CHECK(same(m->mean_abs_log_ratio.value, 1.125 / 6));
    CHECK(m->max_abs_log_ratio == 0.5 && m->max_abs_sequence == 0 && m->max_abs_position == 2);
    CHECK(same(m->k2.value, (2 * 0.0625 + 0.25 + 0.015625) / 12));
    CHECK(same(m->share_differing.value, 4.0 / 6));
    CHECK(same(m->sequence_log_ratio.value, 0.125 / 2));
    CHECK(m->max_sequence_length == 4 && m->mean_sequence_length == 3);
    double k3 = (2 * (exp(0.25) - 1.25) + exp(-0.5) - 0.5 + exp(0.125) - 1.125) / 6;
    CHECK(same(m->k3.value, k3));

    CHECK_OK(sequences(&f));
    CHECK(f.outputs.sequences[0].tokens == 4 && f.outputs.sequences[1].tokens == 2);
    CHECK(same(f.outputs.sequences[0].log_ratio, 0) && same(f.outputs.sequences[1].log_ratio, 0.125));
    CHECK(f.outputs.sequences[0].max_abs_log_ratio == 0.5);

    CHECK_OK(profile(&f));  /* by position: two sequences have positions 0 and 1, one has 2 and 3 */
    CHECK(f.outputs.buckets[0].tokens == 2 && f.outputs.buckets[1].tokens == 2);
    CHECK(f.outputs.buckets[2].tokens == 1 && f.outputs.buckets[3].tokens == 1);
    CHECK(same(f.outputs.buckets[2].mean_log_ratio, -0.5));
}

/* Whatever stands at a masked position, the result has the same bits. */
static void masked_positions_are_never_read(void) {
    fixture clean, dirty;
    fixture_init(&clean);
    fixture_init(&dirty);
    clean.mask_data[1] = clean.mask_data[4] = dirty.mask_data[1] = dirty.mask_data[4] = 0;
    dirty.trainer[1] = NAN;
    dirty.rollout[4] = -INFINITY;
    CHECK_OK(measure(&clean));
    CHECK_OK(measure(&dirty));
    CHECK(memcmp(&clean.outputs.mismatch, &dirty.outputs.mismatch, sizeof(lockstep_mismatch)) == 0);
    CHECK(clean.outputs.mismatch.masked_tokens == 2 && clean.outputs.mismatch.tokens == 4);
}

/* Everything masked: counts of zero, values of NaN, no error. */
static void nothing_that_counts_is_no_error(void) {
    fixture f;
    fixture_init(&f);
    memset(f.mask_data, 0, sizeof f.mask_data);
    CHECK_OK(measure(&f));
    CHECK(f.outputs.mismatch.tokens == 0 && f.outputs.mismatch.empty_sequences == 2);
    CHECK(isnan(f.outputs.mismatch.k3.value) && isnan(f.outputs.mismatch.ess));
    CHECK_OK(sequences(&f));
    CHECK(f.outputs.sequences[0].tokens == 0 && f.outputs.sequences[0].mean_log_ratio == 0);
    ACCEPTED(measure, f.trainer_log_probs.shape[0] = f.rollout_log_probs.shape[0] = f.mask.shape[0] = 0,
             f.offsets.absent = 1, f.trainer_log_probs.tensor.data = f.rollout_log_probs.tensor.data = NULL);
}

/* Finite log-probs of any size: a result or an error, and outputs that no error touched. */
static void extreme_values_do_not_trap(void) {
    static const double values[] = {1.7e308, -1.7e308, 3e38, -3e38, 1e19, -1e19, -745.2, 709.9, 5e-324, -0.0};
    enum { N = sizeof values / sizeof *values };
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            for (lockstep_mismatch_axis axis = LOCKSTEP_AXIS_POSITION; axis <= LOCKSTEP_AXIS_LOG_RATIO; axis++) {
                fixture f;
                fixture_init(&f);
                f.trainer[3] = values[i];
                f.rollout[3] = values[j];
                f.edges[0] = -1.7e308;
                f.edges[BUCKETS] = 1.7e308;
                f.axis = axis;
                memset(&f.outputs, TEST_CANARY, sizeof f.outputs);
                lockstep_status status = measure(&f);
                CHECK(status == LOCKSTEP_OK ||
                      (status == LOCKSTEP_ERROR_NON_FINITE && test_is_canary(&f.outputs, sizeof f.outputs)));
                CHECK(sequences(&f) == status);
                CHECK(profile(&f) == status);
            }
}

/* A program built with an older, smaller struct gets only the bytes it has. */
static void only_struct_size_bytes_are_written(void) {
    fixture f;
    fixture_init(&f);
    struct { lockstep_mismatch mismatch; unsigned char behind[64]; } larger;
    memset(&larger, TEST_CANARY, sizeof larger);
    larger.mismatch.struct_size = sizeof larger.mismatch;
    CHECK_OK(lockstep_mismatch_measure(&larger.mismatch, given(&f.trainer_log_probs),
                                       given(&f.rollout_log_probs), NULL, NULL, NULL));
    CHECK(test_is_canary(larger.behind, sizeof larger.behind));
    CHECK(larger.mismatch.struct_size == sizeof larger.mismatch);
    CHECK(larger.mismatch.max_sequence_length == TOKENS);  /* no offsets: one sequence */
}

static lockstep_status exact(fixture *f) {
    return lockstep_mismatch_exact(&f->outputs.mean, f->null_output ? NULL : f->outputs.rows, f->count,
                                   given(&f->trainer_logits), given(&f->rollout_logits), given(&f->row_mask),
                                   &f->options.log_probs);
}

#undef fixture_init
#define fixture_init(f) fixture_init_for(f, 1)

static void exact_refuses_bad_input(void) {
    static const argument_place places[] = {
        PLACE(trainer_logits, REQUIRED), PLACE(rollout_logits, REQUIRED)};
    ACCEPTED(exact, (void)0);
    ACCEPTED(exact, f.row_mask.absent = 1, f.null_output = 1);
    REFUSES_SPOILED_ARGUMENTS(exact, places);
    REFUSES_SPOILED_OPTIONS(exact, log_probs);
    REFUSED(exact, INVALID_ARGUMENT, "rollout_logits", f.rollout_logits.shape[1] = VOCAB - 1);
    REFUSED(exact, INVALID_ARGUMENT, "mask", f.row_mask.shape[0] = 1);
    REFUSED(exact, INVALID_ARGUMENT, "mask", f.row_mask.tensor.dtype = lockstep_dtype_of(LOCKSTEP_FLOAT32));
    REFUSED(exact, INVALID_ARGUMENT, "row_count", f.count = 1);
    REFUSED(exact, INVALID_ARGUMENT, "row_count", f.count = SIZE_MAX);
    REFUSED(exact, INVALID_ARGUMENT, "temperature", f.options.log_probs.temperature = 0);
    REFUSED(exact, INVALID_ARGUMENT, "temperature", f.options.log_probs.temperature = NAN);
    REFUSED(exact, INVALID_ARGUMENT, "soft_cap", f.options.log_probs.soft_cap = -1);
    REFUSED(exact, INVALID_ARGUMENT, "top_k", f.options.log_probs.top_k = 2);
    REFUSED(exact, INVALID_ARGUMENT, "top_p", f.options.log_probs.top_p = 0.5);
    REFUSED(exact, INVALID_ARGUMENT, "min_p", f.options.log_probs.min_p = 0.5);
    REFUSED(exact, INVALID_ARGUMENT, "logits_dtype", f.options.log_probs.logits_dtype = 12345);
    REFUSED(exact, NON_FINITE, "trainer_logits", f.logits[0][4] = NAN);
    REFUSED(exact, NON_FINITE, "row 1", f.logits[1][5] = INFINITY);
    REFUSED(exact, NON_FINITE, "row 0", f.logits[1][0] = f.logits[1][1] = f.logits[1][2] = -INFINITY);
}

static void exact_follows_the_definition(void) {
    fixture f;
    fixture_init(&f);
    CHECK_OK(exact(&f));
    double p[VOCAB], q[VOCAB], sum_p = 0, sum_q = 0, kl = 0, variation = 0;
    for (int v = 0; v < VOCAB; v++) {
        sum_p += p[v] = exp(f.logits[0][v]);
        sum_q += q[v] = exp(f.logits[1][v]);
    }
    for (int v = 0; v < VOCAB; v++) {
        p[v] /= sum_p;
        q[v] /= sum_q;
        kl += q[v] * log(q[v] / p[v]);
        variation += fabs(p[v] - q[v]) / 2;
    }
    CHECK(fabs(f.outputs.rows[0].kl_rollout_trainer - kl) < 1e-6);
    CHECK(fabs(f.outputs.rows[0].total_variation - variation) < 1e-6);
    CHECK(f.outputs.rows[0].same_top1 == 1 && f.outputs.mean.same_top1 == 1);
    CHECK(f.outputs.mean.jensen_shannon >= 0 && f.outputs.mean.jensen_shannon <= log(2));

    /* A masked row is not read and reads as zero. */
    f.mask_data[1] = 0;
    f.logits[0][VOCAB] = NAN;
    CHECK_OK(exact(&f));
    CHECK(f.outputs.rows[1].kl_rollout_trainer == 0 && f.outputs.rows[1].same_top1 == 0);
    CHECK(f.outputs.mean.kl_rollout_trainer == f.outputs.rows[0].kl_rollout_trainer);

    /* Logits at the edge of their format. */
    for (int i = 0; i < VOCAB; i++) f.logits[0][i] = (i - 1) * 3.4e38f;
    CHECK_OK(exact(&f));
    CHECK(f.outputs.rows[0].total_variation <= 1 && f.outputs.rows[0].kl_rollout_trainer >= 0);

    /* The same logits twice: nothing differs, exactly. */
    fixture_init(&f);
    memcpy(f.logits[1], f.logits[0], sizeof f.logits[0]);
    CHECK_OK(exact(&f));
    CHECK(f.outputs.mean.kl_rollout_trainer == 0 && f.outputs.mean.kl_trainer_rollout == 0);
    CHECK(f.outputs.mean.total_variation == 0 && f.outputs.mean.jensen_shannon == 0);
}

int main(void) {
    TEST(measure_refuses_bad_input);
    TEST(sequences_refuses_bad_input);
    TEST(profile_refuses_bad_input);
    TEST(result_size_is_checked);
    TEST(statistics_follow_the_formulas);
    TEST(masked_positions_are_never_read);
    TEST(nothing_that_counts_is_no_error);
    TEST(extreme_values_do_not_trap);
    TEST(only_struct_size_bytes_are_written);
    TEST(exact_refuses_bad_input);
    TEST(exact_follows_the_definition);
    return test_report();
}
