// Objectives: what a token contributes to the loss, and the gradient with respect to its log-prob. In
// float64. Lockstep/Reference/ReferenceObjective.swift says the same in scalars.
//
// objective_terms.h has what objectives are; here any of them is run over the tokens of a sequence.
#include "objective_terms.h"
#include "objective_tokens.h"
#include "objective_level.h"

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

// The ratio of a sequence for each of its tokens.
static void spread_level(lsk_objective_chunk *chunk, const lsk_objective_level *level, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
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

LSK_INLINE int is_shared(const lsk_objective_rule *rule) {
    return rule->level == LSK_RATIO_SEQUENCE || rule->level == LSK_RATIO_SEQUENCE_SUM;
}

LSK_PASS write_gradient(char *out, int32_t format, const lsk_objective_chunk *chunk,
                        const lsk_objective_rule *rule, double factor, double spread) {
    const int shared = is_shared(rule);
    for (int64_t i = 0; i < chunk->padded; i += LSK_LANES64) {
        vl moves = load_moves(chunk, i) & load_flags(chunk->counted, i);
        vd own = shared ? vd_splat(spread) : vd_load(chunk->by_log_ratio + i);
        vd slope = vd_load(chunk->by_current + i) + vd_if(moves, own);
        store_output(out, format, i, chunk->count, vd_splat(factor) * slope);
    }
}

LSK_PASS write_constant(char *out, int32_t format, const lsk_objective_chunk *chunk, double value) {
    for (int64_t i = 0; i < chunk->padded; i += LSK_LANES64)
        store_output(out, format, i, chunk->count, vd_if(load_flags(chunk->counted, i), vd_splat(value)));
}

#include "objective_plain.h"

// A gradient: NULL, or where it goes.
typedef struct {
    char *base;
    int32_t format;
} lsk_gradient;

// What the report has of a sequence's ratio.
static void add_level(lsk_objective_sums *sums, const lsk_objective_level *level, int64_t tokens) {
    sums->delta = level->delta;
    sums->k3 = level->k3;
    sums->ratio = (double)tokens * level->ratio;
    sums->ratio_min = sums->ratio_max = level->ratio;
    sums->clamped = level->inside ? 0 : tokens;
}

// Token by token. `spread`: what every token that moves its sequence's ratio does to the terms through it.
static void add_terms(lsk_objective_sums *sums, lsk_gradient gradient, lsk_gradient d_entropies,
                      const lsk_objective_span *all, const lsk_objective_rule *rule,
                      const lsk_objective_level *level, double factor, double spread) {
    const int uneven = level && (rule->level == LSK_RATIO_SEQUENCE_SUM || rule->term == LSK_GMPO);
    lsk_objective_span needed = *all;
    const lsk_objective_span *span = &needed;
    // All that a sequence's ratio wants of the trainer's log-probs is in `level`.
    if (level && !uneven && !rule->exclude) needed.input[LSK_INPUT_TRAINER] = NULL;
    const int64_t size = size_of(gradient.format), d_size = size_of(d_entropies.format);
    lsk_objective_chunk chunk;
    lsk_ratio_sums r = {0};
    lsk_term_sums t = {0};
    lsk_rest_sums e = {0};
    int64_t tokens = 0, begun = 0;
    for (int part = 0; part < LSK_PARTS; part++) {
        r.least[part] = vd_splat(__builtin_inf());
        r.most[part] = vd_splat(-__builtin_inf());
    }
    const lsk_objective_level none = {.ratio = 1};
    const int own_ratios = !level && span->input[LSK_INPUT_TRAINER];
    const int plain = own_ratios && !d_entropies.base && (!gradient.base || gradient.format == LSK_FP32) &&
                      is_plain_span(span, rule);
    for (int64_t start = 0; start < span->count; start += chunk.count) {
        const int any = load_masks(&chunk, span, rule, start);
        char *out = gradient.base ? gradient.base + start * size : NULL;
        char *d_out = d_entropies.base ? d_entropies.base + start * d_size : NULL;
        if (!any) {
            if (out) memset(out, 0, (size_t)(chunk.count * size));
            if (d_out) memset(d_out, 0, (size_t)(chunk.count * d_size));
            continue;
        }
        const int64_t counted = count_flags(chunk.counted);
        if (plain && counted == chunk.count) {
            const int64_t blocks = chunk.count / 8 * 8, rest = chunk.count - blocks;
            float *next = out ? (float *)out + blocks : NULL;
            if (!blocks || add_plain_objective(&r, &t, &e, (float *)out, factor, span, rule, start, blocks)) {
                if (!rest || add_plain_rest(&r, &t, &e, next, factor, span, rule, start + blocks, rest)) continue;
                if (blocks) {  // what is left of the last block is a chunk of its own
                    chunk.count = blocks;
                    continue;
                }
            }
        }
        if (chunk.padded > begun) {
            begun = chunk.padded;
            begin_chunks(&chunk, span, begun);
            if (!own_ratios) spread_level(&chunk, level ? level : &none, begun);
        }
        load_values(&chunk, span, rule, start);
        tokens += rule->exclude ? count_flags(chunk.counted) : counted;
        if (own_ratios) find_ratios(&r, &chunk, rule);
        if (uneven) find_moves(&chunk, level, rule);
        terms_passes[rule->term](&t, &chunk, rule, level);
        if (rule->kl == LSK_KL_K1) kl_k1(&e, &chunk, rule);
        if (rule->kl == LSK_KL_K2) kl_k2(&e, &chunk, rule);
        if (rule->kl == LSK_KL_K3) kl_k3(&e, &chunk, rule);
        if (rule->kl == LSK_KL_ABS) kl_abs(&e, &chunk, rule);
        if (span->input[LSK_INPUT_ENTROPY]) add_entropies(&e, &chunk);
        if (level) add_slopes(&e, &chunk);
        if (out) write_gradient(out, gradient.format, &chunk, rule, factor, spread);
        if (d_out)
            write_constant(d_out, d_entropies.format, &chunk, -rule->entropy_coefficient * factor);
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
        add_level(sums, level, tokens);
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

// ---- sequences whose tokens all do the same

// The term is a function of ratio and advantage: no token has a slope of its own.
LSK_INLINE int is_of_ratio(const lsk_objective_rule *rule) {
    return rule->kl == LSK_KL_NONE && (rule->term == LSK_CLIP || rule->term == LSK_IMPORTANCE ||
                                       rule->term == LSK_SAPO || rule->term == LSK_GMPO);
}

// Nothing goes through the ratio.
LSK_INLINE int is_of_current(const lsk_objective_rule *rule) {
    return (rule->kl == LSK_KL_NONE || rule->kl_gradient != LSK_KL_RATIO) &&
           (rule->term == LSK_REINFORCE || rule->term == LSK_CISPO || rule->term == LSK_TOPR ||
            rule->term == LSK_VESPO);
}

// add_terms where one advantage and one ratio are all that the terms are of, and every token acts. Returns what a
// token's log ratio does to its term.
static double add_even_terms(lsk_objective_sums *sums, const lsk_objective_span *span,
                           const lsk_objective_rule *rule, const lsk_objective_level *level) {
    lsk_token token = {.advantage = vd_splat(span->advantage), .ratio = vd_splat(level->ratio),
                       .log_ratio = vd_splat(level->log_ratio)};
    const lsk_term f = rule->term == LSK_CLIP   ? term_clip(token, rule)
                       : rule->term == LSK_SAPO ? term_sapo(token, rule)
                                                : term_importance(token);
    vd policy[LSK_PARTS] = {0}, slopes[LSK_PARTS] = {0};
    for (int64_t at = 0; at + 8 <= span->count; at += 8)
        LSK_EACH_PART {
            policy[part] += f.value;
            slopes[part] += f.by_log_ratio;
        }
    uint8_t rest[8];
    for (int i = 0; i < 8; i++) rest[i] = i < span->count % 8;
    LSK_EACH_PART {
        vl here = load_flags(rest, part * LSK_LANES64);
        policy[part] += vd_if(here, f.value);
        slopes[part] += vd_if(here, f.by_log_ratio);
    }
    sums->policy = add_lanes(policy);
    sums->by_log_ratio = add_lanes(slopes);
    sums->low = f.low[0] ? span->count : 0;
    sums->high = f.high[0] ? span->count : 0;
    sums->dual = f.dual[0] ? span->count : 0;
    add_level(sums, level, span->count);
    return f.by_log_ratio[0];
}

LSK_PASS fill_output(char *out, int32_t format, int64_t count, double value) {
    const vd wide = vd_splat(value);
    const vf_half narrow = __builtin_convertvector(wide, vf_half);
    int64_t at = 0;
    if (format == LSK_FP32)
        for (; at + LSK_LANES64 <= count; at += LSK_LANES64)
            __builtin_memcpy(out + at * 4, &narrow, sizeof narrow);
    for (; at < count; at += LSK_LANES64) store_output(out, format, at, count, wide);
}

// Writes `value` where a token counts.
static void write_even(lsk_gradient out, const lsk_objective_span *span, const lsk_objective_rule *rule,
                       const lsk_objective_level *level, double value) {
    if (!out.base) return;
    if (level->whole) {
        fill_output(out.base, out.format, span->count, value);
        return;
    }
    lsk_objective_chunk chunk;
    for (int64_t start = 0; start < span->count; start += LSK_OBJECTIVE_CHUNK) {
        load_masks(&chunk, span, rule, start);
        write_constant(out.base + start * size_of(out.format), out.format, &chunk, value);
    }
}

// The sums of a sequence and, unless NULL, the gradient with respect to its log-probs and its entropies, times
// `factor`. `level`: NULL where each token has a ratio of its own.
static void objective_terms(lsk_objective_sums *sums, void *gradient, int32_t format, void *d_entropies,
                            int32_t d_entropies_format, const lsk_objective_span *span,
                            const lsk_objective_rule *rule, const lsk_objective_level *level, double factor) {
    const lsk_gradient none = {0}, d_log_probs = {gradient, format};
    const lsk_gradient d_entropy = {d_entropies, d_entropies_format};
    const int shared = level && is_shared(rule), of_ratio = level && is_of_ratio(rule);
    const int even = of_ratio && level->whole && !span->input[LSK_INPUT_ADVANTAGE] &&
                     !span->input[LSK_INPUT_ENTROPY] &&
                     (rule->term == LSK_GMPO || !span->input[LSK_INPUT_WEIGHT]);
    memset(sums, 0, sizeof *sums);
    if (!even && !shared) {
        add_terms(sums, d_log_probs, d_entropy, span, rule, level, factor, 0);
        return;
    }
    // What a token's log-prob does to the terms of the whole sequence is known after a first pass.
    double own = 0;
    if (even) own = add_even_terms(sums, span, rule, level);
    else if (!is_of_current(rule)) add_terms(sums, none, none, span, rule, level, factor, 0);
    if (shared) own = rule->level == LSK_RATIO_SEQUENCE ? sums->by_log_ratio / (double)level->tokens
                                                        : sums->by_log_ratio;
    if (of_ratio && level->even && (level->whole || !rule->exclude)) {
        write_even(d_log_probs, span, rule, level, factor * (0.0 + (level->inside ? own : 0)));  // 0, not -0
        write_even(d_entropy, span, rule, level, -rule->entropy_coefficient * factor);
    } else {
        add_terms(sums, d_log_probs, d_entropy, span, rule, level, factor, own);
    }
}

// The estimate of each token and, unless NULL, its derivative, both times the weight; 0 where none counts.
static void objective_kl(void *values, int32_t format, void *gradients, int32_t gradients_format,
                         const lsk_objective_span *span, const lsk_objective_rule *rule) {
    lsk_objective_chunk chunk;
    begin_chunks(&chunk, span, LSK_OBJECTIVE_CHUNK);
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
