/* Conversions and distances of tensors of every format, shape and stride: refused, or each element is what the functions of
 * one value say. */
#include "call.h"

size_t fuzz_repair(uint8_t *data, size_t size) {
    (void)data;
    return size;
}

static float narrowed(const lockstep_tensor *t, float x) {
    switch (t->dtype.code | t->dtype.bits << 8) {
    case 2 | 16 << 8: return lockstep_fp16_to_float(lockstep_fp16_from_float(x));
    case 4 | 16 << 8: return lockstep_bf16_to_float(lockstep_bf16_from_float(x));
    case 10 | 8 << 8: return lockstep_fp8_e4m3fn_to_float(lockstep_fp8_e4m3fn_from_float(x));
    case 12 | 8 << 8: return lockstep_fp8_e5m2_to_float(lockstep_fp8_e5m2_from_float(x));
    default: return x;
    }
}

static int is_emulated(const lockstep_tensor *t) { return t->dtype.code >= 192; }

void fuzz_one(const uint8_t *data, size_t size) {
    static const int32_t all[] = {LOCKSTEP_FLOAT32, LOCKSTEP_FLOAT64, LOCKSTEP_FLOAT16, LOCKSTEP_BFLOAT16,
                                  LOCKSTEP_FLOAT8_E4M3FN, LOCKSTEP_FLOAT8_E5M2, LOCKSTEP_E8M + 7, LOCKSTEP_E5M + 2, 0};
    static const int32_t distance[] = {LOCKSTEP_UINT64, 0};
    static fuzz_call c;
    lockstep_convert_options usual = LOCKSTEP_CONVERT_OPTIONS_INIT;
    int64_t extents[8];
    usual.threads = 1;
    fuzz_begin(&c, data, size);
    int ndim = (int)fuzz_pick(&c.bytes, 1, 3), which = (int)fuzz_pick(&c.bytes, 0, 3);
    if (fuzz_u8(&c.bytes) == 255) ndim = 8;
    for (int i = 0; i < 8; i++) extents[i] = ndim > 3 ? fuzz_pick(&c.bytes, 1, 2) : fuzz_pick(&c.bytes, 0, 20);
    if (which > 0) {
        const lockstep_tensor *to = fuzz_tensor_of(&c, FUZZ_REQUIRED, all, ndim, extents, FUZZ_NOTHING, 0);
        const lockstep_tensor *from = fuzz_tensor_of(&c, FUZZ_REQUIRED, all, ndim, extents, FUZZ_NUMBERS, 0);
        const lockstep_convert_options *options = fuzz_options(&c, &usual, sizeof usual, NULL);
        lockstep_convert_counts *counts = fuzz_output(&c, sizeof *counts, FUZZ_OPTIONAL);
        fuzz_ready(&c);
        if (fuzz_end(&c, lockstep_convert(to, counts, from, options), "destination source options first_index") == LOCKSTEP_OK) {
            int64_t rounding = options && options->struct_size >= 8 ? options->rounding : 0;
            if (counts) FUZZ_CHECK(counts->overflow >= 0 && counts->underflow >= 0 && counts->nan >= 0);
            if (ndim <= 2 && !c.is_shared && !is_emulated(to) && !is_emulated(from) && rounding == 0 &&
                !(from->dtype.code == 2 && from->dtype.bits == 64))
                for (int64_t i = 0; i < extents[0]; i++)
                    for (int64_t k = 0; k < (ndim > 1 ? extents[1] : 1) && to->shape[0] > i; k++) {
                        double got = fuzz_at(to, i, k), wanted = narrowed(to, (float)fuzz_at(from, i, k));
                        FUZZ_CHECK(got == wanted || (isnan(got) && isnan(wanted)));
                    }
        }
    } else {
        const lockstep_tensor *d = fuzz_tensor_of(&c, FUZZ_REQUIRED, distance, ndim, extents, FUZZ_NOTHING, 0);
        const lockstep_tensor *a = fuzz_tensor_of(&c, FUZZ_REQUIRED, all, ndim, extents, FUZZ_NUMBERS, 0);
        int32_t same[2] = {a ? (int32_t)(a->dtype.code | a->dtype.bits << 8 | a->dtype.lanes << 16) : LOCKSTEP_FLOAT32, 0};
        const lockstep_tensor *b =
            fuzz_tensor_of(&c, FUZZ_REQUIRED, same[0] ? same : all, ndim, extents, FUZZ_NUMBERS, 0);
        fuzz_ready(&c);
        fuzz_end(&c, lockstep_ulp_distance(d, a, b), "distance a b dtype");
    }
    fuzz_free(&c);
}
