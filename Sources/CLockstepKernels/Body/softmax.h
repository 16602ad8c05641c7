// Log-sum-exp, entropy and softmax gradient of rows of logits.
//
// The rule (docs/Numerics.md): blocks of 2,048 logits, each split into tiles of 128 and 64 lanes
// (logit v belongs to lane v mod 64). A block sums e^y * 2^-N, for an integer N, the reference. It is
// set by the block's first tile and moves up only when a tile's maximum passes it by more than 8
// octaves; moving it scales the lanes by a power of two. The lanes are reduced by a fixed tree in
// float64. Tiles are visited in order, so nothing depends on how a row is cut into calls.
#include "exp.h"

#define LSK_NV (LSK_LANE_COUNT / LSK_LANES)  // registers that hold the 64 lanes
#define LSK_HEADROOM 8                       // octaves a term may rise above 2^N before N moves

LSK_INLINE vf vf_load_as(int32_t format, const void *x, ptrdiff_t index) {
    if (format == LSK_FP32) return vf_load((const float *)x + index);
    if (format == LSK_FP16) return vf_from_fp16(vh_load((const uint16_t *)x + index));
    return vf_from_bf16(vh_load((const uint16_t *)x + index));
}

LSK_INLINE float load_one(int32_t format, const void *x, ptrdiff_t index) {
    if (format == LSK_FP32) return ((const float *)x)[index];
    uint16_t pair[LSK_LANES] = {((const uint16_t *)x)[index]};
    return format == LSK_FP16 ? vf_from_fp16(vh_load(pair))[0] : vf_from_bf16(vh_load(pair))[0];
}

// Some lanes of a register in memory: `count` of them, the others read as 0.
LSK_INLINE vf load_some(int32_t format, const void *x, ptrdiff_t index, ptrdiff_t count) {
    const ptrdiff_t bytes = format == LSK_FP32 ? 4 : 2;
    char some[LSK_WIDTH] = {0};
    memcpy(some, (const char *)x + index * bytes, (size_t)((count < LSK_LANES ? count : LSK_LANES) * bytes));
    return vf_load_as(format, some, 0);
}

// True if any lane of a comparison's result is set.
LSK_INLINE int vi_any(vi mask) {
    int32_t found = 0;
    for (int i = 0; i < LSK_LANES; i++) found |= mask[i];
    return found != 0;
}

// The larger; a NaN in x is passed over.
LSK_INLINE vf vf_max(vf x, vf m) { return vf_select(x > m, x, m); }

// A row within a block, in registers: its lanes, and the reference N in the forms the loop takes.
typedef struct {
    vf sum[LSK_NV], weighted[LSK_NV];
    vf limit;  // a logit above it moves the reference
    vf floor;  // logits below count as this, whose term is exactly 0
    vf magic;  // adding it to y log2 e leaves n - N + 127 in the low bits
    float temperature, inverse, inverse_low;
    int32_t reference, flags;
} lse_run;

LSK_INLINE lse_run lse_start(const lsk_logit_rule *rule) {
    lse_run run = {.temperature = rule->temperature, .inverse = rule->inverse,
                   .inverse_low = rule->inverse_low, .reference = LSK_LSE_NONE};
    run.limit = vf_splat(-__builtin_inff());  // any logit above -inf sets the reference
    return run;
}

LSK_INLINE void lse_set_reference(lse_run *run, int32_t reference) {
    const float octave = LSK_LN2 * run->temperature, n = (float)reference;
    run->reference = reference;
    run->limit = vf_splat((n + LSK_HEADROOM) * octave);
    run->floor = vf_splat((n - 127) * octave);
    run->magic = vf_splat(LSK_MAGIC + (127 - n));
}

