// Mismatch of two log-prob arrays: sums over a span, the values of chosen histogram bins, and the
// per-token terms behind profiles. Lockstep/Reference/ReferenceMismatch.swift says the same in scalars.

#include "mismatch_chunk.h"

// What follows from d alone.
typedef struct {
    vd k3, ratio, exp_magnitude;
    vd shrink;  // exp(-|d|): the smaller probability over the larger
    vd gone;    // 1 - exp(-|d|)
} vd_ratio_terms;

// Of the parts of exp(d), or where it is known that d is near 0 of exp(|d|). What is known leaves out what would
// change nothing.
LSK_INLINE vd_ratio_terms terms_from(vd_exp_parts e, vd d, const int known) {
    vd_ratio_terms terms;
    if (known == LSK_NEAR_D) {
        // Of exp(-|d|) and exp(|d|) the two halves of the series are mirror images.
        const vl falls = d < vd_splat(0);
        const vd minus = e.q_minus - e.r;
        terms.exp_magnitude = 1 + (e.r + e.q_plus);
        terms.shrink = 1 + minus;
        terms.gone = -minus;
        terms.k3 = vd_select(falls, e.q_minus, e.q_plus);
        terms.ratio = vd_select(falls, terms.shrink, terms.exp_magnitude);
        return terms;
    }
    const int tame = known != LSK_ANY_D;
    const vd limit = vd_splat(LSK_EXP_LIMIT), infinity = vd_splat(__builtin_inf());
    vd scale_less = e.scale - 1.0, inverse_less = e.inverse - 1.0;
    vd plus = e.r + e.q_plus, minus = e.q_minus - e.r;  // exp(+-r) - 1
    vd ratio = vd_fma(e.scale, plus, e.scale);
    vd inverse = vd_fma(e.inverse, minus, e.inverse);
    // exp(d) - 1 - d = 2^n q_plus + ((2^n - 1) + (2^n r - d)): exactly q_plus where n is 0.
    vd k3 = vd_fma(e.scale, e.q_plus, scale_less + vd_fma(e.scale, e.r, -d));
    vd exp_magnitude = vd_max(ratio, inverse);
    terms.ratio = tame ? ratio : vd_select(d > limit, infinity, ratio);
    terms.k3 = tame ? k3 : vd_select(d > limit, infinity, k3);
    terms.exp_magnitude = tame ? exp_magnitude : vd_select(vd_abs(d) > limit, infinity, exp_magnitude);
    terms.shrink = vd_min(ratio, inverse);
    terms.gone = -vd_min(vd_fma(e.scale, plus, scale_less), vd_fma(e.inverse, minus, inverse_less));
    return terms;
}
LSK_INLINE vd clamp_exponent(vd x) { return vd_max(vd_min(x, vd_splat(LSK_EXP_LIMIT)), vd_splat(-LSK_EXP_LIMIT)); }
LSK_INLINE vd_ratio_terms ratio_terms_of(vd d) { return terms_from(vd_split_exp(clamp_exponent(d)), d, LSK_ANY_D); }

// The larger of the two probabilities and what follows from d, of some registers side by side.
LSK_INLINE void token_terms(vd larger[LSK_MISMATCH_PARTS], vd_ratio_terms terms[LSK_MISMATCH_PARTS],
                            const vd trainer[LSK_MISMATCH_PARTS], const vd rollout[LSK_MISMATCH_PARTS],
                            const vd d[LSK_MISMATCH_PARTS], const int known) {
    enum { P = LSK_MISMATCH_PARTS };
    vd log_larger[P], r[2 * P], shifted[2 * P], q_plus[2 * P], q_minus[2 * P];
    LSK_UNROLL
    for (int i = 0; i < P; i++) {
        log_larger[i] = vd_max(trainer[i], rollout[i]);
        r[i] = vd_exp_rest(known == LSK_ANY_D ? clamp_exponent(log_larger[i]) : log_larger[i], shifted + i);
        r[P + i] = known == LSK_NEAR_D ? vd_abs(d[i])
                                       : vd_exp_rest(known == LSK_ANY_D ? clamp_exponent(d[i]) : d[i], shifted + P + i);
    }
    exp_series(2 * P, q_plus, q_minus, r);
    LSK_UNROLL
    for (int i = 0; i < P; i++) {
        const vd scale = vd_exp_scale(shifted[i]);
        larger[i] = vd_fma(scale, r[i] + q_plus[i], scale);
        if (known == LSK_ANY_D)
            larger[i] = vd_select(log_larger[i] > vd_splat(LSK_EXP_LIMIT), vd_splat(__builtin_inf()), larger[i]);
        vd_exp_parts e = {.r = r[P + i], .q_plus = q_plus[P + i], .q_minus = q_minus[P + i]};
        if (known != LSK_NEAR_D) e.scale = vd_exp_scale(shifted[P + i]), e.inverse = vd_exp_inverse(shifted[P + i]);
        terms[i] = terms_from(e, d[i], known);
    }
}

