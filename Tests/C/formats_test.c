/* Section 2 of the header: conversion and ulp distance. */
#include "arguments.h"

#include <math.h>
#include <stdlib.h>

enum { COUNT = 6 };

typedef struct {
    argument destination, source, distance, a, b;
    growable options;
    float values[COUNT];
    uint16_t halves[2][COUNT];
    struct {
        uint16_t converted[COUNT];
        uint64_t distances[COUNT];
        lockstep_convert_counts counts;
    } outputs;
} fixture;

static void fixture_init(fixture *f) {
    static const lockstep_convert_options defaults = LOCKSTEP_CONVERT_OPTIONS_INIT;
    memset(f, 0, sizeof *f);
    f->options.convert = defaults;
    for (int i = 0; i < COUNT; i++) {
        f->values[i] = 0.1f * (float)(i + 1);
        f->halves[0][i] = (uint16_t)(0x3c00 + i);
        f->halves[1][i] = (uint16_t)(0x3c00 + 2 * i);
    }
    argument_init(&f->destination, f->outputs.converted, LOCKSTEP_FLOAT16, 2, 3);
    argument_init(&f->source, f->values, LOCKSTEP_FLOAT32, 2, 3);
    argument_init(&f->distance, f->outputs.distances, LOCKSTEP_UINT64, COUNT, 0);
    argument_init(&f->a, f->halves[0], LOCKSTEP_FLOAT16, COUNT, 0);
    argument_init(&f->b, f->halves[1], LOCKSTEP_FLOAT16, COUNT, 0);
}

static lockstep_status convert(fixture *f) {
    return lockstep_convert(given(&f->destination), &f->outputs.counts, given(&f->source), &f->options.convert);
}

static lockstep_status ulp_distance(fixture *f) {
    return lockstep_ulp_distance(given(&f->distance), given(&f->a), given(&f->b));
}

static void convert_refuses_bad_tensors(void) {
    static const argument_place places[] = {PLACE(destination, REQUIRED | OUTPUT), PLACE(source, REQUIRED)};
    ACCEPTED(convert, (void)0);
    REFUSES_SPOILED_ARGUMENTS(convert, places);
    REFUSED(convert, INVALID_ARGUMENT, "shape", f.source.shape[0] = 1);
    REFUSED(convert, INVALID_ARGUMENT, "shape", f.source.shape[1] = 2);
    REFUSED(convert, INVALID_ARGUMENT, "source", f.source.tensor.ndim = 1);
    REFUSED(convert, INVALID_ARGUMENT, "source", f.source.tensor.dtype = lockstep_dtype_of(LOCKSTEP_INT32));
    REFUSED(convert, INVALID_ARGUMENT, "destination",
            f.destination.tensor.dtype = lockstep_dtype_of(LOCKSTEP_BOOL));
}

static void convert_refuses_bad_options(void) {
    REFUSES_SPOILED_OPTIONS(convert, convert);
    REFUSED(convert, INVALID_ARGUMENT, "rounding", f.options.convert.rounding = 3);
    REFUSED(convert, INVALID_ARGUMENT, "rounding", f.options.convert.rounding = -1);
    REFUSED(convert, INVALID_ARGUMENT, "rounding", f.options.convert.rounding = INT32_MAX);
    /* The last index would be 2^64 + 4. */
    REFUSED(convert, INVALID_ARGUMENT, "first_index", f.options.convert.first_index = UINT64_MAX,
            f.options.convert.rounding = LOCKSTEP_ROUND_STOCHASTIC);
    ACCEPTED(convert, f.options.convert.first_index = UINT64_MAX);
}

static void ulp_distance_refuses_bad_tensors(void) {
    static const argument_place places[] = {
        PLACE(distance, REQUIRED | OUTPUT), PLACE(a, REQUIRED), PLACE(b, REQUIRED)};
    ACCEPTED(ulp_distance, (void)0);
    REFUSES_SPOILED_ARGUMENTS(ulp_distance, places);
    REFUSED(ulp_distance, INVALID_ARGUMENT, "shape", f.b.shape[0] = COUNT - 1);
    REFUSED(ulp_distance, INVALID_ARGUMENT, "b", f.b.tensor.dtype = lockstep_dtype_of(LOCKSTEP_BFLOAT16));
}