// Moves the reference up. The lanes are scaled by an exact power of two, and what is weighted by y is taken
// relative to the new reference.
LSK_INLINE void lse_move(lse_run *run, int32_t reference) {
    if (run->reference != LSK_LSE_NONE) {
        int32_t rise = reference - run->reference;
        union { int32_t bits; float value; } power = {.bits = rise > 126 ? 0 : (127 - rise) << 23};
        vf lower = vf_splat(-(float)rise * LSK_LN2);
        LSK_UNROLL
        for (int i = 0; i < LSK_NV; i++) {
            run->weighted[i] = vf_fma(run->sum[i], lower, run->weighted[i]) * power.value;
            run->sum[i] *= power.value;
        }
    }
    lse_set_reference(run, reference);
}

// Before a tile is added: moves the reference if it must. Returns 0 if the tile has nothing to add.
// Rare: once at the start of a block, then only on a jump of 8 octaves or in a tile without logits.
LSK_INLINE int lse_prepare_tile(lse_run *run, const vf logits[2 * LSK_NV], vf top, int registers) {
    float lanes[LSK_LANES];
    vf_store(lanes, top);
    LSK_UNROLL
    for (int half = LSK_LANES / 2; half > 0; half /= 2)
        LSK_UNROLL
        for (int i = 0; i < half; i++) lanes[i] = lanes[i + half] > lanes[i] ? lanes[i + half] : lanes[i];
    const float highest = lanes[0];
    int skip = run->reference == LSK_LSE_NONE;
    if (highest > run->limit[0]) {
        float y = highest * run->inverse;
        if (y >= LSK_WIDE) {
            run->flags |= highest == __builtin_inff() ? LSK_LSE_NOT_FINITE : LSK_LSE_WIDE;
            return 0;
        }
        // Below -2^20 it is nothing beside any ordinary logit: the row decides whether there is one.
        skip = y < -LSK_WIDE;
        if (skip) run->flags |= LSK_LSE_LOW;
        else lse_move(run, (int32_t)__builtin_rintf(y * LSK_LOG2_E));
    }
    if (skip) {
        // Nothing to add, but a NaN shows in no maximum.
        for (int i = 0; i < registers; i++)
            if (vi_any(logits[i] != logits[i])) run->flags |= LSK_LSE_NOT_FINITE;
    }
    return !skip;
}

// One register of logits into its lanes.
LSK_INLINE void lse_add_register(lse_run *run, vf logits, int lane, int warm, int entropy) {
    vf v = vf_select(run->floor > logits, run->floor, logits);  // NaN stays
    vf y = v, low = {};
    if (warm) {
        // y + low = v / temperature to twice the precision: the division leaves no error behind.
        y = v * vf_splat(run->inverse);
        low = vf_fma(v, vf_splat(run->inverse), -y);
        low = vf_fma(v, vf_splat(run->inverse_low), low);
    }
    vf t = vf_fma(y, vf_splat(LSK_LOG2_E), run->magic);
    vf power = (vf)((vi)t << 23);  // 2^(n - N), and exactly 0 at the floor
    vf n = t - run->magic;
    vf r = vf_exp_r(y, n);
    if (warm) r = r + low;
    vf p = vf_exp_p(r);
    if (entropy) {
        vf term = p * power;
        vf u = vf_fma(n - vf_splat((float)run->reference), vf_splat(LSK_LN2), r);  // y - N L
        run->sum[lane] += term;
        run->weighted[lane] = vf_fma(term, u, run->weighted[lane]);
    } else {
        run->sum[lane] = vf_fma(p, power, run->sum[lane]);
    }
}

LSK_INLINE int lse_needs_preparing(const lse_run *run, vf top) {
    return __builtin_expect(run->reference == LSK_LSE_NONE || vi_any(top > run->limit), 0);
}

// One tile: 128 logits into the lanes.
LSK_INLINE void lse_add_tile(lse_run *run, int32_t format, const void *x, ptrdiff_t at, int warm, int entropy) {
    vf logits[2 * LSK_NV], top = vf_splat(-__builtin_inff());
    LSK_UNROLL
    for (int i = 0; i < 2 * LSK_NV; i++) {
        logits[i] = vf_load_as(format, x, at + i * LSK_LANES);
        top = vf_max(logits[i], top);
    }
    if (lse_needs_preparing(run, top) && !lse_prepare_tile(run, logits, top, 2 * LSK_NV)) return;
    LSK_UNROLL
    for (int i = 0; i < 2 * LSK_NV; i++) lse_add_register(run, logits[i], i % LSK_NV, warm, entropy);
}