// p + q and p - q: the smaller probability is the larger one times exp(-|d|).
LSK_INLINE vd sum_of(vd larger, vd shrink) { return vd_fma(larger, shrink, larger); }
LSK_INLINE vd gap_of(vd larger, vd gone, vd d) {
    return (vd)((vul)(larger * gone) ^ ((vul)(d < vd_splat(0)) & ((vul){0} + (UINT64_C(1) << 63))));
}

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

// What mismatch_sums keeps from chunk to chunk, in lanes. A chunk is gone over several times, each time by a
// function of its own that takes few enough sums into registers, and one register's lanes after the other's.
typedef struct {
    vd rollout[LSK_MISMATCH_PARTS], log_ratio[LSK_MISMATCH_PARTS], square[LSK_MISMATCH_PARTS];
    vd magnitude[LSK_MISMATCH_PARTS], k3[LSK_MISMATCH_PARTS], exp_magnitude[LSK_MISMATCH_PARTS];
    vd ratio[LSK_MISMATCH_PARTS], ratio_square[LSK_MISMATCH_PARTS];
    vd largest[LSK_MISMATCH_PARTS];  // |d| of the last chunk
} lsk_token_lanes;

typedef struct {
    vd probability_gap[LSK_MISMATCH_PARTS], largest_gap[LSK_MISMATCH_PARTS];
    vd sum[LSK_MISMATCH_PARTS], sum_square[LSK_MISMATCH_PARTS];
    vd gap[LSK_MISMATCH_PARTS], gap_square[LSK_MISMATCH_PARTS];
    vd sum_gap[LSK_MISMATCH_PARTS];
} lsk_moment_lanes;

// What is worked out of a chunk between two goes over it.
typedef struct {
    double smaller[LSK_MISMATCH_CHUNK];                       // of the probabilities; with evidence then 1 / s
    double sum[LSK_MISMATCH_CHUNK], gap[LSK_MISMATCH_CHUNK];  // p + q, p - q
    double k3[LSK_MISMATCH_CHUNK + 4];                        // some more, which may be read
    double ratio[LSK_MISMATCH_CHUNK];                         // p / q
} lsk_probabilities;

#define LSK_PASS static __attribute__((noinline)) void

// A token that does not count has d = 0, so only what is not 0 there is cut out.
// The histogram is counted here too, where all else is arithmetic.
LSK_INLINE void exponentials_pass(lsk_token_lanes *lanes, lsk_probabilities *out, uint64_t *histogram,
                                  const lsk_chunk *chunk, const int known) {
    enum { P = LSK_MISMATCH_PARTS };
    for (int64_t at = 0; at < chunk->padded; at += LSK_MISMATCH_LANES) {
        prefetch_next(chunk, at);
        if (histogram) {
            LSK_UNROLL
            for (int64_t i = at; i < at + LSK_MISMATCH_LANES; i++) histogram[chunk->bins[i]]++;
        }
        vd a[P], b[P], d[P], larger[P];
        vd_ratio_terms terms[P];
        LSK_UNROLL
        for (int part = 0; part < P; part++) {
            a[part] = vd_load(chunk->trainer + at + part * LSK_LANES64);
            b[part] = vd_load(chunk->rollout + at + part * LSK_LANES64);
            d[part] = vd_load(chunk->d + at + part * LSK_LANES64);
        }
        token_terms(larger, terms, a, b, d, known);
        LSK_UNROLL
        for (int part = 0; part < P; part++) {
            const int64_t i = at + part * LSK_LANES64;
            const vl counted = counted_at(chunk, i);
            const vd_ratio_terms t = terms[part];
            const vd sum = sum_of(larger[part], t.shrink);
            vd_store(out->smaller + i, sum - larger[part]);
            vd_store(out->sum + i, sum);
            vd_store(out->gap + i, gap_of(larger[part], t.gone, d[part]));
            vd_store(out->k3 + i, t.k3);
            vd_store(out->ratio + i, (vd)(counted & (vl)t.ratio));
            lanes->exp_magnitude[part] += (vd)(counted & (vl)t.exp_magnitude);
        }
    }
}
LSK_PASS add_exponentials(lsk_token_lanes *lanes, lsk_probabilities *out, uint64_t *histogram,
                         const lsk_chunk *chunk) {
    exponentials_pass(lanes, out, histogram, chunk, LSK_ANY_D);
}
LSK_PASS add_tame_exponentials(lsk_token_lanes *lanes, lsk_probabilities *out, uint64_t *histogram,
                              const lsk_chunk *chunk) {
    exponentials_pass(lanes, out, histogram, chunk, LSK_TAME_D);
}
LSK_PASS add_near_exponentials(lsk_token_lanes *lanes, lsk_probabilities *out, uint64_t *histogram,
                              const lsk_chunk *chunk) {
    exponentials_pass(lanes, out, histogram, chunk, LSK_NEAR_D);
}

