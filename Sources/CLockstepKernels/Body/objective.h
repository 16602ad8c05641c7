// Objectives: what a token contributes to the loss, and the gradient with respect to its log-prob. In
// float64. Lockstep/Reference/ReferenceObjective.swift says the same in scalars.
//
// The first half is what objectives are: a term is a function of a few lines. The second half, from
// `load_objective` on, runs any of them over the tokens of a sequence, 128 at a time.

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

// ---- tokens in, 128 at a time

#define LSK_OBJECTIVE_CHUNK 128
#define LSK_PARTS LSK_MISMATCH_PARTS  // registers that hold 8 lanes
#define LSK_EACH_PART LSK_UNROLL for (int part = 0; part < LSK_PARTS; part++)

// Arrays that a span does not have are filled once; those of a chunk may hold anything where no token counts.
typedef struct {
    double value[LSK_OBJECTIVE_INPUTS][LSK_OBJECTIVE_CHUNK + LSK_LANES];
    double log_ratio[LSK_OBJECTIVE_CHUNK], ratio[LSK_OBJECTIVE_CHUNK];
    double by_log_ratio[LSK_OBJECTIVE_CHUNK], by_current[LSK_OBJECTIVE_CHUNK];
    int64_t moves[LSK_OBJECTIVE_CHUNK];  // all ones: delta moves x
    uint8_t counted[LSK_OBJECTIVE_CHUNK], acting[LSK_OBJECTIVE_CHUNK], selected[LSK_OBJECTIVE_CHUNK];
    int64_t count, padded;
    int64_t non_finite;
} lsk_objective_chunk;

typedef uint8_t vb64 __attribute__((vector_size(LSK_LANES64)));  // as many bytes as doubles

LSK_INLINE vl load_flags(const uint8_t *flags, int64_t at) {
    vb64 bytes;
    __builtin_memcpy(&bytes, flags + at, sizeof bytes);
    return __builtin_convertvector(bytes, vl) != 0;
}

LSK_INLINE vl load_moves(const lsk_objective_chunk *chunk, int64_t at) {
    vl v;
    __builtin_memcpy(&v, chunk->moves + at, sizeof v);
    return v;
}

static void begin_chunks(lsk_objective_chunk *chunk, const lsk_objective_span *span) {
    memset(chunk->selected, 0, sizeof chunk->selected);
    for (int input = 0; input < LSK_OBJECTIVE_INPUTS; input++) {
        if (span->input[input]) continue;
        double value = input == LSK_INPUT_ADVANTAGE ? span->advantage : input == LSK_INPUT_WEIGHT ? 1 : 0;
        for (int i = 0; i < LSK_OBJECTIVE_CHUNK; i++) chunk->value[input][i] = value;
    }
}

typedef uint8_t lsk_flags __attribute__((vector_size(LSK_WIDTH)));

