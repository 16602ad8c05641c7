// Mismatch of two log-prob arrays: sums over a span, the values of chosen histogram bins, and the
// per-token terms behind profiles. Lockstep/Reference/ReferenceMismatch.swift says the same in scalars.

#define LSK_MISMATCH_LANES 8
#define LSK_MISMATCH_PARTS (LSK_MISMATCH_LANES / LSK_LANES64)  // registers that hold the lanes
#define LSK_MISMATCH_CHUNK 256                                 // tokens widened at a time

typedef uint8_t vb64 __attribute__((vector_size(LSK_LANES64)));  // as many bytes as doubles

// Some tokens of a span, widened to float64 (exactly) and padded to whole lanes with uncounted ones.
typedef struct {
    double trainer[LSK_MISMATCH_CHUNK];
    double rollout[LSK_MISMATCH_CHUNK];
    uint8_t counted[LSK_MISMATCH_CHUNK];
    int64_t padded;
} lsk_chunk;

LSK_INLINE vd vd_from_low(vf v) {
    vf_half low;
    __builtin_memcpy(&low, &v, sizeof low);
    return __builtin_convertvector(low, vd);
}

LSK_INLINE vd vd_from_high(vf v) {
    vf_half high;
    __builtin_memcpy(&high, (char *)&v + sizeof high, sizeof high);
    return __builtin_convertvector(high, vd);
}

// `count` is a multiple of LSK_LANES.
LSK_INLINE void widen_floats(double *out, const void *in, int32_t format, int64_t count) {
    for (int64_t i = 0; i < count; i += LSK_LANES) {
        vf v = format == LSK_FP32   ? vf_load((const float *)in + i)
               : format == LSK_FP16 ? vf_from_fp16(vh_load((const uint16_t *)in + i))
                                    : vf_from_bf16(vh_load((const uint16_t *)in + i));
        vd_store(out + i, vd_from_low(v));
        vd_store(out + i + LSK_LANES64, vd_from_high(v));
    }
}

static void widen(double *out, const void *base, int32_t format, int64_t start, int64_t count) {
    int64_t size = format == LSK_FP64 ? 8 : format == LSK_FP32 ? 4 : 2;
    const void *in = (const char *)base + start * size;
    if (format == LSK_FP64) {
        memcpy(out, in, (size_t)count * 8);
        return;
    }
    char rest[LSK_MISMATCH_CHUNK * 4];
    int64_t whole = (count + LSK_LANES - 1) / LSK_LANES * LSK_LANES;
    if (whole != count) {
        memset(rest, 0, (size_t)(whole * size));
        memcpy(rest, in, (size_t)(count * size));
        in = rest;
    }
    switch (format) {
    case LSK_FP32: widen_floats(out, in, LSK_FP32, whole); break;
    case LSK_FP16: widen_floats(out, in, LSK_FP16, whole); break;
    default: widen_floats(out, in, LSK_BF16, whole); break;
    }
}

static void load_chunk(lsk_chunk *chunk, const lsk_mismatch_span *span, int64_t start) {
    int64_t count = span->count - start;
    if (count > LSK_MISMATCH_CHUNK) count = LSK_MISMATCH_CHUNK;
    widen(chunk->trainer, span->trainer, span->trainer_format, start, count);
    widen(chunk->rollout, span->rollout, span->rollout_format, start, count);
    chunk->padded = (count + LSK_MISMATCH_LANES - 1) / LSK_MISMATCH_LANES * LSK_MISMATCH_LANES;
    for (int64_t i = count; i < chunk->padded; i++) chunk->trainer[i] = chunk->rollout[i] = 0;
    memset(chunk->counted, span->mask == NULL, (size_t)count);
    if (span->mask) memcpy(chunk->counted, span->mask + start, (size_t)count);
    memset(chunk->counted + count, 0, (size_t)(chunk->padded - count));
}

// One register of tokens. Where a token does not count, both log-probs are 0.
typedef struct {
    vd trainer, rollout;
    vl counted;     // all ones where the token counts
    vl non_finite;  // ... where the mask lets it count but a log-prob is not finite
} vd_pair;

LSK_INLINE vd_pair load_pair(const lsk_chunk *chunk, int64_t at) {
    vb64 bytes;
    __builtin_memcpy(&bytes, chunk->counted + at, sizeof bytes);
    vl masked_in = __builtin_convertvector(bytes, vl) != 0;
    vd a = vd_load(chunk->trainer + at), b = vd_load(chunk->rollout + at);
    vl finite = (a - a) + (b - b) == vd_splat(0);
    vd_pair pair;
    pair.counted = masked_in & finite;
    pair.non_finite = masked_in & ~finite;
    pair.trainer = (vd)(pair.counted & (vl)a);
    pair.rollout = (vd)(pair.counted & (vl)b);
    return pair;
}

