// Some tokens of a span, widened, with what is told of each by integers alone: which bins and buckets it falls
// into, and how many there are of a kind.

#define LSK_MISMATCH_LANES 8
#define LSK_MISMATCH_PARTS (LSK_MISMATCH_LANES / LSK_LANES64)  // registers that hold the lanes
#define LSK_MISMATCH_CHUNK 256                                 // tokens widened at a time

typedef int32_t vi_half __attribute__((vector_size(LSK_WIDTH / 2)));  // as many integers as doubles

// Some tokens of a span, widened to float64 (exactly) and padded to whole blocks with uncounted ones. A
// token counts if the mask lets it and both log-probs are finite; both are 0 where it does not.
enum {
    LSK_MISMATCH_WORDS = LSK_MISMATCH_CHUNK / 64,
    LSK_MISMATCH_BLOCK = 16  // whole registers of floats, and of lanes
};
enum { LSK_ANY_D, LSK_TAME_D, LSK_NEAR_D };  // what is known of log-probs and their d
typedef struct {
    double trainer[LSK_MISMATCH_CHUNK + LSK_LANES64];  // one register more, which may be read
    double rollout[LSK_MISMATCH_CHUNK + LSK_LANES64];
    double d[LSK_MISMATCH_CHUNK + 4];      // trainer - rollout
    uint64_t counted[LSK_MISMATCH_WORDS];  // a bit for each
    int32_t bins[LSK_MISMATCH_CHUNK];     // of d in the histogram
    int32_t buckets[LSK_MISMATCH_CHUNK];  // of probability, as what stands before it in bytes
    int64_t count, padded;
    uintptr_t next[2];      // where the tokens behind these are, which need not exist, ...
    int64_t next_bytes[2];  // ... and the bytes of one
    int64_t non_finite;     // tokens that the mask lets count, but a log-prob is not finite
    int64_t differing;      // tokens that count and whose log-probs are not the same bits
    int64_t outside[LSK_MISMATCH_BANDS];
    int32_t least, most;    // buckets of tokens that count; not in order if there are none
    int proper;             // no log-prob that counts is beyond (-1000, 0)
    // LSK_TAME_D: no log-prob is beyond +-LSK_TAME, so that no exponential needs its ends looked after.
    // LSK_NEAR_D: nor is d beyond +-LSK_EXP_NEAR.
    int known;
} lsk_chunk;

#define LSK_TAME 350

// A token is outside a band of ratios if the upper half of |d| as a double is above these, by the sign of d: ln of
// the bounds of [0.999, 1.002], [0.99, 1.01], [0.95, 1.05] and [0.9, 1.1], to 21 bits.
static const int32_t band_fall[LSK_MISMATCH_BANDS] = {0x3f506466, 0x3f849544, 0x3faa431c, 0x3fbaf8e7};
static const int32_t band_rise[LSK_MISMATCH_BANDS] = {0x3f605e1d, 0x3f8460d6, 0x3fa8fb05, 0x3fb8663e};

LSK_INLINE int64_t size_of(int32_t format) { return format == LSK_FP64 ? 8 : format == LSK_FP32 ? 4 : 2; }

LSK_INLINE vf load_floats(const void *base, int32_t format) {
    return format == LSK_FP32   ? vf_load(base)
           : format == LSK_FP16 ? vf_from_fp16(vh_load(base))
                                : vf_from_bf16(vh_load(base));
}

// The first `count` of a register's floats; the others are 0.
LSK_INLINE vf load_some_floats(const void *base, int32_t format, int64_t count) {
    char some[LSK_WIDTH] = {0};
    memcpy(some, base, (size_t)(count * size_of(format)));
    return load_floats(some, format);
}

typedef struct {
    vd low, high;
} vd_pair;

LSK_INLINE vd_pair widen(vf v) {
    vf_half low, high;
    __builtin_memcpy(&low, &v, sizeof low);
    __builtin_memcpy(&high, (char *)&v + sizeof low, sizeof high);
    return (vd_pair){__builtin_convertvector(low, vd), __builtin_convertvector(high, vd)};
}

