// The usual case, without masks: fp32, one advantage a sequence, blocks of 8 tokens that all count and act. Bit for bit
// what the passes of objective.h make of it.

LSK_INLINE vd widen_at(const float *p, int64_t at) {
    vf_half v;
    __builtin_memcpy(&v, p + at, sizeof v);
    return __builtin_convertvector(v, vd);
}

// Whether one of 8 lanes is.
LSK_INLINE int any_beyond(const vd x[LSK_PARTS], vd bound) {
    vl beyond = {0};
    LSK_EACH_PART beyond |= vd_abs(x[part]) > bound;
    return __builtin_expect(__builtin_reduce_or(beyond) != 0, 0);
}

// Whether a span is of that kind, but for its masks.
static int is_plain_span(const lsk_objective_span *span, const lsk_objective_rule *rule) {
    int plain = !span->kept && !span->selected && !rule->exclude && !span->input[LSK_INPUT_ENTROPY] &&
                !span->input[LSK_INPUT_ADVANTAGE] && span->input[LSK_INPUT_TRAINER] &&
                ((rule->term == LSK_CLIP && rule->ratio_max == __builtin_inf()) || rule->term == LSK_IMPORTANCE ||
                 rule->term == LSK_CISPO) &&
                (rule->kl == LSK_KL_NONE || (rule->kl == LSK_KL_K3 && rule->kl_gradient == LSK_KL_DIRECT));
    for (int input = 0; input < LSK_OBJECTIVE_INPUTS; input++)
        plain &= !span->input[input] || span->format[input] == LSK_FP32;
    return plain;
}

// The ratios. Where no log ratio is far from 0, as is usual, the exponential is the series alone. Returns 0, with the
// sums as they were, if one is clamped.
static int plain_ratios(lsk_ratio_sums *sums, double *ratios, const float *current, const float *trainer,
                        int64_t count, const lsk_objective_rule *rule) {
    const vd low = vd_splat(rule->log_ratio_min), high = vd_splat(rule->log_ratio_max);
    const vd near = vd_min(vd_splat(LSK_EXP_NEAR), vd_min(high, -low));
    vd delta_sum[LSK_PARTS], k3_sum[LSK_PARTS], ratio_sum[LSK_PARTS];
    LSK_EACH_PART {
        delta_sum[part] = sums->delta[part];
        k3_sum[part] = sums->k3[part];
        ratio_sum[part] = sums->ratio[part];
    }
    for (int64_t at = 0; at < count; at += 8) {
        vd delta[LSK_PARTS], ratio[LSK_PARTS], k3[LSK_PARTS];
        LSK_EACH_PART {
            const int64_t i = at + part * LSK_LANES64;
            delta[part] = widen_at(current, i) - widen_at(trainer, i);
        }
        if (any_beyond(delta, near)) {
            vl clamped = {0};
            LSK_EACH_PART {
                clamped |= vd_hold(delta[part], low, high) != delta[part];
                vd_exp_parts e = vd_split_exp(vd_hold(delta[part], low, high));
                ratio[part] = vd_fma(e.scale, e.r + e.q_plus, e.scale);
                k3[part] = k3_from(e, delta[part]);
            }
            if (__builtin_reduce_or(clamped)) return 0;
        } else {
            exp_series(LSK_PARTS, k3, NULL, delta);
            LSK_EACH_PART ratio[part] = vd_splat(1) + (delta[part] + k3[part]);
        }
        LSK_EACH_PART {
            vd_store(ratios + at + part * LSK_LANES64, ratio[part]);
            delta_sum[part] += delta[part];
            k3_sum[part] += k3[part];
            ratio_sum[part] += ratio[part];
        }
    }
    LSK_EACH_PART {
        sums->delta[part] = delta_sum[part];
        sums->k3[part] = k3_sum[part];
        sums->ratio[part] = ratio_sum[part];
    }
    return 1;
}

// term_clip of one advantage without ratio_max: a token held at a bound of the ratio is outside it.
LSK_INLINE lsk_term term_clip_even(double advantage, vd ratio, const lsk_objective_rule *rule) {
    const double infinity = __builtin_inf();
    const vd scale = vd_splat(-advantage), bound = vd_splat(advantage < 0 ? -advantage * rule->dual : infinity);
    vd plain = scale * ratio, held = scale * vd_hold(ratio, vd_splat(rule->low), vd_splat(rule->high));
    vd value = vd_max(held, plain);
    vl dual = value > bound, stands = (held > plain) | dual;
    return (lsk_term){.value = vd_min(bound, value), .by_log_ratio = (vd)(~stands & (vl)value),
                      .low = ratio < vd_splat(advantage < 0 ? rule->low : -infinity),
                      .high = ratio > vd_splat(advantage > 0 ? rule->high : infinity), .dual = dual};
}

