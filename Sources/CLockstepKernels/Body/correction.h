// Corrections: what a sequence's tokens weigh and which of them are kept, in one pass (two where something
// of the whole sequence decides). Lockstep/Reference/ReferenceCorrection.swift says the same in scalars.

#include "correction_tokens.h"
#include "correction_statistics.h"

// Sums of a value in lanes.
typedef struct {
    vd sum[LSK_MISMATCH_PARTS];
    vd least[LSK_MISMATCH_PARTS], largest[LSK_MISMATCH_PARTS];
} lsk_value_lanes;

LSK_INLINE void start_values(lsk_value_lanes *lanes) {
    for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
        lanes->sum[part] = vd_splat(0);
        lanes->least[part] = vd_splat(__builtin_inf());
        lanes->largest[part] = vd_splat(-__builtin_inf());
    }
}

LSK_PASS add_values(lsk_value_lanes *lanes, const double *values, const uint8_t *counted, int64_t padded) {
    lsk_value_lanes l = *lanes;
    for (int64_t at = 0; at < padded; at += LSK_MISMATCH_LANES) {
        LSK_UNROLL
        for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
            vl here = load_bytes(counted + at + part * LSK_LANES64);
            vd x = vd_load(values + at + part * LSK_LANES64);
            l.sum[part] += (vd)(here & (vl)x);
            l.least[part] = vd_select(here & (x < l.least[part]), x, l.least[part]);
            l.largest[part] = vd_select(here & (x > l.largest[part]), x, l.largest[part]);
        }
    }
    *lanes = l;
}

static double least_of(const vd parts[LSK_MISMATCH_PARTS]) {
    double least = __builtin_inf();
    for (int part = 0; part < LSK_MISMATCH_PARTS; part++)
        for (int i = 0; i < LSK_LANES64; i++)
            if (parts[part][i] < least) least = parts[part][i];
    return least;
}
static double largest_of(const vd parts[LSK_MISMATCH_PARTS]) {
    double largest = -__builtin_inf();
    for (int part = 0; part < LSK_MISMATCH_PARTS; part++)
        for (int i = 0; i < LSK_LANES64; i++)
            if (parts[part][i] > largest) largest = parts[part][i];
    return largest;
}

static void finish_values(lsk_rejection_sums *sums, const lsk_value_lanes *lanes) {
    const double least = least_of(lanes->least), largest = largest_of(lanes->largest);
    sums->sum += add_lanes(lanes->sum);
    if (least < sums->least) sums->least = least;
    if (largest > sums->largest) sums->largest = largest;
}

// Sums of a weight in lanes.
typedef struct {
    lsk_value_lanes values;
    vd square[LSK_MISMATCH_PARTS], excess[LSK_MISMATCH_PARTS], excess_square[LSK_MISMATCH_PARTS];
    int64_t units;
} lsk_weight_lanes;

LSK_PASS add_weights(lsk_weight_lanes *lanes, const double *values, const uint8_t *counted, int64_t padded) {
    lsk_weight_lanes l = *lanes;
    vl units = {0};
    for (int64_t at = 0; at < padded; at += LSK_MISMATCH_LANES) {
        LSK_UNROLL
        for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
            vl here = load_bytes(counted + at + part * LSK_LANES64);
            vd x = vd_load(values + at + part * LSK_LANES64);
            vd w = (vd)(here & (vl)x), excess = (vd)(here & (vl)(x - 1.0));
            l.values.sum[part] += w;
            l.values.least[part] = vd_select(here & (x < l.values.least[part]), x, l.values.least[part]);
            l.values.largest[part] =
                vd_select(here & (x > l.values.largest[part]), x, l.values.largest[part]);
            l.square[part] = vd_fma(w, w, l.square[part]);
            l.excess[part] += excess;
            l.excess_square[part] = vd_fma(excess, excess, l.excess_square[part]);
            units -= here;
        }
    }
    l.units += add_counts(units);
    *lanes = l;
}