LSK_INLINE void store_pair(double *out, vd_pair v) {
    vd_store(out, v.low);
    vd_store(out + LSK_LANES64, v.high);
}

// The histogram bin of d, from its exponent and the first 7 bits of its mantissa.
LSK_INLINE vl bin_of(vd d) {
    const vd low = vd_splat(0x1p-24), high = vd_splat(0x1.fffffffffffffp7);
    vul magnitude = (vul)vd_min(vd_max(vd_abs(d), low), high);
    vl step = (vl)((magnitude >> 45) - ((vul)low >> 45)) + 1;
    vl negative = d < vd_splat(0);
    return (((step & (d != vd_splat(0))) ^ negative) - negative) + LSK_MISMATCH_ZERO_BIN;
}

// The upper halves of the doubles of two registers.
#if LSK_LANES == 16
#define LSK_UPPER(x, y) \
    __builtin_shufflevector(x, y, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)
#elif LSK_LANES == 8
#define LSK_UPPER(x, y) __builtin_shufflevector(x, y, 1, 3, 5, 7, 9, 11, 13, 15)
#else
#define LSK_UPPER(x, y) __builtin_shufflevector(x, y, 1, 3, 5, 7)
#endif
LSK_INLINE vi upper_halves(vd_pair v) { return LSK_UPPER((vi)v.low, (vi)v.high); }

LSK_INLINE vi vi_clamp(vi x, int32_t low, int32_t high) {
    return __builtin_elementwise_min(__builtin_elementwise_max(x, vi_splat(low)), vi_splat(high));
}

// The same for differences of floats, given the upper halves of the doubles: as those are 0 or at least 2^-149,
// that says all.
LSK_INLINE vi bins_of(vi d) {
    const int32_t low = (1023 - 24) << 7, high = ((1023 + 8) << 7) - 1;
    vi magnitude = (d & INT32_MAX) >> 13;
    vi step = __builtin_elementwise_max(__builtin_elementwise_min(magnitude, vi_splat(high)) - (low - 1),
                                        __builtin_elementwise_min(magnitude, vi_splat(1)));
    vi negative = d >> 31;
    return ((step ^ negative) - negative) + LSK_MISMATCH_ZERO_BIN;
}

LSK_INLINE vd_pair difference_of(vd_pair a, vd_pair b) { return (vd_pair){a.low - b.low, a.high - b.high}; }

// Which tokens of a register count.
LSK_INLINE vl counted_at(const lsk_chunk *chunk, int64_t at) { return vl_from_bits(chunk->counted, at); }

// The bucket of a probability, from the exponent of -ln q and one bit of its mantissa.
enum { LSK_BUCKET_BYTES = sizeof(lsk_mismatch_bucket), LSK_NO_BUCKET = LSK_PROBABILITY_BUCKETS * LSK_BUCKET_BYTES };

// What is counted of a chunk, lane by lane; counts are below 0.
typedef struct {
    vi equal, beyond[LSK_MISMATCH_BANDS];
    vu reach;           // the largest |log-prob| as bits, less 1, and more than all numbers for one not below 0
    vi largest;         // upper half of |d|
    vi least, most;
} lsk_survey;