// The terms; their slopes go to `slopes`, or times `factor` to `out`.
LSK_INLINE void plain_terms(const int term, lsk_ratio_sums *r, lsk_term_sums *t, const double *ratios, double *slopes,
                            float *out, double factor, const float *current, const float *weights, int64_t count,
                            double advantage, const lsk_objective_rule *rule) {
    vd least[LSK_PARTS], most[LSK_PARTS], policy[LSK_PARTS];
    LSK_EACH_PART {
        least[part] = r->least[part];
        most[part] = r->most[part];
        policy[part] = t->policy[part];
    }
    // Of a ratio between the bounds, as most are, the clipped term is the plain one; the dual bound is beyond, or all are
    // looked at.
    const vd low = vd_splat(rule->dual < rule->high ? __builtin_inf() : rule->low), high = vd_splat(rule->high);
    for (int64_t at = 0; at < count; at += 8) {
        lsk_term f[LSK_PARTS];
        vl held = {0};
        LSK_EACH_PART {
            const int64_t i = at + part * LSK_LANES64;
            vd ratio = vd_load(ratios + i);
            least[part] = vd_min(ratio, least[part]);
            most[part] = vd_max(ratio, most[part]);
            lsk_token token = {.advantage = vd_splat(advantage), .ratio = ratio};
            if (term == LSK_CISPO) token.current = widen_at(current, i);
            f[part] = term == LSK_CLIP ? term_importance(token) : term_of(term, token, rule, NULL);
            held |= term == LSK_CLIP ? (ratio < low) | (ratio > high) : f[part].low | f[part].high | f[part].dual;
        }
        if (__builtin_expect(__builtin_reduce_or(held) != 0, 0))
            LSK_EACH_PART {
                if (term == LSK_CLIP) f[part] = term_clip_even(advantage, vd_load(ratios + at + part * LSK_LANES64), rule);
                t->low[part] -= f[part].low;
                t->high[part] -= f[part].high;
                t->dual[part] -= f[part].dual;
            }
        LSK_EACH_PART {
            const int64_t i = at + part * LSK_LANES64;
            vd slope = term == LSK_CISPO ? f[part].by_current : f[part].by_log_ratio;
            if (weights) {
                vd weight = widen_at(weights, i);
                f[part].value *= weight;
                slope *= weight;
            }
            policy[part] += f[part].value;
            if (slopes) {
                vd_store(slopes + i, slope);
            } else if (out) {
                vf_half narrow = __builtin_convertvector(vd_splat(factor) * (slope + 0.0), vf_half);
                __builtin_memcpy(out + i, &narrow, sizeof narrow);
            }
        }
    }
    LSK_EACH_PART {
        r->least[part] = least[part];
        r->most[part] = most[part];
        t->policy[part] = policy[part];
    }
}

#define LSK_PLAIN(name, term) \
    LSK_PASS name(lsk_ratio_sums *r, lsk_term_sums *t, const double *ratios, double *slopes, float *out, \
                  double factor, const float *current, const float *weights, int64_t count, double advantage, \
                  const lsk_objective_rule *rule) { \
        plain_terms(term, r, t, ratios, slopes, out, factor, current, weights, count, advantage, rule); \
    }
LSK_PLAIN(plain_clip, LSK_CLIP)
LSK_PLAIN(plain_importance, LSK_IMPORTANCE)
LSK_PLAIN(plain_cispo, LSK_CISPO)

// k3 of the reference, and the gradient of all.
LSK_PASS plain_k3(lsk_rest_sums *sums, float *out, double factor, const double *slopes, const float *current,
                  const float *reference, int64_t count, const lsk_objective_rule *rule) {
    // The estimate is below 1 there.
    const vd near = rule->kl_output < 1 ? vd_splat(-1) : vd_min(vd_splat(LSK_EXP_NEAR), vd_splat(rule->kl_input));
    const int through_ratio = rule->term != LSK_CISPO;
    vd kl[LSK_PARTS];
    LSK_EACH_PART kl[part] = sums->kl[part];
    for (int64_t at = 0; at < count; at += 8) {
        vd apart[LSK_PARTS], value[LSK_PARTS], pull[LSK_PARTS];
        LSK_EACH_PART {
            const int64_t i = at + part * LSK_LANES64;
            apart[part] = widen_at(reference, i) - widen_at(current, i);
        }
        if (any_beyond(apart, near)) {
            LSK_EACH_PART {
                vl open;
                lsk_estimate d = held_estimate(&open, LSK_KL_K3, apart[part], rule);
                value[part] = d.value;
                pull[part] = rule->kl_coefficient * d.slope;
                sums->kl_clamped[part] += ~open & 1;
            }
        } else {
            exp_series(LSK_PARTS, value, NULL, apart);
            LSK_EACH_PART pull[part] = rule->kl_coefficient * -(apart[part] + value[part]);
        }
        LSK_EACH_PART {
            const int64_t i = at + part * LSK_LANES64;
            kl[part] += value[part];
            vd own = vd_load(slopes + i), slope = through_ratio ? (pull[part] + 0.0) + own : (own + pull[part]) + 0.0;
            if (!out) continue;
            vf_half narrow = __builtin_convertvector(vd_splat(factor) * slope, vf_half);
            __builtin_memcpy(out + i, &narrow, sizeof narrow);
        }
    }
    LSK_EACH_PART sums->kl[part] = sums->kl_term[part] = kl[part];
}