static void finish_weights(lsk_weight_sums *sums, const lsk_weight_lanes *lanes) {
    const double least = least_of(lanes->values.least), largest = largest_of(lanes->values.largest);
    sums->units += lanes->units;
    sums->sum += add_lanes(lanes->values.sum);
    sums->square += add_lanes(lanes->square);
    sums->excess += add_lanes(lanes->excess);
    sums->excess_square += add_lanes(lanes->excess_square);
    if (least < sums->least) sums->least = least;
    if (largest > sums->largest) sums->largest = largest;
}

static void add_unit(lsk_weight_sums *sums, double w) {
    sums->units++;
    sums->sum += w;
    sums->square += w * w;
    sums->excess += w - 1;
    sums->excess_square += (w - 1) * (w - 1);
    if (w < sums->least) sums->least = w;
    if (w > sums->largest) sums->largest = w;
}

// What a whole sequence or segment has come to.
typedef struct {
    double statistics[LSK_REJECTIONS];
    uint8_t failed[LSK_REJECTIONS];  // LSK_LEVEL_SEQUENCE_EVERY: a token did not pass
    double ratio;                    // of the weights' level
} lsk_unit_values;

// How far a level reaches: over tokens, sequences or segments.
enum { LSK_REACH_TOKEN = 0, LSK_REACH_SEQUENCE = 1, LSK_REACH_SEGMENT = 2 };
static int reach_of(int32_t level) {
    return level == LSK_LEVEL_TOKEN ? LSK_REACH_TOKEN
           : level == LSK_LEVEL_SEGMENT_SUM || level == LSK_LEVEL_SEGMENT_MEAN ? LSK_REACH_SEGMENT
                                                                               : LSK_REACH_SEQUENCE;
}
static int is_mean(int32_t level) {
    return level == LSK_LEVEL_SEQUENCE_MEAN || level == LSK_LEVEL_SEGMENT_MEAN;
}

static double exp_of(double x) { return vd_exp(vd_splat(x))[0]; }

// The ratio whose logarithm is x, clamped; counts it if it was.
static double clamped_ratio(double x, int64_t *clamped, const lsk_correction_rule *all) {
    if (x < all->log_ratio_min || x > all->log_ratio_max) ++*clamped;
    x = x < all->log_ratio_max ? x : all->log_ratio_max;
    x = x > all->log_ratio_min ? x : all->log_ratio_min;
    return exp_of(x);
}

LSK_PASS sum_log_ratios(vd sum[LSK_MISMATCH_PARTS], const lsk_tokens *tokens) {
    for (int64_t at = 0; at < tokens->padded; at += LSK_MISMATCH_LANES)
        for (int part = 0; part < LSK_MISMATCH_PARTS; part++)
            sum[part] += log_ratio_at(tokens, LSK_TRAINER_ROLLOUT, at + part * LSK_LANES64);
}

