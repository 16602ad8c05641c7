// Mismatch of two log-prob arrays: sums over a span, the values of chosen histogram bins, and the
// per-token terms behind profiles. Lockstep/Reference/ReferenceMismatch.swift says the same in scalars.

#define LSK_MISMATCH_LANES 8
#define LSK_MISMATCH_PARTS (LSK_MISMATCH_LANES / LSK_LANES64)  // registers that hold the lanes
#define LSK_MISMATCH_CHUNK 256                                 // tokens widened at a time

typedef uint8_t vb64 __attribute__((vector_size(LSK_LANES64)));  // as many bytes as doubles
typedef uint8_t vb32 __attribute__((vector_size(LSK_LANES)));    // as many bytes as floats

// Some tokens of a span, widened to float64 (exactly) and padded to whole lanes with uncounted ones. A
// token counts if the mask lets it and both log-probs are finite; both are 0 where it does not.
typedef struct {
    double trainer[LSK_MISMATCH_CHUNK];
    double rollout[LSK_MISMATCH_CHUNK];
    uint8_t counted[LSK_MISMATCH_CHUNK];  // 1 or 0
    int64_t padded;
    int64_t non_finite;  // tokens that the mask lets count, but a log-prob is not finite
} lsk_chunk;

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

// The tokens of one register of floats, at `at` in the chunk; returns -1 in the lanes of non-finite ones.
LSK_INLINE vi load_register(lsk_chunk *chunk, int64_t at, vf a, vf b) {
    vb32 bytes;
    __builtin_memcpy(&bytes, chunk->counted + at, sizeof bytes);
    vi masked_in = __builtin_convertvector(bytes, vi) != 0;
    vi counted = masked_in & ((a - a) + (b - b) == vf_splat(0));
    store_doubles(chunk->trainer + at, (vf)(counted & (vi)a));
    store_doubles(chunk->rollout + at, (vf)(counted & (vi)b));
    bytes = __builtin_convertvector(counted & 1, vb32);
    __builtin_memcpy(chunk->counted + at, &bytes, sizeof bytes);
    return masked_in & ~counted;
}

LSK_INLINE int64_t size_of(int32_t format) { return format == LSK_FP64 ? 8 : format == LSK_FP32 ? 4 : 2; }

// Neither format is fp64.
LSK_INLINE void load_narrow(lsk_chunk *chunk, const char *trainer, int32_t trainer_format,
                            const char *rollout, int32_t rollout_format, int64_t count) {
    const int64_t a_size = size_of(trainer_format), b_size = size_of(rollout_format);
    vi non_finite = {0};
    int64_t at = 0;
    for (; at + LSK_LANES <= count; at += LSK_LANES)
        non_finite += load_register(chunk, at, load_floats(trainer + at * a_size, trainer_format),
                                    load_floats(rollout + at * b_size, rollout_format));
    if (at < count) {
        char a[LSK_WIDTH] = {0}, b[LSK_WIDTH] = {0};
        memcpy(a, trainer + at * a_size, (size_t)((count - at) * a_size));
        memcpy(b, rollout + at * b_size, (size_t)((count - at) * b_size));
        non_finite += load_register(chunk, at, load_floats(a, trainer_format), load_floats(b, rollout_format));
    }
    for (int i = 0; i < LSK_LANES; i++) chunk->non_finite -= non_finite[i];
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
    for (int i = 0; i < LSK_LANES64; i++) chunk->non_finite += non_finite[i];
}

// Loads up to LSK_MISMATCH_CHUNK tokens from `start` on; returns 0 if the mask leaves them all out, and
// then loads nothing.
static int load_chunk(lsk_chunk *chunk, const lsk_mismatch_span *span, int64_t start) {
    int64_t count = span->count - start;
    if (count > LSK_MISMATCH_CHUNK) count = LSK_MISMATCH_CHUNK;
    chunk->padded = (count + LSK_MISMATCH_LANES - 1) / LSK_MISMATCH_LANES * LSK_MISMATCH_LANES;
    chunk->non_finite = 0;
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
    if (a == LSK_FP32 && b == LSK_FP32)
        load_narrow(chunk, trainer, LSK_FP32, rollout, LSK_FP32, count);
    else if (a != LSK_FP64 && b != LSK_FP64)
        load_narrow(chunk, trainer, a, rollout, b, count);
    else
        load_wide(chunk, trainer, a, rollout, b, count);
    return 1;
}

// d, without negative zeros.
LSK_INLINE vd log_ratio_of(vd trainer, vd rollout) { return (trainer - rollout) + vd_splat(0); }

// What follows from d alone.
typedef struct {
    vd k3, ratio, exp_magnitude;
    vd shrink;  // exp(-|d|): the smaller probability over the larger
    vd gone;    // 1 - exp(-|d|)
} vd_ratio_terms;