// The registers that a short tile has.
LSK_INLINE void lse_add_short(lse_run *run, const float *tile, int registers, int warm, int entropy) {
    vf logits[2 * LSK_NV], top = vf_splat(-__builtin_inff());
    for (int i = 0; i < registers; i++) {
        logits[i] = vf_load(tile + i * LSK_LANES);
        top = vf_max(logits[i], top);
    }
    if (lse_needs_preparing(run, top) && !lse_prepare_tile(run, logits, top, registers)) return;
    for (int i = 0; i < registers; i++) lse_add_register(run, logits[i], i % LSK_NV, warm, entropy);
}

// Fixed tree: lane i takes lane i + 32, then + 16 ... + 1, in float64.
LSK_INLINE double lse_tree(const vf lanes[LSK_NV]) {
    float narrow[LSK_LANE_COUNT];
    memcpy(narrow, lanes, sizeof narrow);
    vd sums[LSK_LANE_COUNT / LSK_LANES64];
    LSK_UNROLL
    for (int i = 0; i < LSK_LANE_COUNT / LSK_LANES64; i++) {
        vf_half part;
        memcpy(&part, narrow + i * LSK_LANES64, sizeof part);
        sums[i] = __builtin_convertvector(part, vd);
    }
    LSK_UNROLL
    for (int half = LSK_LANE_COUNT / LSK_LANES64 / 2; half > 0; half /= 2)
        LSK_UNROLL
        for (int i = 0; i < half; i++) sums[i] += sums[i + half];
    double tree[LSK_LANES64];
    vd_store(tree, sums[0]);
    LSK_UNROLL
    for (int half = LSK_LANES64 / 2; half > 0; half /= 2)
        LSK_UNROLL
        for (int i = 0; i < half; i++) tree[i] += tree[i + half];
    return tree[0];
}

LSK_INLINE lsk_lse_block lse_end(const lse_run *run, int entropy) {
    lsk_lse_block block = {.sum = lse_tree(run->sum), .weighted = entropy ? lse_tree(run->weighted) : 0,
                           .reference = run->reference, .flags = run->flags};
    if (block.sum != block.sum) block.flags |= LSK_LSE_NOT_FINITE;
    return block;
}

// tanh(x / cap) * cap, with -inf, +inf and NaN left as they are. With v = e^(-2a) - 1 and a = |x| / cap,
// tanh a = -v / (2 + v), which loses nothing near 0. `slope` is the derivative.
LSK_INLINE vf vf_soft_cap(vf x, vf cap, vf *slope) {
    vi sign = (vi)x & (int32_t)0x80000000;
    vf magnitude = (vf)((vi)x & 0x7fffffff);
    vf a = magnitude / cap;
    a = vf_select(a > vf_splat(12.0f), vf_splat(12.0f), a);
    vf y = a * vf_splat(-2.0f);
    vf t = vf_fma(y, vf_splat(LSK_LOG2_E), vf_splat(LSK_MAGIC + 127.0f));
    vf power = (vf)((vi)t << 23);
    vf n = t - vf_splat(LSK_MAGIC + 127.0f);
    vf r = vf_exp_r(y, n);
    vf q = vf_exp_q(r);
    vf less_one = vf_fma(q * r, r, r);                     // e^r - 1
    vf v = vf_fma(less_one, power, power - vf_splat(1.0f));  // e^y - 1
    vf denominator = v + vf_splat(2.0f);
    vf tanh = -v / denominator;
    vf ratio = vf_splat(2.0f) / denominator;
    *slope = (v + vf_splat(1.0f)) * ratio * ratio;
    vf capped = (vf)((vi)(tanh * cap) | sign);
    vi infinite = magnitude == vf_splat(__builtin_inff());
    *slope = vf_select(infinite, (vf){}, *slope);
    return vf_select(infinite, x, capped);
}

