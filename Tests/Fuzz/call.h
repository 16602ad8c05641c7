/* Calls made of input bytes: tensors and structs that are right, or wrong in one of many ways, over memory of exactly the
 * size they say, all of which is compared afterwards.
 *
 *     static fuzz_call c;
 *     fuzz_begin(&c, data, size);
 *     const lockstep_tensor *source = fuzz_vector(&c, ...);
 *     fuzz_ready(&c);
 *     fuzz_end(&c, lockstep_convert(...), "destination source options");
 *     fuzz_free(&c);
 *
 * After an error no byte has changed; after a success only outputs have. What the bytes do not reach is right. */
#ifndef LOCKSTEP_FUZZ_CALL_H
#define LOCKSTEP_FUZZ_CALL_H

#include "fuzz.h"

/* What a tensor holds. */
enum fuzz_values {
    FUZZ_LOG_PROBS, /* -5 to 0 */
    FUZZ_NUMBERS,   /* -8 to 8 */
    FUZZ_MASK,      /* 0 and 1 */
    FUZZ_COUNTS,    /* from 0 to below the limit: tokens, lengths, groups */
    FUZZ_OFFSETS,   /* rising from 0 to the limit */
    FUZZ_NOTHING    /* an output */
};

enum { FUZZ_REQUIRED = 0, FUZZ_OPTIONAL = 1, FUZZ_BLOCKS = 96, FUZZ_CALL_TENSORS = 48 };

typedef struct {
    unsigned char *memory, *before;
    size_t size;
    int is_output, is_tensor;
} fuzz_block;

typedef struct {
    fuzz_bytes bytes;
    uint64_t random;
    int block_count, tensor_count, is_shared; /* shared: an output over other memory of the call */
    fuzz_block blocks[FUZZ_BLOCKS];
    lockstep_tensor tensors[FUZZ_CALL_TENSORS];
    int64_t shapes[FUZZ_CALL_TENSORS][9], strides[FUZZ_CALL_TENSORS][9];
} fuzz_call;

static inline void fuzz_begin(fuzz_call *c, const uint8_t *data, size_t size) {
    c->bytes.next = data;
    c->bytes.left = size;
    c->block_count = c->tensor_count = c->is_shared = 0;
    c->random = fuzz_bits(&c->bytes, 2);
}

/* Memory of the call. */
static inline void *fuzz_memory(fuzz_call *c, size_t size, int is_output) {
    FUZZ_CHECK(c->block_count < FUZZ_BLOCKS);
    fuzz_block *block = &c->blocks[c->block_count++];
    block->memory = malloc(size ? size : 1);
    block->before = malloc(size ? size : 1);
    FUZZ_CHECK(block->memory != NULL && block->before != NULL);
    block->size = size;
    block->is_output = is_output;
    block->is_tensor = 0;
    memset(block->memory, is_output ? 0xa5 : 0, size);
    return block->memory;
}

/* An output that is no tensor, such as a struct that does not grow. */
static inline void *fuzz_output(fuzz_call *c, size_t size, int optional) {
    if (fuzz_u8(&c->bytes) >= (optional ? 192 : 250)) return NULL;
    return fuzz_memory(c, size, 1);
}

static inline void fuzz_set(void *data, lockstep_dtype dtype, int64_t index, double value) {
    int64_t integer = value >= -9e18 && value <= 9e18 ? (int64_t)value : 0;
    switch (dtype.code | dtype.bits << 8) {
    case 2 | 64 << 8: ((double *)data)[index] = value; break;
    case 2 | 16 << 8: ((lockstep_fp16 *)data)[index] = lockstep_fp16_from_float((float)value); break;
    case 4 | 16 << 8: ((lockstep_bf16 *)data)[index] = lockstep_bf16_from_float((float)value); break;
    case 10 | 8 << 8: ((lockstep_fp8_e4m3fn *)data)[index] = lockstep_fp8_e4m3fn_from_float((float)value); break;
    case 12 | 8 << 8: ((lockstep_fp8_e5m2 *)data)[index] = lockstep_fp8_e5m2_from_float((float)value); break;
    case 0 | 32 << 8: ((int32_t *)data)[index] = (int32_t)integer; break;
    case 0 | 64 << 8: case 1 | 64 << 8: ((int64_t *)data)[index] = integer; break;
    case 1 | 8 << 8: case 6 | 8 << 8: ((uint8_t *)data)[index] = (uint8_t)integer; break;
    default: /* fp32, the emulated formats, and what is no format */
        if (dtype.bits == 8) ((uint8_t *)data)[index] = (uint8_t)integer;
        else if (dtype.bits == 16) ((uint16_t *)data)[index] = (uint16_t)integer;
        else if (dtype.bits == 64) ((int64_t *)data)[index] = integer;
        else ((float *)data)[index] = (float)value;
    }
}