LSK_PASS add_tokens(lsk_token_lanes *lanes, const lsk_probabilities *in, const lsk_chunk *chunk) {
    for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
        vd rollout = lanes->rollout[part], log_ratio = lanes->log_ratio[part], square = lanes->square[part];
        vd magnitude = lanes->magnitude[part], k3 = lanes->k3[part], ratio = lanes->ratio[part];
        vd ratio_square = lanes->ratio_square[part], largest = {0};
        for (int64_t i = part * LSK_LANES64; i < chunk->padded; i += LSK_MISMATCH_LANES) {
            const vd d = vd_load(chunk->d + i), r = vd_load(in->ratio + i);
            rollout += vd_load(chunk->rollout + i);
            log_ratio += d;
            square = vd_fma(d, d, square);
            magnitude += vd_abs(d);
            largest = vd_max(vd_abs(d), largest);
            k3 += vd_load(in->k3 + i);
            ratio += r;
            ratio_square = vd_fma(r, r, ratio_square);
        }
        lanes->rollout[part] = rollout, lanes->log_ratio[part] = log_ratio, lanes->square[part] = square;
        lanes->magnitude[part] = magnitude, lanes->k3[part] = k3, lanes->ratio[part] = ratio;
        lanes->ratio_square[part] = ratio_square, lanes->largest[part] = largest;
    }
}

LSK_INLINE double largest_in(const vd parts[LSK_MISMATCH_PARTS]) {
    vd largest = parts[0];
    for (int part = 1; part < LSK_MISMATCH_PARTS; part++) largest = vd_max(parts[part], largest);
    return __builtin_reduce_max(largest);
}

// Takes the largest |d| of the chunk that starts at `start` into account.
static void note_largest(lsk_mismatch_sums *sums, double largest, const lsk_chunk *chunk, int64_t start) {
    if (largest <= sums->largest) return;
    for (int64_t at = 0; at < chunk->padded; at += LSK_LANES64) {
        vd magnitude = vd_abs(vd_load(chunk->d + at));
        vl here = counted_at(chunk, at) & (magnitude == vd_splat(largest));
        if (__builtin_reduce_or(here) == 0) continue;
        int64_t i = 0;
        while (!here[i]) i++;
        sums->largest = largest;
        sums->largest_at = start + at + i;
        return;
    }
}

// The shifts of a span: p + q and p - q of its first counted token, of which the chunk has one.
static void find_shifts(lsk_mismatch_sums *sums, const lsk_probabilities *in, const lsk_chunk *chunk) {
    int word = 0;
    while (chunk->counted[word] == 0) word++;
    const int64_t i = 64 * word + __builtin_ctzll(chunk->counted[word]);
    sums->sum_shift = in->sum[i];
    sums->gap_shift = in->gap[i];
}

