// Mismatch of two log-prob arrays: sums over a span, the values of chosen histogram bins, and the
// per-token terms behind profiles. Lockstep/Reference/ReferenceMismatch.swift says the same in scalars.

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
typedef struct {
    double trainer[LSK_MISMATCH_CHUNK + LSK_LANES64];  // one register more, which may be read
    double rollout[LSK_MISMATCH_CHUNK + LSK_LANES64];
    uint64_t counted[LSK_MISMATCH_WORDS];  // a bit for each
    int32_t bins[LSK_MISMATCH_CHUNK];      // of d in the histogram
    int64_t count, padded;
    uintptr_t next[2];      // where the tokens behind these are, which need not exist, ...
    int64_t next_bytes[2];  // ... and the bytes of one
    int64_t non_finite;  // tokens that the mask lets count, but a log-prob is not finite
    int tame;            // no log-prob is beyond +-LSK_TAME: no exponential needs its ends looked after
} lsk_chunk;

#define LSK_TAME 350

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

// The same for differences of floats: they are 0 or at least 2^-149, so the upper half of the double says
// all.
LSK_INLINE vi bins_of(vd_pair differences) {
    const int32_t low = (1023 - 24) << 7, high = ((1023 + 8) << 7) - 1;
    vi d = upper_halves(differences);
    vi magnitude = (d & INT32_MAX) >> 13;
    vi step = (vi_clamp(magnitude, low, high) - (low - 1)) & (magnitude != 0);
    vi negative = d >> 31;
    return ((step ^ negative) - negative) + LSK_MISMATCH_ZERO_BIN;
}

LSK_INLINE vd_pair difference_of(vd_pair a, vd_pair b) { return (vd_pair){a.low - b.low, a.high - b.high}; }

// The tokens of one register of floats, at `at` in the chunk. `reach` takes up the largest |log-prob|, as an
// integer: infinities and NaN are larger than all numbers.
LSK_INLINE void load_register(lsk_chunk *chunk, vi *reach, int64_t at, vf a, vf b) {
    vi counted = vi_from_bits(chunk->counted, at);
    a = (vf)(counted & (vi)a);
    b = (vf)(counted & (vi)b);
    *reach = __builtin_elementwise_max(*reach, (vi)a & INT32_MAX);
    *reach = __builtin_elementwise_max(*reach, (vi)b & INT32_MAX);
    vd_pair trainer = widen(a), rollout = widen(b);
    store_pair(chunk->trainer + at, trainer);
    store_pair(chunk->rollout + at, rollout);
    vi bins = bins_of(difference_of(trainer, rollout));
    bins = (counted & bins) | (~counted & LSK_MISMATCH_UNCOUNTED_BIN);
    __builtin_memcpy(chunk->bins + at, &bins, sizeof bins);
}

// Takes tokens that are not finite out of what counts.
static void drop_non_finite(lsk_chunk *chunk) {
    for (int64_t i = 0; i < chunk->count; i++) {
        const double a = chunk->trainer[i], b = chunk->rollout[i];
        if ((a - a) + (b - b) == 0) continue;
        chunk->trainer[i] = chunk->rollout[i] = 0;
        chunk->bins[i] = LSK_MISMATCH_UNCOUNTED_BIN;
        chunk->counted[i / 64] &= ~(UINT64_C(1) << (i % 64));
        chunk->non_finite++;
    }
}