// The tokens of one register of floats, at `at` in the chunk.
LSK_INLINE void load_register(lsk_chunk *chunk, lsk_survey *s, int64_t at, vf a, vf b) {
    const vi counted = vi_from_bits(chunk->counted, at);
    const vu reach = __builtin_elementwise_max((vu)a - (1u + INT32_MAX) - 1, (vu)b - (1u + INT32_MAX) - 1);
    s->reach = __builtin_elementwise_max(s->reach, (vu)counted & reach);
    a = (vf)(counted & (vi)a);
    b = (vf)(counted & (vi)b);
    s->equal += (vi)a == (vi)b;

    // Bits of floats: 0x1.8p-21 and 0x1p6.
    vi bucket = ((vi_clamp((vi)b ^ INT32_MIN, 213 << 22, 266 << 22) >> 22) - 213) * LSK_BUCKET_BYTES;
    s->most = __builtin_elementwise_max(s->most, bucket);
    bucket = vi_select(counted, bucket, vi_splat(LSK_NO_BUCKET));
    s->least = __builtin_elementwise_min(s->least, bucket);
    __builtin_memcpy(chunk->buckets + at, &bucket, sizeof bucket);

    const vd_pair trainer = widen(a), rollout = widen(b);
    store_pair(chunk->trainer + at, trainer);
    store_pair(chunk->rollout + at, rollout);
    const vd_pair difference = difference_of(trainer, rollout);
    store_pair(chunk->d + at, difference);
    const vi d = upper_halves(difference);
    const vi magnitude = d & INT32_MAX;
    s->largest = __builtin_elementwise_max(s->largest, magnitude);
    LSK_UNROLL
    for (int band = 0; band < LSK_MISMATCH_BANDS; band++)
        s->beyond[band] += magnitude > vi_select(d >> 31, vi_splat(band_fall[band]), vi_splat(band_rise[band]));
    vi bins = vi_select(counted, bins_of(d), vi_splat(LSK_MISMATCH_UNCOUNTED_BIN));
    __builtin_memcpy(chunk->bins + at, &bins, sizeof bins);
}

// All that load_register does with tokens that are widened already, of any format.
static __attribute__((noinline)) void survey(lsk_chunk *chunk) {
    const vd low = vd_splat(0x1.8p-21), high = vd_splat(0x1p6);
    vd reach = {0}, largest = {0};
    vl differing = {0}, faults = {0}, least = vl_splat(LSK_NO_BUCKET), most = {0}, outside[LSK_MISMATCH_BANDS] = {{0}};
    for (int64_t at = 0; at < chunk->padded; at += LSK_LANES64) {
        const vl counted = counted_at(chunk, at);
        const vd a = vd_load(chunk->trainer + at), b = vd_load(chunk->rollout + at), d = a - b;
        vd_store(chunk->d + at, d);
        reach = vd_max(vd_max(vd_abs(a), vd_abs(b)), reach);
        largest = vd_max(vd_abs(d), largest);
        faults |= counted & ((vd_max(a, b) >= vd_splat(0)) | (vd_min(a, b) <= vd_splat(-1000)));
        differing -= (vl)a != (vl)b;
        for (int band = 0; band < LSK_MISMATCH_BANDS; band++) {
            const vl step = (vl)vd_abs(d) >> 32;
            outside[band] -= vl_select(d < vd_splat(0), step > vl_splat(band_fall[band]),
                                       step > vl_splat(band_rise[band]));
        }
        vl bucket = (vl)(((vul)vd_min(vd_max(-b, low), high) >> 51) - ((vul)low >> 51)) * LSK_BUCKET_BYTES;
        most = vl_select(bucket > most, bucket, most);
        bucket = vl_select(counted, bucket, vl_splat(LSK_NO_BUCKET));
        least = vl_select(bucket < least, bucket, least);
        const vl bin = vl_select(counted, bin_of(d), vl_splat(LSK_MISMATCH_UNCOUNTED_BIN));
        const vi_half buckets = __builtin_convertvector(bucket, vi_half);
        const vi_half bins = __builtin_convertvector(bin, vi_half);
        __builtin_memcpy(chunk->buckets + at, &buckets, sizeof buckets);
        __builtin_memcpy(chunk->bins + at, &bins, sizeof bins);
    }
    chunk->differing = __builtin_reduce_add(differing);
    for (int band = 0; band < LSK_MISMATCH_BANDS; band++) chunk->outside[band] = __builtin_reduce_add(outside[band]);
    chunk->least = (int32_t)__builtin_reduce_min(least);
    chunk->most = (int32_t)__builtin_reduce_max(most);
    chunk->proper = __builtin_reduce_or(faults) == 0;
    chunk->known = __builtin_reduce_max(reach) > LSK_TAME             ? LSK_ANY_D
                   : __builtin_reduce_max(largest) > LSK_EXP_NEAR     ? LSK_TAME_D
                                                                      : LSK_NEAR_D;
}

