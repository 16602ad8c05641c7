// Objectives: what a token contributes to the loss, and the gradient with respect to its log-prob. In
// float64. Lockstep/Reference/ReferenceObjective.swift says the same in scalars.
//
// objective_terms.h has what objectives are; here any of them is run over the tokens of a sequence.
#include "objective_terms.h"
#include "objective_tokens.h"

// ---- ratios

// What is kept from chunk to chunk, in lanes: of ratios, terms and the rest.
typedef struct {
    vd delta[LSK_PARTS], k3[LSK_PARTS], ratio[LSK_PARTS], least[LSK_PARTS], most[LSK_PARTS];
    vl clamped[LSK_PARTS];
} lsk_ratio_sums;

typedef struct {
    vd policy[LSK_PARTS];
    vl low[LSK_PARTS], high[LSK_PARTS], dual[LSK_PARTS];
} lsk_term_sums;

typedef struct {
    vd kl[LSK_PARTS], kl_term[LSK_PARTS], entropy[LSK_PARTS], by_log_ratio[LSK_PARTS];
    vl kl_clamped[LSK_PARTS];
} lsk_rest_sums;

LSK_INLINE int64_t add_part_counts(const vl parts[LSK_PARTS]) {
    int64_t total = 0;
    for (int part = 0; part < LSK_PARTS; part++)
        for (int i = 0; i < LSK_LANES64; i++) total += parts[part][i];
    return total;
}

// delta, 0 where no token counts.
LSK_INLINE vd load_delta(const lsk_objective_chunk *chunk, vl counted, int64_t at) {
    vd current = vd_load(chunk->value[LSK_INPUT_CURRENT] + at);
    return vd_if(counted, current - vd_load(chunk->value[LSK_INPUT_TRAINER] + at));
}

LSK_INLINE vd k3_from(vd_exp_parts e, vd x) {
    return vd_fma(e.scale, e.q_plus, (e.scale - 1) + vd_fma(e.scale, e.r, -x));
}

// The ratio of each token.
LSK_PASS find_ratios(lsk_ratio_sums *sums, lsk_objective_chunk *chunk, const lsk_objective_rule *rule) {
    const vd low = vd_splat(rule->log_ratio_min), high = vd_splat(rule->log_ratio_max);
    lsk_ratio_sums s = *sums;
    for (int64_t at = 0; at < chunk->padded; at += 8) {
        LSK_EACH_PART {
            int64_t i = at + part * LSK_LANES64;
            vl counted = load_flags(chunk->counted, i);
            vd delta = load_delta(chunk, counted, i), x = vd_hold(delta, low, high);
            vl moves = counted & (x == delta);
            vd_exp_parts e = vd_split_exp(x);
            vd ratio = vd_fma(e.scale, e.r + e.q_plus, e.scale);
            vd_store(chunk->log_ratio + i, x);
            vd_store(chunk->ratio + i, ratio);
            __builtin_memcpy(chunk->moves + i, &moves, sizeof moves);
            s.delta[part] += x;
            s.k3[part] += k3_from(e, x);
            s.ratio[part] += vd_if(counted, ratio);
            s.least[part] = vd_select(counted, vd_min(ratio, s.least[part]), s.least[part]);
            s.most[part] = vd_select(counted, vd_max(ratio, s.most[part]), s.most[part]);
            s.clamped[part] += counted & ~moves & 1;
        }
    }
    *sums = s;
}

// A log-prob's part in the log ratio of its sequence, and whether it moves it. GMPO's is held at the bounds
// that the sign of A is held at; a sum's is clamped.
LSK_INLINE vd share_of(vl *moves, vd delta, vd advantage, const lsk_objective_rule *rule) {
    vd x = vd_hold(delta, vd_splat(rule->log_ratio_min), vd_splat(rule->log_ratio_max));
    *moves = x == delta;
    if (rule->term != LSK_GMPO) return x;
    const vd low = vd_splat(rule->log_low), high = vd_splat(rule->log_high);
    vl up = advantage > 0, down = advantage < 0;
    *moves &= (up & (x <= high)) | (down & (x >= low));
    return vd_if(up, vd_min(x, high)) + vd_if(down, vd_max(x, low));
}

