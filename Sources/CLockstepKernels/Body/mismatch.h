// Mismatch of two log-prob arrays: sums over a span, the values of chosen histogram bins, and the
// per-token terms behind profiles. Lockstep/Reference/ReferenceMismatch.swift says the same in scalars.

#define LSK_MISMATCH_LANES 8
#define LSK_MISMATCH_PARTS (LSK_MISMATCH_LANES / LSK_LANES64)  // registers that hold the lanes
#define LSK_MISMATCH_CHUNK 256                                 // tokens widened at a time

typedef uint8_t vb64 __attribute__((vector_size(LSK_LANES64)));  // as many bytes as doubles
typedef uint8_t vb32 __attribute__((vector_size(LSK_LANES)));    // as many bytes as floats
typedef int32_t vi_half __attribute__((vector_size(LSK_WIDTH / 2)));  // as many integers as doubles

// Some tokens of a span, widened to float64 (exactly) and padded to whole lanes with uncounted ones. A
// token counts if the mask lets it and both log-probs are finite; both are 0 where it does not.
typedef struct {
    double trainer[LSK_MISMATCH_CHUNK + LSK_LANES];  // one register more, which may be read
    double rollout[LSK_MISMATCH_CHUNK + LSK_LANES];
    uint8_t counted[LSK_MISMATCH_CHUNK];  // 1 or 0
    int32_t bins[LSK_MISMATCH_CHUNK];     // of d in the histogram
    int64_t padded;
    int64_t non_finite;  // tokens that the mask lets count, but a log-prob is not finite
    int tame;            // no log-prob is beyond +-LSK_TAME: no exponential needs its ends looked after
} lsk_chunk;

#define LSK_TAME 350

LSK_INLINE vl load_counted(const lsk_chunk *chunk, int64_t at) {
    vb64 bytes;
    __builtin_memcpy(&bytes, chunk->counted + at, sizeof bytes);
    return __builtin_convertvector(bytes, vl) != 0;
}

LSK_INLINE vf load_floats(const void *base, int32_t format) {
    return format == LSK_FP32   ? vf_load(base)
           : format == LSK_FP16 ? vf_from_fp16(vh_load(base))
                                : vf_from_bf16(vh_load(base));
}

LSK_INLINE void store_doubles(double *out, vf v) {
    vf_half low, high;
    __builtin_memcpy(&low, &v, sizeof low);
    __builtin_memcpy(&high, (char *)&v + sizeof low, sizeof high);
    vd_store(out, __builtin_convertvector(low, vd));
    vd_store(out + LSK_LANES64, __builtin_convertvector(high, vd));
}

// The histogram bin of d, from its exponent and the first 7 bits of its mantissa; the last bin is of tokens
// that do not count.
LSK_INLINE vl bin_of(vd d, vl counted) {
    const vd low = vd_splat(0x1p-24), high = vd_splat(0x1.fffffffffffffp7);
    vul magnitude = (vul)vd_min(vd_max(vd_abs(d), low), high);
    vl step = (vl)((magnitude >> 45) - ((vul)low >> 45)) + 1;
    vl negative = d < vd_splat(0);
    vl bin = (((step & (d != vd_splat(0))) ^ negative) - negative) + LSK_MISMATCH_ZERO_BIN;
    return (counted & bin) | (~counted & LSK_MISMATCH_UNCOUNTED_BIN);
}

