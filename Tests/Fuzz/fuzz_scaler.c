/* Bytes of a saved loss scaler, and steps after them: refused, or a scaler that saves itself as the same bytes, and goes on
 * as one that is saved and loaded between two steps. */
#include "fuzz.h"

enum { SAVED = 180 };

size_t fuzz_repair(uint8_t *data, size_t size) {
    if (size >= SAVED) fuzz_put(data + SAVED - 4, fuzz_crc32c(data, SAVED - 4), 4);
    return size;
}

static lockstep_scaler *copy(const lockstep_scaler *scaler, const uint8_t *wanted) {
    uint8_t bytes[SAVED];
    size_t size = sizeof bytes;
    lockstep_scaler *again = NULL;
    FUZZ_CHECK(lockstep_scaler_save(bytes, &size, scaler) == LOCKSTEP_OK && size == SAVED);
    if (wanted) FUZZ_CHECK(memcmp(bytes, wanted, size) == 0);
    FUZZ_CHECK(lockstep_scaler_load(&again, bytes, size) == LOCKSTEP_OK);
    return again;
}

void fuzz_one(const uint8_t *data, size_t size) {
    lockstep_scaler *scaler = (void *)&scaler, *again;
    lockstep_scaler_report one, other;
    lockstep_scaler_options options;
    size_t first = size < SAVED ? size : SAVED;
    if (FUZZ_STATUS(lockstep_scaler_load(&scaler, data, first), "bytes scaler") != LOCKSTEP_OK) {
        FUZZ_CHECK(scaler == (void *)&scaler);
        return;
    }
    again = copy(scaler, data);
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    FUZZ_CHECK(lockstep_scaler_get_options(&options, scaler) == LOCKSTEP_OK);
    memset(&one, 0, sizeof one);
    one.struct_size = sizeof one;
    other = one;
    for (size_t i = first; i < size && i < first + 256; i++) {
        for (int times = 1 + (data[i] >> 2); times > 0; times--) {
            FUZZ_CHECK(lockstep_scaler_update(&one, scaler, data[i] & 1) == LOCKSTEP_OK);
            FUZZ_CHECK(lockstep_scaler_update(&other, again, data[i] & 1) == LOCKSTEP_OK);
            FUZZ_CHECK(memcmp(&one, &other, sizeof one) == 0);
            FUZZ_CHECK(lockstep_scaler_read(&other, again) == LOCKSTEP_OK && memcmp(&one, &other, sizeof one) == 0);
            FUZZ_CHECK(one.scale >= 0 && one.scale <= options.maximum_scale && one.skip == (data[i] & 1));
            FUZZ_CHECK(one.skipped <= one.steps && one.skipped_in_a_row <= one.longest_skip);
        }
        lockstep_scaler_destroy(again);
        again = copy(scaler, NULL);
    }
    lockstep_scaler_destroy(again);
    lockstep_scaler_destroy(scaler);
}
