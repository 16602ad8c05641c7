// The ratio of a sequence, where all its tokens have one.

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

typedef struct {
    vd share[LSK_PARTS];            // of the sequence's log ratio
    vd delta[LSK_PARTS], k3[LSK_PARTS];
    vd weight[LSK_PARTS];           // logarithms
    vl still[LSK_PARTS];            // all ones: a token that does not move the ratio
} lsk_level_sums;

// What of it the ratio wants of fp32 tokens that all count. `count` is a multiple of 8. Where no delta is far
// from 0, as is usual, exp(delta) - 1 - delta is the series alone: the same bits with half the work.
LSK_PASS add_plain_shares(lsk_level_sums *sums, const float *current, const float *trainer, int64_t count,
                          const lsk_objective_rule *rule) {
    const vd low = vd_splat(rule->log_ratio_min), high = vd_splat(rule->log_ratio_max);
    const vd near = vd_min(vd_splat(LSK_EXP_NEAR), vd_min(high, -low));
    vd delta_sum[LSK_PARTS], k3[LSK_PARTS];
    LSK_EACH_PART {
        delta_sum[part] = sums->delta[part];
        k3[part] = sums->k3[part];
    }
    for (int64_t at = 0; at < count; at += 8) {
        vd delta[LSK_PARTS];
        vl far = {0};
        LSK_EACH_PART {
            vf_half c, t;
            __builtin_memcpy(&c, current + at + part * LSK_LANES64, sizeof c);
            __builtin_memcpy(&t, trainer + at + part * LSK_LANES64, sizeof t);
            delta[part] = __builtin_convertvector(c, vd) - __builtin_convertvector(t, vd);
            delta_sum[part] += delta[part];
            far |= vd_abs(delta[part]) > near;
        }
        if (__builtin_expect(__builtin_reduce_or(far) == 0, 1)) {
            vd near_k3[LSK_PARTS];
            exp_series(LSK_PARTS, near_k3, NULL, delta);
            LSK_EACH_PART k3[part] += near_k3[part];
        } else {
            LSK_EACH_PART {
                vd x = vd_hold(delta[part], low, high);
                k3[part] += k3_from(vd_split_exp(x), x);
            }
        }
    }
    LSK_EACH_PART {
        sums->share[part] = sums->delta[part] = delta_sum[part];
        sums->k3[part] = k3[part];
    }
}

// The same where a last chunk may end within a block of 8: zeros behind it change no sum.
static void add_plain_chunk(lsk_level_sums *sums, const lsk_objective_span *span,
                            const lsk_objective_rule *rule, int64_t start, int64_t count) {
    const float *current = (const float *)span->input[LSK_INPUT_CURRENT] + start;
    const float *trainer = (const float *)span->input[LSK_INPUT_TRAINER] + start;
    const int64_t blocks = count / 8 * 8, rest = count - blocks;
    add_plain_shares(sums, current, trainer, blocks, rule);
    if (rest == 0) return;
    float last[2][8] = {{0}};
    memcpy(last[0], current + blocks, (size_t)rest * sizeof(float));
    memcpy(last[1], trainer + blocks, (size_t)rest * sizeof(float));
    add_plain_shares(sums, last[0], last[1], 8, rule);
}

LSK_PASS add_shares(lsk_level_sums *sums, const lsk_objective_chunk *chunk, const lsk_objective_rule *rule,
                    int weighted) {
    const vd least = vd_splat(rule->log_ratio_min), most = vd_splat(rule->log_ratio_max);
    const int clamped = rule->level == LSK_RATIO_SEQUENCE_SUM || rule->term == LSK_GMPO;
    for (int64_t at = 0; at < chunk->padded; at += 8) {
        LSK_EACH_PART {
            int64_t i = at + part * LSK_LANES64;
            vl counted = load_flags(chunk->counted, i), moves;
            vd delta = load_delta(chunk, counted, i), x = vd_hold(delta, least, most), share = delta;
            if (clamped) {
                share = vd_if(counted, share_of(&moves, delta, vd_load(chunk->value[LSK_INPUT_ADVANTAGE] + i), rule));
                sums->still[part] |= counted & ~moves;
            }
            sums->share[part] += share;
            sums->delta[part] += delta;
            sums->k3[part] += k3_from(vd_split_exp(x), x);
            if (weighted)
                sums->weight[part] +=
                    vd_if(counted, vd_log_weight(vd_load(chunk->value[LSK_INPUT_WEIGHT] + i)));
        }
    }
}

// The ratio of a sequence, and what `objective_count` says of it: the tokens are read once for both.
static void objective_level(lsk_objective_level *level, lsk_objective_counts *counts,
                            const lsk_objective_span *span, const lsk_objective_rule *rule) {
    const vd least = vd_splat(rule->log_ratio_min), most = vd_splat(rule->log_ratio_max);
    const int sum = rule->level == LSK_RATIO_SEQUENCE_SUM, gmpo = rule->term == LSK_GMPO;
    const int weighted = span->input[LSK_INPUT_WEIGHT] && (gmpo || rule->term == LSK_VESPO);
    const int plain = !sum && !gmpo && !rule->exclude && span->format[LSK_INPUT_CURRENT] == LSK_FP32 &&
                      span->format[LSK_INPUT_TRAINER] == LSK_FP32;
    lsk_level_sums s = {0};
    lsk_objective_chunk chunk;
    int begun = 0, suspect = !(span->advantage - span->advantage == 0);
    memset(counts, 0, sizeof *counts);
    for (int64_t start = 0; start < span->count; start += LSK_OBJECTIVE_CHUNK) {
        if (!load_masks(&chunk, span, rule, start)) continue;
        if (!rule->exclude) suspect |= is_suspect(span, LSK_INPUT_REFERENCE, start, chunk.count);
        if (plain && count_flags(chunk.counted) == chunk.count) {
            add_plain_chunk(&s, span, rule, start, chunk.count);
        } else {
            if (!begun) begin_chunks(&chunk, span, LSK_OBJECTIVE_CHUNK);
            begun = 1;
            load_values(&chunk, span, rule, start);
            add_shares(&s, &chunk, rule, weighted);
        }
        add_counts_of(counts, &chunk);
    }
    const int64_t n = counts->tokens;
    vd x = vd_splat(add_lanes(s.share)), weight = vd_splat(weighted ? add_lanes(s.weight) : 0);
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
    level->delta = add_lanes(s.delta);
    level->k3 = add_lanes(s.k3);
    vl still = {0};
    LSK_EACH_PART still |= s.still[part];
    level->even = __builtin_reduce_or(still) == 0;
    level->whole = counts->acting == span->count;
    level->tokens = counts->tokens;
    if (!rule->exclude && (suspect || !(level->delta - level->delta == 0))) objective_count(counts, span, rule);
}
