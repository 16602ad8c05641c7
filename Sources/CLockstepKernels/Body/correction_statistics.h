// What rejections look at, token by token, and what passes them.

LSK_INLINE vd log_ratio_at(const lsk_tokens *tokens, int32_t policies, int64_t at) {
    const int over = policies == LSK_TRAINER_ROLLOUT ? LSK_TRAINER : LSK_CURRENT;
    const int under = policies == LSK_CURRENT_TRAINER ? LSK_TRAINER : LSK_ROLLOUT;
    return vd_load(tokens->log_probs[over] + at) - vd_load(tokens->log_probs[under] + at);
}

LSK_INLINE vd vd_clamp(vd x, double low, double high) {
    return vd_max(vd_min(x, vd_splat(high)), vd_splat(low));
}
LSK_INLINE vl is_outside(vd x, double low, double high) { return (x < vd_splat(low)) | (x > vd_splat(high)); }

// z - ln y for y = 1 + z, without cancellation if neither lost digits; infinite where y is not positive.
LSK_INLINE vd less_log(vd z, vd y) {
    const vd one = vd_splat(1);
    // y = 2^n m with m in [sqrt(1/2), sqrt 2), up to a rounding; ln m = 2 atanh s, s = (m - 1) / (m + 1).
    vl n = ((vl)y - (vl)vd_splat(0x1.6a09e667f3bcdp-1)) >> 52;
    vd m = (vd)((vul)y - ((vul)n << 52));
    vd f = vd_select(n == 0, z, m - one);
    vd s = f / (2 + f);
    vd square = s * s;
    vd series = vd_splat(1.0 / 23);
    LSK_UNROLL
    for (int k = 21; k >= 3; k -= 2) series = vd_fma(series, square, vd_splat(1.0 / k));
    // f - ln(1 + f) = f s - 2 s^3 (1/3 + s^2/5 + ...)
    vd rest = s * vd_fma(square * -2, series, f);
    vd gone = vd_fma(__builtin_convertvector(n, vd), vd_splat(-0x1.62e42fefa39efp-1), z - f);
    return vd_select(y > vd_splat(0), gone + rest, vd_splat(__builtin_inf()));
}

// KL(Bernoulli(q) || Bernoulli(p)) with the sign of p - q. With e = ln((1 - p) / (1 - q)),
//     KL = q (exp(d) - 1 - d) + (1 - q) (exp(e) - 1 - e),
// as the two linear parts cancel: no term is negative.
LSK_INLINE vd binary_kl_of(vd a, vd b) {
    const vd zero = vd_splat(0);
    vd d = a - b;
    vd_ratio_terms terms = ratio_terms_of(d);
    vd gap = gap_of(vd_exp(vd_max(a, b)), terms.gone, d);
    vd q = vd_exp(b);
    vd others_q = -vd_exp_less_one(b), others_p = -vd_exp_less_one(a);  // 1 - q and 1 - p
    vd second = others_q * less_log(-gap / others_q, others_p / others_q);
    // Where q is 1 the second part is its limit, 1 - p.
    second = vd_select(others_q > vd_splat(0x1p-1000), second, vd_max(others_p, zero));
    vd kl = vd_fma(q, terms.k3, second);
    return vd_select(d < zero, -kl, kl);
}