// Finds what the unit `span` comes to, for all rules (and the weights) with this reach.
static void measure_unit(lsk_unit_values *unit, lsk_correction_sums *sums, const lsk_correction_span *span,
                         const lsk_correction_rule *all, const int reach) {
    const int weighs = reach_of(all->level) == reach;
    vd log_ratio[LSK_MISMATCH_PARTS] = {0};
    lsk_value_lanes lanes[LSK_REJECTIONS];
    int64_t count = 0;
    for (int64_t i = 0; i < all->rejection_count; i++) {
        start_values(&lanes[i]);
        if (reach_of(all->rejections[i].level) == reach) unit->failed[i] = 0;
    }
    lsk_tokens tokens;
    double statistics[LSK_MISMATCH_CHUNK];
    for (int64_t start = 0; start < span->count; start += LSK_MISMATCH_CHUNK) {
        load_tokens(&tokens, span, start, 1);
        count += tokens.number;
        if (weighs) sum_log_ratios(log_ratio, &tokens);
        for (int64_t i = 0; i < all->rejection_count; i++) {
            const lsk_rejection *rule = &all->rejections[i];
            if (reach_of(rule->level) != reach) continue;
            const int every = rule->level == LSK_LEVEL_SEQUENCE_EVERY;
            find_statistics(statistics, &tokens, rule, all, !every);
            add_values(&lanes[i], statistics, tokens.counted, tokens.padded);
            if (clamps_tokens(rule))
                count_clamped(&sums->rejections[i].clamped, &tokens, rule->policies, all);
            if (!every) continue;
            vl failed = {0};
            for (int64_t at = 0; at < tokens.padded; at += LSK_LANES64)
                failed |= load_bytes(tokens.counted + at) &
                          ~passes(vd_load(statistics + at), vd_load(tokens.advantages + at), rule);
            unit->failed[i] |= add_counts(failed) != 0;
        }
    }
    if (count == 0) return;
    if (weighs) {
        double x = add_lanes(log_ratio);
        if (is_mean(all->level)) x /= (double)count;
        unit->ratio = clamped_ratio(x, &sums->clamped, all);
    }
    for (int64_t i = 0; i < all->rejection_count; i++) {
        const lsk_rejection *rule = &all->rejections[i];
        lsk_rejection_sums *out = &sums->rejections[i];
        if (reach_of(rule->level) != reach) continue;
        if (rule->level == LSK_LEVEL_SEQUENCE_EVERY) {
            out->units += count;
            finish_values(out, &lanes[i]);
            continue;
        }
        double x = add_lanes(lanes[i].sum);
        if (is_mean(rule->level)) x /= (double)count;
        if (rule->statistic == LSK_STATISTIC_RATIO) x = clamped_ratio(x, &out->clamped, all);
        unit->statistics[i] = x;
        out->units++;
        out->sum += x;
        if (x < out->least) out->least = x;
        if (x > out->largest) out->largest = x;
    }
}

// The weight of a ratio.
LSK_INLINE vd weight_of(vd ratio, const lsk_correction_rule *all) {
    const vd low = vd_splat(all->low), high = vd_splat(all->high);
    switch (all->weights) {
    case LSK_WEIGHTS_ONE: return vd_splat(1);
    case LSK_WEIGHTS_TRUNCATE: return vd_min(ratio, high);
    case LSK_WEIGHTS_CLIP: return vd_max(vd_min(ratio, high), low);
    case LSK_WEIGHTS_MASK: return (vd)((vl)ratio & (ratio >= low) & (ratio <= high));
    default: return ratio;
    }
}

// Ratios and weights of tokens; counts what was clamped and what is outside the bounds.
LSK_PASS find_weights(double *ratios, double *weights, lsk_correction_sums *sums, const lsk_tokens *tokens,
                      const lsk_correction_rule *all) {
    vl clamped = {0}, below = {0}, above = {0};
    enum { P = LSK_MISMATCH_PARTS };
    for (int64_t at = 0; at < tokens->padded; at += LSK_MISMATCH_LANES) {
        // Side by side, as each step of the series waits for the one before.
        vd x[P], r[P], shifted[P], q_plus[P];
        LSK_UNROLL
        for (int part = 0; part < P; part++) {
            const int64_t i = at + part * LSK_LANES64;
            vd d = log_ratio_at(tokens, LSK_TRAINER_ROLLOUT, i);
            clamped -= load_bytes(tokens->counted + i) & is_outside(d, all->log_ratio_min, all->log_ratio_max);
            x[part] = vd_clamp(d, all->log_ratio_min, all->log_ratio_max);
            r[part] = vd_exp_rest(clamp_exponent(x[part]), shifted + part);
        }
        exp_series(P, q_plus, NULL, r);
        for (int part = 0; part < P; part++) {
            const int64_t i = at + part * LSK_LANES64;
            const vl counted = load_bytes(tokens->counted + i);
            const vd scale = vd_exp_scale(shifted[part]), finite = vd_fma(scale, r[part] + q_plus[part], scale);
            const vd ratio = vd_select(x[part] > vd_splat(LSK_EXP_LIMIT), vd_splat(__builtin_inf()), finite);
            below -= counted & (ratio < vd_splat(all->low));
            above -= counted & (ratio > vd_splat(all->high));
            vd_store(ratios + i, ratio);
            vd_store(weights + i, weight_of(ratio, all));
        }
    }
    sums->clamped += add_counts(clamped);
    sums->below += add_counts(below);
    sums->above += add_counts(above);
}

