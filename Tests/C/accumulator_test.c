/* Section 4 of the header: the accumulator. */
#include "arguments.h"

#include <math.h>
#include <stdlib.h>

enum { TOKENS = 6, SEQUENCES = 2 };

typedef struct {
    argument trainer_log_probs, rollout_log_probs, mask, offsets, ids;
    growable options;
    lockstep_mismatch_accumulator *accumulator;
    double trainer[TOKENS], rollout[TOKENS];
    uint8_t mask_data[TOKENS];
    int64_t offsets_data[SEQUENCES + 1];
    uint64_t ids_data[SEQUENCES];
    struct { unsigned char none[8]; } outputs;
} fixture;

/* One accumulator for all calls: those that are refused must leave it as it is. */
static lockstep_mismatch_accumulator *shared;

static void fixture_init(fixture *f) {
    static const lockstep_mismatch_options options = LOCKSTEP_MISMATCH_OPTIONS_INIT;
    static const double trainer[TOKENS] = {-0.5, -1, -1.5, -0.25, -2, -0.125};
    static const double rollout[TOKENS] = {-0.5, -1.25, -1, -0.5, -2, -0.25};
    memset(f, 0, sizeof *f);
    f->options.mismatch = options;
    f->accumulator = shared;
    memcpy(f->trainer, trainer, sizeof trainer);
    memcpy(f->rollout, rollout, sizeof rollout);
    memset(f->mask_data, 1, sizeof f->mask_data);
    f->offsets_data[1] = 4;
    f->offsets_data[2] = TOKENS;
    f->ids_data[0] = 70;
    f->ids_data[1] = UINT64_MAX;
    argument_init(&f->trainer_log_probs, f->trainer, LOCKSTEP_FLOAT64, TOKENS, 0);
    argument_init(&f->rollout_log_probs, f->rollout, LOCKSTEP_FLOAT64, TOKENS, 0);
    argument_init(&f->mask, f->mask_data, LOCKSTEP_UINT8, TOKENS, 0);
    argument_init(&f->offsets, f->offsets_data, LOCKSTEP_INT64, SEQUENCES + 1, 0);
    argument_init(&f->ids, f->ids_data, LOCKSTEP_INT64, SEQUENCES, 0);
}

static lockstep_status update(fixture *f) {
    return lockstep_mismatch_accumulator_update(
        f->accumulator, given(&f->trainer_log_probs), given(&f->rollout_log_probs), given(&f->mask),
        given(&f->offsets), given(&f->ids), &f->options.mismatch);
}

static lockstep_mismatch_accumulator *made(int32_t exact_quantiles) {
    lockstep_mismatch_accumulator *accumulator = NULL;
    lockstep_mismatch_accumulator_options options = LOCKSTEP_MISMATCH_ACCUMULATOR_OPTIONS_INIT;
    options.exact_quantiles = exact_quantiles;
    CHECK_OK(lockstep_mismatch_accumulator_create(&accumulator, &options));
    return accumulator;
}

/* The bytes of an accumulator, for the caller to free. */
static unsigned char *saved(const lockstep_mismatch_accumulator *accumulator, size_t *size) {
    CHECK_OK(lockstep_mismatch_accumulator_save(NULL, size, accumulator));
    unsigned char *bytes = malloc(*size);
    CHECK_OK(lockstep_mismatch_accumulator_save(bytes, size, accumulator));
    return bytes;
}

static int same(const lockstep_mismatch_accumulator *a, const lockstep_mismatch_accumulator *b) {
    size_t size_a, size_b;
    unsigned char *bytes_a = saved(a, &size_a), *bytes_b = saved(b, &size_b);
    int equal = size_a == size_b && memcmp(bytes_a, bytes_b, size_a) == 0;
    free(bytes_a);
    free(bytes_b);
    return equal;
}