// `count` tokens from `start` on, a multiple of 8 and at most a chunk. Returns 0, with nothing done, if they are not of
// that kind after all.
static int add_plain_objective(lsk_ratio_sums *r, lsk_term_sums *t, lsk_rest_sums *e, float *out, double factor,
                               const lsk_objective_span *span, const lsk_objective_rule *rule, int64_t start,
                               int64_t count) {
    double ratios[LSK_OBJECTIVE_CHUNK], by[LSK_OBJECTIVE_CHUNK], *slopes = rule->kl == LSK_KL_NONE ? NULL : by;
    const float *inputs[LSK_OBJECTIVE_INPUTS];
    for (int input = 0; input < LSK_OBJECTIVE_INPUTS; input++)
        inputs[input] = span->input[input] ? (const float *)span->input[input] + start : NULL;
    const float *current = inputs[LSK_INPUT_CURRENT], *weights = inputs[LSK_INPUT_WEIGHT];
    if (!plain_ratios(r, ratios, current, inputs[LSK_INPUT_TRAINER], count, rule)) return 0;
    const double advantage = span->advantage;
    if (rule->term == LSK_CLIP)
        plain_clip(r, t, ratios, slopes, out, factor, current, weights, count, advantage, rule);
    else if (rule->term == LSK_CISPO)
        plain_cispo(r, t, ratios, slopes, out, factor, current, weights, count, advantage, rule);
    else
        plain_importance(r, t, ratios, slopes, out, factor, current, weights, count, advantage, rule);
    if (slopes) plain_k3(e, out, factor, slopes, current, inputs[LSK_INPUT_REFERENCE], count, rule);
    return 1;
}

// What is left of a last block: 1 to 7 tokens, by the general formulas. Returns 0, with nothing done, if a log ratio is
// clamped.
static __attribute__((noinline)) int add_plain_rest(lsk_ratio_sums *r, lsk_term_sums *t, lsk_rest_sums *e, float *out,
                                                    double factor, const lsk_objective_span *span,
                                                    const lsk_objective_rule *rule, int64_t start, int64_t count) {
    float values[LSK_OBJECTIVE_INPUTS][8] = {{0}};
    uint8_t flags[8];
    for (int i = 0; i < 8; i++) flags[i] = i < count;
    for (int input = 0; input < LSK_OBJECTIVE_INPUTS; input++)
        if (span->input[input])
            memcpy(values[input], (const float *)span->input[input] + start, (size_t)count * sizeof(float));
    const float *current = values[LSK_INPUT_CURRENT];
    const vd low = vd_splat(rule->log_ratio_min), high = vd_splat(rule->log_ratio_max);
    vd delta[LSK_PARTS];
    vl clamped = {0};
    LSK_EACH_PART {
        const int64_t i = part * LSK_LANES64;
        delta[part] = widen_at(current, i) - widen_at(values[LSK_INPUT_TRAINER], i);
        clamped |= vd_hold(delta[part], low, high) != delta[part];
    }
    if (__builtin_reduce_or(clamped)) return 0;
#pragma clang loop unroll(disable)
    for (int part = 0; part < LSK_PARTS; part++) {
        const int64_t i = part * LSK_LANES64;
        const vl here = load_flags(flags, i);
        const vd_exp_parts parts = vd_split_exp(delta[part]);
        const vd ratio = vd_fma(parts.scale, parts.r + parts.q_plus, parts.scale);
        r->delta[part] += delta[part];
        r->k3[part] += k3_from(parts, delta[part]);
        r->ratio[part] += vd_if(here, ratio);
        r->least[part] = vd_select(here, vd_min(ratio, r->least[part]), r->least[part]);
        r->most[part] = vd_select(here, vd_max(ratio, r->most[part]), r->most[part]);
        const lsk_token token = {.advantage = vd_splat(span->advantage), .ratio = ratio, .current = widen_at(current, i)};
        const lsk_term f = rule->term == LSK_CLIP    ? term_clip(token, rule)
                           : rule->term == LSK_CISPO ? term_cispo(token, rule)
                                                     : term_importance(token);
        const vd weight = span->input[LSK_INPUT_WEIGHT] ? widen_at(values[LSK_INPUT_WEIGHT], i) : vd_splat(1);
        t->policy[part] += vd_if(here, weight * f.value);
        t->low[part] += here & f.low & 1;
        t->high[part] += here & f.high & 1;
        t->dual[part] += here & f.dual & 1;
        vd slope = vd_if(here, weight * f.by_current);
        if (rule->kl == LSK_KL_K3) {
            vl open;
            const vd apart = widen_at(values[LSK_INPUT_REFERENCE], i) - widen_at(current, i);
            const lsk_estimate d = held_estimate(&open, LSK_KL_K3, apart, rule);
            e->kl[part] += vd_if(here, d.value);
            e->kl_term[part] += vd_if(here, d.value);
            e->kl_clamped[part] += here & ~open & 1;
            slope += vd_if(here, rule->kl_coefficient * d.slope);
        }
        slope += vd_if(here, weight * f.by_log_ratio);
        if (out) store_output((char *)out, LSK_FP32, i, count, vd_splat(factor) * slope);
    }
    return 1;
}
