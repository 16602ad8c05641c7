// Exact divergences of two rows of logits, in float64. Index v of a row belongs to lane v mod 8; lanes add
// in order, then by halves. Lockstep/Reference/ReferenceDivergence.swift says the same in scalars.

// tanh x = (1 - e) / (1 + e) with e = exp(-2|x|), and the sign of x.
LSK_INLINE vd vd_tanh(vd x) {
    vd twice = vd_min(vd_abs(x) * 2, vd_splat(100));
    vd_exp_parts e = vd_split_exp(-twice);
    vd less = e.r + e.q_plus;
    vd gone = -vd_fma(e.scale, less, e.scale - 1.0);  // 1 - e
    vd magnitude = gone / (2 - gone);
    return (vd)((vl)magnitude | ((vl)x & INT64_MIN));
}

LSK_INLINE vd vd_apply_rule(vd x, const lsk_divergence_rule *rule) {
    // tanh leaves infinities finite: a row that has one must still be refused, or keep its -inf.
    if (rule->soft_cap != 0) {
        vd cap = vd_splat(rule->soft_cap);
        vl infinite = vd_abs(x) == vd_splat(__builtin_inf());
        x = vd_select(infinite, x, cap * vd_tanh(x / cap));
    }
    return x / vd_splat(rule->temperature);
}

LSK_INLINE vf round_to(vf x, int32_t format) {
    if (format >= LSK_EMULATED) return vf_round_emulated(x, format);
    return format == LSK_FP16 ? vf_round_to_fp16(x) : format == LSK_BF16 ? vf_round_to_bf16(x) : x;
}

// Writes y - maximum to `y` [count, rounded up to 16]; -inf at its end.
static void divergence_row(lsk_divergence_row *row, double *y, const void *logits, int32_t format,
                           int64_t count, const lsk_divergence_rule *rule) {
    const int64_t padded = (count + 15) / 16 * 16;
    const vd infinity = vd_splat(__builtin_inf());
    vd maximum = -infinity;
    vl failed = {0};
    for (int64_t at = 0; at < count; at += LSK_LANES) {
        const char *in = (const char *)logits + at * size_of(format);
        char rest[LSK_WIDTH] = {0};
        if (at + LSK_LANES > count) in = memcpy(rest, in, (size_t)((count - at) * size_of(format)));
        store_pair(y + at, widen(round_to(load_floats(in, format), rule->rounding)));
    }
    for (int64_t i = count; i < padded; i++) y[i] = -__builtin_inf();
    for (int64_t at = 0; at < padded; at += LSK_LANES64) {
        vd x = vd_load(y + at);
        failed |= ~(x < infinity);
        x = vd_apply_rule(x, rule);
        vd_store(y + at, x);
        maximum = vd_max(x, maximum);
    }
    row->maximum = maximum[0];
    row->failed = 0;
    for (int i = 0; i < LSK_LANES64; i++) {
        if (maximum[i] > row->maximum) row->maximum = maximum[i];
        row->failed |= failed[i] != 0;
    }
    row->total = 0;
    row->top = 0;
    if (row->failed || row->maximum == -__builtin_inf()) return;
    while (y[row->top] != row->maximum) row->top++;

    vd sum[LSK_MISMATCH_PARTS] = {0};
    for (int64_t at = 0; at < padded; at += LSK_MISMATCH_LANES) {
        for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
            double *place = y + at + part * LSK_LANES64;
            vd below = vd_load(place) - row->maximum;
            vd_store(place, below);
            sum[part] += vd_exp(below);
        }
    }
    row->total = add_lanes(sum);
}

// (1 + t) ln(1 + t) + (1 - t) ln(1 - t) for |t| <= 0.2, t^2 given: sum of t^2k / (k (2k - 1)).
LSK_INLINE vd entropy_series(vd square) {
    vd sum = vd_splat(1.0 / (11 * 21));
#pragma clang loop unroll(full)
    for (int k = 10; k >= 1; k--) sum = vd_fma(sum, square, vd_splat(1.0 / (k * (2 * k - 1))));
    return sum * square;
}