// The statistic of one register of tokens. Sums and means of a ratio are those of its logarithm.
LSK_INLINE vd statistic_at(const lsk_tokens *tokens, const lsk_rejection *rule,
                           const lsk_correction_rule *all, const int32_t statistic, const int logarithm,
                           int64_t at) {
    vd d = log_ratio_at(tokens, rule->policies, at);
    if (statistic == LSK_STATISTIC_RATIO && logarithm) return d;
    const int over = rule->policies == LSK_TRAINER_ROLLOUT ? LSK_TRAINER : LSK_CURRENT;
    const int under = rule->policies == LSK_CURRENT_TRAINER ? LSK_TRAINER : LSK_ROLLOUT;
    vd a = vd_load(tokens->log_probs[over] + at), b = vd_load(tokens->log_probs[under] + at);
    if (statistic == LSK_STATISTIC_PROBABILITY_DIFFERENCE)
        return gap_of(vd_exp(vd_max(a, b)), ratio_terms_of(d).gone, d);
    if (statistic == LSK_STATISTIC_BINARY_KL) return binary_kl_of(a, b);
    d = vd_clamp(d, all->log_ratio_min, all->log_ratio_max);
    if (statistic == LSK_STATISTIC_K2) return d * d * 0.5;
    if (statistic == LSK_STATISTIC_K3) return ratio_terms_of(d).k3;
    if (statistic == LSK_STATISTIC_EXP_ABS) return vd_exp(vd_abs(d));
    return vd_exp(d);
}

#define LSK_STATISTIC_LOOP(statistic, logarithm) \
    for (int64_t at = 0; at < tokens->padded; at += LSK_LANES64) \
        vd_store(out + at, statistic_at(tokens, rule, all, statistic, logarithm, at)); \
    break

// The statistic of every token of a chunk.
LSK_PASS find_statistics(double *out, const lsk_tokens *tokens, const lsk_rejection *rule,
                         const lsk_correction_rule *all, int logarithm) {
    switch (rule->statistic) {
    case LSK_STATISTIC_K2: LSK_STATISTIC_LOOP(LSK_STATISTIC_K2, 0);
    case LSK_STATISTIC_K3: LSK_STATISTIC_LOOP(LSK_STATISTIC_K3, 0);
    case LSK_STATISTIC_EXP_ABS: LSK_STATISTIC_LOOP(LSK_STATISTIC_EXP_ABS, 0);
    case LSK_STATISTIC_PROBABILITY_DIFFERENCE: LSK_STATISTIC_LOOP(LSK_STATISTIC_PROBABILITY_DIFFERENCE, 0);
    case LSK_STATISTIC_BINARY_KL: LSK_STATISTIC_LOOP(LSK_STATISTIC_BINARY_KL, 0);
    default:
        if (logarithm) {
            LSK_STATISTIC_LOOP(LSK_STATISTIC_RATIO, 1);
        } else {
            LSK_STATISTIC_LOOP(LSK_STATISTIC_RATIO, 0);
        }
    }
}

// Whether a rule clamps the log ratios of tokens (a ratio of a whole sequence is clamped as a whole).
static int clamps_tokens(const lsk_rejection *rule) {
    if (rule->statistic == LSK_STATISTIC_RATIO)
        return rule->level == LSK_LEVEL_TOKEN || rule->level == LSK_LEVEL_SEQUENCE_EVERY;
    return rule->statistic <= LSK_STATISTIC_EXP_ABS;
}

LSK_PASS count_clamped(int64_t *clamped, const lsk_tokens *tokens, int32_t policies,
                       const lsk_correction_rule *all) {
    vl found = {0};
    for (int64_t at = 0; at < tokens->padded; at += LSK_LANES64)
        found -= load_bytes(tokens->counted + at) &
                 is_outside(log_ratio_at(tokens, policies, at), all->log_ratio_min, all->log_ratio_max);
    *clamped += add_counts(found);
}

// Whether a rule lets a token pass.
LSK_INLINE vl passes(vd x, vd advantage, const lsk_rejection *rule) {
    vl above = ~(x <= vd_splat(rule->high)), below = ~(x >= vd_splat(rule->low));
    if (rule->side == LSK_SIDE_BY_ADVANTAGE) {
        vl positive = advantage > vd_splat(0);
        return ~((positive & above) | (~positive & below));
    }
    if (rule->side == LSK_SIDE_NEGATIVE_ADVANTAGE) return ~((above | below) & (advantage < vd_splat(0)));
    return ~(above | below);
}
