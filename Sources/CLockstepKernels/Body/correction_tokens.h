// What corrections read: some tokens of a sequence, widened to float64, and whether all of them are finite.

typedef uint8_t vb64 __attribute__((vector_size(LSK_LANES64)));  // as many bytes as doubles
typedef uint8_t vb32 __attribute__((vector_size(LSK_LANES)));    // as many bytes as floats

// Some tokens of a span, widened to float64 and padded to whole lanes with uncounted ones.
typedef struct {
    double log_probs[LSK_POLICIES][LSK_MISMATCH_CHUNK + LSK_LANES];  // 0 where a token does not count
    double advantages[LSK_MISMATCH_CHUNK + LSK_LANES];
    uint8_t counted[LSK_MISMATCH_CHUNK + LSK_LANES];  // 1 or 0
    int64_t count, padded;
    int64_t number;  // of tokens that count
} lsk_tokens;

LSK_INLINE vl load_bytes(const uint8_t *bytes) {
    vb64 found;
    __builtin_memcpy(&found, bytes, sizeof found);
    return __builtin_convertvector(found, vl) != 0;
}
LSK_INLINE void store_bytes(uint8_t *bytes, vl mask) {
    vb64 found = __builtin_convertvector(mask & 1, vb64);
    __builtin_memcpy(bytes, &found, sizeof found);
}

LSK_INLINE int64_t add_counts(vl counts) {
    int64_t total = 0;
    for (int i = 0; i < LSK_LANES64; i++) total += counts[i];
    return total;
}

// Asks for the next chunk to be fetched while this one is worked on; fetching beyond the end is harmless, and
// in a packed log it is the next sequence.
LSK_INLINE void prefetch_chunk(const void *in, int64_t size) {
    const uintptr_t next = (uintptr_t)in + (uintptr_t)(LSK_MISMATCH_CHUNK * size);
    for (int64_t at = 0; at < LSK_MISMATCH_CHUNK * size; at += 64)
        __builtin_prefetch((const void *)(next + (uintptr_t)at));
}

// Widens `count` values that are `values` from `start` on; zeros up to `padded`.
static void widen_padded(double *out, const void *values, int32_t format, int64_t start, int64_t count,
                         int64_t padded) {
    load_doubles(out, (const char *)values + start * size_of(format), format, count);
    for (int64_t i = count; i < padded; i++) out[i] = 0;
}

// Leaves the tokens whose value is not finite out.
static void leave_out_non_finite(lsk_tokens *tokens, const double *values) {
    for (int64_t at = 0; at < tokens->padded; at += LSK_LANES64) {
        const vd v = vd_load(values + at);
        store_bytes(tokens->counted + at, load_bytes(tokens->counted + at) & (v - v == vd_splat(0)));
    }
}

static void clear_uncounted(double *values, const lsk_tokens *tokens) {
    for (int64_t at = 0; at < tokens->padded; at += LSK_LANES64)
        vd_store(values + at, (vd)(load_bytes(tokens->counted + at) & (vl)vd_load(values + at)));
}