// ln 2 - ln(1 + z) = 2 atanh((1 - z) / (3 + z)) for z in [0, 1], 1 - z given.
LSK_INLINE vd ln_half(vd gone) {
    vd s = gone / (4 - gone);
    vd square = s * s;
    vd sum = vd_splat(1.0 / 35);
#pragma clang loop unroll(full)
    for (int k = 33; k >= 1; k -= 2) sum = vd_fma(sum, square, vd_splat(1.0 / k));
    return 2 * s * sum;
}

// The terms of all ids. `p` and `q` are what divergence_row left, `log_ratio_of_totals` the logarithm of
// p's total over q's. Every term is >= 0 and none is a difference of nearly equal values: near p = q they
// follow from x = ln(p / q).
static void divergence_sums(lsk_divergence_sums *sums, const double *p, double p_total, const double *q,
                            double q_total, double log_ratio_of_totals, int64_t count) {
    const int64_t padded = (count + 15) / 16 * 16;
    const vd zero = vd_splat(0), one = vd_splat(1), infinity = vd_splat(__builtin_inf());
    const vd far = vd_splat(-0x1p100);  // stands for -inf: so far below that exp is 0, but finite
    vd forward[LSK_MISMATCH_PARTS] = {0}, backward[LSK_MISMATCH_PARTS] = {0};
    vd difference[LSK_MISMATCH_PARTS] = {0}, shannon[LSK_MISMATCH_PARTS] = {0};
    for (int64_t at = 0; at < padded; at += LSK_MISMATCH_LANES) {
        for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
            int64_t i = at + part * LSK_LANES64;
            vd u = vd_load(p + i), w = vd_load(q + i);
            vl p_never = u == -infinity, q_never = w == -infinity;
            u = vd_select(p_never, far, u);
            w = vd_select(q_never, far, w);
            vd x = (u - w) - log_ratio_of_totals;
            vd trainer = vd_exp(u) / p_total, rollout = vd_exp(w) / q_total;

            // For |x| <= 1: q (e^x - 1 - x), p (e^-x - 1 + x), q (e^x - 1).
            vd_exp_parts e = vd_split_exp(vd_max(vd_min(x, one), -one));
            vd scale_less = e.scale - 1.0, inverse_less = e.inverse - 1.0;
            vd k3 = vd_fma(e.scale, e.q_plus, scale_less + vd_fma(e.scale, e.r, -x));
            vd k3_back = vd_fma(e.inverse, e.q_minus, inverse_less + vd_fma(e.inverse, -e.r, x));
            vd gain = vd_fma(e.scale, e.r + e.q_plus, scale_less);
            vl near = vd_abs(x) <= one;
            vd gap = trainer - rollout;
            vd to_trainer = vd_select(near, rollout * k3, gap - rollout * x);
            vd to_rollout = vd_select(near, trainer * k3_back, trainer * x - gap);
            forward[part] += vd_select(p_never & ~q_never, infinity, to_trainer);
            backward[part] += vd_select(q_never & ~p_never, infinity, to_rollout);
            difference[part] += vd_abs(vd_select(near, rollout * gain, gap));

            // From z = e^-|x|, the smaller probability over the larger.
            vd_exp_parts s = vd_split_exp(vd_max(-vd_abs(x), vd_splat(-LSK_EXP_LIMIT)));
            vd gone = -vd_fma(s.scale, s.r + s.q_plus, s.scale - 1.0);
            vd t = gone / (2 - gone);  // |p - q| / (p + q)
            vd sum = trainer + rollout;
            vd close = sum / 2 * entropy_series(t * t);
            vd smaller = vd_min(trainer, rollout);
            vd apart = vd_fma(sum, ln_half(gone), -(smaller * vd_abs(x)));
            shannon[part] += vd_select(vd_abs(x) < vd_splat(0.375), close, vd_max(apart, zero));
        }
    }
    sums->kl_rollout_trainer = add_lanes(forward);
    sums->kl_trainer_rollout = add_lanes(backward);
    sums->difference = add_lanes(difference);
    sums->jensen_shannon = add_lanes(shannon);
}