// Neither format is fp64.
LSK_INLINE void load_narrow(lsk_chunk *chunk, const char *trainer, int32_t trainer_format,
                            const char *rollout, int32_t rollout_format) {
    const int64_t a_size = size_of(trainer_format), b_size = size_of(rollout_format), count = chunk->count;
    vi reach = {0};
    int64_t at = 0;
    for (; at + LSK_LANES <= count; at += LSK_LANES)
        load_register(chunk, &reach, at, load_floats(trainer + at * a_size, trainer_format),
                      load_floats(rollout + at * b_size, rollout_format));
    if (at < count)
        load_register(chunk, &reach, at, load_some_floats(trainer + at * a_size, trainer_format, count - at),
                      load_some_floats(rollout + at * b_size, rollout_format, count - at));
    const int32_t largest = __builtin_reduce_max(reach);
    chunk->tame = largest <= 0x43af0000;  // LSK_TAME as a float
    if (largest >= 0x7f800000) drop_non_finite(chunk);
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
    vd finite = {0};
    for (int64_t at = 0; at < chunk->padded; at += LSK_LANES64) {
        vl counted = vl_from_bits(chunk->counted, at);
        vd a = (vd)(counted & (vl)vd_load(chunk->trainer + at));
        vd b = (vd)(counted & (vl)vd_load(chunk->rollout + at));
        finite += (a - a) + (b - b);
        vd_store(chunk->trainer + at, a);
        vd_store(chunk->rollout + at, b);
        vl bin = (counted & bin_of(a - b)) | (~counted & LSK_MISMATCH_UNCOUNTED_BIN);
        vi_half bins = __builtin_convertvector(bin, vi_half);
        __builtin_memcpy(chunk->bins + at, &bins, sizeof bins);
    }
    chunk->tame = 0;
    double sum = 0;
    for (int i = 0; i < LSK_LANES64; i++) sum += finite[i];
    if (sum != 0) drop_non_finite(chunk);
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

    for (int64_t i = chunk->count; i < chunk->padded; i++) {
        chunk->trainer[i] = chunk->rollout[i] = 0;
        chunk->bins[i] = LSK_MISMATCH_UNCOUNTED_BIN;
    }
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

// What follows from d alone.
typedef struct {
    vd k3, ratio, exp_magnitude;
    vd shrink;  // exp(-|d|): the smaller probability over the larger
    vd gone;    // 1 - exp(-|d|)
} vd_ratio_terms;

// What is known of |d| leaves out what would change nothing.
enum { LSK_ANY_D, LSK_TAME_D, LSK_NEAR_D };  // any, at most 2 LSK_TAME, at most LSK_EXP_NEAR
LSK_INLINE vd_ratio_terms ratio_terms_of(vd d, const int known) {
    const int tame = known != LSK_ANY_D;
    const vd limit = vd_splat(LSK_EXP_LIMIT), infinity = vd_splat(__builtin_inf());
    vd_exp_parts e = known == LSK_NEAR_D ? vd_split_exp_near(d)
                     : known == LSK_TAME_D ? vd_split_exp(d)
                                           : vd_split_exp(vd_max(vd_min(d, limit), -limit));
    vd scale_less = e.scale - 1.0, inverse_less = e.inverse - 1.0;
    vd plus = e.r + e.q_plus, minus = e.q_minus - e.r;  // exp(+-r) - 1
    vd ratio = vd_fma(e.scale, plus, e.scale);
    vd inverse = vd_fma(e.inverse, minus, e.inverse);
    // exp(d) - 1 - d = 2^n q_plus + ((2^n - 1) + (2^n r - d)): exactly q_plus where n is 0.
    vd k3 = vd_fma(e.scale, e.q_plus, scale_less + vd_fma(e.scale, e.r, -d));
    vd exp_magnitude = vd_max(ratio, inverse);
    vd_ratio_terms terms;
    terms.ratio = tame ? ratio : vd_select(d > limit, infinity, ratio);
    terms.k3 = tame ? k3 : vd_select(d > limit, infinity, k3);
    terms.exp_magnitude = tame ? exp_magnitude : vd_select(vd_abs(d) > limit, infinity, exp_magnitude);
    terms.shrink = vd_min(ratio, inverse);
    terms.gone = -vd_min(vd_fma(e.scale, plus, scale_less), vd_fma(e.inverse, minus, inverse_less));
    return terms;
}

// The larger of the two probabilities.
LSK_INLINE vd larger_of(vd trainer, vd rollout, const int tame) {
    vd larger = vd_max(trainer, rollout);
    if (!tame) return vd_exp(larger);
    vd_exp_parts e = vd_split_exp(larger);
    return vd_fma(e.scale, e.r + e.q_plus, e.scale);
}

// p + q and p - q: the smaller probability is the larger one times exp(-|d|).
LSK_INLINE vd sum_of(vd larger, vd shrink) { return vd_fma(larger, shrink, larger); }
LSK_INLINE vd gap_of(vd larger, vd gone, vd d) {
    vd gap = larger * gone;
    return vd_select(d < vd_splat(0), -gap, gap);
}

// ln of the bounds of the bands [0.999, 1.002], [0.99, 1.01], [0.95, 1.05] and [0.9, 1.1].
static const double band_low[LSK_MISMATCH_BANDS] = {
    -0x1.064670d979b6fp-10, -0x1.495453e6fd4b7p-7, -0x1.a431d5bcc1938p-5, -0x1.af8e8210a415dp-4};
static const double band_high[LSK_MISMATCH_BANDS] = {
    0x1.05e1d82fdf745p-9, 0x1.460d6ccca3677p-7, 0x1.8fb063ef2c7e9p-5, 0x1.8663f793c46c7p-4};

// The lanes added by halves: 8 to 4 to 2 to 1.
typedef double vd_lanes __attribute__((vector_size(8 * LSK_MISMATCH_LANES)));
LSK_INLINE double add_lanes(const vd parts[LSK_MISMATCH_PARTS]) {
    vd_lanes eight;
    __builtin_memcpy(&eight, parts, sizeof eight);
    const __auto_type four =
        __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
    const __auto_type two =
        __builtin_shufflevector(four, four, 0, 1) + __builtin_shufflevector(four, four, 2, 3);
    return two[0] + two[1];
}

// Counts of up to four things, 16 bits each: enough for all lanes of a span together.
enum { COUNT_FIELD = 16 };
#define LSK_COUNT(field) (INT64_C(1) << (COUNT_FIELD * (field)))

LSK_INLINE int64_t count_lanes(const vl parts[LSK_MISMATCH_PARTS], int field) {
    vl total = parts[0];
    for (int part = 1; part < LSK_MISMATCH_PARTS; part++) total += parts[part];
    return __builtin_reduce_add(total) >> (COUNT_FIELD * field) & 0xffff;
}

// The shifts of a span: p + q and p - q of its first counted token; 0 if the chunk has none.
static int find_shifts(lsk_mismatch_sums *sums, const lsk_chunk *chunk) {
    for (int64_t i = 0; i < chunk->count; i++) {
        if (!has_bit(chunk->counted, i)) continue;
        vd a = vd_splat(chunk->trainer[i]), b = vd_splat(chunk->rollout[i]), d = a - b;
        vd_ratio_terms terms = ratio_terms_of(d, LSK_ANY_D);
        sums->sum_shift = sum_of(larger_of(a, b, 0), terms.shrink)[0];
        sums->gap_shift = gap_of(larger_of(a, b, 0), terms.gone, d)[0];
        return 1;
    }
    return 0;
}

// What mismatch_sums keeps from chunk to chunk, in lanes. A chunk is gone over several times, each time by a
// function of its own that takes few enough sums into registers.
typedef struct {
    vd rollout[LSK_MISMATCH_PARTS];
    vl differing[LSK_MISMATCH_PARTS];  // LSK_COUNT(0)
} lsk_token_lanes;

typedef struct {
    vd k3[LSK_MISMATCH_PARTS], exp_magnitude[LSK_MISMATCH_PARTS];
    vd ratio[LSK_MISMATCH_PARTS], ratio_square[LSK_MISMATCH_PARTS];
} lsk_ratio_lanes;

typedef struct {
    vd log_ratio[LSK_MISMATCH_PARTS], square[LSK_MISMATCH_PARTS], magnitude[LSK_MISMATCH_PARTS];
    vl outside[LSK_MISMATCH_PARTS];  // LSK_COUNT(band)
} lsk_difference_lanes;

typedef struct {
    vd probability_gap[LSK_MISMATCH_PARTS], largest_gap[LSK_MISMATCH_PARTS];
    vd sum[LSK_MISMATCH_PARTS], sum_square[LSK_MISMATCH_PARTS];
    vd gap[LSK_MISMATCH_PARTS], gap_square[LSK_MISMATCH_PARTS];
    vd sum_gap[LSK_MISMATCH_PARTS];
} lsk_moment_lanes;

// What is worked out of a chunk between two goes over it.
typedef struct {
    double larger[LSK_MISMATCH_CHUNK];                        // the larger probability
    double sum[LSK_MISMATCH_CHUNK], gap[LSK_MISMATCH_CHUNK];  // p + q, p - q
    double k3[LSK_MISMATCH_CHUNK];
    double ratio[LSK_MISMATCH_CHUNK];                         // p / q
} lsk_probabilities;

#define LSK_PASS static __attribute__((noinline)) void

LSK_INLINE void tokens_pass(lsk_token_lanes *lanes, lsk_probabilities *out, const lsk_chunk *chunk,
                            const int tame) {
    lsk_token_lanes t = *lanes;
    for (int64_t at = 0; at < chunk->padded; at += LSK_MISMATCH_LANES) {
        prefetch_next(chunk, at);
#pragma clang loop unroll(full)
        for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
            int64_t i = at + part * LSK_LANES64;
            vd a = vd_load(chunk->trainer + i), b = vd_load(chunk->rollout + i);
            vd_store(out->larger + i, larger_of(a, b, tame));
            t.rollout[part] += b;
            t.differing[part] += ((vl)a != (vl)b) & LSK_COUNT(0);
        }
    }
    *lanes = t;
}
LSK_PASS add_tokens(lsk_token_lanes *lanes, lsk_probabilities *out, const lsk_chunk *chunk) {
    tokens_pass(lanes, out, chunk, 0);
}
LSK_PASS add_tame_tokens(lsk_token_lanes *lanes, lsk_probabilities *out, const lsk_chunk *chunk) {
    tokens_pass(lanes, out, chunk, 1);
}