LSK_INLINE vd_ratio_terms ratio_terms_of(vd d) {
    const vd limit = vd_splat(LSK_EXP_LIMIT), infinity = vd_splat(__builtin_inf());
    vd_exp_parts e = vd_split_exp(vd_max(vd_min(d, limit), -limit));
    vd scale_less = e.scale - 1.0, inverse_less = e.inverse - 1.0;
    vd plus = e.r + e.q_plus, minus = e.q_minus - e.r;  // exp(+-r) - 1
    vd ratio = vd_fma(e.scale, plus, e.scale);
    vd inverse = vd_fma(e.inverse, minus, e.inverse);
    // exp(d) - 1 - d = 2^n q_plus + ((2^n - 1) + (2^n r - d)): exactly q_plus where n is 0.
    vd k3 = vd_fma(e.scale, e.q_plus, scale_less + vd_fma(e.scale, e.r, -d));
    vl over = d > limit;
    vd_ratio_terms terms;
    terms.ratio = vd_select(over, infinity, ratio);
    terms.k3 = vd_select(over, infinity, k3);
    terms.exp_magnitude = vd_select(vd_abs(d) > limit, infinity, vd_max(ratio, inverse));
    terms.shrink = vd_min(ratio, inverse);
    terms.gone = -vd_min(vd_fma(e.scale, plus, scale_less), vd_fma(e.inverse, minus, inverse_less));
    return terms;
}

// The larger of the two probabilities.
LSK_INLINE vd larger_of(vd trainer, vd rollout) { return vd_exp(vd_max(trainer, rollout)); }

// p + q and p - q: the smaller probability is the larger one times exp(-|d|).
LSK_INLINE vd sum_of(vd larger, vd shrink) { return vd_fma(larger, shrink, larger); }
LSK_INLINE vd gap_of(vd larger, vd gone, vd d) {
    vd gap = larger * gone;
    return vd_select(d < vd_splat(0), -gap, gap);
}

// The histogram bin of d; the last one where the token does not count.
LSK_INLINE vl bin_of(vd d, vl counted) {
    const vd low = vd_splat(0x1p-24), high = vd_splat(0x1.fffffffffffffp7);
    vul bits = (vul)vd_max(vd_min(vd_abs(d), high), low);
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
        vd a = vd_splat(chunk->trainer[i]), b = vd_splat(chunk->rollout[i]), d = log_ratio_of(a, b);
        vd_ratio_terms terms = ratio_terms_of(d);
        sums->sum_shift = sum_of(larger_of(a, b), terms.shrink)[0];
        sums->gap_shift = gap_of(larger_of(a, b), terms.gone, d)[0];
        return 1;
    }
    return 0;
}

// The accumulators of mismatch_sums, each in all lanes.
enum {
    SUM_LOG_RATIO, SUM_SQUARE, SUM_MAGNITUDE, SUM_K3, SUM_RATIO, SUM_RATIO_SQUARE, SUM_EXP_MAGNITUDE,
    SUM_PROBABILITY_GAP, SUM_ROLLOUT, SUM_SUM, SUM_SUM_SQUARE, SUM_GAP, SUM_GAP_SQUARE, SUM_SUM_GAP,
    SUM_COUNT
};