// ln w of a weight held in [1e-8, e^20], as plain operations: see `logarithm` in Swift.
LSK_INLINE vd vd_log_weight(vd w) {
    w = vd_hold(w, vd_splat(1e-8), vd_splat(0x1.ceb088b68e804p28));
    vl exponent = ((vl)w >> 52) - 1023;
    vd m = (vd)(((vl)w & 0xfffffffffffff) | 0x3ff0000000000000);
    vl big = m > 1.4142135623730951;
    m = vd_select(big, m * 0.5, m);
    exponent -= big;
    vd f = m - 1, s = f / (m + 1), z = s * s, series = vd_splat(1.0 / 23);
    LSK_UNROLL for (int k = 21; k >= 3; k -= 2) series = series * z + 1.0 / k;
    vd tail = s * (2 * z * series) - s * f, e = __builtin_convertvector(exponent, vd);
    return e * 0x1.62e42feep-1 + (f + (tail + e * 0x1.a39ef35793c76p-33));
}

// The ratio of a sequence.
static void objective_level(lsk_objective_level *level, const lsk_objective_span *span,
                            const lsk_objective_rule *rule) {
    const vd least = vd_splat(rule->log_ratio_min), most = vd_splat(rule->log_ratio_max);
    const int sum = rule->level == LSK_RATIO_SEQUENCE_SUM, gmpo = rule->term == LSK_GMPO;
    const int weighted = span->input[LSK_INPUT_WEIGHT] && (gmpo || rule->term == LSK_VESPO);
    vd total[LSK_PARTS] = {0}, weights[LSK_PARTS] = {0}, delta_sum[LSK_PARTS] = {0}, k3[LSK_PARTS] = {0};
    vl tokens[LSK_PARTS] = {0};
    lsk_objective_chunk chunk;
    begin_chunks(&chunk, span);
    for (int64_t start = 0; start < span->count; start += LSK_OBJECTIVE_CHUNK) {
        if (!load_objective(&chunk, span, rule, start)) continue;
        for (int64_t at = 0; at < chunk.padded; at += 8) {
            LSK_EACH_PART {
                int64_t i = at + part * LSK_LANES64;
                vl counted = load_flags(chunk.counted, i), moves;
                vd delta = load_delta(&chunk, counted, i), x = vd_hold(delta, least, most);
                vd advantage = vd_load(chunk.value[LSK_INPUT_ADVANTAGE] + i);
                total[part] +=
                    sum || gmpo ? vd_if(counted, share_of(&moves, delta, advantage, rule)) : delta;
                delta_sum[part] += delta;
                k3[part] += k3_from(vd_split_exp(x), x);
                tokens[part] += counted & 1;
                if (weighted)
                    weights[part] +=
                        vd_if(counted, vd_log_weight(vd_load(chunk.value[LSK_INPUT_WEIGHT] + i)));
            }
        }
    }
    const int64_t n = add_part_counts(tokens);
    vd x = vd_splat(add_lanes(total)), weight = vd_splat(weighted ? add_lanes(weights) : 0);
    if (n > 0 && !sum) {
        x /= (double)n;
        weight /= (double)n;
    }
    vd low = least;
    if (rule->term == LSK_VESPO) {
        x += weight;
        low = vd_max(low, vd_splat(-0x1.26bb1bbb55516p4));  // ln 1e-8
    }
    vd held = vd_hold(x, low, most), ratio = vd_exp(held);
    if (gmpo) ratio *= vd_exp(weight);
    level->log_ratio = held[0];
    level->ratio = ratio[0];
    level->inside = (held == x)[0];
    const double rise = rule->rate_positive, fall = rule->rate_negative;
    level->phi_positive = vd_exp(rise + rule->shape_positive * held - rise * ratio)[0];
    level->phi_negative = vd_exp(fall + rule->shape_negative * held - fall * ratio)[0];
    level->delta = add_lanes(delta_sum);
    level->k3 = add_lanes(k3);
}