static void update_refuses_bad_input(void) {
    static const argument_place places[] = {PLACE(trainer_log_probs, REQUIRED), PLACE(rollout_log_probs, REQUIRED),
                                            PLACE(mask, 0), PLACE(offsets, 0)};
    shared = made(0);
    REFUSES_SPOILED_ARGUMENTS(update, places);
    REFUSED(update, INVALID_ARGUMENT, "struct_size", f.options.struct_size = 4);
    REFUSED(update, INVALID_ARGUMENT, "threads", f.options.mismatch.threads = -1);
    REFUSED(update, INVALID_ARGUMENT, "non_finite", f.options.mismatch.non_finite = 2);
    REFUSED(update, INVALID_ARGUMENT, "accumulator", f.accumulator = NULL);
    REFUSED(update, INVALID_ARGUMENT, "ids", f.ids.shape[0] = SEQUENCES - 1);
    REFUSED(update, INVALID_ARGUMENT, "ids", f.ids.shape[0] = 0);
    REFUSED(update, INVALID_ARGUMENT, "ids", f.ids.shape[0] = -1);
    REFUSED(update, INVALID_ARGUMENT, "ids", f.ids.tensor.dtype = lockstep_dtype_of(LOCKSTEP_INT32));
    REFUSED(update, INVALID_ARGUMENT, "ids", f.ids.tensor.dtype = lockstep_dtype_of(LOCKSTEP_FLOAT64));
    REFUSED(update, INVALID_ARGUMENT, "ids", f.ids.tensor.data = NULL);
    REFUSED(update, INVALID_ARGUMENT, "ids", f.ids.tensor.ndim = 2, f.ids.shape[1] = 1);
    REFUSED(update, NON_FINITE, "sequence 1, position 1", f.rollout[5] = NAN);
    lockstep_mismatch_accumulator *empty = made(0);
    CHECK(same(shared, empty)); /* nothing was added */
    lockstep_mismatch_accumulator_destroy(empty);

    ACCEPTED(update, (void)0);
    ACCEPTED(update, f.ids.tensor.dtype = lockstep_dtype_of(LOCKSTEP_UINT64));
    ACCEPTED(update, f.ids.absent = 1);
    ACCEPTED(update, f.options.mismatch.non_finite = LOCKSTEP_NON_FINITE_EXCLUDE, f.rollout[5] = NAN);
    lockstep_mismatch_accumulator_destroy(shared);
}

