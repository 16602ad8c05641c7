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

// True if any lane of a comparison's result is set.
LSK_INLINE int vi_any(vi mask) {
    int32_t found = 0;
    for (int i = 0; i < LSK_LANES; i++) found |= mask[i];
    return found != 0;
}

// The larger; a NaN in x is passed over.
LSK_INLINE vf vf_max(vf x, vf m) { return vf_select(x > m, x, m); }

// What a tile needs of its row: the rule's temperature, and the reference N in the forms the loop takes.
typedef struct {
    float temperature, inverse, inverse_low;
    vf limit;      // a logit above it moves the reference
    vf floor;      // logits below count as this, whose term is exactly 0
    vf magic;      // adding it to y log2 e leaves n - N + 127 in the low bits
    vf reference;  // N
} lse_frame;

// Where N stands. LSK_LSE_NONE: nowhere yet, so any logit above -inf is beyond the limit.
LSK_INLINE void lse_set_reference(lse_frame *frame, int32_t reference) {
    const float octave = LSK_LN2 * frame->temperature, n = (float)reference;
    frame->limit = vf_splat(reference == LSK_LSE_NONE ? -__builtin_inff() : (n + LSK_HEADROOM) * octave);
    frame->floor = vf_splat((n - 127) * octave);
    frame->magic = vf_splat(LSK_MAGIC + (127 - n));
    frame->reference = vf_splat(n);
}

// Moves the reference. The lanes are scaled by an exact power of two, and what is weighted by y is taken
// relative to the new reference.
LSK_INLINE void lse_move(vf sum[LSK_NV], vf weighted[LSK_NV], lsk_lse_state *state, lse_frame *frame,
                         int32_t reference) {
    if (state->reference != LSK_LSE_NONE) {
        int32_t rise = reference - state->reference;
        union { int32_t bits; float value; } power = {.bits = rise > 126 ? 0 : (127 - rise) << 23};
        vf lower = vf_splat(-(float)rise * LSK_LN2);
        LSK_UNROLL
        for (int i = 0; i < LSK_NV; i++) {
            weighted[i] = vf_fma(sum[i], lower, weighted[i]) * power.value;
            sum[i] *= power.value;
        }
    }
    state->reference = reference;
    lse_set_reference(frame, reference);
}

// Before a tile is added: moves the reference if it must. Returns 0 if the tile has nothing to add.
// Rare: once at the start of a block, then only on a jump of 8 octaves or in a tile without logits.
LSK_INLINE int lse_prepare_tile(vf sum[LSK_NV], vf weighted[LSK_NV], lsk_lse_state *state, lse_frame *frame,
                                const vf logits[2 * LSK_NV], vf top) {
    float highest = top[0];
    for (int i = 1; i < LSK_LANES; i++) highest = top[i] > highest ? top[i] : highest;
    int skip = state->reference == LSK_LSE_NONE;
    if (highest > frame->limit[0]) {
        float y = highest * frame->inverse;
        if (y >= LSK_WIDE) {
            state->flags |= highest == __builtin_inff() ? LSK_LSE_NOT_FINITE : LSK_LSE_WIDE;
            return 0;
        }
        // Below -2^20 it is nothing beside any ordinary logit: the row decides whether there is one.
        skip = y < -LSK_WIDE;
        if (skip) state->flags |= LSK_LSE_LOW;
        else lse_move(sum, weighted, state, frame, (int32_t)__builtin_rintf(y * LSK_LOG2_E));
    }
    if (skip) {
        // Nothing to add, but a NaN shows in no maximum.
        LSK_UNROLL
        for (int i = 0; i < 2 * LSK_NV; i++)
            if (vi_any(logits[i] != logits[i])) state->flags |= LSK_LSE_NOT_FINITE;
    }
    return !skip;
}