// A token that does not count has d = 0, so only what is not 0 there is cut out.
LSK_INLINE void ratios_pass(lsk_ratio_lanes *lanes, lsk_probabilities *out, const lsk_chunk *chunk,
                            const int known) {
    lsk_ratio_lanes r = *lanes;
    for (int64_t at = 0; at < chunk->padded; at += LSK_MISMATCH_LANES) {
#pragma clang loop unroll(full)
        for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
            int64_t i = at + part * LSK_LANES64;
            vl counted = vl_from_bits(chunk->counted, i);
            vd d = vd_load(chunk->trainer + i) - vd_load(chunk->rollout + i);
            vd larger = vd_load(out->larger + i);
            vd_ratio_terms t = ratio_terms_of(d, known);
            vd_store(out->sum + i, sum_of(larger, t.shrink));
            vd_store(out->gap + i, gap_of(larger, t.gone, d));
            vd_store(out->k3 + i, t.k3);
            vd ratio = (vd)(counted & (vl)t.ratio);
            vd_store(out->ratio + i, ratio);
            r.k3[part] += t.k3;
            r.exp_magnitude[part] += (vd)(counted & (vl)t.exp_magnitude);
            r.ratio[part] += ratio;
            r.ratio_square[part] = vd_fma(ratio, ratio, r.ratio_square[part]);
        }
    }
    *lanes = r;
}
LSK_PASS add_ratios(lsk_ratio_lanes *lanes, lsk_probabilities *out, const lsk_chunk *chunk) {
    ratios_pass(lanes, out, chunk, LSK_ANY_D);
}
LSK_PASS add_tame_ratios(lsk_ratio_lanes *lanes, lsk_probabilities *out, const lsk_chunk *chunk) {
    ratios_pass(lanes, out, chunk, LSK_TAME_D);
}
LSK_PASS add_near_ratios(lsk_ratio_lanes *lanes, lsk_probabilities *out, const lsk_chunk *chunk) {
    ratios_pass(lanes, out, chunk, LSK_NEAR_D);
}