// Widened, rounded to the head's format, soft-capped: a logit as the log-softmax sees it, but for the
// temperature.
LSK_INLINE vf vf_prepare(vf x, const lsk_logit_rule *rule, vf *slope) {
    if (rule->rounding == LSK_FP16) x = vf_round_to_fp16(x);
    if (rule->rounding == LSK_BF16) x = vf_round_to_bf16(x);
    *slope = vf_splat(1.0f);
    if (rule->soft_cap != 0) x = vf_soft_cap(x, vf_splat(rule->soft_cap), slope);
    return x;
}

static int is_plain(const lsk_logit_rule *rule) { return rule->rounding == LSK_FP32 && rule->soft_cap == 0; }

// Registers that hold `count` logits.
LSK_INLINE int registers_of(ptrdiff_t count) { return (int)((count + LSK_LANES - 1) / LSK_LANES); }

// Widens `count` <= 128 logits; what is left of the last register becomes -inf, which adds nothing.
LSK_INLINE void load_tile(float *tile, int32_t format, const void *x, ptrdiff_t at, ptrdiff_t count) {
    ptrdiff_t i = 0;
    for (; i + LSK_LANES <= count; i += LSK_LANES) vf_store(tile + i, vf_load_as(format, x, at + i));
    if (i == count) return;
    vf_store(tile + i, load_some(format, (const char *)x + (at + i) * (format == LSK_FP32 ? 4 : 2), 0, count - i));
    for (ptrdiff_t rest = count; rest < i + LSK_LANES; rest++) tile[rest] = -__builtin_inff();
}

// Copies `count` <= 128 logits, prepared, into a tile; what is left of the last register becomes -inf.
static void prepare_tile(float *tile, int32_t format, const void *x, ptrdiff_t at, ptrdiff_t count,
                         const lsk_logit_rule *rule) {
    load_tile(tile, format, x, at, count);
    if (is_plain(rule)) return;
    round_stored(tile, registers_of(count) * LSK_LANES, rule->rounding);
    vf slope;
    for (int i = 0; i < count; i += LSK_LANES) vf_store(tile + i, vf_prepare(vf_load(tile + i), rule, &slope));
}

LSK_INLINE void lse_add_prepared_as(lse_run *run, int32_t format, const void *x, ptrdiff_t at, ptrdiff_t count,
                                    const lsk_logit_rule *rule, int warm, int entropy) {
    for (; at < count; at += LSK_TILE) {
        float tile[LSK_TILE];
        const ptrdiff_t part = count - at < LSK_TILE ? count - at : LSK_TILE;
        prepare_tile(tile, format, x, at, part, rule);
        if (part == LSK_TILE) lse_add_tile(run, LSK_FP32, tile, 0, warm, entropy);
        else lse_add_short(run, tile, registers_of(part), warm, entropy);
    }
}

// Logits that are not taken as they lie in memory, once for all formats.
static void lse_add_prepared(lse_run *run, int32_t format, const void *x, ptrdiff_t at, ptrdiff_t count,
                             const lsk_logit_rule *rule, int warm, int entropy) {
    if (warm && entropy) lse_add_prepared_as(run, format, x, at, count, rule, 1, 1);
    else if (warm) lse_add_prepared_as(run, format, x, at, count, rule, 1, 0);
    else if (entropy) lse_add_prepared_as(run, format, x, at, count, rule, 0, 1);
    else lse_add_prepared_as(run, format, x, at, count, rule, 0, 0);
}