LSK_PASS add_moments(lsk_moment_lanes *lanes, const lsk_probabilities *in, const lsk_chunk *chunk,
                     const lsk_mismatch_sums *shifts) {
    const vd sum_shift = vd_splat(shifts->sum_shift), gap_shift = vd_splat(shifts->gap_shift);
    for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
        vd total = lanes->probability_gap[part], largest = lanes->largest_gap[part], sum = lanes->sum[part];
        vd sum_square = lanes->sum_square[part], gap = lanes->gap[part], gap_square = lanes->gap_square[part];
        vd sum_gap = lanes->sum_gap[part];
        for (int64_t i = part * LSK_LANES64; i < chunk->padded; i += LSK_MISMATCH_LANES) {
            const vl counted = counted_at(chunk, i);
            const vd difference = vd_load(in->gap + i), size = vd_abs(difference);
            const vd s = (vd)(counted & (vl)(vd_load(in->sum + i) - sum_shift));
            const vd g = (vd)(counted & (vl)(difference - gap_shift));
            total += size;
            largest = vd_max(size, largest);
            sum += s;
            sum_square = vd_fma(s, s, sum_square);
            gap += g;
            gap_square = vd_fma(g, g, gap_square);
            sum_gap = vd_fma(s, g, sum_gap);
        }
        lanes->probability_gap[part] = total, lanes->largest_gap[part] = largest, lanes->sum[part] = sum;
        lanes->sum_square[part] = sum_square, lanes->gap[part] = gap, lanes->gap_square[part] = gap_square;
        lanes->sum_gap[part] = sum_gap;
    }
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
    sums->largest = -1;
    int32_t least = LSK_NO_BUCKET, most = 0;  // buckets of probability
    if (profile) memset(profile->position, 0, sizeof profile->position);
    lsk_token_lanes t = {0};
    lsk_moment_lanes m = {0};
    lsk_evidence_lanes e = {0};
    if (evidence) memset(evidence, 0, sizeof *evidence);
    e.before = (ends & LSK_SPAN_STARTS_SEQUENCE) == 0;

    lsk_chunk chunk;
    lsk_probabilities probabilities;
    for (int64_t start = 0; start < span->count; start += LSK_MISMATCH_CHUNK) {
        if (!load_chunk(&chunk, span, start)) {
            e.before = 0;
            continue;
        }
        const int64_t tokens = count_bits(chunk.counted);
        sums->non_finite += chunk.non_finite;
        sums->differing += chunk.differing;
        for (int band = 0; band < LSK_MISMATCH_BANDS; band++) sums->outside[band] += chunk.outside[band];
        (chunk.known == LSK_NEAR_D   ? add_near_exponentials
         : chunk.known == LSK_TAME_D ? add_tame_exponentials
                                     : add_exponentials)(&t, &probabilities, histogram, &chunk);
        add_tokens(&t, &probabilities, &chunk);
        if (tokens > 0) note_largest(sums, largest_in(t.largest), &chunk, start);
        if (sums->tokens == 0 && tokens > 0) find_shifts(sums, &probabilities, &chunk);
        sums->tokens += tokens;
        add_moments(&m, &probabilities, &chunk, sums);
        if (profile) {
            add_profile(profile, &chunk, probabilities.k3);
            if (chunk.least < least) least = chunk.least;
            if (chunk.most > most) most = chunk.most;
        }
        if (evidence) add_evidence(&e, evidence, counts, ends, &probabilities, &chunk, span, start);
    }
    if (evidence) finish_evidence(evidence, &e);
    if (profile) finish_probabilities(profile, least, most);

    sums->log_ratio = add_lanes(t.log_ratio);
    sums->square = add_lanes(t.square);
    sums->magnitude = add_lanes(t.magnitude);
    sums->k3 = add_lanes(t.k3);
    sums->ratio = add_lanes(t.ratio);
    sums->ratio_square = add_lanes(t.ratio_square);
    sums->exp_magnitude = add_lanes(t.exp_magnitude);
    sums->rollout = add_lanes(t.rollout);
    sums->probability_gap = add_lanes(m.probability_gap);
    sums->sum = add_lanes(m.sum);
    sums->sum_square = add_lanes(m.sum_square);
    sums->gap = add_lanes(m.gap);
    sums->gap_square = add_lanes(m.gap_square);
    sums->sum_gap = add_lanes(m.sum_gap);
    sums->largest_gap = largest_in(m.largest_gap);
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
    vi inside = in_ranges(bins_of(upper_halves(difference)), ranges, range_count);
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
                    values[found++] = chunk.d[i];
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
            vd b = vd_load(chunk.rollout + at), d = vd_load(chunk.d + at);
            vd_store(log_ratio + start + at, d);
            vd_store(k3 + start + at, ratio_terms_of(d).k3);
            vd_store(probability + start + at, vd_exp(b));
        }
    }
    return non_finite;
}