// Returns the largest |d|.
static __attribute__((noinline)) double add_differences(lsk_difference_lanes *lanes, const lsk_chunk *chunk) {
    lsk_difference_lanes f = *lanes;
    vd largest = {0};
    for (int64_t at = 0; at < chunk->padded; at += LSK_MISMATCH_LANES) {
#pragma clang loop unroll(full)
        for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
            int64_t i = at + part * LSK_LANES64;
            vd d = vd_load(chunk->trainer + i) - vd_load(chunk->rollout + i), magnitude = vd_abs(d);
            f.log_ratio[part] += d;
            f.square[part] = vd_fma(d, d, f.square[part]);
            f.magnitude[part] += magnitude;
            for (int band = 0; band < LSK_MISMATCH_BANDS; band++) {
                vl beyond = (d < vd_splat(band_low[band])) | (d > vd_splat(band_high[band]));
                f.outside[part] += beyond & LSK_COUNT(band);
            }
            largest = vd_max(magnitude, largest);
        }
    }
    *lanes = f;
    return __builtin_reduce_max(largest);
}

// Takes the largest |d| of the chunk that starts at `start` into account.
static void note_largest(lsk_mismatch_sums *sums, double largest, const lsk_chunk *chunk, int64_t start) {
    if (largest <= sums->largest) return;
    for (int64_t at = 0; at < chunk->padded; at += LSK_LANES64) {
        vd magnitude = vd_abs(vd_load(chunk->trainer + at) - vd_load(chunk->rollout + at));
        vl here = vl_from_bits(chunk->counted, at) & (magnitude == vd_splat(largest));
        if (__builtin_reduce_or(here) == 0) continue;
        int64_t i = 0;
        while (!here[i]) i++;
        sums->largest = largest;
        sums->largest_at = start + at + i;
        return;
    }
}