// The ratio of a sequence for each of its tokens.
static void spread_level(lsk_objective_chunk *chunk, const lsk_objective_level *level) {
    for (int i = 0; i < LSK_OBJECTIVE_CHUNK; i++) {
        chunk->log_ratio[i] = level->log_ratio;
        chunk->ratio[i] = level->ratio;
        chunk->moves[i] = level->inside;
    }
}

// Whether each token moves its sequence's ratio, where not all do alike.
LSK_PASS find_moves(lsk_objective_chunk *chunk, const lsk_objective_level *level,
                    const lsk_objective_rule *rule) {
    for (int64_t i = 0; i < chunk->padded; i += LSK_LANES64) {
        vl moves;
        vd delta = load_delta(chunk, load_flags(chunk->counted, i), i);
        share_of(&moves, delta, vd_load(chunk->value[LSK_INPUT_ADVANTAGE] + i), rule);
        moves &= level->inside;
        __builtin_memcpy(chunk->moves + i, &moves, sizeof moves);
    }
}

// ---- terms and what goes with them

LSK_INLINE void terms_pass(const int term, lsk_term_sums *sums, lsk_objective_chunk *chunk,
                           const lsk_objective_rule *rule, const lsk_objective_level *level) {
    lsk_term_sums s = *sums;
    for (int64_t at = 0; at < chunk->padded; at += 8) {
        LSK_EACH_PART {
            int64_t i = at + part * LSK_LANES64;
            vl counted = load_flags(chunk->counted, i), acting = load_flags(chunk->acting, i);
            lsk_token t = {
                .advantage = vd_load(chunk->value[LSK_INPUT_ADVANTAGE] + i),
                .ratio = vd_load(chunk->ratio + i),
                .log_ratio = vd_load(chunk->log_ratio + i),
                .current = vd_load(chunk->value[LSK_INPUT_CURRENT] + i),
                .selected = load_flags(chunk->selected, i)};
            lsk_term f = term_of(term, t, rule, level);
            // The weights of these two are in the ratio of the sequence.
            vd weight = term == LSK_GMPO || term == LSK_VESPO ? vd_splat(1)
                                                              : vd_load(chunk->value[LSK_INPUT_WEIGHT] + i);
            s.policy[part] += vd_if(acting, weight * f.value);
            vd_store(chunk->by_log_ratio + i, vd_if(acting, weight * f.by_log_ratio));
            vd_store(chunk->by_current + i, vd_if(acting, weight * f.by_current));
            s.low[part] += counted & f.low & 1;
            s.high[part] += counted & f.high & 1;
            s.dual[part] += counted & f.dual & 1;
        }
    }
    *sums = s;
}

#define LSK_TERMS(name, term) \
    LSK_PASS terms_##name(lsk_term_sums *sums, lsk_objective_chunk *chunk, const lsk_objective_rule *rule, \
                          const lsk_objective_level *level) { \
        terms_pass(term, sums, chunk, rule, level); \
    }
LSK_TERMS(reinforce, LSK_REINFORCE)
LSK_TERMS(importance, LSK_IMPORTANCE)
LSK_TERMS(clip, LSK_CLIP)
LSK_TERMS(cispo, LSK_CISPO)
LSK_TERMS(sapo, LSK_SAPO)
LSK_TERMS(topr, LSK_TOPR)
LSK_TERMS(squared, LSK_SQUARED)
LSK_TERMS(kl_cov, LSK_KL_COV)
LSK_TERMS(gmpo, LSK_GMPO)
LSK_TERMS(vespo, LSK_VESPO)

typedef void lsk_terms(lsk_term_sums *sums, lsk_objective_chunk *chunk, const lsk_objective_rule *rule,
                       const lsk_objective_level *level);