// The largest |log-prob|; not finite if one is not.
static double chunk_reach(const lsk_chunk *chunk) {
    vd reach = {0}, finite = {0};
    for (int64_t at = 0; at < chunk->padded; at += LSK_LANES64) {
        const vd a = vd_load(chunk->trainer + at), b = vd_load(chunk->rollout + at);
        finite += (a - a) + (b - b);
        reach = vd_max(vd_max(vd_abs(a), vd_abs(b)), reach);
    }
    double sum = __builtin_reduce_max(reach);
    for (int i = 0; i < LSK_LANES64; i++) sum += finite[i];
    return sum;
}

// Takes tokens that are not finite out of what counts.
static void drop_non_finite(lsk_chunk *chunk) {
    for (int64_t i = 0; i < chunk->count; i++) {
        const double a = chunk->trainer[i], b = chunk->rollout[i];
        if ((a - a) + (b - b) == 0) continue;
        chunk->trainer[i] = chunk->rollout[i] = 0;
        chunk->counted[i / 64] &= ~(UINT64_C(1) << (i % 64));
        chunk->non_finite++;
    }
}

// Neither format is fp64.
LSK_INLINE void load_narrow(lsk_chunk *chunk, const char *trainer, int32_t trainer_format,
                            const char *rollout, int32_t rollout_format) {
    const int64_t a_size = size_of(trainer_format), b_size = size_of(rollout_format), count = chunk->count;
    lsk_survey s = {.least = vi_splat(LSK_NO_BUCKET)};
    int64_t at = 0;
    for (; at + LSK_LANES <= count; at += LSK_LANES)
        load_register(chunk, &s, at, load_floats(trainer + at * a_size, trainer_format),
                      load_floats(rollout + at * b_size, rollout_format));
    if (at < count) {
        load_register(chunk, &s, at, load_some_floats(trainer + at * a_size, trainer_format, count - at),
                      load_some_floats(rollout + at * b_size, rollout_format, count - at));
        at += LSK_LANES;
    }
    for (; at < chunk->padded; at += LSK_LANES) load_register(chunk, &s, at, vf_splat(0), vf_splat(0));

    chunk->differing = chunk->padded + __builtin_reduce_add(s.equal);
    for (int band = 0; band < LSK_MISMATCH_BANDS; band++)
        chunk->outside[band] = -__builtin_reduce_add(s.beyond[band]);
    chunk->least = __builtin_reduce_min(s.least);
    chunk->most = __builtin_reduce_max(s.most);
    const uint32_t reach = __builtin_reduce_max(s.reach);
    chunk->proper = reach < 0x447a0000 - 1;   // 1000 as a float
    int tame = reach <= 0x43af0000 - 1;       // LSK_TAME
    if (!tame) {
        const double largest = chunk_reach(chunk);
        tame = largest <= LSK_TAME;
        if (largest - largest != 0) {
            drop_non_finite(chunk);
            survey(chunk);
            return;
        }
    }
    const int near = __builtin_reduce_max(s.largest) < 0x3fd62d0e;  // LSK_EXP_NEAR
    chunk->known = !tame ? LSK_ANY_D : near ? LSK_NEAR_D : LSK_TAME_D;
}

// Widens `count` values of any format, exactly; 0 behind them, to whole registers.
static void load_doubles(double *out, const char *in, int32_t format, int64_t count) {
    if (format == LSK_FP64) {
        memcpy(out, in, (size_t)count * 8);
        return;
    }
    int64_t at = 0;
    for (; at + LSK_LANES <= count; at += LSK_LANES)
        store_pair(out + at, widen(load_floats(in + at * size_of(format), format)));
    if (at < count)
        store_pair(out + at, widen(load_some_floats(in + at * size_of(format), format, count - at)));
}

