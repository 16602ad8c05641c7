// The backward pass between its matrix products: all in float, from inputs that were widened exactly; what is rounded to
// a format afterwards is rounded by store_rounded. Reference/ReferenceBackward.swift says the same in scalars.

// Loads and stores of `count` floats a register at a time, the last one cut.
#define LSK_FOR_FLOATS(...)                                              \
    for (ptrdiff_t at = 0; at < count; at += LSK_LANES) {                \
        const ptrdiff_t rest = count - at;                               \
        __VA_ARGS__                                                          \
    }
#define LSK_GET(X) (rest >= LSK_LANES ? vf_load((X) + at) : load_some(LSK_FP32, X, at, rest))
#define LSK_PUT(X, V)                                                    \
    do {                                                                 \
        if (rest >= LSK_LANES) vf_store((X) + at, V);                    \
        else store_some(LSK_FP32, X, at, rest, V);                       \
    } while (0)

// sum_i a_i b_i (times w_i, if there is a w): element i belongs to lane i mod 64, blocks of 2,048, the tree of the
// log-softmax; blocks are added in float64.
LSK_INLINE double dot_of(const float *a, const float *w, const float *b, ptrdiff_t count) {
    double total = 0;
    for (ptrdiff_t start = 0; start < count; start += LSK_BLOCK) {
        const ptrdiff_t end = count - start < LSK_BLOCK ? count : start + LSK_BLOCK;
        vf lanes[LSK_NV];
        LSK_UNROLL
        for (int i = 0; i < LSK_NV; i++) lanes[i] = (vf){};
        for (ptrdiff_t first = start; first < end; first += LSK_LANE_COUNT)
            LSK_UNROLL
            for (int i = 0; i < LSK_NV; i++) {
                const ptrdiff_t at = first + i * LSK_LANES, rest = end - at;
                if (rest <= 0) break;
                vf v = LSK_GET(a);
                if (w) v = v * LSK_GET(w);
                lanes[i] = vf_fma(v, LSK_GET(b), lanes[i]);
            }
        total += lse_tree(lanes);
    }
    return total;
}

static double dot(const float *a, const float *b, ptrdiff_t count) { return dot_of(a, NULL, b, count); }

// Of y = x scale weight, scale = 1 / rms(x): dx = scale weight dy - x scale^3 / count sum(weight dy x), and the row's part
// of the chain of the weight's gradient. `dx` may be `dy`.
static void rms_norm_backward(float *dx, float *d_weight, const float *x, const float *dy, const float *weight,
                              ptrdiff_t count, double epsilon) {
    const double mean = sum_of_squares(LSK_FP32, x, NULL, count) / (double)count;
    const double inverse = 1 / __builtin_sqrt(mean + epsilon);
    const double sum = dot_of(dy, weight, x, count);
    const vf scale = vf_splat((float)inverse);
    const vf along = vf_splat((float)(inverse * inverse * inverse * (sum / (double)count)));
    LSK_FOR_FLOATS({
        vf v = LSK_GET(x), d = LSK_GET(dy);
        vf part = vf_fma(d, v * scale, LSK_GET(d_weight));
        LSK_PUT(d_weight, part);
        LSK_PUT(dx, vf_fma(v, -along, d * LSK_GET(weight) * scale));
    })
}

// Of y = silu(gate) up: d_up = d silu(gate), d_gate = d up silu'(gate), with s = 1 / (1 + e^-gate) and
// silu' = s (1 + gate (1 - s)); 1 - s is e^-gate s, which loses nothing. Both are 0 below -88 but for NaN.
static void silu_multiply_backward(float *d_gate, float *d_up, const float *gate, const float *up, const float *d,
                                   ptrdiff_t count) {
    const vf one = vf_splat(1.0f);
    LSK_FOR_FLOATS({
        vf g = LSK_GET(gate), v = LSK_GET(d);
        vf e = vf_exp_minus(g);
        vf s = one / (e + one);
        vf slope = s * vf_fma(g, e * s, one);
        slope = vf_select(g < vf_splat(-88.0f), vf_splat(0.0f), slope);
        vf gate_part = v * LSK_GET(up) * slope;
        vf up_part = v * vf_silu(g);
        LSK_PUT(d_gate, gate_part);
        LSK_PUT(d_up, up_part);
    })
}

// Of a softmax p: ds = p (dp - sum p dp). `ds` may be `dp`.
static void softmax_backward(float *ds, const float *p, const float *dp, ptrdiff_t count) {
    const vf sum = vf_splat((float)dot_of(p, NULL, dp, count));
    LSK_FOR_FLOATS({ LSK_PUT(ds, LSK_GET(p) * (LSK_GET(dp) - sum)); })
}