static lsk_terms *const terms_passes[] = {
    [LSK_REINFORCE] = terms_reinforce, [LSK_IMPORTANCE] = terms_importance, [LSK_CLIP] = terms_clip,
    [LSK_CISPO] = terms_cispo, [LSK_SAPO] = terms_sapo, [LSK_TOPR] = terms_topr,
    [LSK_SQUARED] = terms_squared, [LSK_KL_COV] = terms_kl_cov, [LSK_GMPO] = terms_gmpo,
    [LSK_VESPO] = terms_vespo};

// An estimate within its clamps. `open`: none of them acts.
LSK_INLINE lsk_estimate held_estimate(vl *open, const int estimator, vd apart,
                                      const lsk_objective_rule *rule) {
    const vd input = vd_splat(rule->kl_input), output = vd_splat(rule->kl_output);
    vd x = vd_hold(apart, -input, input);
    lsk_estimate e = estimate_of(estimator, x);
    *open = (x == apart) & vd_within(e.value, -output, output);
    if (rule->kl_gradient == LSK_KL_SCORE) e.slope += e.value;
    e.slope = rule->kl_gradient == LSK_KL_OF_K2 ? -apart : vd_if(*open, e.slope);
    e.value = vd_hold(e.value, -output, output);
    return e;
}

LSK_INLINE void kl_pass(const int estimator, lsk_rest_sums *sums, lsk_objective_chunk *chunk,
                        const lsk_objective_rule *rule) {
    lsk_rest_sums s = *sums;
    for (int64_t at = 0; at < chunk->padded; at += 8) {
        LSK_EACH_PART {
            int64_t i = at + part * LSK_LANES64;
            vl counted = load_flags(chunk->counted, i), open;
            vd current = vd_load(chunk->value[LSK_INPUT_CURRENT] + i);
            vd apart = vd_load(chunk->value[LSK_INPUT_REFERENCE] + i) - current;
            lsk_estimate e = held_estimate(&open, estimator, apart, rule);
            s.kl[part] += vd_if(counted, e.value);
            if (rule->kl_gradient == LSK_KL_RATIO) {
                vd ratio = vd_load(chunk->ratio + i);
                e.value *= ratio;
                e.slope *= ratio;
                vd slope = vd_if(counted, rule->kl_coefficient * e.value);
                vd_store(chunk->by_log_ratio + i, vd_load(chunk->by_log_ratio + i) + slope);
            }
            s.kl_term[part] += vd_if(counted, e.value);
            s.kl_clamped[part] += counted & ~open & 1;
            vd slope = vd_if(counted, rule->kl_coefficient * e.slope);
            vd_store(chunk->by_current + i, vd_load(chunk->by_current + i) + slope);
        }
    }
    *sums = s;
}

#define LSK_KL(name, estimator) \
    LSK_PASS name(lsk_rest_sums *sums, lsk_objective_chunk *chunk, const lsk_objective_rule *rule) { \
        kl_pass(estimator, sums, chunk, rule); \
    }
LSK_KL(kl_k1, LSK_KL_K1)
LSK_KL(kl_k2, LSK_KL_K2)
LSK_KL(kl_k3, LSK_KL_K3)
LSK_KL(kl_abs, LSK_KL_ABS)

LSK_PASS add_entropies(lsk_rest_sums *sums, const lsk_objective_chunk *chunk) {
    for (int64_t at = 0; at < chunk->padded; at += 8)
        LSK_EACH_PART {
            int64_t i = at + part * LSK_LANES64;
            sums->entropy[part] +=
                vd_if(load_flags(chunk->counted, i), vd_load(chunk->value[LSK_INPUT_ENTROPY] + i));
        }
}

LSK_PASS add_slopes(lsk_rest_sums *sums, const lsk_objective_chunk *chunk) {
    for (int64_t at = 0; at < chunk->padded; at += 8)
        LSK_EACH_PART sums->by_log_ratio[part] += vd_load(chunk->by_log_ratio + at + part * LSK_LANES64);
}