static void everything_else_refuses_bad_input(void) {
    lockstep_mismatch_accumulator *accumulator = made(0), *exact = made(1), *untouched = exact;
    const lockstep_status invalid = LOCKSTEP_ERROR_INVALID_ARGUMENT;
    lockstep_mismatch_accumulator_options options = LOCKSTEP_MISMATCH_ACCUMULATOR_OPTIONS_INIT;
    CHECK(lockstep_mismatch_accumulator_create(NULL, NULL) == invalid);
    options.exact_quantiles = 2;
    CHECK(lockstep_mismatch_accumulator_create(&untouched, &options) == invalid);
    options.struct_size = 0;
    CHECK(lockstep_mismatch_accumulator_create(&untouched, &options) == invalid && untouched == exact);
    CHECK(lockstep_mismatch_accumulator_merge(accumulator, NULL) == invalid);
    CHECK(lockstep_mismatch_accumulator_merge(NULL, accumulator) == invalid);
    CHECK(lockstep_mismatch_accumulator_merge(accumulator, exact) == invalid);
    CHECK(strstr(lockstep_last_error(), "exact_quantiles"));
    CHECK_OK(lockstep_mismatch_accumulator_merge(accumulator, accumulator));

    lockstep_mismatch mismatch;
    memset(&mismatch, TEST_CANARY, sizeof mismatch);
    CHECK(lockstep_mismatch_accumulator_report(&mismatch, accumulator) == invalid);
    CHECK(test_is_canary(&mismatch, sizeof mismatch));
    mismatch.struct_size = sizeof mismatch;
    CHECK(lockstep_mismatch_accumulator_report(&mismatch, NULL) == invalid);
    CHECK(lockstep_mismatch_accumulator_report(NULL, accumulator) == invalid);
    CHECK_OK(lockstep_mismatch_accumulator_report(&mismatch, accumulator));
    CHECK(mismatch.tokens == 0 && isnan(mismatch.k3.value) && mismatch.max_abs_sequence == -1);

    lockstep_cause_finding causes[LOCKSTEP_CAUSE_COUNT];
    lockstep_mismatch_evidence evidence;
    memset(causes, TEST_CANARY, sizeof causes);
    memset(&evidence, TEST_CANARY, sizeof evidence);
    CHECK(lockstep_mismatch_accumulator_causes(causes, &evidence, accumulator) == invalid);
    CHECK(strstr(lockstep_last_error(), "struct_size"));
    evidence.struct_size = sizeof evidence;
    CHECK(lockstep_mismatch_accumulator_causes(causes, &evidence, NULL) == invalid);
    CHECK(test_is_canary(causes, sizeof causes) && test_is_canary(&evidence.tokens, 8));
    CHECK(lockstep_mismatch_accumulator_causes(NULL, &evidence, accumulator) == invalid);
    CHECK(lockstep_mismatch_accumulator_causes((lockstep_cause_finding *)((char *)causes + 1), NULL,
                                               accumulator) == invalid);
    CHECK_OK(lockstep_mismatch_accumulator_causes(causes, NULL, accumulator));
    CHECK_OK(lockstep_mismatch_accumulator_causes(causes, &evidence, accumulator));
    int32_t seen = 0;
    for (int i = 0; i < LOCKSTEP_CAUSE_COUNT; i++) {
        seen |= 1 << causes[i].cause;
        CHECK(causes[i].confidence == 0 && causes[i].reserved == 0);
    }
    CHECK(seen == (1 << (LOCKSTEP_CAUSE_COUNT + 1)) - 2 && evidence.tokens == 0 && evidence.reserved == 0);

    size_t count = 1;
    lockstep_mismatch_bucket bucket;
    memset(&bucket, TEST_CANARY, sizeof bucket);
    CHECK(lockstep_mismatch_accumulator_profile(&bucket, &count, accumulator, 0) == invalid && count == 1);
    CHECK(strstr(lockstep_last_error(), "count is 1 but there are 42"));
    CHECK(lockstep_mismatch_accumulator_profile(NULL, NULL, accumulator, 0) == invalid);
    CHECK(lockstep_mismatch_accumulator_profile(NULL, &count, NULL, 0) == invalid);
    CHECK(lockstep_mismatch_accumulator_profile(NULL, &count, accumulator, 3) == invalid);
    CHECK(lockstep_mismatch_accumulator_profile(NULL, &count, accumulator, -1) == invalid);
    CHECK(test_is_canary(&bucket, sizeof bucket));
    CHECK(lockstep_mismatch_accumulator_histogram(NULL, &count, accumulator, 2) == invalid);
    CHECK(lockstep_mismatch_accumulator_histogram(NULL, NULL, accumulator, 0) == invalid);
    CHECK(lockstep_mismatch_accumulator_sample(NULL, NULL, accumulator) == invalid);
    CHECK(lockstep_mismatch_accumulator_worst(NULL, &count, NULL) == invalid && count == 1);
    CHECK_OK(lockstep_mismatch_accumulator_worst(NULL, &count, accumulator));
    CHECK(count == 0);

    unsigned char bytes[8];
    size_t size = sizeof bytes;
    memset(bytes, TEST_CANARY, sizeof bytes);
    CHECK(lockstep_mismatch_accumulator_save(bytes, &size, accumulator) == invalid && size == sizeof bytes);
    CHECK(test_is_canary(bytes, sizeof bytes));
    CHECK(lockstep_mismatch_accumulator_save(bytes, NULL, accumulator) == invalid);
    CHECK(lockstep_mismatch_accumulator_save(bytes, &size, NULL) == invalid);
    CHECK(lockstep_mismatch_accumulator_load(NULL, bytes, sizeof bytes) == invalid);
    CHECK(lockstep_mismatch_accumulator_load(&untouched, NULL, 8) == invalid);
    CHECK(lockstep_mismatch_accumulator_load(&untouched, bytes, SIZE_MAX) == invalid);
    CHECK(lockstep_mismatch_accumulator_load(&untouched, bytes, sizeof bytes) == LOCKSTEP_ERROR_BAD_DATA);
    CHECK(lockstep_mismatch_accumulator_load(&untouched, bytes, 0) == LOCKSTEP_ERROR_BAD_DATA);
    CHECK(untouched == exact);
    lockstep_mismatch_accumulator_destroy(accumulator);
    lockstep_mismatch_accumulator_destroy(exact);
    lockstep_mismatch_accumulator_destroy(NULL);
}