// What one register of tokens contributes.
typedef struct {
    vd log_ratio, magnitude, k3, ratio, exp_magnitude;
    vd sum, gap;  // p + q and p - q
} vd_terms;

LSK_INLINE vd_terms terms_of(vd a, vd b) {
    const vd limit = vd_splat(LSK_EXP_LIMIT), infinity = vd_splat(__builtin_inf());
    vd_terms terms;
    vd d = (a - b) + vd_splat(0);  // + 0: no negative zero
    terms.log_ratio = d;
    terms.magnitude = vd_abs(d);

    vd x = vd_max(vd_min(d, limit), -limit);
    vd_exp_parts e = vd_split_exp(x);
    vd scale_less = e.scale - 1.0, inverse_less = e.inverse - 1.0;
    vd plus = e.r + e.q_plus, minus = e.q_minus - e.r;  // exp(+-r) - 1
    vd ratio = vd_fma(e.scale, plus, e.scale);
    vd inverse = vd_fma(e.inverse, minus, e.inverse);
    // exp(d) - 1 - d = 2^n q_plus + ((2^n - 1) + (2^n r - d)): exactly q_plus where n is 0.
    vd k3 = vd_fma(e.scale, e.q_plus, scale_less + vd_fma(e.scale, e.r, -d));
    terms.ratio = vd_select(d > limit, infinity, ratio);
    terms.k3 = vd_select(d > limit, infinity, k3);
    terms.exp_magnitude = vd_select(terms.magnitude > limit, infinity, vd_max(ratio, inverse));

    // From the larger probability h: the smaller is h exp(-|d|), the gap h (1 - exp(-|d|)).
    vd shrink = vd_min(ratio, inverse);
    vd gone = vd_min(vd_fma(e.scale, plus, scale_less), vd_fma(e.inverse, minus, inverse_less));
    vd larger = vd_exp(vd_max(a, b));
    terms.sum = vd_fma(larger, shrink, larger);
    vd gap = larger * -gone;
    terms.gap = vd_select(d < vd_splat(0), -gap, gap);
    return terms;
}