LSK_PASS add_moments(lsk_moment_lanes *lanes, const lsk_probabilities *in, const lsk_chunk *chunk,
                     const lsk_mismatch_sums *shifts) {
    const vd sum_shift = vd_splat(shifts->sum_shift), gap_shift = vd_splat(shifts->gap_shift);
    lsk_moment_lanes m = *lanes;
    for (int64_t at = 0; at < chunk->padded; at += LSK_MISMATCH_LANES) {
#pragma clang loop unroll(full)
        for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
            int64_t i = at + part * LSK_LANES64;
            vl counted = vl_from_bits(chunk->counted, i);
            vd gap = vd_load(in->gap + i), size = vd_abs(gap);
            vd s = (vd)(counted & (vl)(vd_load(in->sum + i) - sum_shift));
            vd g = (vd)(counted & (vl)(gap - gap_shift));
            m.probability_gap[part] += size;
            m.largest_gap[part] = vd_max(size, m.largest_gap[part]);
            m.sum[part] += s;
            m.sum_square[part] = vd_fma(s, s, m.sum_square[part]);
            m.gap[part] += g;
            m.gap_square[part] = vd_fma(g, g, m.gap_square[part]);
            m.sum_gap[part] = vd_fma(s, g, m.sum_gap[part]);
        }
    }
    *lanes = m;
}

#include "profile.h"
#include "evidence.h"