// Writes one register of an output, or what of it is left.
LSK_INLINE void store_output(char *out, int32_t format, int64_t at, int64_t count, vd x) {
    const int64_t left = count - at;
    vf_half narrow = __builtin_convertvector(x, vf_half);
    if (left >= LSK_LANES64) {
        if (format == LSK_FP64) __builtin_memcpy(out + at * 8, &x, sizeof x);
        else __builtin_memcpy(out + at * 4, &narrow, sizeof narrow);
    } else if (left > 0) {
        if (format == LSK_FP64) memcpy(out + at * 8, &x, (size_t)left * 8);
        else memcpy(out + at * 4, &narrow, (size_t)left * 4);
    }
}

LSK_PASS write_gradient(char *out, int32_t format, const lsk_objective_chunk *chunk,
                        const lsk_objective_scale *scale, const lsk_objective_rule *rule) {
    const vd factor = vd_splat(scale->factor), spread = vd_splat(scale->spread);
    const int shared = rule->level == LSK_RATIO_SEQUENCE || rule->level == LSK_RATIO_SEQUENCE_SUM;
    for (int64_t i = 0; i < chunk->padded; i += LSK_LANES64) {
        vl moves = load_moves(chunk, i) & load_flags(chunk->counted, i);
        vd own = shared ? spread : vd_load(chunk->by_log_ratio + i);
        vd slope = vd_load(chunk->by_current + i) + vd_if(moves, own);
        store_output(out, format, i, chunk->count, factor * slope);
    }
}

LSK_PASS write_constant(char *out, int32_t format, const lsk_objective_chunk *chunk, double value) {
    for (int64_t i = 0; i < chunk->padded; i += LSK_LANES64)
        store_output(out, format, i, chunk->count, vd_if(load_flags(chunk->counted, i), vd_splat(value)));
}