/* LOCKSTEP_E8M + N and LOCKSTEP_E5M + N, within their bounds. */
static void emulated_formats(void) {
    fixture f;
    fixture_init(&f);
    static const float source[COUNT] = {1.0f, 1.1f, -1.19f, 70000.0f, 1e-9f, NAN};
    float values[COUNT];
    uint64_t distances[COUNT];
    memcpy(f.values, source, sizeof source);
    int64_t shape[1] = {COUNT};
    lockstep_tensor from = lockstep_tensor_of(f.values, LOCKSTEP_FLOAT32, 1, shape);
    lockstep_tensor to = lockstep_tensor_of(values, LOCKSTEP_E5M + 3, 1, shape);
    lockstep_convert_counts counts;
    CHECK_OK(lockstep_convert(&to, &counts, &from, NULL));
    CHECK(values[0] == 1 && values[1] == 1.125f && values[2] == -1.25f && values[3] == INFINITY && values[4] == 0);
    CHECK(isnan(values[5]) && counts.overflow == 1 && counts.underflow == 1 && counts.nan == 1);
    to.dtype = lockstep_dtype_of(LOCKSTEP_E8M + 23);
    CHECK_OK(lockstep_convert(&to, &counts, &from, NULL));
    CHECK(memcmp(values, source, sizeof source) == 0 && counts.overflow == 0 && counts.underflow == 0);

    lockstep_tensor a = lockstep_tensor_of(f.values, LOCKSTEP_E8M + 3, 1, shape), b = a;
    lockstep_tensor distance = lockstep_tensor_of(distances, LOCKSTEP_UINT64, 1, shape);
    static const float others[COUNT] = {1.5f, 1.1f, 1.19f, 70000.0f, -1e-9f, NAN};
    b.data = (void *)others;
    CHECK_OK(lockstep_ulp_distance(&distance, &a, &b));
    CHECK(distances[0] == 4 && distances[1] == 0 && distances[3] == 0 && distances[5] == 0);

    static const int32_t unknown[] = {LOCKSTEP_E8M, LOCKSTEP_E8M + 24, LOCKSTEP_E5M, LOCKSTEP_E5M + 11};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
        REFUSED(convert, INVALID_ARGUMENT, "destination", f.destination.tensor.dtype = lockstep_dtype_of(unknown[i]));
    /* An array of fp16 is none of e8m5. */
    REFUSED(ulp_distance, INVALID_ARGUMENT, "b", f.b.tensor.dtype = lockstep_dtype_of(LOCKSTEP_E8M + 5));
}

static void empty_input_is_no_error(void) {
    ACCEPTED(convert, f.source.shape[0] = f.destination.shape[0] = 0, f.source.tensor.data = NULL,
             f.destination.tensor.data = NULL);
    ACCEPTED(ulp_distance, f.a.shape[0] = f.b.shape[0] = f.distance.shape[0] = 0);
}

static void known_values(void) {
    CHECK(lockstep_fp16_to_float((lockstep_fp16){0x3c01}) == 1.0009765625f);
    CHECK(lockstep_bf16_to_float((lockstep_bf16){0x3f81}) == 1.0078125f);
    CHECK(lockstep_fp8_e4m3fn_to_float((lockstep_fp8_e4m3fn){0x7e}) == 448);
    CHECK(lockstep_fp8_e5m2_to_float((lockstep_fp8_e5m2){0x7b}) == 57344);
    CHECK(lockstep_fp16_from_float(65520).bits == 0x7c00);  /* the tie above the maximum overflows */
    CHECK(lockstep_fp16_from_float(65519).bits == 0x7bff);
    CHECK(lockstep_fp16_from_float(1e-45f).bits == 0);
    CHECK(lockstep_bf16_from_float(1.00390625f).bits == 0x3f80);  /* a tie, to even */
    CHECK(isnan(lockstep_bf16_to_float(lockstep_bf16_from_float(NAN))));
    CHECK((lockstep_fp8_e4m3fn_from_float(1000).bits & 0x7f) == 0x7f);  /* no infinity: NaN */
    CHECK(lockstep_fp8_e5m2_from_float(1e9f).bits == 0x7c);
}