// The histogram bin of d; the last one where the token does not count.
LSK_INLINE vl bin_of(vd d, vd magnitude, vl counted) {
    const vd low = vd_splat(0x1p-24), high = vd_splat(0x1.fffffffffffffp7);
    vul bits = (vul)vd_max(vd_min(magnitude, high), low);
    vl step = (vl)((bits >> 45) - ((vul)low >> 45));
    vl below = LSK_MISMATCH_HALF_BINS - 1 - step, above = LSK_MISMATCH_HALF_BINS + 1 + step;
    vl negative = d < vd_splat(0), zero = d == vd_splat(0);
    vl bin = (negative & below) | (~negative & above);
    bin = (zero & LSK_MISMATCH_ZERO_BIN) | (~zero & bin);
    return (counted & bin) | (~counted & LSK_MISMATCH_UNCOUNTED_BIN);
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

LSK_INLINE int64_t count_lanes(const vl parts[LSK_MISMATCH_PARTS]) {
    int64_t lane[LSK_MISMATCH_LANES], total = 0;
    __builtin_memcpy(lane, parts, sizeof lane);
    for (int i = 0; i < LSK_MISMATCH_LANES; i++) total += lane[i];
    return total;
}

// The shifts of a span: the sum and the gap of its first counted token.
static void find_shifts(lsk_mismatch_sums *sums, const lsk_mismatch_span *span) {
    lsk_chunk chunk;
    for (int64_t start = 0; start < span->count; start += LSK_MISMATCH_CHUNK) {
        load_chunk(&chunk, span, start);
        for (int64_t i = 0; i < chunk.padded; i++) {
            double a = chunk.trainer[i], b = chunk.rollout[i];
            if (!chunk.counted[i] || (a - a) + (b - b) != 0) continue;
            vd_terms terms = terms_of(vd_splat(a), vd_splat(b));
            sums->sum_shift = terms.sum[0];
            sums->gap_shift = terms.gap[0];
            return;
        }
    }
}

// The accumulators of mismatch_sums, each in all lanes.
enum {
    SUM_LOG_RATIO, SUM_SQUARE, SUM_MAGNITUDE, SUM_K3, SUM_RATIO, SUM_RATIO_SQUARE, SUM_EXP_MAGNITUDE,
    SUM_PROBABILITY_GAP, SUM_ROLLOUT, SUM_SUM, SUM_SUM_SQUARE, SUM_GAP, SUM_GAP_SQUARE, SUM_SUM_GAP,
    SUM_COUNT
};
enum { COUNT_TOKENS, COUNT_NON_FINITE, COUNT_DIFFERING, COUNT_OUTSIDE, COUNT_COUNT = COUNT_OUTSIDE + 4 };

// Writes the sums of `span`, and adds its tokens to `histogram` [LSK_MISMATCH_BINS] unless that is NULL.
static void mismatch_sums(lsk_mismatch_sums *sums, uint64_t *histogram, const lsk_mismatch_span *span) {
    memset(sums, 0, sizeof *sums);
    find_shifts(sums, span);
    const vd sum_shift = vd_splat(sums->sum_shift), gap_shift = vd_splat(sums->gap_shift);

    vd sum[SUM_COUNT][LSK_MISMATCH_PARTS] = {0};
    vl count[COUNT_COUNT][LSK_MISMATCH_PARTS] = {0};
    vd largest[LSK_MISMATCH_PARTS], largest_gap[LSK_MISMATCH_PARTS] = {0};
    vl largest_at[LSK_MISMATCH_PARTS] = {0}, position[LSK_MISMATCH_PARTS];
    for (int i = 0; i < LSK_MISMATCH_LANES; i++) {
        largest[i / LSK_LANES64][i % LSK_LANES64] = -1;
        position[i / LSK_LANES64][i % LSK_LANES64] = i;
    }

    lsk_chunk chunk;
    for (int64_t start = 0; start < span->count; start += LSK_MISMATCH_CHUNK) {
        load_chunk(&chunk, span, start);
        for (int64_t at = 0; at < chunk.padded; at += LSK_MISMATCH_LANES) {
            int64_t bins[LSK_MISMATCH_LANES];
#pragma clang loop unroll(full)
            for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
                vd_pair pair = load_pair(&chunk, at + part * LSK_LANES64);
                vl counted = pair.counted;
                vd_terms t = terms_of(pair.trainer, pair.rollout);
                vd d = t.log_ratio;
                // A token that does not count has d = 0, so only what is not 0 there is cut out.
                vd ratio = (vd)(counted & (vl)t.ratio);
                vd exp_magnitude = (vd)(counted & (vl)t.exp_magnitude);
                vd s = (vd)(counted & (vl)(t.sum - sum_shift));
                vd g = (vd)(counted & (vl)(t.gap - gap_shift));
                vd gap = vd_abs(t.gap);

                sum[SUM_LOG_RATIO][part] += d;
                sum[SUM_SQUARE][part] = vd_fma(d, d, sum[SUM_SQUARE][part]);
                sum[SUM_MAGNITUDE][part] += t.magnitude;
                sum[SUM_K3][part] += t.k3;
                sum[SUM_RATIO][part] += ratio;
                sum[SUM_RATIO_SQUARE][part] = vd_fma(ratio, ratio, sum[SUM_RATIO_SQUARE][part]);
                sum[SUM_EXP_MAGNITUDE][part] += exp_magnitude;
                sum[SUM_PROBABILITY_GAP][part] += gap;
                sum[SUM_ROLLOUT][part] += pair.rollout;
                sum[SUM_SUM][part] += s;
                sum[SUM_SUM_SQUARE][part] = vd_fma(s, s, sum[SUM_SUM_SQUARE][part]);
                sum[SUM_GAP][part] += g;
                sum[SUM_GAP_SQUARE][part] = vd_fma(g, g, sum[SUM_GAP_SQUARE][part]);
                sum[SUM_SUM_GAP][part] = vd_fma(s, g, sum[SUM_SUM_GAP][part]);

                count[COUNT_TOKENS][part] -= counted;
                count[COUNT_NON_FINITE][part] -= pair.non_finite;
                count[COUNT_DIFFERING][part] -= (vl)pair.trainer != (vl)pair.rollout;
                for (int band = 0; band < LSK_MISMATCH_BANDS; band++)
                    count[COUNT_OUTSIDE + band][part] -=
                        (d < vd_splat(band_low[band])) | (d > vd_splat(band_high[band]));

                vl more = counted & (t.magnitude > largest[part]);
                largest[part] = vd_select(more, t.magnitude, largest[part]);
                largest_at[part] = (more & position[part]) | (~more & largest_at[part]);
                position[part] += LSK_MISMATCH_LANES;
                largest_gap[part] = vd_max(gap, largest_gap[part]);
                vl bin = bin_of(d, t.magnitude, counted);
                __builtin_memcpy(bins + part * LSK_LANES64, &bin, sizeof bin);
            }
            if (histogram)
                for (int i = 0; i < LSK_MISMATCH_LANES; i++) histogram[bins[i]]++;
        }
    }

    sums->log_ratio = add_lanes(sum[SUM_LOG_RATIO]);
    sums->square = add_lanes(sum[SUM_SQUARE]);
    sums->magnitude = add_lanes(sum[SUM_MAGNITUDE]);
    sums->k3 = add_lanes(sum[SUM_K3]);
    sums->ratio = add_lanes(sum[SUM_RATIO]);
    sums->ratio_square = add_lanes(sum[SUM_RATIO_SQUARE]);
    sums->exp_magnitude = add_lanes(sum[SUM_EXP_MAGNITUDE]);
    sums->probability_gap = add_lanes(sum[SUM_PROBABILITY_GAP]);
    sums->rollout = add_lanes(sum[SUM_ROLLOUT]);
    sums->sum = add_lanes(sum[SUM_SUM]);
    sums->sum_square = add_lanes(sum[SUM_SUM_SQUARE]);
    sums->gap = add_lanes(sum[SUM_GAP]);
    sums->gap_square = add_lanes(sum[SUM_GAP_SQUARE]);
    sums->sum_gap = add_lanes(sum[SUM_SUM_GAP]);
    sums->tokens = count_lanes(count[COUNT_TOKENS]);
    sums->non_finite = count_lanes(count[COUNT_NON_FINITE]);
    sums->differing = count_lanes(count[COUNT_DIFFERING]);
    for (int band = 0; band < LSK_MISMATCH_BANDS; band++)
        sums->outside[band] = count_lanes(count[COUNT_OUTSIDE + band]);

    sums->largest = -1;
    for (int i = 0; i < LSK_MISMATCH_LANES; i++) {
        double value = largest[i / LSK_LANES64][i % LSK_LANES64];
        int64_t index = largest_at[i / LSK_LANES64][i % LSK_LANES64];
        if (value > sums->largest || (value == sums->largest && index < sums->largest_at)) {
            sums->largest = value;
            sums->largest_at = index;
        }
        double gap = largest_gap[i / LSK_LANES64][i % LSK_LANES64];
        if (gap > sums->largest_gap) sums->largest_gap = gap;
    }
}