/* Two sequences, one in each accumulator: d = 0, 0.25, -0.5, 0.25 | 0, 0.125 */
static void parts_are_the_whole(void) {
    fixture whole, first, second;
    fixture_init(&whole);
    fixture_init(&first);
    fixture_init(&second);
    whole.accumulator = made(1);
    first.accumulator = made(1);
    second.accumulator = made(1);
    CHECK_OK(update(&whole));
    first.trainer_log_probs.shape[0] = first.rollout_log_probs.shape[0] = first.mask.shape[0] = 4;
    first.offsets.shape[0] = 2;
    first.ids.shape[0] = 1;
    CHECK_OK(update(&first));
    argument_init(&second.trainer_log_probs, second.trainer + 4, LOCKSTEP_FLOAT64, 2, 0);
    argument_init(&second.rollout_log_probs, second.rollout + 4, LOCKSTEP_FLOAT64, 2, 0);
    second.mask.absent = second.offsets.absent = 1;
    argument_init(&second.ids, second.ids_data + 1, LOCKSTEP_UINT64, 1, 0);
    CHECK_OK(update(&second));
    CHECK_OK(lockstep_mismatch_accumulator_merge(second.accumulator, first.accumulator));
    CHECK(same(second.accumulator, whole.accumulator) && !same(first.accumulator, whole.accumulator));

    lockstep_mismatch measured = {0}, reported = {0};
    measured.struct_size = reported.struct_size = sizeof measured;
    CHECK_OK(lockstep_mismatch_measure(&measured, given(&whole.trainer_log_probs), given(&whole.rollout_log_probs),
                                       NULL, given(&whole.offsets), NULL));
    CHECK_OK(lockstep_mismatch_accumulator_report(&reported, second.accumulator));
    CHECK(reported.max_abs_sequence == 70 && measured.max_abs_sequence == 0);
    reported.max_abs_sequence = 0;
    CHECK(memcmp(&measured, &reported, sizeof measured) == 0);

    size_t size;
    unsigned char *bytes = saved(whole.accumulator, &size);
    lockstep_mismatch_accumulator *loaded = NULL;
    CHECK_OK(lockstep_mismatch_accumulator_load(&loaded, bytes, size));
    CHECK(same(loaded, whole.accumulator));
    bytes[size / 2] ^= 1;
    CHECK(lockstep_mismatch_accumulator_load(&loaded, bytes, size) == LOCKSTEP_ERROR_BAD_DATA);
    CHECK(strstr(lockstep_last_error(), "damaged"));
    free(bytes);

    lockstep_mismatch_token worst[32];
    size_t count = 32;
    CHECK_OK(lockstep_mismatch_accumulator_worst(worst, &count, loaded));
    CHECK(count == 4 && worst[0].id == 70 && worst[0].position == 2 && worst[0].log_ratio == -0.5);
    CHECK(worst[0].rollout_log_prob == -1 && worst[3].id == UINT64_MAX && worst[3].log_ratio == 0.125);
    lockstep_mismatch_sample sample[2];
    count = 2;
    CHECK_OK(lockstep_mismatch_accumulator_sample(sample, &count, loaded));
    CHECK(count == 2 && sample[sample[0].id == 70 ? 1 : 0].log_ratio == 0.125);
    lockstep_mismatch_sequence_bin bins[2];
    count = 2;
    CHECK_OK(lockstep_mismatch_accumulator_histogram(bins, &count, loaded, LOCKSTEP_SEQUENCE_LOG_RATIO));
    CHECK(count == 2 && bins[0].min_tokens == 2 && bins[0].max_tokens == 3 && bins[0].sequences == 1);
    CHECK(bins[0].lower == 0.125 && bins[1].min_tokens == 4 && bins[1].lower == 0);
    lockstep_mismatch_bucket buckets[64];
    count = 64;
    CHECK_OK(lockstep_mismatch_accumulator_profile(buckets, &count, loaded, LOCKSTEP_AXIS_POSITION));
    CHECK(count == 42 && buckets[0].tokens == 2 && buckets[2].tokens == 1 && buckets[2].mean_log_ratio == -0.5);
    CHECK(isnan(buckets[4].k3) && isinf(buckets[41].upper));
    lockstep_mismatch_accumulator_destroy(loaded);
    lockstep_mismatch_accumulator_destroy(whole.accumulator);
    lockstep_mismatch_accumulator_destroy(first.accumulator);
    lockstep_mismatch_accumulator_destroy(second.accumulator);
}

int main(void) {
    TEST(update_refuses_bad_input);
    TEST(everything_else_refuses_bad_input);
    TEST(parts_are_the_whole);
    return test_report();
}
