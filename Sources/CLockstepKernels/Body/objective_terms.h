// What objectives are: a term is what one token contributes to the loss, and its derivatives, in a function of a few
// lines. A new objective is one more of them, the same in Lockstep/Reference/ReferenceObjective.swift, and a name.

// What a term is made from: a token.
typedef struct {
    vd advantage;  // A
    vd ratio;      // r = exp(x)
    vd log_ratio;  // x: current - trainer, of the token or its sequence
    vd current;    // c: the current log-prob
    vl selected;
} lsk_token;

// What a term is: its value, to be minimised, and the derivatives through x and through c.
typedef struct {
    vd value, by_log_ratio, by_current;
    vl low, high, dual;  // tokens held at a bound
} lsk_term;

#define LSK_TERM LSK_INLINE lsk_term

LSK_INLINE vd vd_if(vl mask, vd x) { return (vd)(mask & (vl)x); }
LSK_INLINE vd vd_hold(vd x, vd low, vd high) { return vd_min(vd_max(x, low), high); }
LSK_INLINE vl vd_within(vd x, vd low, vd high) { return (x >= low) & (x <= high); }
// -1, 0 or 1.
LSK_INLINE vd vd_sign(vd x) { return vd_if(x > 0, vd_splat(1)) - vd_if(x < 0, vd_splat(1)); }

// -A c
LSK_TERM term_reinforce(lsk_token t) {
    return (lsk_term){.value = -t.advantage * t.current, .by_current = -t.advantage};
}

// -A r
LSK_TERM term_importance(lsk_token t) {
    vd value = -t.advantage * t.ratio;
    return (lsk_term){.value = value, .by_log_ratio = value};
}

// max(-A min(r, ratio_max), -A clamp(r, low, high)), at most -A dual where A < 0
LSK_TERM term_clip(lsk_token t, const lsk_objective_rule *rule) {
    const vd low = vd_splat(rule->low), high = vd_splat(rule->high), most = vd_splat(rule->ratio_max);
    vd plain = -t.advantage * vd_min(t.ratio, most);
    vd held = -t.advantage * vd_hold(t.ratio, low, high);
    vl is_held = held > plain;
    vl moves = (is_held & vd_within(t.ratio, low, high)) | (~is_held & (t.ratio <= most));
    vd value = vd_select(is_held, held, plain);
    vd bound = -t.advantage * vd_splat(rule->dual);
    vl dual = (t.advantage < 0) & (value > bound);
    return (lsk_term){
        .value = vd_select(dual, bound, value), .by_log_ratio = vd_if(moves & ~dual, value),
        .low = (t.ratio < low) & (t.advantage < 0), .high = (t.ratio > high) & (t.advantage > 0),
        .dual = dual};
}

// -[clamp(r, low, high)] A c, the bracket a constant to the gradient
LSK_TERM term_cispo(lsk_token t, const lsk_objective_rule *rule) {
    const vd low = vd_splat(rule->low), high = vd_splat(rule->high);
    vd by_current = -vd_hold(t.ratio, low, high) * t.advantage;
    return (lsk_term){.value = by_current * t.current, .by_current = by_current, .low = t.ratio < low,
                      .high = t.ratio > high};
}

// -A gate, gate = 4 / tau sigmoid(tau (r - 1))
LSK_TERM term_sapo(lsk_token t, const lsk_objective_rule *rule) {
    vd tau = vd_select(t.advantage > 0, vd_splat(rule->tau_positive), vd_splat(rule->tau_negative));
    vd gate = 1 / (1 + vd_exp(-tau * (t.ratio - 1)));
    vd scaled = -t.advantage * (4 * gate);
    return (lsk_term){.value = scaled / tau, .by_log_ratio = scaled * (1 - gate) * t.ratio};
}

// -A c where A > 0, else -[min(r, 1)] A c
LSK_TERM term_topr(lsk_token t) {
    vl tapered = (t.advantage <= 0) & (t.ratio > 1);
    vd weight = vd_select(t.advantage > 0, vd_splat(1), vd_min(t.ratio, vd_splat(1)));
    vd by_current = -weight * t.advantage;
    return (lsk_term){.value = by_current * t.current, .by_current = by_current, .high = tapered};
}

// -A c + coefficient / 2 x^2
LSK_TERM term_squared(lsk_token t, const lsk_objective_rule *rule) {
    vd slope = rule->coefficient * t.log_ratio;
    return (lsk_term){.value = vd_fma(slope * 0.5, t.log_ratio, -t.advantage * t.current),
                      .by_log_ratio = slope, .by_current = -t.advantage};
}

// -A r, + coefficient |x| where selected
LSK_TERM term_kl_cov(lsk_token t, const lsk_objective_rule *rule) {
    vd value = -t.advantage * t.ratio;
    vd penalty = vd_if(t.selected, rule->coefficient * vd_abs(t.log_ratio));
    vd slope = vd_if(t.selected, rule->coefficient * vd_sign(t.log_ratio));
    return (lsk_term){.value = value + penalty, .by_log_ratio = value + slope};
}

// -[phi] A c, phi being of the sequence and of the sign of A
LSK_TERM term_vespo(lsk_token t, const lsk_objective_level *level) {
    vd phi = vd_select(t.advantage >= 0, vd_splat(level->phi_positive), vd_splat(level->phi_negative));
    vd by_current = -phi * t.advantage;
    return (lsk_term){.value = by_current * t.current, .by_current = by_current};
}

LSK_TERM term_of(const int term, lsk_token t, const lsk_objective_rule *rule,
                 const lsk_objective_level *level) {
    switch (term) {
    case LSK_IMPORTANCE: return term_importance(t);
    case LSK_CLIP: return term_clip(t, rule);
    case LSK_CISPO: return term_cispo(t, rule);
    case LSK_SAPO: return term_sapo(t, rule);
    case LSK_TOPR: return term_topr(t);
    case LSK_SQUARED: return term_squared(t, rule);
    case LSK_KL_COV: return term_kl_cov(t, rule);
    case LSK_GMPO: return term_importance(t);  // the ratio is what differs
    case LSK_VESPO: return term_vespo(t, level);
    default: return term_reinforce(t);
    }
}

// An estimate of the divergence from the reference, of x = reference - current, and its derivative in c.
typedef struct {
    vd value, slope;
} lsk_estimate;

LSK_INLINE lsk_estimate estimate_of(const int estimator, vd x) {
    if (estimator == LSK_KL_K1) return (lsk_estimate){-x, vd_splat(1)};
    if (estimator == LSK_KL_K2) return (lsk_estimate){x * x * 0.5, -x};
    if (estimator == LSK_KL_ABS) return (lsk_estimate){vd_abs(x), -vd_sign(x)};
    vd_exp_parts e = vd_split_exp(x);  // k3: exp(x) - 1 - x
    return (lsk_estimate){vd_fma(e.scale, e.q_plus, (e.scale - 1) + vd_fma(e.scale, e.r, -x)),
                          -vd_fma(e.scale, e.r + e.q_plus, e.scale - 1)};
}