// One tile: 128 logits into the lanes. The lanes stay in registers across tiles of one call.
LSK_INLINE void lse_add_tile(vf sum[LSK_NV], vf weighted[LSK_NV], lsk_lse_state *state, lse_frame *frame,
                             int32_t format, const void *x, ptrdiff_t at, int warm, int entropy) {
    vf logits[2 * LSK_NV], top = vf_splat(-__builtin_inff());
    LSK_UNROLL
    for (int i = 0; i < 2 * LSK_NV; i++) {
        logits[i] = vf_load_as(format, x, at + i * LSK_LANES);
        top = vf_max(logits[i], top);
    }
    if (__builtin_expect(state->reference == LSK_LSE_NONE || vi_any(top > frame->limit), 0))
        if (!lse_prepare_tile(sum, weighted, state, frame, logits, top)) return;

    LSK_UNROLL
    for (int i = 0; i < 2 * LSK_NV; i++) {
        vf v = vf_select(frame->floor > logits[i], frame->floor, logits[i]);  // NaN stays
        vf y = v, low = {};
        if (warm) {
            // y + low = v / temperature to twice the precision: the division leaves no error behind.
            y = v * vf_splat(frame->inverse);
            low = vf_fma(v, vf_splat(frame->inverse), -y);
            low = vf_fma(v, vf_splat(frame->inverse_low), low);
        }
        vf t = vf_fma(y, vf_splat(LSK_LOG2_E), frame->magic);
        vf power = (vf)((vi)t << 23);  // 2^(n - N), and exactly 0 at the floor
        vf n = t - frame->magic;
        vf r = vf_exp_r(y, n);
        if (warm) r = r + low;
        vf p = vf_exp_p(r);
        if (entropy) {
            vf term = p * power;
            vf u = vf_fma(n - frame->reference, vf_splat(LSK_LN2), r);  // y - N L
            sum[i % LSK_NV] += term;
            weighted[i % LSK_NV] = vf_fma(term, u, weighted[i % LSK_NV]);
        } else {
            sum[i % LSK_NV] = vf_fma(p, power, sum[i % LSK_NV]);
        }
    }
}

static void lse_reset(lsk_lse_state *state) {
    memset(state, 0, sizeof *state);
    state->reference = LSK_LSE_NONE;
}

// Fixed tree: lane i takes lane i + 32, then + 16 ... + 1, in float64.
static double lse_tree(const float *lanes) {
    double tree[LSK_LANE_COUNT];
    for (int i = 0; i < LSK_LANE_COUNT; i++) tree[i] = lanes[i];
    for (int half = LSK_LANE_COUNT / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) tree[i] += tree[i + half];
    return tree[0];
}

