/* Mismatch measured of any arguments: of a batch, by sequence and bucket, of logits, in an accumulator. */
#include "call.h"

size_t fuzz_repair(uint8_t *data, size_t size) {
    (void)data;
    return size;
}

#define WORDS "mismatch trainer rollout mask offsets options sequences count buckets edges axis ids mean rows accumulator row difference first second threads"

void fuzz_one(const uint8_t *data, size_t size) {
    static fuzz_call c;
    lockstep_mismatch_options usual = LOCKSTEP_MISMATCH_OPTIONS_INIT;
    lockstep_log_probs_options usual_exact = LOCKSTEP_LOG_PROBS_OPTIONS_INIT;
    lockstep_mismatch_accumulator_options usual_accumulator = LOCKSTEP_MISMATCH_ACCUMULATOR_OPTIONS_INIT;
    usual.threads = usual_exact.threads = 1;
    fuzz_begin(&c, data, size);
    int which = (int)fuzz_pick(&c.bytes, 0, 5), is_packed = (int)fuzz_pick(&c.bytes, 0, 1);
    int64_t sequences = fuzz_pick(&c.bytes, 0, 5), length = fuzz_pick(&c.bytes, 0, 12), tokens = sequences * length;
    const lockstep_tensor *trainer, *rollout, *mask = NULL, *offsets = NULL;
    if (which == 4) {
        trainer = fuzz_matrix(&c, FUZZ_REQUIRED, FUZZ_LOGITS, sequences, length, FUZZ_NUMBERS, 0);
        rollout = fuzz_matrix(&c, FUZZ_REQUIRED, FUZZ_LOGITS, sequences, length, FUZZ_NUMBERS, 0);
        mask = fuzz_vector(&c, FUZZ_OPTIONAL, FUZZ_FLAGS, sequences, FUZZ_MASK, 0);
    } else if (is_packed) {
        trainer = fuzz_vector(&c, FUZZ_REQUIRED, FUZZ_ANY_FLOATS, tokens, FUZZ_LOG_PROBS, 0);
        rollout = fuzz_vector(&c, FUZZ_REQUIRED, FUZZ_ANY_FLOATS, tokens, FUZZ_LOG_PROBS, 0);
        mask = fuzz_vector(&c, FUZZ_OPTIONAL, FUZZ_FLAGS, tokens, FUZZ_MASK, 0);
        offsets = fuzz_vector(&c, FUZZ_OPTIONAL, FUZZ_INT64, sequences + 1, FUZZ_OFFSETS, tokens);
        if (offsets == NULL) sequences = 1;
    } else {
        trainer = fuzz_matrix(&c, FUZZ_REQUIRED, FUZZ_ANY_FLOATS, sequences, length, FUZZ_LOG_PROBS, 0);
        rollout = fuzz_matrix(&c, FUZZ_REQUIRED, FUZZ_ANY_FLOATS, sequences, length, FUZZ_LOG_PROBS, 0);
        mask = fuzz_matrix(&c, FUZZ_OPTIONAL, FUZZ_FLAGS, sequences, length, FUZZ_MASK, 0);
    }
    const void *options = which == 4 ? fuzz_options(&c, &usual_exact, sizeof usual_exact, NULL)
                                     : fuzz_options(&c, &usual, sizeof usual, NULL);
    size_t count = (size_t)(fuzz_u8(&c.bytes) == 255 ? fuzz_integer(&c.bytes) : sequences);
    switch (which) {
    case 0: {
        lockstep_mismatch *mismatch = fuzz_result(&c, sizeof *mismatch, FUZZ_REQUIRED);
        fuzz_ready(&c);
        lockstep_status status = lockstep_mismatch_measure(mismatch, trainer, rollout, mask, offsets, options);
        if (fuzz_end(&c, status, WORDS) == LOCKSTEP_OK && mismatch->struct_size >= sizeof *mismatch) {
            int64_t all = mismatch->tokens + mismatch->masked_tokens + mismatch->excluded_tokens;
            FUZZ_CHECK(all == (trainer->ndim == 2 ? trainer->shape[0] * trainer->shape[1] : trainer->shape[0]));
            FUZZ_CHECK(mismatch->tokens == 0 || (mismatch->max_abs_log_ratio >= 0 && mismatch->k3.value >= 0));
        }
        break;
    }
    case 1: {
        lockstep_mismatch_sequence *out = fuzz_output(&c, sizeof *out * (count > 64 ? 1 : count), FUZZ_REQUIRED);
        fuzz_ready(&c);
        fuzz_end(&c, lockstep_mismatch_sequences(out, count, trainer, rollout, mask, offsets, options), WORDS);
        break;
    }
    case 2: {
        double edges[4];
        lockstep_mismatch_bucket *out = fuzz_output(&c, 3 * sizeof *out, FUZZ_REQUIRED);
        for (int i = 0; i < 4; i++) edges[i] = fuzz_u8(&c.bytes) > 200 ? fuzz_double(&c.bytes) : i - 2.5;
        int32_t axis = fuzz_u8(&c.bytes) > 250 ? (int32_t)fuzz_integer(&c.bytes) : (int32_t)fuzz_pick(&c.bytes, 0, 2);
        fuzz_ready(&c);
        fuzz_end(&c, lockstep_mismatch_profile(out, 3, edges, axis, trainer, rollout, mask, offsets, options), WORDS);
        break;
    }
    case 3: {
        lockstep_mismatch_accumulator *a = NULL;
        const lockstep_tensor *ids = fuzz_vector(&c, FUZZ_OPTIONAL, FUZZ_IDS, sequences, FUZZ_COUNTS, 1000);
        const void *how = fuzz_options(&c, &usual_accumulator, sizeof usual_accumulator, NULL);
        fuzz_ready(&c);
        if (fuzz_end(&c, lockstep_mismatch_accumulator_create(&a, how), WORDS) != LOCKSTEP_OK) break;
        lockstep_status status = lockstep_mismatch_accumulator_update(a, trainer, rollout, mask, offsets, ids, options);
        fuzz_end(&c, status, WORDS);
        lockstep_mismatch whole, parts;
        memset(&whole, 0, sizeof whole);
        whole.struct_size = sizeof whole;
        parts = whole;
        FUZZ_CHECK(lockstep_mismatch_accumulator_report(&parts, a) == LOCKSTEP_OK);
        if (status == LOCKSTEP_OK) { /* what the measure of the whole says */
            FUZZ_CHECK(lockstep_mismatch_measure(&whole, trainer, rollout, mask, offsets, options) == LOCKSTEP_OK);
            FUZZ_CHECK(whole.tokens == parts.tokens && memcmp(&whole.k3, &parts.k3, sizeof whole.k3) == 0);
        } else {
            FUZZ_CHECK(parts.tokens == 0 && parts.sequences == 0);
        }
        lockstep_mismatch_accumulator_destroy(a);
        break;
    }
    case 4: {
        lockstep_divergence *mean = fuzz_output(&c, sizeof *mean, FUZZ_OPTIONAL);
        lockstep_divergence *rows = fuzz_output(&c, sizeof *rows * (count > 64 ? 1 : count), FUZZ_OPTIONAL);
        fuzz_ready(&c);
        lockstep_status status = lockstep_mismatch_exact(mean, rows, count, trainer, rollout, mask, options);
        if (fuzz_end(&c, status, WORDS) == LOCKSTEP_OK && mean && !isnan(mean->total_variation))
            FUZZ_CHECK(mean->total_variation >= 0 && mean->total_variation <= 1 && mean->kl_rollout_trainer >= 0);
        break;
    }
    default: {
        lockstep_difference *difference = fuzz_result(&c, sizeof *difference, FUZZ_REQUIRED);
        fuzz_ready(&c);
        lockstep_status status = lockstep_difference_measure(difference, trainer, rollout);
        if (fuzz_end(&c, status, WORDS) == LOCKSTEP_OK && difference->struct_size >= sizeof *difference)
            FUZZ_CHECK(difference->differing <= difference->rows * difference->columns && difference->max_abs >= 0);
    }
    }
    fuzz_free(&c);
}