// Any formats.
static void load_wide(lsk_chunk *chunk, const char *trainer, int32_t trainer_format, const char *rollout,
                      int32_t rollout_format) {
    load_doubles(chunk->trainer, trainer, trainer_format, chunk->count);
    load_doubles(chunk->rollout, rollout, rollout_format, chunk->count);
    for (int64_t at = 0; at < chunk->padded; at += LSK_LANES64) {
        const vl counted = vl_from_bits(chunk->counted, at);
        vd_store(chunk->trainer + at, (vd)(counted & (vl)vd_load(chunk->trainer + at)));
        vd_store(chunk->rollout + at, (vd)(counted & (vl)vd_load(chunk->rollout + at)));
    }
    const double reach = chunk_reach(chunk);
    if (reach - reach != 0) drop_non_finite(chunk);
    survey(chunk);
}

// The number of tokens in a set.
LSK_INLINE int64_t count_bits(const uint64_t set[LSK_MISMATCH_WORDS]) {
    int64_t count = 0;
    for (int word = 0; word < LSK_MISMATCH_WORDS; word++) count += __builtin_popcountll(set[word]);
    return count;
}

// Which tokens of the chunk the mask lets count.
static void read_mask(lsk_chunk *chunk, const uint8_t *mask) {
    if (mask == NULL) {
        for (int64_t word = 0; word < LSK_MISMATCH_WORDS; word++) {
            const int64_t rest = chunk->count - 64 * word;
            chunk->counted[word] = rest >= 64 ? ~UINT64_C(0) : rest > 0 ? (UINT64_C(1) << rest) - 1 : 0;
        }
        return;
    }
    for (int64_t at = 0; at < LSK_MISMATCH_CHUNK; at += LSK_WIDTH) {
        vb_full bytes = {0};
        if (at + LSK_WIDTH <= chunk->count) __builtin_memcpy(&bytes, mask + at, sizeof bytes);
        else if (at < chunk->count) memcpy(&bytes, mask + at, (size_t)(chunk->count - at));
        vb_bits bits = __builtin_convertvector(bytes != 0, vb_bits);
        __builtin_memcpy((char *)chunk->counted + at / 8, &bits, sizeof bits);
    }
}

// Asks for tokens of the next chunk to be fetched while this one is worked on; fetching beyond the end is
// harmless, and in a packed log it is the next sequence.
LSK_INLINE void prefetch_next(const lsk_chunk *chunk, int64_t at) {
    for (int side = 0; side < 2; side++)
        __builtin_prefetch((const void *)(chunk->next[side] + (uintptr_t)(at * chunk->next_bytes[side])));
}

// Loads up to LSK_MISMATCH_CHUNK tokens from `start` on; returns 0 if the mask leaves them all out, and
// then loads nothing.
static int load_chunk(lsk_chunk *chunk, const lsk_mismatch_span *span, int64_t start) {
    chunk->count = span->count - start;
    if (chunk->count > LSK_MISMATCH_CHUNK) chunk->count = LSK_MISMATCH_CHUNK;
    chunk->padded = (chunk->count + LSK_MISMATCH_BLOCK - 1) / LSK_MISMATCH_BLOCK * LSK_MISMATCH_BLOCK;
    chunk->non_finite = 0;
    read_mask(chunk, span->mask ? span->mask + start : NULL);
    uint64_t any = 0;
    for (int64_t word = 0; word < LSK_MISMATCH_WORDS; word++) any |= chunk->counted[word];
    if (any == 0) return 0;

    const int32_t a = span->trainer_format, b = span->rollout_format;
    const char *trainer = (const char *)span->trainer + start * size_of(a);
    const char *rollout = (const char *)span->rollout + start * size_of(b);
    chunk->next_bytes[0] = size_of(a);
    chunk->next_bytes[1] = size_of(b);
    chunk->next[0] = (uintptr_t)trainer + (uintptr_t)(LSK_MISMATCH_CHUNK * size_of(a));
    chunk->next[1] = (uintptr_t)rollout + (uintptr_t)(LSK_MISMATCH_CHUNK * size_of(b));
    if (a == LSK_FP32 && b == LSK_FP32) load_narrow(chunk, trainer, LSK_FP32, rollout, LSK_FP32);
    else if (a != LSK_FP64 && b != LSK_FP64) load_narrow(chunk, trainer, a, rollout, b);
    else load_wide(chunk, trainer, a, rollout, b);
    return 1;
}