// The bins of all tokens of a chunk.
LSK_INLINE void find_bins(lsk_chunk *chunk) {
    for (int64_t at = 0; at < chunk->padded; at += LSK_LANES64) {
        vd d = vd_load(chunk->trainer + at) - vd_load(chunk->rollout + at);
        vi_half bins = __builtin_convertvector(bin_of(d, load_counted(chunk, at)), vi_half);
        __builtin_memcpy(chunk->bins + at, &bins, sizeof bins);
    }
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

// The same for `count` tokens (whole registers) that were widened from floats: their d is 0 or at least 2^-149,
// so the upper half of the double says all.
LSK_INLINE void find_bins_of_floats(lsk_chunk *chunk, int64_t count) {
    const int32_t low = (1023 - 24) << 7, high = ((1023 + 8) << 7) - 1;
    for (int64_t at = 0; at < count; at += LSK_LANES) {
        vd lower = vd_load(chunk->trainer + at) - vd_load(chunk->rollout + at);
        vd upper = vd_load(chunk->trainer + at + LSK_LANES64) - vd_load(chunk->rollout + at + LSK_LANES64);
        vi d = LSK_UPPER((vi)lower, (vi)upper);
        vi magnitude = (d & INT32_MAX) >> 13;
        vi step = __builtin_elementwise_max(magnitude, vi_splat(low));
        step = __builtin_elementwise_min(step, vi_splat(high));
        step = (step - (low - 1)) & (magnitude != 0);
        vi negative = d >> 31;
        vi bin = ((step ^ negative) - negative) + LSK_MISMATCH_ZERO_BIN;
        vb32 bytes;
        __builtin_memcpy(&bytes, chunk->counted + at, sizeof bytes);
        vi counted = __builtin_convertvector(bytes, vi) != 0;
        bin = (counted & bin) | (~counted & LSK_MISMATCH_UNCOUNTED_BIN);
        __builtin_memcpy(chunk->bins + at, &bin, sizeof bin);
    }
}

// What loading a register of tokens finds out.
typedef struct {
    vi non_finite;  // -1 for each non-finite token
    vf reach;       // the largest |log-prob|
} vf_found;

// The tokens of one register of floats, at `at` in the chunk.
LSK_INLINE void load_register(lsk_chunk *chunk, vf_found *found, int64_t at, vf a, vf b) {
    vb32 bytes;
    __builtin_memcpy(&bytes, chunk->counted + at, sizeof bytes);
    vi masked_in = __builtin_convertvector(bytes, vi) != 0;
    vi counted = masked_in & ((a - a) + (b - b) == vf_splat(0));
    found->non_finite += masked_in & ~counted;
    a = (vf)(counted & (vi)a);
    b = (vf)(counted & (vi)b);
    store_doubles(chunk->trainer + at, a);
    store_doubles(chunk->rollout + at, b);
    bytes = __builtin_convertvector(counted & 1, vb32);
    __builtin_memcpy(chunk->counted + at, &bytes, sizeof bytes);
    vf larger = (vf)((vi)a & INT32_MAX), other = (vf)((vi)b & INT32_MAX);
    larger = vf_select(larger > other, larger, other);
    found->reach = vf_select(larger > found->reach, larger, found->reach);
}

LSK_INLINE int64_t size_of(int32_t format) { return format == LSK_FP64 ? 8 : format == LSK_FP32 ? 4 : 2; }

// Neither format is fp64.
LSK_INLINE void load_narrow(lsk_chunk *chunk, const char *trainer, int32_t trainer_format,
                            const char *rollout, int32_t rollout_format, int64_t count) {
    const int64_t a_size = size_of(trainer_format), b_size = size_of(rollout_format);
    vf_found found = {0};
    int64_t at = 0;
    for (; at + LSK_LANES <= count; at += LSK_LANES)
        load_register(chunk, &found, at, load_floats(trainer + at * a_size, trainer_format),
                      load_floats(rollout + at * b_size, rollout_format));
    if (at < count) {
        char a[LSK_WIDTH] = {0}, b[LSK_WIDTH] = {0};
        memcpy(a, trainer + at * a_size, (size_t)((count - at) * a_size));
        memcpy(b, rollout + at * b_size, (size_t)((count - at) * b_size));
        load_register(chunk, &found, at, load_floats(a, trainer_format), load_floats(b, rollout_format));
    }
    for (int i = 0; i < LSK_LANES; i++) {
        chunk->non_finite -= found.non_finite[i];
        if (found.reach[i] > LSK_TAME) chunk->tame = 0;
    }
}

static void widen(double *out, const char *in, int32_t format, int64_t count) {
    if (format == LSK_FP64) {
        memcpy(out, in, (size_t)count * 8);
        return;
    }
    int64_t at = 0;
    for (; at + LSK_LANES <= count; at += LSK_LANES)
        store_doubles(out + at, load_floats(in + at * size_of(format), format));
    if (at < count) {
        char rest[LSK_WIDTH] = {0};
        memcpy(rest, in + at * size_of(format), (size_t)((count - at) * size_of(format)));
        store_doubles(out + at, load_floats(rest, format));
    }
}

// Any formats.
static void load_wide(lsk_chunk *chunk, const char *trainer, int32_t trainer_format, const char *rollout,
                      int32_t rollout_format, int64_t count) {
    widen(chunk->trainer, trainer, trainer_format, count);
    widen(chunk->rollout, rollout, rollout_format, count);
    vl non_finite = {0};
    for (int64_t at = 0; at < chunk->padded; at += LSK_LANES64) {
        vl masked_in = load_counted(chunk, at);
        vd a = vd_load(chunk->trainer + at), b = vd_load(chunk->rollout + at);
        vl counted = masked_in & ((a - a) + (b - b) == vd_splat(0));
        non_finite -= masked_in & ~counted;
        vd_store(chunk->trainer + at, (vd)(counted & (vl)a));
        vd_store(chunk->rollout + at, (vd)(counted & (vl)b));
        vb64 bytes = __builtin_convertvector(counted & 1, vb64);
        __builtin_memcpy(chunk->counted + at, &bytes, sizeof bytes);
    }
    chunk->tame = 0;
    for (int i = 0; i < LSK_LANES64; i++) chunk->non_finite += non_finite[i];
}

// Asks for the next chunk to be fetched while this one is worked on; fetching beyond the end is
// harmless, and in a packed log it is the next sequence.
LSK_INLINE void prefetch_chunk(const void *in, int64_t size) {
    const uintptr_t next = (uintptr_t)in + (uintptr_t)(LSK_MISMATCH_CHUNK * size);
    for (int64_t at = 0; at < LSK_MISMATCH_CHUNK * size; at += 64)
        __builtin_prefetch((const void *)(next + (uintptr_t)at));
}

// Loads up to LSK_MISMATCH_CHUNK tokens from `start` on; returns 0 if the mask leaves them all out, and
// then loads nothing.
static int load_chunk(lsk_chunk *chunk, const lsk_mismatch_span *span, int64_t start) {
    int64_t count = span->count - start;
    if (count > LSK_MISMATCH_CHUNK) count = LSK_MISMATCH_CHUNK;
    chunk->padded = (count + LSK_MISMATCH_LANES - 1) / LSK_MISMATCH_LANES * LSK_MISMATCH_LANES;
    chunk->non_finite = 0;
    chunk->tame = 1;
    memset(chunk->counted, 1, (size_t)count);
    if (span->mask) {
        memcpy(chunk->counted, span->mask + start, (size_t)count);
        int64_t i = 0;
        while (i < count && chunk->counted[i] == 0) i++;
        if (i == count) return 0;
    }
    // Whole registers are loaded, which may reach beyond the padding.
    int64_t loaded = (count + LSK_LANES - 1) / LSK_LANES * LSK_LANES;
    if (loaded < chunk->padded) loaded = chunk->padded;
    for (int64_t i = count; i < loaded; i++) {
        chunk->counted[i] = 0;
        chunk->trainer[i] = chunk->rollout[i] = 0;
    }
    const int32_t a = span->trainer_format, b = span->rollout_format;
    const char *trainer = (const char *)span->trainer + start * size_of(a);
    const char *rollout = (const char *)span->rollout + start * size_of(b);
    prefetch_chunk(trainer, size_of(a));
    prefetch_chunk(rollout, size_of(b));
    if (span->mask) prefetch_chunk(span->mask + start, 1);
    if (a == LSK_FP32 && b == LSK_FP32)
        load_narrow(chunk, trainer, LSK_FP32, rollout, LSK_FP32, count);
    else if (a != LSK_FP64 && b != LSK_FP64)
        load_narrow(chunk, trainer, a, rollout, b, count);
    else
        load_wide(chunk, trainer, a, rollout, b, count);
    if (a != LSK_FP64 && b != LSK_FP64) find_bins_of_floats(chunk, loaded);
    else find_bins(chunk);
    return 1;
}

// What follows from d alone.
typedef struct {
    vd k3, ratio, exp_magnitude;
    vd shrink;  // exp(-|d|): the smaller probability over the larger
    vd gone;    // 1 - exp(-|d|)
} vd_ratio_terms;

// `tame`: |d| is known to be at most twice LSK_TAME. It leaves out what would change nothing.
LSK_INLINE vd_ratio_terms ratio_terms_of(vd d, const int tame) {
    const vd limit = vd_splat(LSK_EXP_LIMIT), infinity = vd_splat(__builtin_inf());
    vd_exp_parts e = vd_split_exp(tame ? d : vd_max(vd_min(d, limit), -limit));
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
LSK_INLINE double add_lanes(const vd parts[LSK_MISMATCH_PARTS]) {
    double lane[LSK_MISMATCH_LANES];
    __builtin_memcpy(lane, parts, sizeof lane);
    for (int half = LSK_MISMATCH_LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}

// Counts of up to four things, 16 bits each: enough for a lane of a span.
enum { COUNT_FIELD = 16 };
#define LSK_COUNT(field) (INT64_C(1) << (COUNT_FIELD * (field)))

LSK_INLINE int64_t count_lanes(const vl parts[LSK_MISMATCH_PARTS], int field) {
    int64_t lane[LSK_MISMATCH_LANES], total = 0;
    __builtin_memcpy(lane, parts, sizeof lane);
    for (int i = 0; i < LSK_MISMATCH_LANES; i++) total += lane[i] >> (COUNT_FIELD * field) & 0xffff;
    return total;
}

// The shifts of a span: p + q and p - q of its first counted token; 0 if the chunk has none.
static int find_shifts(lsk_mismatch_sums *sums, const lsk_chunk *chunk) {
    for (int64_t i = 0; i < chunk->padded; i++) {
        if (!chunk->counted[i]) continue;
        vd a = vd_splat(chunk->trainer[i]), b = vd_splat(chunk->rollout[i]), d = a - b;
        vd_ratio_terms terms = ratio_terms_of(d, 0);
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
    vl count[LSK_MISMATCH_PARTS];  // LSK_COUNT(0): tokens, LSK_COUNT(1): differing
} lsk_token_lanes;

typedef struct {
    vd k3[LSK_MISMATCH_PARTS], exp_magnitude[LSK_MISMATCH_PARTS];
    vd ratio[LSK_MISMATCH_PARTS], ratio_square[LSK_MISMATCH_PARTS];
} lsk_ratio_lanes;

typedef struct {
    vd log_ratio[LSK_MISMATCH_PARTS], square[LSK_MISMATCH_PARTS], magnitude[LSK_MISMATCH_PARTS];
    vl outside[LSK_MISMATCH_PARTS];  // LSK_COUNT(band)
    vd largest[LSK_MISMATCH_PARTS];
    vl largest_at[LSK_MISMATCH_PARTS];
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
#pragma clang loop unroll(full)
        for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
            int64_t i = at + part * LSK_LANES64;
            vd a = vd_load(chunk->trainer + i), b = vd_load(chunk->rollout + i);
            vd_store(out->larger + i, larger_of(a, b, tame));
            t.rollout[part] += b;
            t.count[part] += load_counted(chunk, i) & LSK_COUNT(0);
            t.count[part] += ((vl)a != (vl)b) & LSK_COUNT(1);
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
                            const int tame) {
    lsk_ratio_lanes r = *lanes;
    for (int64_t at = 0; at < chunk->padded; at += LSK_MISMATCH_LANES) {
#pragma clang loop unroll(full)
        for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
            int64_t i = at + part * LSK_LANES64;
            vl counted = load_counted(chunk, i);
            vd d = vd_load(chunk->trainer + i) - vd_load(chunk->rollout + i);
            vd larger = vd_load(out->larger + i);
            vd_ratio_terms t = ratio_terms_of(d, tame);
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
    ratios_pass(lanes, out, chunk, 0);
}
LSK_PASS add_tame_ratios(lsk_ratio_lanes *lanes, lsk_probabilities *out, const lsk_chunk *chunk) {
    ratios_pass(lanes, out, chunk, 1);
}

// `start` is the chunk's place in the span.
LSK_PASS add_differences(lsk_difference_lanes *lanes, const lsk_chunk *chunk, int64_t start) {
    static const int64_t first[LSK_MISMATCH_LANES] = {0, 1, 2, 3, 4, 5, 6, 7};
    lsk_difference_lanes f = *lanes;
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
            vl position;
            __builtin_memcpy(&position, first + part * LSK_LANES64, sizeof position);
            position += start + at;
            vl more = load_counted(chunk, i) & (magnitude > f.largest[part]);
            f.largest[part] = vd_select(more, magnitude, f.largest[part]);
            f.largest_at[part] = (more & position) | (~more & f.largest_at[part]);
        }
    }
    *lanes = f;
}

LSK_PASS add_moments(lsk_moment_lanes *lanes, const lsk_probabilities *in, const lsk_chunk *chunk,
                     const lsk_mismatch_sums *shifts) {
    const vd sum_shift = vd_splat(shifts->sum_shift), gap_shift = vd_splat(shifts->gap_shift);
    lsk_moment_lanes m = *lanes;
    for (int64_t at = 0; at < chunk->padded; at += LSK_MISMATCH_LANES) {
#pragma clang loop unroll(full)
        for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
            int64_t i = at + part * LSK_LANES64;
            vl counted = load_counted(chunk, i);
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
    lsk_probability_copies copies;
    if (profile) {
        memset(profile->position, 0, sizeof profile->position);
        memset(&copies, 0, sizeof copies);
    }
    lsk_token_lanes t = {0};
    lsk_ratio_lanes r = {0};
    lsk_difference_lanes f = {0};
    lsk_moment_lanes m = {0};
    for (int part = 0; part < LSK_MISMATCH_PARTS; part++) f.largest[part] = vd_splat(-1);

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
        if (!shifted) shifted = find_shifts(sums, &chunk);
        if (histogram)
            for (int64_t i = 0; i < chunk.padded; i++) histogram[chunk.bins[i]]++;
        (chunk.tame ? add_tame_tokens : add_tokens)(&t, &probabilities, &chunk);
        (chunk.tame ? add_tame_ratios : add_ratios)(&r, &probabilities, &chunk);
        add_differences(&f, &chunk, start);
        add_moments(&m, &probabilities, &chunk, sums);
        if (profile) {
            add_positions(profile, &chunk, probabilities.k3);
            add_probabilities(&copies, &chunk, probabilities.k3);
        }
        if (evidence) add_evidence(&e, evidence, counts, ends, &probabilities, &chunk, span, start);
    }
    if (evidence) finish_evidence(evidence, &e);
    if (profile) finish_probabilities(profile, &copies);

    sums->tokens = count_lanes(t.count, 0);
    sums->differing = count_lanes(t.count, 1);
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

    double largest[LSK_MISMATCH_LANES], largest_gap[LSK_MISMATCH_LANES];
    int64_t largest_at[LSK_MISMATCH_LANES];
    __builtin_memcpy(largest, f.largest, sizeof largest);
    __builtin_memcpy(largest_at, f.largest_at, sizeof largest_at);
    __builtin_memcpy(largest_gap, m.largest_gap, sizeof largest_gap);
    sums->largest = -1;
    for (int i = 0; i < LSK_MISMATCH_LANES; i++) {
        if (largest[i] > sums->largest ||
            (largest[i] == sums->largest && largest_at[i] < sums->largest_at)) {
            sums->largest = largest[i];
            sums->largest_at = largest_at[i];
        }
        if (largest_gap[i] > sums->largest_gap) sums->largest_gap = largest_gap[i];
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

// Appends to `values` the d of the counted tokens whose bin is marked 1 in `wanted` [LSK_MISMATCH_BINS]
// (others 0, the last too); returns how many. `values` has room for all tokens of the span.
static int64_t mismatch_select(double *values, const uint8_t *wanted, const lsk_mismatch_span *span) {
    int64_t found = 0;
    lsk_chunk chunk;
    int32_t places[LSK_MISMATCH_CHUNK + 1];
    for (int64_t start = 0; start < span->count; start += LSK_MISMATCH_CHUNK) {
        if (!load_chunk(&chunk, span, start)) continue;
        int64_t here = 0;
        for (int64_t i = 0; i < chunk.padded; i++) {
            places[here] = (int32_t)i;
            here += wanted[chunk.bins[i]];
        }
        for (int64_t i = 0; i < here; i++)
            values[found++] = chunk.trainer[places[i]] - chunk.rollout[places[i]];
    }
    return found;
}

// Writes d, k3 and the rollout probability of each token, and in `counted` whether it counts (1 or 0;
// where 0 the values mean nothing). Each output has room for whole blocks of 8. Returns the number of
// non-finite tokens.
static int64_t mismatch_terms(double *log_ratio, double *k3, double *probability, uint8_t *counted,
                              const lsk_mismatch_span *span) {
    int64_t non_finite = 0;
    lsk_chunk chunk;
    for (int64_t start = 0; start < span->count; start += LSK_MISMATCH_CHUNK) {
        if (!load_chunk(&chunk, span, start)) {
            memset(counted + start, 0, (size_t)chunk.padded);
            continue;
        }
        non_finite += chunk.non_finite;
        memcpy(counted + start, chunk.counted, (size_t)chunk.padded);
        for (int64_t at = 0; at < chunk.padded; at += LSK_LANES64) {
            vd b = vd_load(chunk.rollout + at);
            vd d = vd_load(chunk.trainer + at) - b;
            vd_store(log_ratio + start + at, d);
            vd_store(k3 + start + at, ratio_terms_of(d, 0).k3);
            vd_store(probability + start + at, vd_exp(b));
        }
    }
    return non_finite;
}
