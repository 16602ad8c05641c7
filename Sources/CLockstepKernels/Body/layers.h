// What stands between the matrix products of a transformer: norms, rotary embedding, activation, residual sum.
// Inputs are widened to float exactly, a result is rounded once to its format: with `each`, after every elementary
// operation too (the eager order). Reference/ReferenceLayers.swift says the same in scalars. What the lockstep order
// needs is compiled for each format; the rest once, and asks for the format as it goes. An emulated format is stored as
// floats, which round_stored rounds at the end.

LSK_INLINE void vf_store_as(int32_t format, void *out, ptrdiff_t index, vf v) {
    if (format == LSK_FP32) {
        vf_store((float *)out + index, v);
    } else {
        vh_store((uint16_t *)out + index, format == LSK_FP16 ? vh_fp16_from_vf(v) : vh_bf16_from_vf(v));
    }
}

LSK_INLINE void store_some(int32_t format, void *out, ptrdiff_t index, ptrdiff_t count, vf v) {
    const ptrdiff_t bytes = format == LSK_FP32 ? 4 : 2;
    char some[LSK_WIDTH];
    vf_store_as(format, some, 0, v);
    memcpy((char *)out + index * bytes, some, (size_t)((count < LSK_LANES ? count : LSK_LANES) * bytes));
}

LSK_INLINE vf vf_round_as(int32_t format, vf v) {
    if (format >= LSK_EMULATED) return vf_round_emulated(v, format);
    return format == LSK_FP16 ? vf_round_to_fp16(v) : format == LSK_BF16 ? vf_round_to_bf16(v) : v;
}

// For each register of `count` elements: BODY with `at` and `rest`, how many are left from there.
#define LSK_FOR_REGISTERS(...)                                            \
    for (ptrdiff_t at = 0; at < count; at += LSK_LANES) {                 \
        const ptrdiff_t rest = count - at;                                \
        __VA_ARGS__                                                           \
    }
#define LSK_LOAD_AS(FORMAT, X) (rest >= LSK_LANES ? vf_load_as(FORMAT, X, at) : load_some(FORMAT, X, at, rest))
#define LSK_STORE_AS(FORMAT, OUT, V)                                      \
    do {                                                                  \
        if (rest >= LSK_LANES) vf_store_as(FORMAT, OUT, at, V);           \
        else store_some(FORMAT, OUT, at, rest, V);                        \
    } while (0)
#define LSK_LOAD(X) LSK_LOAD_AS(format, X)
#define LSK_STORE(V) LSK_STORE_AS(format, out, V)

// The sum of squares of x, or of x + y: element i belongs to lane i mod 64, blocks of 2,048, the tree of the
// log-softmax; blocks are added in float64.
LSK_INLINE double sum_of_squares(int32_t format, const void *x, const void *y, ptrdiff_t count) {
    double total = 0;
    for (ptrdiff_t start = 0; start < count; start += LSK_BLOCK) {
        const ptrdiff_t end = count - start < LSK_BLOCK ? count : start + LSK_BLOCK;
        vf lanes[LSK_NV];
        LSK_UNROLL
        for (int i = 0; i < LSK_NV; i++) lanes[i] = (vf){};
        for (ptrdiff_t at = start; at < end; at += LSK_LANE_COUNT)
            LSK_UNROLL
            for (int i = 0; i < LSK_NV; i++) {
                const ptrdiff_t place = at + i * LSK_LANES, rest = end - place;
                if (rest <= 0) break;
                vf v = rest >= LSK_LANES ? vf_load_as(format, x, place) : load_some(format, x, place, rest);
                if (y) v = v + (rest >= LSK_LANES ? vf_load_as(format, y, place) : load_some(format, y, place, rest));
                lanes[i] = vf_fma(v, v, lanes[i]);
            }
        total += lse_tree(lanes);
    }
    return total;
}

// With `y` the norm is of x + y, which x becomes, rounded.
LSK_INLINE void rms_norm_as(void *out, void *sum, const void *x, const void *y, const float *weight, int32_t format,
                            ptrdiff_t count, double epsilon, int each) {
    const int32_t rounding = format;
    format = storage_format(format);
    const double mean = sum_of_squares(format, x, y, count) / (double)count;
    const vf scale = vf_splat((float)(1 / __builtin_sqrt(mean + epsilon)));
    LSK_FOR_REGISTERS({
        vf w = LSK_LOAD_AS(LSK_FP32, weight), v = LSK_LOAD(x);
        if (y) v = v + LSK_LOAD(y);
        vf normed = v * scale;
        if (each) normed = vf_round_as(rounding, normed);
        LSK_STORE(normed * w);
        if (y) LSK_STORE_AS(format, sum, v);
    })
}

