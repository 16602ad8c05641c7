/* What the fuzz targets share: input bytes turned into values, memory that is watched, checks, checksums.
 *
 * A target is one file, fuzz_TARGET.c, with two functions. `fuzz_one` gives some bytes to the library and checks more
 * than that it lives: statuses, messages, outputs, and what must be true of what was accepted. `fuzz_repair` makes the
 * checksums in changed bytes right again, so that what stands behind them is reached. Two programs use them:
 * engine.c with libFuzzer (run.py), replay.c for the corpus and seeded changes of it (replay.sh). */
#ifndef LOCKSTEP_FUZZ_H
#define LOCKSTEP_FUZZ_H

#include <lockstep.h>

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void fuzz_one(const uint8_t *data, size_t size);
size_t fuzz_repair(uint8_t *data, size_t size);

/* ---- Checks ---- */

static inline void fuzz_fail(const char *file, int line, const char *what) {
    fprintf(stderr, "%s:%d: %s (last error: %s)\n", file, line, what, lockstep_last_error());
    abort();
}

#define FUZZ_CHECK(condition) \
    do { \
        if (!(condition)) fuzz_fail(__FILE__, __LINE__, #condition); \
    } while (0)

/* Whether a text has one of some words, which are separated by spaces. */
static inline int fuzz_names(const char *text, const char *words) {
    char word[64];
    while (*words) {
        size_t length = strcspn(words, " ");
        if (length > 0 && length < sizeof word) {
            memcpy(word, words, length);
            word[length] = 0;
            if (strstr(text, word)) return 1;
        }
        words += length + (words[length] == ' ');
    }
    return 0;
}

/* Fields of options, one of which a message may name. */
#define FUZZ_FIELDS \
    "struct_size reserved threads instruction_set rounding seed first_index temperature soft_cap top_p top_k min_p logits_dtype " \
    "ignore_index non_finite exact_quantiles summary learning_steps false_alarms log_ratio_min log_ratio_max normalize weights: level " \
    "low high second_moment rejection estimator scale whiten singles truncated epsilon gamma lambda population_std tail_baseline " \
    "term aggregation denominator kl ratio_max dual tau shape rate length rule share max_norm beta1 beta2 weight_decay learning_rate " \
    "gradient_scale largest warmup_steps total_steps final_share peak stop_ids max_tokens capacity recomputes rank alpha deviation"

/* A status that the header has, other than "a defect of this library"; if it is an error, a message that names one of
 * `words`. */
static inline lockstep_status fuzz_status(const char *file, int line, lockstep_status status, const char *words) {
    if (status < LOCKSTEP_OK || status > LOCKSTEP_ERROR_BAD_DATA || status == LOCKSTEP_ERROR_INTERNAL)
        fuzz_fail(file, line, lockstep_status_name(status));
    if (status != LOCKSTEP_OK && !fuzz_names(lockstep_last_error(), words) &&
        !fuzz_names(lockstep_last_error(), FUZZ_FIELDS))
        fuzz_fail(file, line, "a message that does not name what is wrong");
    return status;
}

#define FUZZ_STATUS(status, words) fuzz_status(__FILE__, __LINE__, status, words)

/* ---- Input ---- */

/* The bytes that are left; at the end everything is 0. */
typedef struct {
    const uint8_t *next;
    size_t left;
} fuzz_bytes;

static inline uint64_t fuzz_bits(fuzz_bytes *bytes, int count) {
    uint64_t value = 0;
    for (int i = 0; i < count && bytes->left > 0; i++, bytes->left--) value |= (uint64_t)*bytes->next++ << 8 * i;
    return value;
}

static inline uint8_t fuzz_u8(fuzz_bytes *bytes) { return (uint8_t)fuzz_bits(bytes, 1); }

/* A number from `low` to `high`. */
static inline int64_t fuzz_pick(fuzz_bytes *bytes, int64_t low, int64_t high) {
    return low + (int64_t)fuzz_u8(bytes) % (high - low + 1);
}

static inline int64_t fuzz_integer(fuzz_bytes *bytes) {
    static const int64_t known[] = {0, 1, 2, 3, 4, 7, 8, 16, 100, 255, 256, 65535, 65536, INT32_MAX, INT32_MIN,
                                    -1, -2, -100, INT64_MAX, INT64_MIN, (int64_t)1 << 32, (int64_t)1 << 48,
                                    LOCKSTEP_FLOAT32, LOCKSTEP_FLOAT16, LOCKSTEP_BFLOAT16, LOCKSTEP_FLOAT8_E4M3FN,
                                    LOCKSTEP_FLOAT8_E5M2, LOCKSTEP_E8M + 5, LOCKSTEP_E5M + 3, LOCKSTEP_FLOAT64};
    uint8_t choice = fuzz_u8(bytes);
    if (choice < sizeof known / sizeof *known) return known[choice];
    return choice < 128 ? fuzz_pick(bytes, 0, 12) : (int64_t)fuzz_bits(bytes, choice < 192 ? 4 : 8);
}

static inline double fuzz_double(fuzz_bytes *bytes) {
    static const double known[] = {0.0, -0.0, 1, -1, 0.5, 0.8, 1.2, 2, 20, -20, 100, 1e-6, 1e6, 1e-8, 1e18, 1e300, -1e300,
                                   5e-324, 1e-300, 65504, 65520, 0.999, 1.002, INFINITY, -INFINITY, NAN, 700, -700,
                                   3.4e38, 3.5e38, 9007199254740993.0};
    uint8_t choice = fuzz_u8(bytes);
    if (choice < sizeof known / sizeof *known) return known[choice];
    if (choice < 160) return (double)(int8_t)fuzz_u8(bytes) / 16;
    uint64_t bits = fuzz_bits(bytes, 8);
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* ---- A generator, for data that need not come from the input byte by byte ---- */

static inline uint64_t fuzz_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static inline double fuzz_uniform(uint64_t *state) { return (double)(fuzz_random(state) >> 11) / 9007199254740992.0; }

/* ---- Checksums that the library's own bytes have ---- */

static inline uint32_t fuzz_crc32c(const uint8_t *bytes, size_t size) {
    uint32_t crc = ~0u;
    for (size_t i = 0; i < size; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    }
    return ~crc;
}

static inline void fuzz_put(uint8_t *bytes, uint64_t value, int count) {
    for (int i = 0; i < count; i++) bytes[i] = (uint8_t)(value >> 8 * i);
}

static inline uint64_t fuzz_get(const uint8_t *bytes, int count) {
    uint64_t value = 0;
    for (int i = 0; i < count; i++) value |= (uint64_t)bytes[i] << 8 * i;
    return value;
}

/* ---- Files ---- */

/* A folder in memory for this process, made once and removed at the end: "/dev/shm/lockstep-fuzz-PID". */
const char *fuzz_folder(void);

/* Writes a file of the folder, and returns its path. */
const char *fuzz_write(const char *name, const void *bytes, size_t size);

/* A model of one layer, and an adapter of it. */
#define TINY ROOT "/Tests/Fuzz/tiny"

/* Copies a file of it to the folder. */
void fuzz_copy(const char *name);

/* Removes a folder of the folder, which need not be there. */
void fuzz_remove(const char *name);

#endif