// Writes the sums of `span`, adds its tokens to `histogram` [LSK_MISMATCH_BINS] unless that is NULL, and
// writes its `profile` unless that is NULL. Unless `evidence` is NULL, writes it and adds to `counts`
// [LSK_EVIDENCE_COPIES x LSK_EVIDENCE_BINS]; `ends`: LSK_SPAN_....
LSK_INLINE void sum_span(lsk_mismatch_sums *sums, uint64_t *histogram, lsk_mismatch_profile *profile,
                         lsk_evidence *evidence, uint64_t *counts, int32_t ends,
                         const lsk_mismatch_span *span) {
    memset(sums, 0, sizeof *sums);
    uint64_t used = 0;  // buckets of probability
    if (profile) memset(profile->position, 0, sizeof profile->position);
    lsk_token_lanes t = {0};
    lsk_ratio_lanes r = {0};
    lsk_difference_lanes f = {0};
    lsk_moment_lanes m = {0};
    sums->largest = -1;

    lsk_evidence_lanes e = {0};
    if (evidence) memset(evidence, 0, sizeof *evidence);
    e.before = (ends & LSK_SPAN_STARTS_SEQUENCE) == 0;

    lsk_chunk chunk;
    lsk_probabilities probabilities;
    int shifted = 0;
    for (int64_t start = 0; start < span->count; start += LSK_MISMATCH_CHUNK) {
        if (!load_chunk(&chunk, span, start)) {
            e.before = 0;
            continue;
        }
        sums->non_finite += chunk.non_finite;
        for (int word = 0; word < LSK_MISMATCH_WORDS; word++)
            sums->tokens += __builtin_popcountll(chunk.counted[word]);
        if (!shifted) shifted = find_shifts(sums, &chunk);
        if (histogram)
            for (int64_t i = 0; i < chunk.padded; i++) histogram[chunk.bins[i]]++;
        (chunk.tame ? add_tame_tokens : add_tokens)(&t, &probabilities, &chunk);
        const double largest = add_differences(&f, &chunk);
        note_largest(sums, largest, &chunk, start);
        (largest <= LSK_EXP_NEAR ? add_near_ratios
         : chunk.tame            ? add_tame_ratios
                                 : add_ratios)(&r, &probabilities, &chunk);
        add_moments(&m, &probabilities, &chunk, sums);
        if (profile) {
            add_positions(profile, &chunk, probabilities.k3);
            used |= add_probabilities(profile, &chunk, probabilities.k3);
        }
        if (evidence) add_evidence(&e, evidence, counts, ends, &probabilities, &chunk, span, start);
    }
    if (evidence) finish_evidence(evidence, &e);
    if (profile) finish_probabilities(profile, used);

    sums->differing = count_lanes(t.differing, 0);
    for (int band = 0; band < LSK_MISMATCH_BANDS; band++) sums->outside[band] = count_lanes(f.outside, band);
    sums->log_ratio = add_lanes(f.log_ratio);
    sums->square = add_lanes(f.square);
    sums->magnitude = add_lanes(f.magnitude);
    sums->k3 = add_lanes(r.k3);
    sums->ratio = add_lanes(r.ratio);
    sums->ratio_square = add_lanes(r.ratio_square);
    sums->exp_magnitude = add_lanes(r.exp_magnitude);
    sums->probability_gap = add_lanes(m.probability_gap);
    sums->rollout = add_lanes(t.rollout);
    sums->sum = add_lanes(m.sum);
    sums->sum_square = add_lanes(m.sum_square);
    sums->gap = add_lanes(m.gap);
    sums->gap_square = add_lanes(m.gap_square);
    sums->sum_gap = add_lanes(m.sum_gap);

    for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
        const double largest = __builtin_reduce_max(m.largest_gap[part]);
        if (largest > sums->largest_gap) sums->largest_gap = largest;
    }
}

static void mismatch_sums(lsk_mismatch_sums *sums, uint64_t *histogram, lsk_mismatch_profile *profile,
                          const lsk_mismatch_span *span) {
    sum_span(sums, histogram, profile, NULL, NULL, 0, span);
}

static void mismatch_evidence(lsk_mismatch_sums *sums, uint64_t *histogram, lsk_mismatch_profile *profile,
                              lsk_evidence *evidence, uint64_t *counts, int32_t ends,
                              const lsk_mismatch_span *span) {
    sum_span(sums, histogram, profile, evidence, counts, ends, span);
}

LSK_INLINE vi in_ranges(vi bins, const lsk_bin_range *ranges, int64_t count) {
    vi inside = {0};
#pragma clang loop unroll_count(4)
    for (int64_t i = 0; i < count; i++)
        inside |= (vu)(bins - vi_splat(ranges[i].first)) < (vu)vi_splat((int32_t)ranges[i].count);
    return inside;
}

// The same tokens of a register of narrow formats; `found` of them go to `values`.
LSK_INLINE int64_t select_register(double *values, const lsk_bin_range *ranges, int64_t range_count, vf a,
                                   vf b, vb mask) {
    vd_pair difference = difference_of(widen(a), widen(b));
    vi inside = in_ranges(bins_of(difference), ranges, range_count);
    uint64_t bits = bits_of(inside & (__builtin_convertvector(mask, vi) != 0));
    if (bits == 0) return 0;
    double d[LSK_LANES];
    store_pair(d, difference);
    int64_t found = 0;
    for (; bits; bits &= bits - 1) {
        const int i = __builtin_ctzll(bits);
        if (d[i] - d[i] == 0) values[found++] = d[i];  // none that is not finite
    }
    return found;
}