// Rows of floats in another place, rounded once to a format but kept as floats; -0 becomes 0. Returns how many values are
// infinite or NaN afterwards. `out` may be `x`.
LSK_INLINE int64_t store_rounded_as(float *out, ptrdiff_t out_stride, int32_t format, const float *x,
                                    ptrdiff_t x_stride, ptrdiff_t rows, ptrdiff_t count) {
    vi found = {0};
    for (ptrdiff_t row = 0; row < rows; row++, x += x_stride, out += out_stride)
        LSK_FOR_FLOATS({
            vf v = LSK_GET(x) + vf_splat(0.0f);
            if (format == LSK_FP16) v = vf_round_to_fp16(v);
            if (format == LSK_BF16) v = vf_round_to_bf16(v);
            found -= (v - v) != vf_splat(0.0f);
            LSK_PUT(out, v);
        })
    int64_t total = 0;
    for (int i = 0; i < LSK_LANES; i++) total += found[i];
    return total;
}

static int64_t store_rounded(float *out, ptrdiff_t out_stride, int32_t format, const float *x, ptrdiff_t x_stride,
                             ptrdiff_t rows, ptrdiff_t count) {
    if (format == LSK_FP16) return store_rounded_as(out, out_stride, LSK_FP16, x, x_stride, rows, count);
    if (format == LSK_BF16) return store_rounded_as(out, out_stride, LSK_BF16, x, x_stride, rows, count);
    int64_t found = store_rounded_as(out, out_stride, LSK_FP32, x, x_stride, rows, count);
    if (format == LSK_FP32) return found;
    found = 0;
    for (ptrdiff_t row = 0; row < rows; row++) found += round_stored(out + row * out_stride, count, format);
    return found;
}

// The sums of columns: chains over rows, restarted every 128, the parts added in order.
static void column_sums(float *out, const float *x, ptrdiff_t x_stride, ptrdiff_t rows, ptrdiff_t count) {
    LSK_FOR_FLOATS({
        vf total = {0};
        for (ptrdiff_t first = 0; first < rows; first += LSK_CHAIN) {
            const ptrdiff_t end = rows - first < LSK_CHAIN ? rows : first + LSK_CHAIN;
            vf chain = {0};
            for (ptrdiff_t row = first; row < end; row++) chain = chain + LSK_GET(x + row * x_stride);
            total = first > 0 ? total + chain : chain;
        }
        LSK_PUT(out, total);
    })
}

// Adds x scale, rounded once to a float, to fixed-point numbers of two parts: `high` counts 2^-20, `low` counts 2^-70.
// Adding is exact but for what is below 2^-71, which depends on the value alone: the order of additions cannot show.
// Returns how many values are 2^18 and beyond, or NaN; what is added for them means nothing.
static int64_t fixed_add(int64_t *high, int64_t *low, const float *x, float scale, ptrdiff_t count) {
    const vd magic = vd_splat(0x1.8p52);  // adding it rounds to an integer, in the low bits
    const vd limit = vd_splat(0x1p18);
    vl found = {0};
    for (ptrdiff_t at = 0; at < count; at += LSK_LANES64) {
        const ptrdiff_t rest = count - at;
        const size_t some = (size_t)(rest < LSK_LANES64 ? rest : LSK_LANES64);
        vf_half part = {0};
        vl h, l;
        if (rest >= LSK_LANES64) {
            memcpy(&part, x + at, sizeof part);
            memcpy(&h, high + at, sizeof h);
            memcpy(&l, low + at, sizeof l);
        } else {
            h = l = (vl){0};
            memcpy(&part, x + at, some * sizeof(float));
            memcpy(&h, high + at, some * sizeof(int64_t));
            memcpy(&l, low + at, some * sizeof(int64_t));
        }
        part = part * scale;
        const vd v = __builtin_convertvector(part, vd);
        const vd magnitude = (vd)((vl)v & INT64_MAX);
        found -= ~(magnitude < limit);  // NaN too
        const vd units = v * vd_splat(0x1p20);
        const vd whole = units + magic;
        const vd left = (units - (whole - magic)) * vd_splat(0x1p50) + magic;
        h += (vl)whole - (vl)magic;
        l += (vl)left - (vl)magic;
        if (rest >= LSK_LANES64) {
            memcpy(high + at, &h, sizeof h);
            memcpy(low + at, &l, sizeof l);
        } else {
            memcpy(high + at, &h, some * sizeof(int64_t));
            memcpy(low + at, &l, some * sizeof(int64_t));
        }
    }
    int64_t total = 0;
    for (int i = 0; i < LSK_LANES64; i++) total += found[i];
    return total;
}

#undef LSK_FOR_FLOATS
#undef LSK_GET
#undef LSK_PUT
