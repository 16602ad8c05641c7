/* Optimiser steps, gradients, schedules and scalers' options: of any arguments. */
#include "call.h"

size_t fuzz_repair(uint8_t *data, size_t size) {
    (void)data;
    return size;
}

#define WORDS "norm gradients count options masters moments compensation rate step report scales skipped maxima limit scaler kind " \
    "initial_scale growth backoff minimum maximum hysteresis threads"

static const int32_t MASTERS[] = {LOCKSTEP_FLOAT32, LOCKSTEP_FLOAT16, LOCKSTEP_BFLOAT16, 0};

void fuzz_one(const uint8_t *data, size_t size) {
    static fuzz_call c;
    fuzz_begin(&c, data, size);
    int which = (int)fuzz_pick(&c.bytes, 0, 4);
    int64_t count = fuzz_pick(&c.bytes, 0, 40);
    switch (which) {
    case 0: {
        lockstep_gradient_options usual = LOCKSTEP_GRADIENT_OPTIONS_INIT;
        usual.threads = 1;
        size_t tensors = (size_t)fuzz_pick(&c.bytes, 0, 3);
        lockstep_tensor *all = fuzz_memory(&c, tensors * sizeof *all, 0);
        for (size_t i = 0; i < tensors; i++) {
            const lockstep_tensor *one = fuzz_matrix(&c, FUZZ_REQUIRED, FUZZ_FLOAT32, count, 3, FUZZ_NUMBERS, 0);
            if (one) all[i] = *one;
        }
        lockstep_gradient_norm *norm = fuzz_output(&c, sizeof *norm, FUZZ_REQUIRED);
        const lockstep_gradient_options *options = fuzz_options(&c, &usual, sizeof usual, NULL);
        fuzz_ready(&c);
        if (fuzz_end(&c, lockstep_gradients_measure(norm, tensors ? all : NULL, tensors, options), WORDS) == LOCKSTEP_OK)
            FUZZ_CHECK(norm->non_finite > 0 || (norm->norm >= 0 && norm->largest >= 0));
        break;
    }
    case 1: {
        lockstep_adamw_options usual = LOCKSTEP_ADAMW_OPTIONS_INIT;
        usual.threads = 1;
        usual.rounding = (int32_t)fuzz_pick(&c.bytes, 0, 2);
        int32_t dtype[2] = {MASTERS[fuzz_pick(&c.bytes, 0, 2)], 0};
        const lockstep_tensor *masters = fuzz_vector(&c, FUZZ_REQUIRED, dtype, count, FUZZ_NUMBERS, 0);
        const lockstep_tensor *first = fuzz_vector(&c, FUZZ_REQUIRED, FUZZ_FLOAT32, count, FUZZ_NUMBERS, 0);
        const lockstep_tensor *second = fuzz_vector(&c, FUZZ_REQUIRED, FUZZ_FLOAT32, count, FUZZ_MASK, 0);
        const lockstep_tensor *compensation =
            usual.rounding == 2 ? fuzz_vector(&c, FUZZ_REQUIRED, dtype, count, FUZZ_MASK, 0) : NULL;
        for (int i = 0; i < c.block_count; i++) c.blocks[i].is_output = 1; /* in place, but for the gradients */
        const lockstep_tensor *gradients = fuzz_vector(&c, FUZZ_REQUIRED, FUZZ_FLOAT32, count, FUZZ_NUMBERS, 0);
        const lockstep_adamw_options *options = fuzz_options(&c, &usual, sizeof usual, NULL);
        fuzz_ready(&c);
        fuzz_end(&c, lockstep_adamw_step(masters, first, second, compensation, gradients, options), WORDS);
        break;
    }
    case 2: {
        lockstep_schedule_options usual = LOCKSTEP_SCHEDULE_OPTIONS_INIT;
        usual.total_steps = 100;
        usual.shape = (int32_t)fuzz_pick(&c.bytes, 0, 2);
        double *rate = fuzz_output(&c, sizeof *rate, FUZZ_REQUIRED);
        const lockstep_schedule_options *options = fuzz_options(&c, &usual, sizeof usual, NULL);
        int64_t step = fuzz_integer(&c.bytes);
        fuzz_ready(&c);
        if (fuzz_end(&c, lockstep_learning_rate(rate, step, options), WORDS " shape peak warmup total final") == LOCKSTEP_OK)
            FUZZ_CHECK(*rate >= 0 && *rate < INFINITY);
        break;
    }
    default: {
        static const char *const names[] = {"constant", "torch", "deepspeed", "megatron", "paper"};
        lockstep_scaler_options usual;
        memset(&usual, 0, sizeof usual);
        usual.struct_size = sizeof usual;
        FUZZ_CHECK(lockstep_scaler_options_named(&usual, names[fuzz_pick(&c.bytes, 0, 4)]) == LOCKSTEP_OK);
        const lockstep_scaler_options *options = fuzz_options(&c, &usual, sizeof usual, NULL);
        lockstep_scaler_report *report = fuzz_result(&c, sizeof *report, FUZZ_REQUIRED);
        if (which == 3) {
            const lockstep_tensor *scales = fuzz_vector(&c, FUZZ_OPTIONAL, FUZZ_FLOAT64, count, FUZZ_NOTHING, 0);
            const lockstep_tensor *skipped = fuzz_vector(&c, FUZZ_OPTIONAL, FUZZ_FLAGS, count, FUZZ_NOTHING, 0);
            const lockstep_tensor *maxima = fuzz_vector(&c, FUZZ_REQUIRED, FUZZ_FLOATS, count, FUZZ_MASK, 0);
            double limit = fuzz_u8(&c.bytes) > 128 ? fuzz_double(&c.bytes) : 65520;
            fuzz_ready(&c);
            fuzz_end(&c, lockstep_scaler_replay(report, scales, skipped, maxima, limit, options), WORDS);
            break;
        }
        lockstep_scaler *scaler = NULL;
        fuzz_ready(&c);
        if (fuzz_end(&c, lockstep_scaler_create(&scaler, options), WORDS) != LOCKSTEP_OK) break;
        for (int64_t i = 0; i < count; i++) {
            uint8_t bytes[180];
            size_t room = sizeof bytes;
            lockstep_scaler *again = NULL;
            fuzz_ready(&c);
            fuzz_end(&c, lockstep_scaler_update(report, scaler, fuzz_u8(&c.bytes) & 1), WORDS);
            FUZZ_CHECK(lockstep_scaler_save(bytes, &room, scaler) == LOCKSTEP_OK);
            FUZZ_CHECK(lockstep_scaler_load(&again, bytes, room) == LOCKSTEP_OK);
            lockstep_scaler_destroy(again);
        }
        lockstep_scaler_destroy(scaler);
    }
    }
    fuzz_free(&c);
}