static void counts_say_what_happened(void) {
    fixture f;
    fixture_init(&f);
    const float values[COUNT] = {1e6f, -1e6f, 1e-30f, NAN, 0, 1};
    memcpy(f.values, values, sizeof values);
    CHECK_OK(convert(&f));
    CHECK(f.outputs.counts.overflow == 2 && f.outputs.counts.underflow == 1 && f.outputs.counts.nan == 1);
    CHECK(f.outputs.converted[0] == 0x7c00 && f.outputs.converted[1] == 0xfc00);
    CHECK(f.outputs.converted[2] == 0 && f.outputs.converted[5] == 0x3c00);
}

static void strides_are_followed(void) {
    fixture f;
    fixture_init(&f);
    f.source.tensor.strides = f.source.strides;  /* the transpose of a 3 x 2 matrix */
    f.source.strides[0] = 1;
    f.source.strides[1] = 2;
    for (int i = 0; i < COUNT; i++) f.values[i] = (float)i;
    CHECK_OK(convert(&f));
    static const float wanted[COUNT] = {0, 2, 4, 1, 3, 5};
    for (int i = 0; i < COUNT; i++)
        CHECK(lockstep_fp16_to_float((lockstep_fp16){f.outputs.converted[i]}) == wanted[i]);
}

/* A cut array with first_index set gives the bits of the whole one. */
static void stochastic_rounding_does_not_depend_on_cuts(void) {
    enum { N = 1000 };
    static float values[N];
    static uint16_t whole[N], cut[N];
    int64_t shape[1] = {N};
    lockstep_convert_options options = LOCKSTEP_CONVERT_OPTIONS_INIT;
    options.rounding = LOCKSTEP_ROUND_STOCHASTIC;
    options.seed = 7;
    for (int i = 0; i < N; i++) values[i] = 1 + (float)i * 1e-4f;
    lockstep_tensor source = lockstep_tensor_of(values, LOCKSTEP_FLOAT32, 1, shape);
    lockstep_tensor destination = lockstep_tensor_of(whole, LOCKSTEP_BFLOAT16, 1, shape);
    CHECK_OK(lockstep_convert(&destination, NULL, &source, &options));
    static const int64_t ends[] = {0, 1, 130, 131, 700, N};
    for (int i = 0; i + 1 < (int)(sizeof ends / sizeof *ends); i++) {
        shape[0] = ends[i + 1] - ends[i];
        source.data = values + ends[i];
        destination.data = cut + ends[i];
        options.first_index = (uint64_t)ends[i];
        CHECK_OK(lockstep_convert(&destination, NULL, &source, &options));
    }
    CHECK(memcmp(whole, cut, sizeof whole) == 0);
}

static void distances_are_counted_in_steps(void) {
    fixture f;
    fixture_init(&f);
    const uint16_t a[COUNT] = {0x0000, 0x3c00, 0x8001, 0x7e00, 0x7e00, 0x7bff};
    const uint16_t b[COUNT] = {0x8000, 0x3c05, 0x0001, 0x7e01, 0x3c00, 0x7c00};
    memcpy(f.halves[0], a, sizeof a);
    memcpy(f.halves[1], b, sizeof b);
    CHECK_OK(ulp_distance(&f));
    const uint64_t wanted[COUNT] = {0, 5, 2, 0, UINT64_MAX, 1};
    CHECK(memcmp(f.outputs.distances, wanted, sizeof wanted) == 0);
}

int main(void) {
    TEST(convert_refuses_bad_tensors);
    TEST(convert_refuses_bad_options);
    TEST(ulp_distance_refuses_bad_tensors);
    TEST(emulated_formats);
    TEST(empty_input_is_no_error);
    TEST(known_values);
    TEST(counts_say_what_happened);
    TEST(strides_are_followed);
    TEST(stochastic_rounding_does_not_depend_on_cuts);
    TEST(distances_are_counted_in_steps);
    return test_report();
}