// Adds `count` logits, all of one block, to a row's lanes.
LSK_INLINE void lse_add(lse_run *run, int32_t format, const void *x, ptrdiff_t count,
                        const lsk_logit_rule *rule, int warm, int entropy) {
    ptrdiff_t at = 0;
    if (is_plain(rule))
        for (; at + LSK_TILE <= count; at += LSK_TILE) lse_add_tile(run, format, x, at, warm, entropy);
    if (at < count) {
        lse_run copy = *run;  // the run itself stays in registers
        lse_add_prepared(&copy, format, x, at, count, rule, warm, entropy);
        *run = copy;
    }
}

LSK_INLINE void lse_row_as(lsk_lse_block *blocks, const void *x, int32_t format, ptrdiff_t count,
                           const lsk_logit_rule *rule, int warm, int entropy) {
    const ptrdiff_t bytes = format == LSK_FP32 ? 4 : 2;
    for (ptrdiff_t start = 0; start < count; start += LSK_BLOCK) {
        lse_run run = lse_start(rule);
        lse_add(&run, format, (const char *)x + start * bytes,
                count - start < LSK_BLOCK ? count - start : LSK_BLOCK, rule, warm, entropy);
        *blocks++ = lse_end(&run, entropy);
    }
}

LSK_INLINE void lse_tile_as(lsk_lse_state *states, const float *tile, ptrdiff_t tile_stride, ptrdiff_t rows,
                            ptrdiff_t count, const lsk_logit_rule *rule, int warm, int entropy) {
    for (lsk_lse_state *state = states; state < states + rows; state++, tile += tile_stride) {
        lse_run run = lse_start(rule);
        run.flags = state->flags;
        if (state->reference != LSK_LSE_NONE) lse_set_reference(&run, state->reference);
        LSK_UNROLL
        for (int i = 0; i < LSK_NV; i++) {
            run.sum[i] = vf_load(state->sum + i * LSK_LANES);
            run.weighted[i] = entropy ? vf_load(state->weighted + i * LSK_LANES) : (vf){};
        }
        lse_add(&run, LSK_FP32, tile, count, rule, warm, entropy);
        LSK_UNROLL
        for (int i = 0; i < LSK_NV; i++) {
            vf_store(state->sum + i * LSK_LANES, run.sum[i]);
            if (entropy) vf_store(state->weighted + i * LSK_LANES, run.weighted[i]);
        }
        state->reference = run.reference;
        state->flags = run.flags;
    }
}

// One function for each combination of what the inner loop must know.
#define LSK_BY_FORMAT(WARM, ENTROPY)                                                               \
    if (format == LSK_FP32) lse_row_as(blocks, x, LSK_FP32, count, rule, WARM, ENTROPY);           \
    else if (format == LSK_FP16) lse_row_as(blocks, x, LSK_FP16, count, rule, WARM, ENTROPY);      \
    else lse_row_as(blocks, x, LSK_BF16, count, rule, WARM, ENTROPY)

static int is_warm(const lsk_logit_rule *rule) { return rule->inverse != 1 || rule->inverse_low != 0; }

// A row of logits in memory: one lsk_lse_block for every 2,048.
static void lse_row(lsk_lse_block *blocks, const void *x, int32_t format, ptrdiff_t count,
                    const lsk_logit_rule *rule, int32_t entropy) {
    if (is_warm(rule)) {
        if (entropy) { LSK_BY_FORMAT(1, 1); } else { LSK_BY_FORMAT(1, 0); }
    } else {
        if (entropy) { LSK_BY_FORMAT(0, 1); } else { LSK_BY_FORMAT(0, 0); }
    }
}

// Tiles that a matrix product left in float: `count` <= 128 columns of `rows` rows.
static void lse_tile(lsk_lse_state *states, const float *tile, ptrdiff_t tile_stride, ptrdiff_t rows,
                     ptrdiff_t count, const lsk_logit_rule *rule, int32_t entropy) {
    if (is_warm(rule)) {
        if (entropy) lse_tile_as(states, tile, tile_stride, rows, count, rule, 1, 1);
        else lse_tile_as(states, tile, tile_stride, rows, count, rule, 1, 0);
    } else {
        if (entropy) lse_tile_as(states, tile, tile_stride, rows, count, rule, 0, 1);
        else lse_tile_as(states, tile, tile_stride, rows, count, rule, 0, 0);
    }
}