static inline size_t fuzz_width(lockstep_dtype dtype) {
    return dtype.bits == 8 || dtype.bits == 16 || dtype.bits == 64 ? dtype.bits / 8u : 4u;
}

/* Fills memory of `count` elements, which are `total` of the tensor in order. One byte spoils an element. */
static inline void fuzz_fill(fuzz_call *c, void *data, lockstep_dtype dtype, int64_t count, enum fuzz_values values,
                             int64_t limit) {
    uint8_t how = fuzz_u8(&c->bytes);
    for (int64_t i = 0; i < count; i++) {
        double value = 0;
        switch (values) {
        case FUZZ_LOG_PROBS: value = how % 8 == 1 ? -1 : -5 * fuzz_uniform(&c->random); break;
        case FUZZ_NUMBERS: value = how % 8 == 1 ? 1 : how % 8 == 2 ? 0 : 16 * fuzz_uniform(&c->random) - 8; break;
        case FUZZ_MASK: value = how % 8 == 1 ? 0 : how % 8 == 2 ? 1 : fuzz_random(&c->random) % 4 > 0; break;
        case FUZZ_COUNTS:
            value = limit > 0 ? (double)(fuzz_random(&c->random) % (uint64_t)limit) : 0;
            break;
        case FUZZ_OFFSETS: /* even, or with empty sequences at one end */
            value = (double)(how % 8 == 1 ? (i + 1 == count ? limit : 0) : how % 8 == 2 ? (i == 0 ? 0 : limit)
                             : count > 1 ? limit * i / (count - 1) : 0);
            break;
        default: return;
        }
        fuzz_set(data, dtype, i, value);
    }
    if (how >= 128 && count > 0)
        for (int spoiled = how % 3 + 1; spoiled > 0; spoiled--)
            fuzz_set(data, dtype, (int64_t)(fuzz_u8(&c->bytes)) % count,
                     dtype.code == 2 || dtype.code > 6 ? fuzz_double(&c->bytes) : (double)fuzz_integer(&c->bytes));
}

static const int32_t fuzz_dtypes[] = {LOCKSTEP_FLOAT32, LOCKSTEP_FLOAT64, LOCKSTEP_FLOAT16, LOCKSTEP_BFLOAT16, LOCKSTEP_INT32,
                                      LOCKSTEP_INT64, LOCKSTEP_UINT8, LOCKSTEP_BOOL, LOCKSTEP_UINT64,
                                      LOCKSTEP_FLOAT8_E4M3FN, LOCKSTEP_FLOAT8_E5M2, LOCKSTEP_E8M + 5, LOCKSTEP_E5M + 3};

/* Extents and strides that must be refused wherever they are looked at. */
static const int64_t fuzz_hostile[] = {-1, INT64_MIN, INT64_MAX, (int64_t)1 << 62, ((int64_t)1 << 48) + 1, (int64_t)1 << 56,
                                       INT64_MIN + 1, -((int64_t)1 << 49)};

/* A tensor that has `dtypes` (the first of a list that ends with 0, or another) and a shape of `ndim` dimensions; with
 * bytes that say so, something else. */