// Loads trainer and rollout where neither is fp64 and nothing else is given: `counted` holds the mask's
// bytes. Without `keep` the values are only looked at. Returns how many are not finite.
LSK_INLINE int64_t load_pair(lsk_tokens *tokens, const lsk_correction_span *span, int64_t start,
                             const int32_t trainer_format, const int32_t rollout_format, const int keep) {
    const char *trainer = (const char *)span->log_probs[LSK_TRAINER] + start * size_of(trainer_format);
    const char *rollout = (const char *)span->log_probs[LSK_ROLLOUT] + start * size_of(rollout_format);
    vi number = {0}, non_finite = {0};
    for (int64_t at = 0; at < tokens->count; at += LSK_LANES) {
        const char *a_in = trainer + at * size_of(trainer_format);
        const char *b_in = rollout + at * size_of(rollout_format);
        char a_rest[LSK_WIDTH] = {0}, b_rest[LSK_WIDTH] = {0};
        if (at + LSK_LANES > tokens->count) {
            a_in = memcpy(a_rest, a_in, (size_t)((tokens->count - at) * size_of(trainer_format)));
            b_in = memcpy(b_rest, b_in, (size_t)((tokens->count - at) * size_of(rollout_format)));
        }
        vf a = load_floats(a_in, trainer_format), b = load_floats(b_in, rollout_format);
        vb32 bytes;
        __builtin_memcpy(&bytes, tokens->counted + at, sizeof bytes);
        vi masked_in = __builtin_convertvector(bytes, vi) != 0;
        vi counted = masked_in & ((a - a) + (b - b) == vf_splat(0));
        number -= counted;
        non_finite -= masked_in & ~counted;
        bytes = __builtin_convertvector(counted & 1, vb32);
        __builtin_memcpy(tokens->counted + at, &bytes, sizeof bytes);
        if (!keep) continue;
        store_pair(tokens->log_probs[LSK_TRAINER] + at, widen((vf)(counted & (vi)a)));
        store_pair(tokens->log_probs[LSK_ROLLOUT] + at, widen((vf)(counted & (vi)b)));
    }
    int64_t found = 0;
    tokens->number = 0;
    for (int i = 0; i < LSK_LANES; i++) {
        found += non_finite[i];
        tokens->number += number[i];
    }
    return found;
}

// Loads up to LSK_MISMATCH_CHUNK tokens from `start` on; without `keep` only which of them count, and their
// advantages. Returns how many are not finite.
static int64_t load_tokens(lsk_tokens *tokens, const lsk_correction_span *span, int64_t start, int keep) {
    int64_t count = span->count - start;
    if (count > LSK_MISMATCH_CHUNK) count = LSK_MISMATCH_CHUNK;
    tokens->count = count;
    tokens->padded = (count + LSK_MISMATCH_LANES - 1) / LSK_MISMATCH_LANES * LSK_MISMATCH_LANES;
    if (span->mask) memcpy(tokens->counted, span->mask + start, (size_t)count);
    else memset(tokens->counted, 1, (size_t)count);
    memset(tokens->counted + count, 0, sizeof tokens->counted - (size_t)count);
    for (int policy = 0; policy < LSK_POLICIES; policy++)
        if (span->log_probs[policy])
            prefetch_chunk((const char *)span->log_probs[policy] + start * size_of(span->formats[policy]),
                           size_of(span->formats[policy]));

    const int32_t a = span->formats[LSK_TRAINER], b = span->formats[LSK_ROLLOUT];
    if (span->log_probs[LSK_CURRENT] == NULL && span->advantages == NULL && a != LSK_FP64 && b != LSK_FP64) {
        // What lies between the last whole register and the padding is not written.
        for (int64_t i = count; i < tokens->padded; i++)
            tokens->log_probs[LSK_TRAINER][i] = tokens->log_probs[LSK_ROLLOUT][i] = 0;
        if (a == LSK_FP32 && b == LSK_FP32)
            return keep ? load_pair(tokens, span, start, LSK_FP32, LSK_FP32, 1)
                        : load_pair(tokens, span, start, LSK_FP32, LSK_FP32, 0);
        return load_pair(tokens, span, start, a, b, 1);
    }

    int64_t masked_in = 0, left = 0;
    for (int64_t i = 0; i < count; i++) {
        tokens->counted[i] = tokens->counted[i] != 0;
        masked_in += tokens->counted[i];
    }
    for (int policy = 0; policy < LSK_POLICIES; policy++) {
        if (span->log_probs[policy] == NULL) continue;
        widen_padded(tokens->log_probs[policy], span->log_probs[policy], span->formats[policy], start, count,
                     tokens->padded);
        leave_out_non_finite(tokens, tokens->log_probs[policy]);
    }
    if (span->advantages) {
        const int32_t format = span->advantage_format;
        widen_padded(tokens->advantages, span->advantages, format, span->advantage_stride ? start : 0,
                     span->advantage_stride ? count : 1, tokens->padded);
        if (span->advantage_stride == 0)
            for (int64_t i = 1; i < count; i++) tokens->advantages[i] = tokens->advantages[0];
        leave_out_non_finite(tokens, tokens->advantages);
    }
    for (int64_t i = 0; i < count; i++) left += tokens->counted[i];
    tokens->number = left;
    for (int policy = 0; policy < LSK_POLICIES; policy++)
        if (span->log_probs[policy]) clear_uncounted(tokens->log_probs[policy], tokens);
    return masked_in - left;
}