// Writes the sums of `span`, and adds its tokens to `histogram` [LSK_MISMATCH_BINS] unless that is NULL.
//
// A chunk is gone over several times, with few enough sums each time that registers hold them.
static void mismatch_sums(lsk_mismatch_sums *sums, uint64_t *histogram, const lsk_mismatch_span *span) {
    memset(sums, 0, sizeof *sums);
    vd sum[SUM_COUNT][LSK_MISMATCH_PARTS] = {0};
    vl outside[LSK_MISMATCH_PARTS] = {0}, count[LSK_MISMATCH_PARTS] = {0};
    vd largest[LSK_MISMATCH_PARTS], largest_gap[LSK_MISMATCH_PARTS] = {0};
    vl largest_at[LSK_MISMATCH_PARTS] = {0}, lane[LSK_MISMATCH_PARTS];
    for (int i = 0; i < LSK_MISMATCH_LANES; i++) {
        largest[i / LSK_LANES64][i % LSK_LANES64] = -1;
        lane[i / LSK_LANES64][i % LSK_LANES64] = i;
    }
    int shifted = 0;

    lsk_chunk chunk;
    double log_ratio[LSK_MISMATCH_CHUNK], larger[LSK_MISMATCH_CHUNK];
    double probability_sum[LSK_MISMATCH_CHUNK], probability_gap[LSK_MISMATCH_CHUNK];
    int64_t bins[LSK_MISMATCH_CHUNK];
    for (int64_t start = 0; start < span->count; start += LSK_MISMATCH_CHUNK) {
        if (!load_chunk(&chunk, span, start)) continue;
        sums->non_finite += chunk.non_finite;
        if (!shifted) shifted = find_shifts(sums, &chunk);
        const vd sum_shift = vd_splat(sums->sum_shift), gap_shift = vd_splat(sums->gap_shift);

        for (int64_t at = 0; at < chunk.padded; at += LSK_MISMATCH_LANES) {
#pragma clang loop unroll(full)
            for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
                int64_t i = at + part * LSK_LANES64;
                vd a = vd_load(chunk.trainer + i), b = vd_load(chunk.rollout + i);
                vl counted = load_counted(&chunk, i);
                vd d = log_ratio_of(a, b);
                vd_store(log_ratio + i, d);
                vd_store(larger + i, larger_of(a, b));
                vl bin = bin_of(d, counted);
                __builtin_memcpy(bins + i, &bin, sizeof bin);
                sum[SUM_ROLLOUT][part] += b;
                count[part] += (counted & LSK_COUNT(0)) + (((vl)a != (vl)b) & LSK_COUNT(1));
            }
        }

        for (int64_t at = 0; at < chunk.padded; at += LSK_MISMATCH_LANES) {
#pragma clang loop unroll(full)
            for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
                int64_t i = at + part * LSK_LANES64;
                vl counted = load_counted(&chunk, i);
                vd d = vd_load(log_ratio + i), h = vd_load(larger + i);
                vd_ratio_terms t = ratio_terms_of(d);
                vd_store(probability_sum + i, sum_of(h, t.shrink));
                vd_store(probability_gap + i, gap_of(h, t.gone, d));
                // A token that does not count has d = 0, so only what is not 0 there is cut out.
                vd ratio = (vd)(counted & (vl)t.ratio);
                sum[SUM_K3][part] += t.k3;
                sum[SUM_RATIO][part] += ratio;
                sum[SUM_RATIO_SQUARE][part] = vd_fma(ratio, ratio, sum[SUM_RATIO_SQUARE][part]);
                sum[SUM_EXP_MAGNITUDE][part] += (vd)(counted & (vl)t.exp_magnitude);
            }
        }

        for (int64_t at = 0; at < chunk.padded; at += LSK_MISMATCH_LANES) {
#pragma clang loop unroll(full)
            for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
                int64_t i = at + part * LSK_LANES64;
                vl counted = load_counted(&chunk, i);
                vd d = vd_load(log_ratio + i), magnitude = vd_abs(d);
                sum[SUM_LOG_RATIO][part] += d;
                sum[SUM_SQUARE][part] = vd_fma(d, d, sum[SUM_SQUARE][part]);
                sum[SUM_MAGNITUDE][part] += magnitude;
                for (int band = 0; band < LSK_MISMATCH_BANDS; band++) {
                    vl beyond = (d < vd_splat(band_low[band])) | (d > vd_splat(band_high[band]));
                    outside[part] += beyond & LSK_COUNT(band);
                }
                vl more = counted & (magnitude > largest[part]);
                vl position = lane[part] + (start + at);
                largest[part] = vd_select(more, magnitude, largest[part]);
                largest_at[part] = (more & position) | (~more & largest_at[part]);

                vd gap = vd_load(probability_gap + i), size = vd_abs(gap);
                vd s = (vd)(counted & (vl)(vd_load(probability_sum + i) - sum_shift));
                vd g = (vd)(counted & (vl)(gap - gap_shift));
                largest_gap[part] = vd_max(size, largest_gap[part]);
                sum[SUM_PROBABILITY_GAP][part] += size;
                sum[SUM_SUM][part] += s;
                sum[SUM_SUM_SQUARE][part] = vd_fma(s, s, sum[SUM_SUM_SQUARE][part]);
                sum[SUM_GAP][part] += g;
                sum[SUM_GAP_SQUARE][part] = vd_fma(g, g, sum[SUM_GAP_SQUARE][part]);
                sum[SUM_SUM_GAP][part] = vd_fma(s, g, sum[SUM_SUM_GAP][part]);
            }
        }

        if (histogram)
            for (int64_t i = 0; i < chunk.padded; i++) histogram[bins[i]]++;
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
    sums->tokens = count_lanes(count, 0);
    sums->differing = count_lanes(count, 1);
    for (int band = 0; band < LSK_MISMATCH_BANDS; band++) sums->outside[band] = count_lanes(outside, band);

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
        if (!load_chunk(&chunk, span, start)) continue;
        for (int64_t at = 0; at < chunk.padded; at += LSK_LANES64) {
            vd d = log_ratio_of(vd_load(chunk.trainer + at), vd_load(chunk.rollout + at));
            vl bin = bin_of(d, load_counted(&chunk, at));
            for (int i = 0; i < LSK_LANES64; i++) {
                values[found] = d[i];
                found += wanted[bin[i]];
            }
        }
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
            vd d = log_ratio_of(vd_load(chunk.trainer + at), b);
            vd_store(log_ratio + start + at, d);
            vd_store(k3 + start + at, ratio_terms_of(d).k3);
            vd_store(probability + start + at, vd_exp(b));
        }
    }
    return non_finite;
}
