/* Bytes of a saved accumulator: refused, or those of an accumulator that saves itself as the same bytes, reports, and
 * merges. */
#include "fuzz.h"

size_t fuzz_repair(uint8_t *data, size_t size) {
    if (size < 28) return size;
    fuzz_put(data + 16, size, 8);
    fuzz_put(data + size - 4, fuzz_crc32c(data, size - 4), 4);
    return size;
}

static size_t saved(const lockstep_mismatch_accumulator *a, uint8_t **bytes) {
    size_t size = 0;
    FUZZ_CHECK(lockstep_mismatch_accumulator_save(NULL, &size, a) == LOCKSTEP_OK);
    FUZZ_CHECK((*bytes = malloc(size)) != NULL);
    FUZZ_CHECK(lockstep_mismatch_accumulator_save(*bytes, &size, a) == LOCKSTEP_OK);
    return size;
}

/* Every statistic can be read, and what is counted adds up. */
static void read_all(const lockstep_mismatch_accumulator *a) {
    static lockstep_mismatch_bucket buckets[16384];
    static lockstep_mismatch_sequence_bin bins[65536];
    static lockstep_mismatch_sample sample[1024];
    lockstep_mismatch_token worst[32];
    lockstep_cause_finding causes[LOCKSTEP_CAUSE_COUNT];
    lockstep_mismatch_evidence evidence;
    lockstep_mismatch report;
    memset(&report, 0, sizeof report);
    report.struct_size = sizeof report;
    FUZZ_CHECK(lockstep_mismatch_accumulator_report(&report, a) == LOCKSTEP_OK);
    FUZZ_CHECK(report.tokens >= report.sequences && report.sequences >= 0);
    FUZZ_CHECK((report.tokens == 0) == (report.max_abs_sequence == -1) || report.tokens > 0);
    for (lockstep_mismatch_axis axis = LOCKSTEP_AXIS_POSITION; axis <= LOCKSTEP_AXIS_LOG_RATIO; axis++) {
        size_t count = sizeof buckets / sizeof *buckets;
        lockstep_status status =
            FUZZ_STATUS(lockstep_mismatch_accumulator_profile(buckets, &count, a, axis), "accumulator axis summary");
        if (status != LOCKSTEP_OK) continue;
        int64_t tokens = 0;
        for (size_t i = 0; i < count; i++) tokens += buckets[i].tokens;
        FUZZ_CHECK(tokens <= report.tokens);
    }
    for (lockstep_sequence_quantity of = LOCKSTEP_SEQUENCE_LOG_RATIO; of <= LOCKSTEP_SEQUENCE_MEAN_LOG_RATIO; of++) {
        size_t count = sizeof bins / sizeof *bins;
        lockstep_status status =
            FUZZ_STATUS(lockstep_mismatch_accumulator_histogram(bins, &count, a, of), "accumulator summary count");
        int64_t sequences = 0;
        for (size_t i = 0; status == LOCKSTEP_OK && i < count; i++) sequences += bins[i].sequences;
        if (status == LOCKSTEP_OK && count > 0) FUZZ_CHECK(sequences == report.sequences); /* a summary has none */
    }
    size_t count = 1024;
    if (FUZZ_STATUS(lockstep_mismatch_accumulator_sample(sample, &count, a), "accumulator summary") == LOCKSTEP_OK)
        FUZZ_CHECK(count <= 1024);
    count = 32;
    if (FUZZ_STATUS(lockstep_mismatch_accumulator_worst(worst, &count, a), "accumulator summary") == LOCKSTEP_OK)
        FUZZ_CHECK(count <= 32);
    count = 1024;
    FUZZ_STATUS(lockstep_mismatch_accumulator_worst_sequences(sample, &count, a), "accumulator summary");
    memset(&evidence, 0, sizeof evidence);
    evidence.struct_size = sizeof evidence;
    if (FUZZ_STATUS(lockstep_mismatch_accumulator_causes(causes, &evidence, a), "accumulator summary") == LOCKSTEP_OK)
        for (int i = 0; i < LOCKSTEP_CAUSE_COUNT; i++) {
            FUZZ_CHECK(causes[i].score >= 0 && causes[i].score <= 1);
            FUZZ_CHECK(causes[i].confidence >= 0 && causes[i].confidence <= 1);
        }
}

void fuzz_one(const uint8_t *data, size_t size) {
    lockstep_mismatch_accumulator *a = (void *)&a, *other = NULL, *same = NULL;
    lockstep_status status = lockstep_mismatch_accumulator_load(&a, data, size);
    if (FUZZ_STATUS(status, "accumulator bytes") != LOCKSTEP_OK) {
        FUZZ_CHECK(status == LOCKSTEP_ERROR_BAD_DATA || status == LOCKSTEP_ERROR_UNSUPPORTED ||
                   (status == LOCKSTEP_ERROR_INVALID_ARGUMENT && size == 0));
        FUZZ_CHECK(a == (void *)&a);
        return;
    }
    uint8_t *bytes;
    FUZZ_CHECK(saved(a, &bytes) == size && memcmp(bytes, data, size) == 0);
    free(bytes);
    read_all(a);
    /* Merged with itself, from both sides, and saved: still an accumulator. */
    FUZZ_CHECK(lockstep_mismatch_accumulator_load(&other, data, size) == LOCKSTEP_OK);
    if (FUZZ_STATUS(lockstep_mismatch_accumulator_merge(a, other), "accumulator tokens") == LOCKSTEP_OK) {
        size_t count = saved(a, &bytes);
        FUZZ_CHECK(lockstep_mismatch_accumulator_load(&same, bytes, count) == LOCKSTEP_OK);
        free(bytes);
        read_all(a);
        lockstep_mismatch_accumulator_destroy(same);
    }
    lockstep_mismatch_accumulator_destroy(other);
    lockstep_mismatch_accumulator_destroy(a);
}