// Whether a value is finite, by its bits.
static int is_finite_at(const void *values, int32_t format, int64_t index) {
    if (format == LSK_FP64) {
        uint64_t bits;
        __builtin_memcpy(&bits, (const char *)values + index * 8, sizeof bits);
        return (bits >> 52 & 0x7ff) != 0x7ff;
    }
    if (format == LSK_FP32) {
        uint32_t bits;
        __builtin_memcpy(&bits, (const char *)values + index * 4, sizeof bits);
        return (bits >> 23 & 0xff) != 0xff;
    }
    uint16_t bits;
    __builtin_memcpy(&bits, (const char *)values + index * 2, sizeof bits);
    const uint16_t exponent = format == LSK_FP16 ? 0x7c00 : 0x7f80;
    return (bits & exponent) != exponent;
}

static int is_counted_at(const lsk_correction_span *span, int64_t index) {
    if (span->mask && span->mask[index] == 0) return 0;
    for (int policy = 0; policy < LSK_POLICIES; policy++)
        if (span->log_probs[policy] && !is_finite_at(span->log_probs[policy], span->formats[policy], index))
            return 0;
    return span->advantages == NULL ||
           is_finite_at(span->advantages, span->advantage_format, span->advantage_stride * index);
}

// Counts values that are not finite where the mask lets them count. Bits alone: no conversion, no token more
// than a memory read.
static int64_t count_non_finite(const void *values, int32_t format, const uint8_t *mask, int64_t count) {
    int64_t found = 0;
    if (format == LSK_FP64) {
        for (int64_t i = 0; i < count; i++)
            found += !is_finite_at(values, LSK_FP64, i) & (!mask || mask[i] != 0);
        return found;
    }
    // Sums of 32 bits are enough for a piece, and twice as fast.
    for (int64_t start = 0; start < count; start += 1 << 16) {
        const int64_t end = count < start + (1 << 16) ? count : start + (1 << 16);
        uint32_t here = 0;
        if (format == LSK_FP32 && mask == NULL)
            for (int64_t i = start; i < end; i++) here += (uint32_t)!is_finite_at(values, LSK_FP32, i);
        else if (format == LSK_FP32)
            for (int64_t i = start; i < end; i++)
                here += (uint32_t)!is_finite_at(values, LSK_FP32, i) & (uint32_t)(mask[i] != 0);
        else
            for (int64_t i = start; i < end; i++)
                here += (uint32_t)!is_finite_at(values, format, i) & (uint32_t)(!mask || mask[i] != 0);
        found += here;
    }
    return found;
}

// How many values of the span stand at tokens that the mask lets count and are not finite.
static int64_t correction_check(const lsk_correction_span *span) {
    int64_t found = 0;
    for (int policy = 0; policy < LSK_POLICIES; policy++)
        if (span->log_probs[policy])
            found +=
                count_non_finite(span->log_probs[policy], span->formats[policy], span->mask, span->count);
    if (span->advantages && span->advantage_stride)
        found += count_non_finite(span->advantages, span->advantage_format, span->mask, span->count);
    else if (span->advantages && span->count > 0 &&
             !is_finite_at(span->advantages, span->advantage_format, 0))
        for (int64_t i = 0; i < span->count; i++) found += span->mask == NULL || span->mask[i] != 0;
    return found;
}