// Neither format is fp64.
LSK_INLINE int64_t select_narrow(double *values, const lsk_bin_range *ranges, int64_t range_count,
                                 const lsk_mismatch_span *span, int32_t trainer_format,
                                 int32_t rollout_format) {
    const char *trainer = span->trainer, *rollout = span->rollout;
    const int64_t a_size = size_of(trainer_format), b_size = size_of(rollout_format), count = span->count;
    int64_t found = 0, at = 0;
    for (; at + LSK_LANES <= count; at += LSK_LANES) {
        vb mask = ~(vb){0};
        if (span->mask) __builtin_memcpy(&mask, span->mask + at, sizeof mask);
        found += select_register(values + found, ranges, range_count,
                                 load_floats(trainer + at * a_size, trainer_format),
                                 load_floats(rollout + at * b_size, rollout_format), mask);
    }
    if (at < count) {
        vb mask = {0};
        if (span->mask) memcpy(&mask, span->mask + at, (size_t)(count - at));
        else memset(&mask, 1, (size_t)(count - at));
        found += select_register(values + found, ranges, range_count,
                                 load_some_floats(trainer + at * a_size, trainer_format, count - at),
                                 load_some_floats(rollout + at * b_size, rollout_format, count - at), mask);
    }
    return found;
}

static int64_t select_wide(double *values, const lsk_bin_range *ranges, int64_t range_count,
                           const lsk_mismatch_span *span) {
    int64_t found = 0;
    lsk_chunk chunk;
    for (int64_t start = 0; start < span->count; start += LSK_MISMATCH_CHUNK) {
        if (!load_chunk(&chunk, span, start)) continue;
        for (int64_t i = 0; i < chunk.count; i++)
            for (int64_t range = 0; range < range_count; range++)
                if ((uint32_t)(chunk.bins[i] - ranges[range].first) < ranges[range].count)
                    values[found++] = chunk.trainer[i] - chunk.rollout[i];
    }
    return found;
}

// Appends to `values` the d of the counted tokens whose bin is in one of the ranges (which do not overlap,
// and leave out the last bin); returns how many. `values` has room for all tokens of the span.
static int64_t mismatch_select(double *values, const lsk_bin_range *ranges, int64_t range_count,
                               const lsk_mismatch_span *span) {
    const int32_t a = span->trainer_format, b = span->rollout_format;
    if (a == LSK_FP64 || b == LSK_FP64) return select_wide(values, ranges, range_count, span);
    if (a == LSK_FP32 && b == LSK_FP32)
        return select_narrow(values, ranges, range_count, span, LSK_FP32, LSK_FP32);
    return select_narrow(values, ranges, range_count, span, a, b);
}

// Writes d, k3 and the rollout probability of each token, and in `counted` whether it counts (1 or 0;
// where 0 the values mean nothing). Each output has room for whole blocks of 8. Returns the number of
// non-finite tokens.
static int64_t mismatch_terms(double *log_ratio, double *k3, double *probability, uint8_t *counted,
                              const lsk_mismatch_span *span) {
    int64_t non_finite = 0;
    lsk_chunk chunk;
    for (int64_t start = 0; start < span->count; start += LSK_MISMATCH_CHUNK) {
        const int any = load_chunk(&chunk, span, start);
        const int64_t whole = (chunk.count + 7) / 8 * 8;
        for (int64_t i = 0; i < whole; i++) counted[start + i] = (uint8_t)has_bit(chunk.counted, i);
        if (!any) continue;
        non_finite += chunk.non_finite;
        for (int64_t at = 0; at < whole; at += LSK_LANES64) {
            vd b = vd_load(chunk.rollout + at);
            vd d = vd_load(chunk.trainer + at) - b;
            vd_store(log_ratio + start + at, d);
            vd_store(k3 + start + at, ratio_terms_of(d, LSK_ANY_D).k3);
            vd_store(probability + start + at, vd_exp(b));
        }
    }
    return non_finite;
}