// Rejects tokens by a rule; `statistics` NULL: all have `unit`.
LSK_PASS reject(uint8_t *kept, lsk_rejection_sums *sums, const lsk_tokens *tokens, const double *statistics,
                double unit, const lsk_rejection *rule) {
    if (statistics == NULL && rule->side == LSK_SIDE_BOTH) {
        if (unit >= rule->low && unit <= rule->high) return;
        sums->tokens += tokens->number;
        memset(kept, 0, (size_t)tokens->padded);
        return;
    }
    vl rejected = {0};
    for (int64_t at = 0; at < tokens->padded; at += LSK_LANES64) {
        vd x = statistics ? vd_load(statistics + at) : vd_splat(unit);
        vl passed = passes(x, vd_load(tokens->advantages + at), rule);
        rejected -= load_bytes(tokens->counted + at) & ~passed;
        store_bytes(kept + at, load_bytes(kept + at) & passed);
    }
    sums->tokens += add_counts(rejected);
}

LSK_PASS reject_second_moment(uint8_t *kept, lsk_correction_sums *sums, const lsk_tokens *tokens,
                              double cut) {
    vl rejected = {0};
    for (int64_t at = 0; at < tokens->padded; at += LSK_LANES64) {
        vd d = log_ratio_at(tokens, LSK_TRAINER_ROLLOUT, at);
        vl beyond = d * d > vd_splat(cut);
        rejected -= load_bytes(tokens->counted + at) & beyond;
        store_bytes(kept + at, load_bytes(kept + at) & ~beyond);
    }
    sums->second_moment += add_counts(rejected);
}

// Writes the weights from `start` on: 0 where a token does not count. `weights` NULL: all have `unit`.
LSK_PASS write_weights(void *out, int32_t format, int64_t start, double *weights, double unit,
                       const lsk_tokens *tokens, double divisor) {
    if (weights == NULL && format == LSK_FP32) {
        const float weight = (float)(unit / divisor);
        float *floats = (float *)out + start;
        for (int64_t i = 0; i < tokens->count; i++) floats[i] = tokens->counted[i] ? weight : 0;
        return;
    }
    if (weights == NULL) {
        double *doubles = (double *)out + start;
        for (int64_t i = 0; i < tokens->count; i++) doubles[i] = tokens->counted[i] ? unit / divisor : 0;
        return;
    }
    for (int64_t at = 0; at < tokens->padded; at += LSK_LANES64) {
        vd w = vd_load(weights + at);
        if (divisor != 1) w = w / vd_splat(divisor);
        vd_store(weights + at, (vd)(load_bytes(tokens->counted + at) & (vl)w));
    }
    if (format == LSK_FP64) {
        memcpy((double *)out + start, weights, (size_t)tokens->count * 8);
    } else {
        float *floats = (float *)out + start;
        for (int64_t i = 0; i < tokens->count; i++) floats[i] = (float)weights[i];
    }
}

// Where the results of a sequence go, each NULL if not wanted.
typedef struct {
    void *weights;
    int32_t format;  // LSK_FP32 or LSK_FP64
    uint8_t *kept;
} lsk_correction_output;