static void lse_reset(lsk_lse_state *state) {
    memset(state, 0, sizeof *state);
    state->reference = LSK_LSE_NONE;
}

static void lse_finish(lsk_lse_block *block, const lsk_lse_state *state) {
    lse_run run = {.reference = state->reference, .flags = state->flags};
    memcpy(run.sum, state->sum, sizeof run.sum);
    memcpy(run.weighted, state->weighted, sizeof run.weighted);
    *block = lse_end(&run, 1);
}

// A row as the log-softmax sees it, before the temperature, minus `shift`.
static void prepare_row(float *out, const void *x, int32_t format, ptrdiff_t count,
                        const lsk_logit_rule *rule, float shift) {
    const ptrdiff_t bytes = format == LSK_FP32 ? 4 : 2;
    for (ptrdiff_t at = 0; at < count; at += LSK_TILE) {
        ptrdiff_t part = count - at < LSK_TILE ? count - at : LSK_TILE;
        float tile[LSK_TILE];
        prepare_tile(tile, format, (const char *)x + at * bytes, 0, part, rule);
        for (ptrdiff_t i = 0; i < part; i++) out[at + i] = tile[i] - shift;
    }
}

// d(y): g (1[target] - p) - h p (ln p + entropy), with p = e^y / S; then back through the temperature and
// the soft-cap. `out` may be `x`.
LSK_INLINE void gradient_tile(float *out, int32_t format, const void *x, ptrdiff_t at, ptrdiff_t count,
                              ptrdiff_t target, const lsk_logit_rule *rule, const lsk_gradient_row *row,
                              int general) {
    lse_run run = lse_start(rule);
    lse_set_reference(&run, row->reference);
    const vf inverse_sum = vf_splat(row->inverse_sum);
    float raw[LSK_TILE];
    if (count < LSK_TILE) load_tile(raw, format, x, at, count);
    for (int i = 0; i < count; i += LSK_LANES) {
        vf slope = vf_splat(1.0f), v = count < LSK_TILE ? vf_load(raw + i) : vf_load_as(format, x, at + i);
        if (general) v = vf_prepare(v, rule, &slope) - vf_splat(row->shift);
        v = vf_select(run.floor > v, run.floor, v);
        vf y = v, low = {};
        if (general) {
            y = v * vf_splat(rule->inverse);
            low = vf_fma(v, vf_splat(rule->inverse), -y);
            low = vf_fma(v, vf_splat(rule->inverse_low), low);
        }
        vf t = vf_fma(y, vf_splat(LSK_LOG2_E), run.magic);
        vf power = (vf)((vi)t << 23);
        vf n = t - run.magic;
        vf r = vf_exp_r(y, n);
        if (general) r = r + low;
        vf p = vf_exp_p(r) * power * inverse_sum;
        vf w = vf_splat(row->d_log_prob);
        if (general) {
            vf u = vf_fma(n - vf_splat((float)row->reference), vf_splat(LSK_LN2), r);
            w = vf_fma(u + vf_splat(row->entropy_offset), vf_splat(row->d_entropy), w);
        }
        vf chosen = {};
        ptrdiff_t lane = target - i;
        if (lane >= 0 && lane < LSK_LANES) chosen[lane] = row->d_log_prob;
        vf dy = vf_fma(-p, w, chosen);
        vf_store(out + i, general ? dy * vf_splat(rule->inverse) * slope : dy);
    }
}