static inline const lockstep_tensor *fuzz_tensor_of(fuzz_call *c, int optional, const int32_t *dtypes, int ndim,
                                                    const int64_t *extents, enum fuzz_values values, int64_t limit) {
    FUZZ_CHECK(c->tensor_count < FUZZ_CALL_TENSORS);
    lockstep_tensor *t = &c->tensors[c->tensor_count];
    int64_t *shape = c->shapes[c->tensor_count], *strides = c->strides[c->tensor_count];
    c->tensor_count++;
    int known = 0, is_output = values == FUZZ_NOTHING;
    while (dtypes[known]) known++;
    uint8_t kind = fuzz_u8(&c->bytes), way = fuzz_u8(&c->bytes);
    if (optional && kind % 4 == 3) return NULL;
    for (int axis = 0; axis < 9; axis++) {
        shape[axis] = axis < ndim ? extents[axis] : 1;
        strides[axis] = 1;
    }
    *t = lockstep_tensor_of(NULL, dtypes[(kind >> 2) % known], ndim, shape);
    int hostile = 0, axis = ndim > 0 ? kind % ndim : 0;
    switch (way) { /* most bytes leave it as it is */
    case 1: return NULL;
    case 2: t->dtype = lockstep_dtype_of(fuzz_dtypes[kind % 13]); break;
    case 3: t->dtype.code = fuzz_u8(&c->bytes); break;
    case 4: t->dtype.bits = fuzz_u8(&c->bytes); break;
    case 5: t->dtype.lanes = (uint16_t)fuzz_bits(&c->bytes, 2); break;
    case 6: t->device.device_type = (int32_t)fuzz_integer(&c->bytes); break;
    case 7: case 8: shape[axis] = fuzz_hostile[kind % 8]; hostile = 1; break;
    case 9: shape[axis] += kind & 1 ? 1 : shape[axis] > 0 ? -1 : 0; break;
    case 10: shape[axis] = 0; break;
    case 11: t->shape = NULL; hostile = 1; break;
    case 12: t->ndim = (int32_t)fuzz_integer(&c->bytes); hostile = t->ndim < 1 || t->ndim > 8; break;
    case 13: case 14:
        t->strides = strides;
        break;
    default: break;
    }
    if (t->ndim >= 1 && t->ndim <= 8)
        for (int i = t->ndim - 2; i >= 0; i--)
            strides[i] = hostile ? 1 : strides[i + 1] * (shape[i + 1] > 0 ? shape[i + 1] : 1);
    if (way >= 15 && way <= 19 && t->ndim >= 1 && t->ndim <= 8) {
        t->strides = strides;
        if (way == 15) strides[axis] = fuzz_hostile[1 + kind % 7]; /* -1 would be right */
        if (way == 16) strides[axis] = 0;
        if (way == 17) for (int i = 0; i < ndim; i++) strides[i] = -strides[i];
        if (way == 18) for (int i = 0; i < ndim; i++) strides[i] *= 1 + (kind & 3); /* gaps */
        if (way == 19 && ndim > 1) for (int i = 0; i + 1 < ndim; i++) strides[i] += kind & 15; /* between rows */
    }
    /* The memory that its elements reach, and no more. */
    int64_t lowest = 0, highest = 0, count = 1;
    for (int i = 0; !hostile && i < t->ndim; i++) {
        count *= shape[i];
        if (shape[i] <= 1) continue;
        if (way == 15 && i == axis) continue; /* refused before it is used */
        if (strides[i] < 0) lowest += strides[i] * (shape[i] - 1);
        else highest += strides[i] * (shape[i] - 1);
    }
    if (hostile) highest = 15;
    if (count == 0) highest = lowest - 1;
    size_t width = fuzz_width(t->dtype), size = (size_t)(highest - lowest + 1) * width;
    if (way == 20 && c->block_count > 0) { /* the memory of another argument, where that is large enough */
        fuzz_block *other = &c->blocks[kind % c->block_count];
        if (other->is_tensor && other->size >= size && (size_t)(uintptr_t)other->memory % width == 0) {
            t->data = other->memory;
            c->is_shared |= is_output;
            if (is_output) other->is_output = 1;
            return t;
        }
    }
    if (way == 21) t->byte_offset = width * (1 + kind % 3u);
    unsigned char *memory = fuzz_memory(c, size + (size_t)t->byte_offset, is_output);
    c->blocks[c->block_count - 1].is_tensor = 1;
    fuzz_fill(c, memory + t->byte_offset, t->dtype, (int64_t)(size / width), values, limit);
    t->data = memory + (size_t)-lowest * width;
    if (way == 22) t->data = NULL;
    if (way == 23) t->data = memory + 1; /* not aligned, unless it has elements of a byte */
    if (way == 23 && width == 1) t->data = memory;
    if (way == 24) t->byte_offset = (uint64_t)fuzz_hostile[kind % 8];
    if (way == 25) t->byte_offset = width > 1 ? 1 : 0;
    return t;
}