// x / rms(x) * weight. `out` may be `x`.
static void rms_norm(void *out, const void *x, const float *weight, int32_t format, ptrdiff_t count,
                     double epsilon, int32_t each) {
    if (each) rms_norm_as(out, 0, x, 0, weight, format, count, epsilon, 1);
    else if (format == LSK_FP16) rms_norm_as(out, 0, x, 0, weight, LSK_FP16, count, epsilon, 0);
    else if (format == LSK_BF16) rms_norm_as(out, 0, x, 0, weight, LSK_BF16, count, epsilon, 0);
    else rms_norm_as(out, 0, x, 0, weight, LSK_FP32, count, epsilon, 0);
    round_stored((float *)out, count, format);
}

// x += y, and the norm of the sum before it was rounded. `out` is neither.
static void add_rms_norm(void *out, void *x, const void *y, const float *weight, int32_t format, ptrdiff_t count,
                         double epsilon) {
    rms_norm_as(out, x, x, y, weight, format, count, epsilon, 0);
    round_stored((float *)out, count, format);
    round_stored((float *)x, count, format);
}

// Turns element i and element i + count of a head by the angle i, in place: count cosines and sines.
LSK_INLINE void rotate_as(void *x, const float *cosines, const float *sines, int32_t format, ptrdiff_t count,
                          int each) {
    const int32_t rounding = format;
    format = storage_format(format);
    const ptrdiff_t bytes = format == LSK_FP32 ? 4 : 2;
    char *const high = (char *)x + count * bytes;
    LSK_FOR_REGISTERS({
        vf c = LSK_LOAD_AS(LSK_FP32, cosines), s = LSK_LOAD_AS(LSK_FP32, sines);
        vf a = LSK_LOAD(x), b = LSK_LOAD(high);
        if (each) {
            LSK_STORE_AS(format, x, vf_round_as(rounding, a * c) - vf_round_as(rounding, b * s));
            LSK_STORE_AS(format, high, vf_round_as(rounding, b * c) + vf_round_as(rounding, a * s));
        } else {
            LSK_STORE_AS(format, x, vf_fma(a, c, -(b * s)));
            LSK_STORE_AS(format, high, vf_fma(b, c, a * s));
        }
    })
}

static void rotate(void *x, const float *cosines, const float *sines, int32_t format, ptrdiff_t count,
                   int32_t each) {
    if (each) rotate_as(x, cosines, sines, format, count, 1);
    else if (format == LSK_FP16) rotate_as(x, cosines, sines, LSK_FP16, count, 0);
    else if (format == LSK_BF16) rotate_as(x, cosines, sines, LSK_BF16, count, 0);
    else rotate_as(x, cosines, sines, LSK_FP32, count, 0);
    round_stored((float *)x, 2 * count, format);
}

// e^y for y in [-87, 88].
LSK_INLINE vf vf_exp(vf y) {
    vf t = vf_fma(y, vf_splat(LSK_LOG2_E), vf_splat(LSK_MAGIC + 127.0f));
    vf power = (vf)((vi)t << 23);
    vf n = t - vf_splat(LSK_MAGIC + 127.0f);
    return vf_exp_p(vf_exp_r(y, n)) * power;
}

// e^y for y <= 0: 0 below -87.
LSK_INLINE vf vf_exp_negative(vf y) {
    vi far = y < vf_splat(-87.0f);
    return vf_select(far, vf_splat(0.0f), vf_exp(vf_select(far, vf_splat(-87.0f), y)));
}

// A tile of an online softmax: `count` <= 64 finite scores x become e^(x - m), where m, the larger of `maximum` and the
// largest of them, takes the place of `maximum`; `sum` is made relative to m and takes them in, added by the tree of
// the log-softmax. Returns e^(maximum - m), which makes relative to m what was summed before.
static float softmax_tile(float *x, ptrdiff_t count, float *maximum, float *sum) {
    float tile[LSK_LANE_COUNT];
    for (ptrdiff_t i = 0; i < LSK_LANE_COUNT; i++) tile[i] = i < count ? x[i] : -__builtin_inff();
    float largest = *maximum;
    for (ptrdiff_t i = 0; i < count; i++) largest = tile[i] > largest ? tile[i] : largest;
    vf lanes[LSK_NV];
    LSK_UNROLL
    for (int i = 0; i < LSK_NV; i++) {
        lanes[i] = vf_exp_negative(vf_load(tile + i * LSK_LANES) - vf_splat(largest));
        vf_store(tile + i * LSK_LANES, lanes[i]);
    }
    memcpy(x, tile, (size_t)count * sizeof *x);
    const vf correction = vf_exp_negative(vf_splat(*maximum - largest));
    *sum = vf_fma(vf_splat(*sum), correction, vf_splat((float)lse_tree(lanes)))[0];
    *maximum = largest;
    return correction[0];
}

// e^-x for x from -88 to 87, and what it is there beyond.
LSK_INLINE vf vf_exp_minus(vf x) {
    vf y = -x;
    y = vf_select(y > vf_splat(88.0f), vf_splat(88.0f), y);
    y = vf_select(y < vf_splat(-87.0f), vf_splat(-87.0f), y);
    return vf_exp(y);
}