// Weighs and judges the tokens of a span, which stands at `offset` in the outputs.
static void apply(lsk_correction_sums *sums, const lsk_correction_output *out, int64_t offset,
                  const lsk_correction_span *span, const lsk_unit_values *unit,
                  const lsk_correction_rule *all) {
    const int by_token = all->level == LSK_LEVEL_TOKEN;
    const double unit_weight = by_token ? 0 : weight_of(vd_splat(unit->ratio), all)[0];
    lsk_weight_lanes ratio_lanes = {0}, weight_lanes = {0}, kept_lanes = {0};
    start_values(&ratio_lanes.values);
    start_values(&weight_lanes.values);
    start_values(&kept_lanes.values);
    lsk_value_lanes lanes[LSK_REJECTIONS];
    for (int64_t i = 0; i < all->rejection_count; i++) start_values(&lanes[i]);

    const int cuts = all->second_moment_cut < __builtin_inf();
    const int rejects = cuts || all->rejection_count > 0;
    int keep = by_token || cuts;  // whether a value is asked for again
    for (int64_t i = 0; i < all->rejection_count; i++) keep |= all->rejections[i].level == LSK_LEVEL_TOKEN;

    lsk_tokens tokens;
    double ratios[LSK_MISMATCH_CHUNK], weights[LSK_MISMATCH_CHUNK], statistics[LSK_MISMATCH_CHUNK];
    uint8_t kept[LSK_MISMATCH_CHUNK];
    for (int64_t start = 0; start < span->count; start += LSK_MISMATCH_CHUNK) {
        sums->non_finite += load_tokens(&tokens, span, start, keep);
        sums->tokens += tokens.number;
        memcpy(kept, tokens.counted, (size_t)tokens.padded);

        if (by_token) find_weights(ratios, weights, sums, &tokens, all);
        for (int64_t i = 0; i < all->rejection_count; i++) {
            const lsk_rejection *rule = &all->rejections[i];
            lsk_rejection_sums *found = &sums->rejections[i];
            if (rule->level == LSK_LEVEL_TOKEN) {
                find_statistics(statistics, &tokens, rule, all, 0);
                add_values(&lanes[i], statistics, tokens.counted, tokens.padded);
                if (clamps_tokens(rule)) count_clamped(&found->clamped, &tokens, rule->policies, all);
                found->units += tokens.number;
                reject(kept, found, &tokens, statistics, 0, rule);
            } else if (rule->level == LSK_LEVEL_SEQUENCE_EVERY) {
                if (!unit->failed[i]) continue;
                found->tokens += tokens.number;
                memset(kept, 0, sizeof kept);
            } else {
                reject(kept, found, &tokens, NULL, unit->statistics[i], rule);
            }
        }
        if (cuts) reject_second_moment(kept, sums, &tokens, all->second_moment_cut);
        int64_t left = rejects ? 0 : tokens.number;
        for (int64_t i = 0; rejects && i < tokens.count; i++) left += kept[i];
        sums->kept += left;

        if (by_token) {
            add_weights(&ratio_lanes, ratios, tokens.counted, tokens.padded);
            add_weights(&weight_lanes, weights, tokens.counted, tokens.padded);
            if (rejects) add_weights(&kept_lanes, weights, kept, tokens.padded);
        }
        if (out->kept) memcpy(out->kept + offset + start, kept, (size_t)tokens.count);
        if (out->weights)
            write_weights(out->weights, out->format, offset + start, by_token ? weights : NULL, unit_weight,
                          &tokens, all->divisor);
    }
    if (by_token) {
        finish_weights(&sums->ratio, &ratio_lanes);
        finish_weights(&sums->weight, &weight_lanes);
        finish_weights(&sums->kept_weight, rejects ? &kept_lanes : &weight_lanes);
    }
    for (int64_t i = 0; i < all->rejection_count; i++)
        if (all->rejections[i].level == LSK_LEVEL_TOKEN) finish_values(&sums->rejections[i], &lanes[i]);
}

// Adds a sequence or segment to the statistics of weights, once it is known whether a token of it was kept.
static void add_weighed_unit(lsk_correction_sums *sums, const lsk_unit_values *unit, int kept,
                             const lsk_correction_rule *all) {
    const double weight = weight_of(vd_splat(unit->ratio), all)[0];
    sums->below += unit->ratio < all->low;
    sums->above += unit->ratio > all->high;
    add_unit(&sums->ratio, unit->ratio);
    add_unit(&sums->weight, weight);
    if (kept) add_unit(&sums->kept_weight, weight);
}

static void start_weights(lsk_weight_sums *sums) {
    memset(sums, 0, sizeof *sums);
    sums->least = __builtin_inf();
    sums->largest = -__builtin_inf();
}

// A part of a span.
static lsk_correction_span part_of(const lsk_correction_span *span, int64_t start, int64_t count) {
    lsk_correction_span part = *span;
    for (int policy = 0; policy < LSK_POLICIES; policy++)
        if (span->log_probs[policy])
            part.log_probs[policy] =
                (const char *)span->log_probs[policy] + start * size_of(span->formats[policy]);
    if (span->advantages)
        part.advantages = (const char *)span->advantages +
                          start * span->advantage_stride * size_of(span->advantage_format);
    if (span->mask) part.mask = span->mask + start;
    part.count = count;
    return part;
}