static inline const lockstep_tensor *fuzz_vector(fuzz_call *c, int optional, const int32_t *dtypes, int64_t count,
                                                 enum fuzz_values values, int64_t limit) {
    return fuzz_tensor_of(c, optional, dtypes, 1, &count, values, limit);
}

static inline const lockstep_tensor *fuzz_matrix(fuzz_call *c, int optional, const int32_t *dtypes, int64_t rows,
                                                 int64_t columns, enum fuzz_values values, int64_t limit) {
    int64_t extents[2] = {rows, columns};
    return fuzz_tensor_of(c, optional, dtypes, 2, extents, values, limit);
}

static const int32_t FUZZ_FLOATS[] = {LOCKSTEP_FLOAT32, LOCKSTEP_FLOAT64, 0};
static const int32_t FUZZ_LOGITS[] = {LOCKSTEP_FLOAT32, LOCKSTEP_FLOAT16, LOCKSTEP_BFLOAT16, 0};
static const int32_t FUZZ_ANY_FLOATS[] = {LOCKSTEP_FLOAT32, LOCKSTEP_FLOAT64, LOCKSTEP_FLOAT16, LOCKSTEP_BFLOAT16, 0};
static const int32_t FUZZ_FLOAT32[] = {LOCKSTEP_FLOAT32, 0};
static const int32_t FUZZ_FLOAT64[] = {LOCKSTEP_FLOAT64, 0};
static const int32_t FUZZ_INTEGERS[] = {LOCKSTEP_INT32, LOCKSTEP_INT64, 0};
static const int32_t FUZZ_INT64[] = {LOCKSTEP_INT64, 0};
static const int32_t FUZZ_IDS[] = {LOCKSTEP_UINT64, LOCKSTEP_INT64, 0};
static const int32_t FUZZ_FLAGS[] = {LOCKSTEP_UINT8, LOCKSTEP_BOOL, 0};

/* An options struct that begins as `usual`, of `size` bytes, with some fields changed; bytes of `pointers` (pairs of
 * first and end, ended by 0) stay. NULL, or of another size, where bytes say so. */
static inline void *fuzz_options(fuzz_call *c, const void *usual, size_t size, const size_t *pointers) {
    uint8_t kind = fuzz_u8(&c->bytes);
    uint64_t told = size, room = size;
    unsigned char fields[1024];
    FUZZ_CHECK(size <= sizeof fields);
    memset(fields, 0, sizeof fields);
    memcpy(fields, usual, size);
    if (kind == 255) return NULL;
    if (kind >= 224) {
        switch (kind % 9) {
        case 0: told = 0; break;
        case 1: told = 3; break;
        case 2: told = 4; break;
        case 3: told = size - 4; break;
        case 4: told = size + 8; break;
        case 5: told = size + 8; fields[size + 7] = 1; break;
        case 6: told = 4096; break;
        case 7: told = UINT32_MAX; break;
        default: told = (uint64_t)fuzz_u8(&c->bytes);
        }
        room = told > 4096 ? 4 : told < 4 ? 4 : told;
    }
    for (int edits = kind % 5; edits > 0; edits--) {
        size_t place = (4 + 4 * (size_t)fuzz_u8(&c->bytes) % size) / 4 * 4;
        int is_pointer = 0, is_double = place % 8 == 0 && fuzz_u8(&c->bytes) % 4 > 0;
        for (const size_t *p = pointers; p && p[1]; p += 2)
            is_pointer |= place + (is_double ? 8 : 4) > p[0] && place < p[1];
        if (is_pointer || place + (is_double ? 8 : 4) > size) continue;
        if (is_double) {
            double value = fuzz_double(&c->bytes);
            memcpy(fields + place, &value, 8);
        } else {
            int32_t value = (int32_t)fuzz_integer(&c->bytes);
            memcpy(fields + place, &value, 4);
        }
    }
    unsigned char *memory = fuzz_memory(c, (size_t)room, 0);
    memcpy(memory, fields, room < sizeof fields ? (size_t)room : sizeof fields);
    fuzz_put(memory, told, 4);
    return memory;
}