// x / (1 + e^-x): 0 below -88, where e^-x would overflow; NaN stays.
LSK_INLINE vf vf_silu(vf x) {
    vf e = vf_exp_minus(x);
    return vf_select(x < vf_splat(-88.0f), vf_splat(0.0f), x / (e + vf_splat(1.0f)));
}

LSK_INLINE void silu_multiply_as(void *out, int32_t out_format, const void *gate, const void *up, int32_t format,
                                 ptrdiff_t count, int each) {
    const int32_t rounding = format;
    format = storage_format(format);
    out_format = storage_format(out_format);
    LSK_FOR_REGISTERS({
        vf activated = vf_silu(LSK_LOAD(gate));
        if (each) activated = vf_round_as(rounding, activated);
        LSK_STORE_AS(out_format, out, activated * LSK_LOAD(up));
    })
}

// silu(gate) * up, both of `format`: that of `out`, or float.
static void silu_multiply(void *out, int32_t out_format, const void *gate, const void *up, int32_t format,
                          ptrdiff_t count, int32_t each) {
    if (each || format != out_format) silu_multiply_as(out, out_format, gate, up, format, count, each);
    else if (format == LSK_FP16) silu_multiply_as(out, LSK_FP16, gate, up, LSK_FP16, count, 0);
    else if (format == LSK_BF16) silu_multiply_as(out, LSK_BF16, gate, up, LSK_BF16, count, 0);
    else silu_multiply_as(out, LSK_FP32, gate, up, LSK_FP32, count, 0);
    round_stored((float *)out, count, out_format);
}

LSK_INLINE void add_times_as(void *out, const void *a, const void *b, float scale, int32_t format,
                              ptrdiff_t count) {
    LSK_FOR_REGISTERS({ LSK_STORE(vf_fma(LSK_LOAD(b), vf_splat(scale), LSK_LOAD(a))); })
}

// a + scale * b. `out` may be `a`.
static void add_times(void *out, const void *a, const void *b, float scale, int32_t format, ptrdiff_t count) {
    if (format == LSK_FP16) add_times_as(out, a, b, scale, LSK_FP16, count);
    else if (format == LSK_BF16) add_times_as(out, a, b, scale, LSK_BF16, count);
    else {
        add_times_as(out, a, b, scale, LSK_FP32, count);
        round_stored((float *)out, count, format);
    }
}

// Rows of floats in another place and format, rounded once; -0 becomes 0. Returns how many values are infinite or NaN
// afterwards.
LSK_INLINE int64_t store_rows_as(void *out, ptrdiff_t out_stride, int32_t format, const float *x,
                                 ptrdiff_t x_stride, ptrdiff_t rows, ptrdiff_t count) {
    const ptrdiff_t bytes = format == LSK_FP32 ? 4 : 2;
    vi found = {0};
    for (ptrdiff_t row = 0; row < rows; row++, x += x_stride, out = (char *)out + out_stride * bytes)
        LSK_FOR_REGISTERS({
            vf v = (rest >= LSK_LANES ? vf_load(x + at) : load_some(LSK_FP32, x, at, rest)) + vf_splat(0.0f);
            if (format == LSK_FP16) v = vf_round_to_fp16(v);
            if (format == LSK_BF16) v = vf_round_to_bf16(v);
            found -= (v - v) != vf_splat(0.0f);
            LSK_STORE(v);
        })
    int64_t total = 0;
    for (int i = 0; i < LSK_LANES; i++) total += found[i];
    return total;
}

static int64_t store_rows(void *out, ptrdiff_t out_stride, int32_t format, const float *x, ptrdiff_t x_stride,
                          ptrdiff_t rows, ptrdiff_t count) {
    if (format == LSK_FP16) return store_rows_as(out, out_stride, LSK_FP16, x, x_stride, rows, count);
    if (format == LSK_BF16) return store_rows_as(out, out_stride, LSK_BF16, x, x_stride, rows, count);
    int64_t found = store_rows_as(out, out_stride, LSK_FP32, x, x_stride, rows, count);
    if (format == LSK_FP32) return found;
    found = 0;
    for (ptrdiff_t row = 0; row < rows; row++) found += round_stored((float *)out + row * out_stride, count, format);
    return found;
}

LSK_INLINE int64_t non_finite_values_as(const void *x, int32_t format, ptrdiff_t count) {
    vi found = {0};
    LSK_FOR_REGISTERS({
        vf v = LSK_LOAD(x);
        found -= (v - v) != vf_splat(0.0f);
    })
    int64_t total = 0;
    for (int i = 0; i < LSK_LANES; i++) total += found[i];
    return total;
}

// How many of `count` values are infinite or NaN.
static int64_t non_finite_values(const void *x, int32_t format, ptrdiff_t count) {
    if (format == LSK_FP16) return non_finite_values_as(x, LSK_FP16, count);
    if (format == LSK_BF16) return non_finite_values_as(x, LSK_BF16, count);
    return non_finite_values_as(x, LSK_FP32, count);
}

#undef LSK_FOR_REGISTERS
#undef LSK_LOAD
#undef LSK_STORE
#undef LSK_LOAD_AS
#undef LSK_STORE_AS