// Corrects the sequence `span`: writes its sums and, unless NULL, its weights (LSK_FP32 or LSK_FP64) and what
// is kept of it (1 or 0), one for each token.
static void correct_sequence(lsk_correction_sums *sums, void *weights, int32_t weights_format, uint8_t *kept,
                             const lsk_correction_span *span, const lsk_correction_rule *all) {
    memset(sums, 0, offsetof(lsk_correction_sums, ratio));
    start_weights(&sums->ratio);
    start_weights(&sums->weight);
    start_weights(&sums->kept_weight);
    int sequences = reach_of(all->level) == LSK_REACH_SEQUENCE;
    int segments = reach_of(all->level) == LSK_REACH_SEGMENT;
    for (int64_t i = 0; i < all->rejection_count; i++) {
        static const lsk_rejection_sums none = {.least = __builtin_inf(), .largest = -__builtin_inf()};
        sums->rejections[i] = none;
        sequences |= reach_of(all->rejections[i].level) == LSK_REACH_SEQUENCE;
        segments |= reach_of(all->rejections[i].level) == LSK_REACH_SEGMENT;
    }
    const lsk_correction_output out = {weights, weights_format, kept};
    lsk_unit_values unit;
    memset(&unit, 0, sizeof unit);
    if (sequences) measure_unit(&unit, sums, span, all, LSK_REACH_SEQUENCE);
    if (!segments) {
        apply(sums, &out, 0, span, &unit, all);
    } else {
        // Runs of counted tokens, and of others between them.
        for (int64_t start = 0; start < span->count;) {
            const int counted = is_counted_at(span, start);
            int64_t end = start + 1;
            while (end < span->count && is_counted_at(span, end) == counted) end++;
            const lsk_correction_span run = part_of(span, start, end - start);
            const int64_t kept_before = sums->kept;
            if (counted) measure_unit(&unit, sums, &run, all, LSK_REACH_SEGMENT);
            apply(sums, &out, start, &run, &unit, all);
            if (counted && reach_of(all->level) == LSK_REACH_SEGMENT)
                add_weighed_unit(sums, &unit, sums->kept > kept_before, all);
            start = end;
        }
    }
    if (reach_of(all->level) == LSK_REACH_SEQUENCE && sums->tokens > 0)
        add_weighed_unit(sums, &unit, sums->kept > 0, all);
}

// Appends to `values` the d^2 of the counted tokens that have `bound` or more; returns how many. Of the
// others writes the number, and the sum of d^2. `values` has room for all tokens of the span.
static int64_t correction_select(double *values, int64_t *count, double *sum, double bound,
                                 const lsk_correction_span *span) {
    int64_t found = 0;
    vl below = {0};
    vd total[LSK_MISMATCH_PARTS] = {0};
    lsk_tokens tokens;
    double squares[LSK_MISMATCH_CHUNK];
    uint8_t large[LSK_MISMATCH_CHUNK];
    for (int64_t start = 0; start < span->count; start += LSK_MISMATCH_CHUNK) {
        load_tokens(&tokens, span, start, 1);
        vl any = {0};
        for (int64_t at = 0; at < tokens.padded; at += LSK_MISMATCH_LANES) {
            for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
                const int64_t i = at + part * LSK_LANES64;
                vd d = log_ratio_at(&tokens, LSK_TRAINER_ROLLOUT, i), square = d * d;
                vl counted = load_bytes(tokens.counted + i), beyond = counted & (square >= vd_splat(bound));
                total[part] += (vd)(~beyond & (vl)square);
                below -= counted & ~beyond;
                any |= beyond;
                vd_store(squares + i, square);
                store_bytes(large + i, beyond);
            }
        }
        if (add_counts(any) == 0) continue;
        for (int64_t i = 0; i < tokens.count; i++)
            if (large[i]) values[found++] = squares[i];
    }
    *count = add_counts(below);
    *sum = add_lanes(total);
    return found;
}