// Appends to `values` the d of the counted tokens whose bin is marked 1 in `wanted` [LSK_MISMATCH_BINS]
// (others 0, the last too); returns how many. `values` has room for all tokens of the span and one more.
static int64_t mismatch_select(double *values, const uint8_t *wanted, const lsk_mismatch_span *span) {
    int64_t found = 0;
    lsk_chunk chunk;
    for (int64_t start = 0; start < span->count; start += LSK_MISMATCH_CHUNK) {
        load_chunk(&chunk, span, start);
        for (int64_t at = 0; at < chunk.padded; at += LSK_LANES64) {
            vd_pair pair = load_pair(&chunk, at);
            vd d = (pair.trainer - pair.rollout) + vd_splat(0);
            vl bin = bin_of(d, vd_abs(d), pair.counted);
            for (int i = 0; i < LSK_LANES64; i++) {
                values[found] = d[i];
                found += wanted[bin[i]];
            }
        }
    }
    return found;
}

// Writes d, k3 and the rollout probability of each token, and in `counted` whether it counts (1 or 0;
// where 0 the values are those of two log-probs of 0). Each output has room for whole blocks of 8. Returns
// the number of non-finite tokens.
static int64_t mismatch_terms(double *log_ratio, double *k3, double *probability, uint8_t *counted,
                              const lsk_mismatch_span *span) {
    vl non_finite = {0};
    lsk_chunk chunk;
    for (int64_t start = 0; start < span->count; start += LSK_MISMATCH_CHUNK) {
        load_chunk(&chunk, span, start);
        for (int64_t at = 0; at < chunk.padded; at += LSK_LANES64) {
            vd_pair pair = load_pair(&chunk, at);
            vd_terms terms = terms_of(pair.trainer, pair.rollout);
            vd_store(log_ratio + start + at, terms.log_ratio);
            vd_store(k3 + start + at, terms.k3);
            vd_store(probability + start + at, vd_exp(pair.rollout));
            for (int i = 0; i < LSK_LANES64; i++) counted[start + at + i] = pair.counted[i] != 0;
            non_finite -= pair.non_finite;
        }
    }
    int64_t total = 0;
    for (int i = 0; i < LSK_LANES64; i++) total += non_finite[i];
    return total;
}
