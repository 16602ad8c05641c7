/* Every way a tensor or an options struct can be wrong, tried on every argument of a function.
 *
 * A test file defines `fixture`: its tensor arguments as `argument` members, its options as a
 * `growable` member called `options`, all that a call may write in a member called `outputs`; and
 * `fixture_init`, which makes a call that succeeds. */
#ifndef LOCKSTEP_TEST_ARGUMENTS_H
#define LOCKSTEP_TEST_ARGUMENTS_H

#include "test.h"

/* A tensor with the shape it points to. */
typedef struct {
    lockstep_tensor tensor;
    int64_t shape[2];
    int64_t strides[2];
    int absent; /* pass NULL */
} argument;

/* columns 0: a vector. The argument must stay where it is: its tensor points into it. */
static inline void argument_init(argument *a, void *data, int32_t dtype, int64_t rows, int64_t columns) {
    a->shape[0] = rows;
    a->shape[1] = columns;
    a->strides[0] = columns > 0 ? columns : 1;
    a->strides[1] = 1;
    a->absent = 0;
    a->tensor = lockstep_tensor_of(data, dtype, columns > 0 ? 2 : 1, a->shape);
}

static inline const lockstep_tensor *given(const argument *a) { return a->absent ? NULL : &a->tensor; }

/* What an argument is, for the ways to spoil it. */
enum { REQUIRED = 1, OUTPUT = 2 };

/* Spoils an argument in way number `way`; NULL when there are no more ways, "" where the way does not
 * apply to it, else its description. */
static inline const char *argument_spoil(argument *a, int way, int kind) {
    lockstep_tensor *t = &a->tensor;
    switch (way) {
    case 0: if (!(kind & REQUIRED)) return ""; a->absent = 1; return "NULL";
    case 1: t->data = NULL; return "data NULL";
    case 2: t->device.device_type = 2; return "on a GPU";
    case 3: t->device.device_type = 0; return "on device type 0";
    case 4: t->ndim = 0; return "ndim 0";
    case 5: t->ndim = -1; return "ndim -1";
    case 6: t->ndim = 9; return "ndim 9";
    case 7: t->ndim = INT32_MAX; return "ndim INT32_MAX";
    case 8: t->ndim = INT32_MIN; return "ndim INT32_MIN";
    case 9: t->shape = NULL; return "shape NULL";
    case 10: a->shape[0] = -1; return "shape[0] -1";
    case 11: a->shape[0] = INT64_MIN; return "shape[0] INT64_MIN";
    case 12: a->shape[0] = INT64_MAX; return "shape[0] INT64_MAX";
    case 13: a->shape[0] = (int64_t)1 << 62; return "shape[0] 2^62";
    case 14:
        if (t->ndim < 2) return "";
        a->shape[0] = a->shape[1] = (int64_t)1 << 40;
        return "a shape whose product overflows";
    case 15: if (t->ndim < 2) return ""; a->shape[1] = -1; return "shape[1] -1";
    case 16: t->dtype.code = 99; return "dtype code 99";
    case 17: t->dtype.bits = 24; return "24 bits";
    case 18: t->dtype.bits = 0; return "0 bits";
    case 19: t->dtype.lanes = 2; return "2 lanes";
    case 20: t->dtype.lanes = 0; return "0 lanes";
    case 21:
        t->dtype = lockstep_dtype_of(t->dtype.code == 1 && t->dtype.bits == 64 ? LOCKSTEP_FLOAT64
                                                                             : LOCKSTEP_UINT64);
        return "a known dtype that does not fit";
    case 22: if (t->dtype.bits == 8) return ""; t->data = (char *)t->data + 1; return "misaligned data";
    case 23: if (t->dtype.bits == 8) return ""; t->byte_offset = 1; return "misaligned byte_offset";
    case 24: t->byte_offset = UINT64_MAX; return "byte_offset UINT64_MAX";
    case 25: t->strides = a->strides; a->strides[0] = INT64_MAX; return "strides[0] INT64_MAX";
    case 26: t->strides = a->strides; a->strides[0] = INT64_MIN; return "strides[0] INT64_MIN";
    case 27:
        if (!(kind & OUTPUT)) return "";
        t->strides = a->strides;
        a->strides[0] = 0;
        return "an output of elements that overlap";
    default: return NULL;
    }
}