static void lse_finish(lsk_lse_block *block, const lsk_lse_state *state) {
    block->sum = lse_tree(state->sum);
    block->weighted = lse_tree(state->weighted);
    block->reference = state->reference;
    block->flags = state->flags;
    if (block->sum != block->sum) block->flags |= LSK_LSE_NOT_FINITE;
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

// Copies `count` <= 128 logits, prepared, into a tile; the rest becomes -inf, which adds nothing.
static void prepare_tile(float *tile, int32_t format, const void *x, ptrdiff_t at, ptrdiff_t count,
                         const lsk_logit_rule *rule) {
    float raw[LSK_TILE];
    if (count == LSK_TILE) {
        for (int i = 0; i < LSK_TILE; i += LSK_LANES) vf_store(raw + i, vf_load_as(format, x, at + i));
    } else {
        for (ptrdiff_t i = 0; i < LSK_TILE; i++)
            raw[i] = i < count ? load_one(format, x, at + i) : -__builtin_inff();
    }
    vf slope;
    for (int i = 0; i < LSK_TILE; i += LSK_LANES)
        vf_store(tile + i, is_plain(rule) ? vf_load(raw + i) : vf_prepare(vf_load(raw + i), rule, &slope));
}

// Adds `count` logits, all of one block, to a row's lanes.
LSK_INLINE void lse_add(lsk_lse_state *state, int32_t format, const void *x, ptrdiff_t count,
                        const lsk_logit_rule *rule, int warm, int entropy) {
    if (state->flags & (LSK_LSE_NOT_FINITE | LSK_LSE_WIDE)) return;
    lse_frame frame = {.temperature = rule->temperature, .inverse = rule->inverse,
                       .inverse_low = rule->inverse_low};
    lse_set_reference(&frame, state->reference);
    vf sum[LSK_NV], weighted[LSK_NV];
    LSK_UNROLL
    for (int i = 0; i < LSK_NV; i++) {
        sum[i] = vf_load(state->sum + i * LSK_LANES);
        weighted[i] = entropy ? vf_load(state->weighted + i * LSK_LANES) : (vf){};
    }
    ptrdiff_t at = 0;
    if (is_plain(rule))
        for (; at + LSK_TILE <= count; at += LSK_TILE)
            lse_add_tile(sum, weighted, state, &frame, format, x, at, warm, entropy);
    for (; at < count; at += LSK_TILE) {
        float tile[LSK_TILE];
        prepare_tile(tile, format, x, at, count - at < LSK_TILE ? count - at : LSK_TILE, rule);
        lse_add_tile(sum, weighted, state, &frame, LSK_FP32, tile, 0, warm, entropy);
    }
    LSK_UNROLL
    for (int i = 0; i < LSK_NV; i++) {
        vf_store(state->sum + i * LSK_LANES, sum[i]);
        if (entropy) vf_store(state->weighted + i * LSK_LANES, weighted[i]);
    }
}

#define LSK_LSE_ADD(NAME, FORMAT, WARM, ENTROPY)                                              \
    static void NAME(lsk_lse_state *state, const void *x, ptrdiff_t count,                    \
                     const lsk_logit_rule *rule) {                                            \
        lse_add(state, FORMAT, x, count, rule, WARM, ENTROPY);                                \
    }
LSK_LSE_ADD(lse_add_fp32, LSK_FP32, 0, 0)
LSK_LSE_ADD(lse_add_fp16, LSK_FP16, 0, 0)
LSK_LSE_ADD(lse_add_bf16, LSK_BF16, 0, 0)
LSK_LSE_ADD(lse_add_fp32_entropy, LSK_FP32, 0, 1)
LSK_LSE_ADD(lse_add_fp16_entropy, LSK_FP16, 0, 1)
LSK_LSE_ADD(lse_add_bf16_entropy, LSK_BF16, 0, 1)
LSK_LSE_ADD(lse_add_fp32_warm, LSK_FP32, 1, 0)
LSK_LSE_ADD(lse_add_fp16_warm, LSK_FP16, 1, 0)
LSK_LSE_ADD(lse_add_bf16_warm, LSK_BF16, 1, 0)
LSK_LSE_ADD(lse_add_fp32_warm_entropy, LSK_FP32, 1, 1)
LSK_LSE_ADD(lse_add_fp16_warm_entropy, LSK_FP16, 1, 1)
LSK_LSE_ADD(lse_add_bf16_warm_entropy, LSK_BF16, 1, 1)

typedef void (*lse_add_function)(lsk_lse_state *, const void *, ptrdiff_t, const lsk_logit_rule *);

static lse_add_function lse_add_for(int32_t format, const lsk_logit_rule *rule, int32_t entropy) {
    static const lse_add_function table[2][2][3] = {
        {{lse_add_fp32, lse_add_fp16, lse_add_bf16},
         {lse_add_fp32_entropy, lse_add_fp16_entropy, lse_add_bf16_entropy}},
        {{lse_add_fp32_warm, lse_add_fp16_warm, lse_add_bf16_warm},
         {lse_add_fp32_warm_entropy, lse_add_fp16_warm_entropy, lse_add_bf16_warm_entropy}}};
    return table[rule->inverse != 1 || rule->inverse_low != 0][entropy != 0][format];
}

// A row of logits in memory: one lsk_lse_block for every 2,048.
static void lse_row(lsk_lse_block *blocks, const void *x, int32_t format, ptrdiff_t count,
                    const lsk_logit_rule *rule, int32_t entropy) {
    const lse_add_function add = lse_add_for(format, rule, entropy);
    const ptrdiff_t bytes = format == LSK_FP32 ? 4 : 2;
    for (ptrdiff_t start = 0; start < count; start += LSK_BLOCK) {
        lsk_lse_state state;
        lse_reset(&state);
        add(&state, (const char *)x + start * bytes, count - start < LSK_BLOCK ? count - start : LSK_BLOCK,
            rule);
        lse_finish(blocks++, &state);
    }
}

// Tiles that a matrix product left in float: `count` <= 128 columns of `rows` rows.
static void lse_tile(lsk_lse_state *states, const float *tile, ptrdiff_t tile_stride, ptrdiff_t rows,
                     ptrdiff_t count, const lsk_logit_rule *rule, int32_t entropy) {
    const lse_add_function add = lse_add_for(LSK_FP32, rule, entropy);
    for (ptrdiff_t row = 0; row < rows; row++) add(&states[row], tile + row * tile_stride, count, rule);
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
                              ptrdiff_t target, const lsk_logit_rule *rule, const lsk_gradient_row *row) {
    lse_frame frame = {.temperature = rule->temperature};
    lse_set_reference(&frame, row->reference);
    const vf inverse_sum = vf_splat(row->inverse_sum);
    float raw[LSK_TILE];
    if (count < LSK_TILE)
        for (ptrdiff_t i = 0; i < LSK_TILE; i++)
            raw[i] = i < count ? load_one(format, x, at + i) : -__builtin_inff();
    for (int i = 0; i < LSK_TILE; i += LSK_LANES) {
        vf slope, v = count < LSK_TILE ? vf_load(raw + i) : vf_load_as(format, x, at + i);
        v = vf_prepare(v, rule, &slope) - vf_splat(row->shift);
        v = vf_select(frame.floor > v, frame.floor, v);
        vf y = v * vf_splat(rule->inverse);
        vf low = vf_fma(v, vf_splat(rule->inverse), -y);
        low = vf_fma(v, vf_splat(rule->inverse_low), low);
        vf t = vf_fma(y, vf_splat(LSK_LOG2_E), frame.magic);
        vf power = (vf)((vi)t << 23);
        vf n = t - frame.magic;
        vf r = vf_exp_r(y, n) + low;
        vf p = vf_exp_p(r) * power * inverse_sum;
        vf u = vf_fma(n - frame.reference, vf_splat(LSK_LN2), r);
        vf w = vf_fma(u + vf_splat(row->entropy_offset), vf_splat(row->d_entropy), vf_splat(row->d_log_prob));
        vf chosen = {};
        ptrdiff_t lane = target - i;
        if (lane >= 0 && lane < LSK_LANES) chosen[lane] = row->d_log_prob;
        vf dy = vf_fma(-p, w, chosen);
        vf_store(out + i, dy * vf_splat(rule->inverse) * slope);
    }
}

// The gradient of one row of logits, in any of the three formats. Reads a tile before it writes it.
static void gradient_row(void *out, int32_t out_format, const void *x, int32_t format, ptrdiff_t count,
                         ptrdiff_t target, const lsk_logit_rule *rule, const lsk_gradient_row *row) {
    for (ptrdiff_t at = 0; at < count; at += LSK_TILE) {
        ptrdiff_t part = count - at < LSK_TILE ? count - at : LSK_TILE;
        float tile[LSK_TILE];
        gradient_tile(tile, format, x, at, part, target - at, rule, row);
        if (out_format == LSK_FP32) {
            memcpy((float *)out + at, tile, (size_t)part * sizeof(float));
        } else {
            uint16_t narrow[LSK_TILE];
            for (int i = 0; i < LSK_TILE; i += LSK_LANES) {
                vf v = vf_load(tile + i);
                vh h = out_format == LSK_FP16 ? vh_fp16_from_vf(v) : vh_bf16_from_vf(v);
                memcpy(narrow + i, &h, sizeof h);
            }
            memcpy((uint16_t *)out + at, narrow, (size_t)part * sizeof(uint16_t));
        }
    }
}