// The gradient of one row of logits, in any of the three formats or an emulated one. Reads a tile before it writes it.
static void gradient_row(void *out, int32_t out_format, const void *x, int32_t format, ptrdiff_t count,
                         ptrdiff_t target, const lsk_logit_rule *rule, const lsk_gradient_row *row) {
    for (ptrdiff_t at = 0; at < count; at += LSK_TILE) {
        ptrdiff_t part = count - at < LSK_TILE ? count - at : LSK_TILE;
        float tile[LSK_TILE], rounded[LSK_TILE];
        const void *from = x;
        ptrdiff_t place = at;
        int32_t read = format;
        if (rule->rounding >= LSK_EMULATED) {
            for (ptrdiff_t i = 0; i < part; i++) rounded[i] = load_one(format, x, at + i);
            round_stored(rounded, part, rule->rounding);
            from = rounded;
            place = 0;
            read = LSK_FP32;
        }
        // At temperature 1, without cap, rounding or entropy, half of the work has no effect on the bits.
        if (is_warm(rule) || !is_plain(rule) || row->d_entropy != 0 || row->shift != 0)
            gradient_tile(tile, read, from, place, part, target - at, rule, row, 1);
        else gradient_tile(tile, read, from, place, part, target - at, rule, row, 0);
        if (storage_format(out_format) == LSK_FP32) {
            round_stored(tile, part, out_format);
            memcpy((float *)out + at, tile, (size_t)part * sizeof(float));
        } else {
            uint16_t narrow[LSK_TILE];
            for (int i = 0; i < part; i += LSK_LANES) {
                vf v = vf_load(tile + i);
                vh h = out_format == LSK_FP16 ? vh_fp16_from_vf(v) : vh_bf16_from_vf(v);
                memcpy(narrow + i, &h, sizeof h);
            }
            memcpy((uint16_t *)out + at, narrow, (size_t)part * sizeof(uint16_t));
        }
    }
}

// The softmax of `count` <= 64 scores as lse_row and gradient_row form it, whose terms are the same: each is formed once.
// Returns 0, with nothing written, where a score is beyond 2^20, infinite or NaN.
static int32_t softmax_row(void *out, int32_t out_format, const float *x, ptrdiff_t count) {
    const lsk_logit_rule rule = {.temperature = 1, .inverse = 1};
    const int registers = registers_of(count);
    float tile[LSK_LANE_COUNT];
    load_tile(tile, LSK_FP32, x, 0, count);
    vf top = vf_load(tile);
    for (int i = 1; i < registers; i++) top = vf_max(vf_load(tile + i * LSK_LANES), top);
    float highest = top[0];
    for (int i = 1; i < LSK_LANES; i++) highest = top[i] > highest ? top[i] : highest;
    if (!(highest >= -LSK_WIDE && highest < LSK_WIDE)) return 0;
    lse_run run = lse_start(&rule);
    lse_set_reference(&run, (int32_t)__builtin_rintf(highest * LSK_LOG2_E));
    vf terms[LSK_NV];
    for (int i = 0; i < LSK_NV; i++) terms[i] = (vf){};
    for (int i = 0; i < registers; i++) {
        vf v = vf_load(tile + i * LSK_LANES);
        v = vf_select(run.floor > v, run.floor, v);
        vf t = vf_fma(v, vf_splat(LSK_LOG2_E), run.magic);
        terms[i] = vf_exp_p(vf_exp_r(v, t - run.magic)) * (vf)((vi)t << 23);
    }
    const double sum = lse_tree(terms);
    if (sum != sum) return 0;
    const vf inverse = vf_splat((float)(1 / sum));
    for (int i = 0; i < registers; i++) {
        const ptrdiff_t rest = count - i * LSK_LANES, some = rest < LSK_LANES ? rest : LSK_LANES;
        vf p = terms[i] * inverse;
        if (storage_format(out_format) == LSK_FP32) {
            memcpy((float *)out + i * LSK_LANES, &p, (size_t)some * sizeof(float));
        } else {
            vh h = out_format == LSK_FP16 ? vh_fp16_from_vf(p) : vh_bf16_from_vf(p);
            memcpy((uint16_t *)out + i * LSK_LANES, &h, (size_t)some * sizeof(uint16_t));
        }
    }
    if (storage_format(out_format) == LSK_FP32) round_stored((float *)out, count, out_format);
    return 1;
}