LSK_INLINE lsk_flags flags_load(const uint8_t *p) {
    lsk_flags v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
LSK_INLINE void flags_store(uint8_t *p, lsk_flags v) { __builtin_memcpy(p, &v, sizeof v); }

// flags &= mask != 0, of up to 128 bytes; with `inverse`, flags &= mask == 0.
static void and_flags(uint8_t *flags, const uint8_t *mask, int64_t count, int inverse) {
    uint8_t bytes[LSK_OBJECTIVE_CHUNK];
    if (count < LSK_OBJECTIVE_CHUNK) mask = memcpy(bytes, mask, (size_t)count);
    for (int64_t i = 0; i < count; i += LSK_WIDTH) {
        lsk_flags set = (lsk_flags)(flags_load(mask + i) != 0);
        flags_store(flags + i, flags_load(flags + i) & (inverse ? ~set : set));
    }
}

// Which of the chunk's tokens count, and of which the policy term does, as far as the masks say; returns 0
// if none counts. All 128 flags are set.
static int load_masks(lsk_objective_chunk *chunk, const lsk_objective_span *span,
                      const lsk_objective_rule *rule, int64_t start) {
    int64_t count = span->count - start;
    if (count > LSK_OBJECTIVE_CHUNK) count = LSK_OBJECTIVE_CHUNK;
    chunk->count = count;
    chunk->padded = (count + 7) / 8 * 8;
    chunk->non_finite = 0;
    memset(chunk->counted, 1, LSK_OBJECTIVE_CHUNK);
    if (count < LSK_OBJECTIVE_CHUNK) memset(chunk->counted + count, 0, (size_t)(LSK_OBJECTIVE_CHUNK - count));
    if (span->mask) and_flags(chunk->counted, span->mask + start, count, 0);
    memcpy(chunk->acting, chunk->counted, LSK_OBJECTIVE_CHUNK);
    if (span->kept) and_flags(chunk->acting, span->kept + start, count, 0);
    if (rule->drop_rejected) memcpy(chunk->counted, chunk->acting, LSK_OBJECTIVE_CHUNK);
    if (span->selected) {
        memset(chunk->selected, 0, LSK_OBJECTIVE_CHUNK);
        memcpy(chunk->selected, span->selected + start, (size_t)count);
        // A token that a covariance rule takes out of the clipped objective keeps only its regularisers.
        if (rule->term == LSK_CLIP) and_flags(chunk->acting, chunk->selected, count, 1);
    }
    lsk_flags any = {0};
    for (int i = 0; i < LSK_OBJECTIVE_CHUNK; i += LSK_WIDTH) any |= flags_load(chunk->counted + i);
    uint64_t words[LSK_WIDTH / 8], found = 0;
    __builtin_memcpy(words, &any, sizeof words);
    for (int i = 0; i < LSK_WIDTH / 8; i++) found |= words[i];
    return found != 0;
}

// How many of 128 flags, each 1 or 0, are set.
static int64_t count_flags(const uint8_t *flags) {
    uint64_t total = 0;
    for (int i = 0; i < LSK_OBJECTIVE_CHUNK; i += 8) {
        uint64_t word;
        __builtin_memcpy(&word, flags + i, 8);
        total += word;  // at most 16 in each byte
    }
    const uint64_t even = 0x00ff00ff00ff00ff, pairs = (total & even) + (total >> 8 & even);
    return (int64_t)(pairs * 0x0001000100010001 >> 48);
}

// Takes the tokens with a value that is not finite out, and counts them.
static void exclude_non_finite(lsk_objective_chunk *chunk) {
    for (int64_t at = 0; at < chunk->padded; at += LSK_LANES64) {
        vd nothing = {0};
        for (int input = 0; input < LSK_OBJECTIVE_INPUTS; input++) {
            vd x = vd_load(chunk->value[input] + at);
            nothing += x - x;
        }
        vl counted = load_flags(chunk->counted, at), finite = counted & (nothing == 0);
        vl acting = load_flags(chunk->acting, at) & finite;
        vb64 bytes = __builtin_convertvector(finite & 1, vb64);
        __builtin_memcpy(chunk->counted + at, &bytes, sizeof bytes);
        bytes = __builtin_convertvector(acting & 1, vb64);
        __builtin_memcpy(chunk->acting + at, &bytes, sizeof bytes);
        for (int i = 0; i < LSK_LANES64; i++) chunk->non_finite += (counted & ~finite & 1)[i];
    }
}

// Loads up to 128 tokens from `start` on; returns 0, and loads nothing, if the masks leave them all out.
static int load_objective(lsk_objective_chunk *chunk, const lsk_objective_span *span,
                          const lsk_objective_rule *rule, int64_t start) {
    if (!load_masks(chunk, span, rule, start)) return 0;
    for (int input = 0; input < LSK_OBJECTIVE_INPUTS; input++) {
        if (!span->input[input]) continue;
        const int32_t format = span->format[input];
        const char *in = (const char *)span->input[input] + start * size_of(format);
        load_doubles(chunk->value[input], in, format, chunk->count);
        for (int64_t i = chunk->count; i < chunk->padded; i++) chunk->value[input][i] = 0;
    }
    if (rule->exclude) exclude_non_finite(chunk);
    return 1;
}

// ---- counting

// Whether anything in `count` values of an array is not finite.
static int has_non_finite(const char *in, int32_t format, int64_t count) {
    vd wide = {0};
    vf narrow = {0};
    int64_t at = 0;
    if (format == LSK_FP64) {
        for (; at + LSK_LANES64 <= count; at += LSK_LANES64) {
            vd x = vd_load((const double *)in + at);
            wide += x - x;
        }
        double rest = 0;
        for (; at < count; at++) rest += ((const double *)in)[at] - ((const double *)in)[at];
        if (rest != 0) return 1;
    } else {
        for (; at + LSK_LANES <= count; at += LSK_LANES) {
            vf x = load_floats(in + at * size_of(format), format);
            narrow += x - x;
        }
        if (at < count) {
            vf x = load_some_floats(in + at * size_of(format), format, count - at);
            narrow += x - x;
        }
    }
    int found = 0;
    for (int i = 0; i < LSK_LANES; i++) found |= narrow[i] != 0;
    for (int i = 0; i < LSK_LANES64; i++) found |= wide[i] != 0;
    return found;
}

static void objective_count(lsk_objective_counts *counts, const lsk_objective_span *span,
                            const lsk_objective_rule *rule) {
    lsk_objective_chunk chunk;
    lsk_objective_rule careful = *rule;
    memset(counts, 0, sizeof *counts);
    begin_chunks(&chunk, span);
    for (int64_t start = 0; start < span->count; start += LSK_OBJECTIVE_CHUNK) {
        if (!load_masks(&chunk, span, rule, start)) continue;
        int suspect = !(span->advantage - span->advantage == 0);
        for (int input = 0; input < LSK_OBJECTIVE_INPUTS; input++) {
            if (!span->input[input]) continue;
            const int32_t format = span->format[input];
            const char *in = (const char *)span->input[input] + start * size_of(format);
            suspect |= has_non_finite(in, format, chunk.count);
        }
        if (suspect) {  // perhaps only where no token counts
            careful.exclude = 1;
            load_objective(&chunk, span, &careful, start);
        }
        counts->tokens += count_flags(chunk.counted);
        counts->acting += count_flags(chunk.acting);
        counts->non_finite += chunk.non_finite;
    }
}

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