/* One argument of a function: its name, as the message must say it, and where it is. */
typedef struct {
    const char *name;
    size_t offset;
    int kind;
} argument_place;

#define PLACE(member, kind) {#member, offsetof(fixture, member), kind}

/* Tries every way on every argument of `call`, a `lockstep_status call(fixture *)`. */
#define REFUSES_SPOILED_ARGUMENTS(call, places) \
    do { \
        for (size_t p = 0; p < sizeof(places) / sizeof *(places); p++) \
            for (int way = 0;; way++) { \
                fixture f; \
                char what[128]; \
                fixture_init(&f); \
                argument *a = (argument *)(void *)((char *)&f + (places)[p].offset); \
                const char *spoiled = argument_spoil(a, way, (places)[p].kind); \
                if (spoiled == NULL) break; \
                if (*spoiled == 0) continue; \
                memset(&f.outputs, TEST_CANARY, sizeof f.outputs); \
                snprintf(what, sizeof what, "%s: %s: %s", #call, (places)[p].name, spoiled); \
                test_refused(__FILE__, __LINE__, what, call(&f), LOCKSTEP_ERROR_INVALID_ARGUMENT, \
                             (places)[p].name, &f.outputs, sizeof f.outputs); \
            } \
    } while (0)

/* An options struct with room for what a newer header would append. */
typedef union {
    uint32_t struct_size;
    lockstep_convert_options convert;
    lockstep_log_probs_options log_probs;
    lockstep_mismatch_options mismatch;
    lockstep_correction_options correction;
    lockstep_objective_options objective;
    lockstep_covariance_options covariance;
    unsigned char bytes[8192];
} growable;

/* Wrong sizes, an unknown tail, and the two fields all options have. `type` is the options' member of
 * `growable`. */
#define REFUSES_SPOILED_OPTIONS(call, type) \
    do { \
        const uint32_t size = (uint32_t)sizeof(((growable *)0)->type); \
        REFUSED(call, INVALID_ARGUMENT, "struct_size", f.options.struct_size = 0); \
        REFUSED(call, INVALID_ARGUMENT, "struct_size", f.options.struct_size = 3); \
        REFUSED(call, INVALID_ARGUMENT, "struct_size", f.options.struct_size = 4); \
        REFUSED(call, INVALID_ARGUMENT, "struct_size", f.options.struct_size = UINT32_MAX); \
        REFUSED(call, INVALID_ARGUMENT, "struct_size", f.options.struct_size = 8000); \
        REFUSED(call, INVALID_ARGUMENT, "options", f.options.struct_size = size + 8, \
                f.options.bytes[size + 7] = 1); \
        ACCEPTED(call, f.options.struct_size = size + 8); \
        REFUSED(call, INVALID_ARGUMENT, "threads", f.options.type.threads = -1); \
        REFUSED(call, INVALID_ARGUMENT, "threads", f.options.type.threads = INT32_MIN); \
        ACCEPTED(call, f.options.type.threads = INT32_MAX); \
        REFUSED(call, INVALID_ARGUMENT, "instruction_set", f.options.type.instruction_set = 99); \
        REFUSED(call, INVALID_ARGUMENT, "instruction_set", f.options.type.instruction_set = -1); \
        for (int32_t set = LOCKSTEP_INSTRUCTION_SET_BASELINE; set <= LOCKSTEP_INSTRUCTION_SET_NEON; set++) { \
            if (lockstep_has_instruction_set(set)) \
                ACCEPTED(call, f.options.type.instruction_set = set); \
            else \
                REFUSED(call, UNSUPPORTED, "instruction_set", f.options.type.instruction_set = set); \
        } \
    } while (0)

#endif