// The sums of a sequence and, unless NULL, the gradient with respect to its log-probs and its entropies.
// `level`: NULL where each token has a ratio of its own.
static void objective_terms(lsk_objective_sums *sums, void *gradient, int32_t format, void *d_entropies,
                            int32_t d_entropies_format, const lsk_objective_span *all,
                            const lsk_objective_rule *rule, const lsk_objective_level *level,
                            const lsk_objective_scale *scale) {
    const int uneven = level && (rule->level == LSK_RATIO_SEQUENCE_SUM || rule->term == LSK_GMPO);
    lsk_objective_span needed = *all;
    const lsk_objective_span *span = &needed;
    // All that a sequence's ratio wants of the trainer's log-probs is in `level`.
    if (level && !uneven && !rule->exclude) needed.input[LSK_INPUT_TRAINER] = NULL;
    const int64_t size = size_of(format), d_size = size_of(d_entropies_format);
    lsk_objective_chunk chunk;
    lsk_ratio_sums r = {0};
    lsk_term_sums t = {0};
    lsk_rest_sums e = {0};
    int64_t tokens = 0;
    for (int part = 0; part < LSK_PARTS; part++) {
        r.least[part] = vd_splat(__builtin_inf());
        r.most[part] = vd_splat(-__builtin_inf());
    }
    begin_chunks(&chunk, span);
    const lsk_objective_level none = {.ratio = 1};
    const int own_ratios = !level && span->input[LSK_INPUT_TRAINER];
    if (!own_ratios) spread_level(&chunk, level ? level : &none);
    for (int64_t start = 0; start < span->count; start += LSK_OBJECTIVE_CHUNK) {
        char *out = gradient ? (char *)gradient + start * size : NULL;
        char *d_out = d_entropies ? (char *)d_entropies + start * d_size : NULL;
        if (!load_objective(&chunk, span, rule, start)) {
            if (out) memset(out, 0, (size_t)(chunk.count * size));
            if (d_out) memset(d_out, 0, (size_t)(chunk.count * d_size));
            continue;
        }
        tokens += count_flags(chunk.counted);
        if (own_ratios) find_ratios(&r, &chunk, rule);
        if (uneven) find_moves(&chunk, level, rule);
        terms_passes[rule->term](&t, &chunk, rule, level);
        if (rule->kl == LSK_KL_K1) kl_k1(&e, &chunk, rule);
        if (rule->kl == LSK_KL_K2) kl_k2(&e, &chunk, rule);
        if (rule->kl == LSK_KL_K3) kl_k3(&e, &chunk, rule);
        if (rule->kl == LSK_KL_ABS) kl_abs(&e, &chunk, rule);
        if (span->input[LSK_INPUT_ENTROPY]) add_entropies(&e, &chunk);
        if (level) add_slopes(&e, &chunk);
        if (out) write_gradient(out, format, &chunk, scale, rule);
        if (d_out)
            write_constant(d_out, d_entropies_format, &chunk, -rule->entropy_coefficient * scale->factor);
    }
    sums->policy = add_lanes(t.policy);
    sums->kl = add_lanes(e.kl);
    sums->kl_term = add_lanes(e.kl_term);
    sums->entropy = add_lanes(e.entropy);
    sums->by_log_ratio = add_lanes(e.by_log_ratio);
    sums->low = add_part_counts(t.low);
    sums->high = add_part_counts(t.high);
    sums->dual = add_part_counts(t.dual);
    sums->kl_clamped = add_part_counts(e.kl_clamped);
    if (level) {
        sums->delta = level->delta;
        sums->k3 = level->k3;
        sums->ratio = (double)tokens * level->ratio;
        sums->ratio_min = sums->ratio_max = level->ratio;
        sums->clamped = level->inside ? 0 : tokens;
        return;
    }
    sums->delta = add_lanes(r.delta);
    sums->k3 = add_lanes(r.k3);
    sums->ratio = add_lanes(r.ratio);
    sums->ratio_min = __builtin_inf();
    sums->ratio_max = -__builtin_inf();
    for (int part = 0; part < LSK_PARTS; part++)
        for (int i = 0; i < LSK_LANES64; i++) {
            if (r.least[part][i] < sums->ratio_min) sums->ratio_min = r.least[part][i];
            if (r.most[part][i] > sums->ratio_max) sums->ratio_max = r.most[part][i];
        }
    sums->clamped = add_part_counts(r.clamped);
}

// The estimate of each token and, unless NULL, its derivative, both times the weight; 0 where none counts.
static void objective_kl(void *values, int32_t format, void *gradients, int32_t gradients_format,
                         const lsk_objective_span *span, const lsk_objective_rule *rule) {
    lsk_objective_chunk chunk;
    begin_chunks(&chunk, span);
    for (int64_t start = 0; start < span->count; start += LSK_OBJECTIVE_CHUNK) {
        char *out = (char *)values + start * size_of(format);
        char *d_out = gradients ? (char *)gradients + start * size_of(gradients_format) : NULL;
        if (!load_objective(&chunk, span, rule, start)) {
            memset(out, 0, (size_t)(chunk.count * size_of(format)));
            if (d_out) memset(d_out, 0, (size_t)(chunk.count * size_of(gradients_format)));
            continue;
        }
        for (int64_t i = 0; i < chunk.padded; i += LSK_LANES64) {
            vl counted = load_flags(chunk.counted, i), open;
            vd current = vd_load(chunk.value[LSK_INPUT_CURRENT] + i);
            vd apart = vd_load(chunk.value[LSK_INPUT_REFERENCE] + i) - current;
            vd weight = rule->kl_coefficient * vd_load(chunk.value[LSK_INPUT_WEIGHT] + i);
            lsk_estimate e = held_estimate(&open, rule->kl, apart, rule);
            store_output(out, format, i, chunk.count, vd_if(counted, weight * e.value));
            vd slope = vd_if(counted, weight * e.slope);
            if (d_out) store_output(d_out, gradients_format, i, chunk.count, slope);
        }
    }
}