/* Whether options that were made are there with all their fields. */
static inline int fuzz_is_whole(const void *options, size_t size) {
    return options != NULL && fuzz_get(options, 4) >= size && fuzz_get(options, 4) <= 4096;
}

/* A result struct that grows. */
static inline void *fuzz_result(fuzz_call *c, size_t size, int optional) {
    uint8_t kind = fuzz_u8(&c->bytes);
    uint64_t told = size;
    if (kind >= (optional ? 192 : 254)) return NULL;
    if (kind >= 176) told = kind % 4 == 0 ? 0 : kind % 4 == 1 ? 4 : kind % 4 == 2 ? size + 64 : (uint64_t)fuzz_integer(&c->bytes);
    told &= UINT32_MAX;
    unsigned char *memory = fuzz_memory(c, told > 65536 || told < 4 ? 4 : (size_t)told, 1);
    fuzz_put(memory, told, 4);
    return memory;
}

/* Takes what all memory holds, right before the call. */
static inline void fuzz_ready(fuzz_call *c) {
    for (int i = 0; i < c->block_count; i++) memcpy(c->blocks[i].before, c->blocks[i].memory, c->blocks[i].size);
}

/* Looks at what the call did. */
static inline lockstep_status fuzz_end(fuzz_call *c, lockstep_status status, const char *words) {
    FUZZ_STATUS(status, words);
    for (int i = 0; i < c->block_count; i++) {
        fuzz_block *block = &c->blocks[i];
        if (status == LOCKSTEP_OK && (block->is_output || c->is_shared)) continue;
        if (memcmp(block->memory, block->before, block->size) != 0)
            fuzz_fail(__FILE__, __LINE__, status == LOCKSTEP_OK ? "an input was written" : "an output was written");
    }
    return status;
}

static inline void fuzz_free(fuzz_call *c) {
    for (int i = 0; i < c->block_count; i++) {
        free(c->blocks[i].memory);
        free(c->blocks[i].before);
    }
    c->block_count = c->tensor_count = 0;
}

/* Whether a tensor that a call accepted has a value: rows x columns with strides, as a double. */
static inline double fuzz_at(const lockstep_tensor *t, int64_t row, int64_t column) {
    int64_t place = t->strides ? row * (t->shape[0] > 1 ? t->strides[0] : 0) : row * (t->ndim > 1 ? t->shape[1] : 1);
    if (t->ndim > 1) place += column * (t->strides ? t->strides[1] : 1);
    const char *data = (const char *)t->data + t->byte_offset;
    switch (t->dtype.code | t->dtype.bits << 8) {
    case 2 | 64 << 8: return ((const double *)data)[place];
    case 2 | 16 << 8: return lockstep_fp16_to_float(((const lockstep_fp16 *)data)[place]);
    case 4 | 16 << 8: return lockstep_bf16_to_float(((const lockstep_bf16 *)data)[place]);
    case 10 | 8 << 8: return lockstep_fp8_e4m3fn_to_float(((const lockstep_fp8_e4m3fn *)data)[place]);
    case 12 | 8 << 8: return lockstep_fp8_e5m2_to_float(((const lockstep_fp8_e5m2 *)data)[place]);
    case 1 | 8 << 8: case 6 | 8 << 8: return ((const uint8_t *)data)[place];
    case 0 | 64 << 8: return (double)((const int64_t *)data)[place];
    case 0 | 32 << 8: return ((const int32_t *)data)[place];
    default: return ((const float *)data)[place];
    }
}

#endif
