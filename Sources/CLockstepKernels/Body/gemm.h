// Matrix products of one rule: each output is its own chain of fused multiply-adds over k ascending,
// started at +0, restarted every 128 k; the partial sums are added in order of k. Tiling, vector width
// and threads choose which outputs are formed when, never the order inside one.
//
// The left operand comes in strips of LSK_MR rows, [strip][k][row] floats, the last strip as narrow as it is
// (a single row is contiguous); the right one in panels of 32 columns, [k][32], in float or in the 16-bit
// format of a packed head.

#if LSK_SET == LSK_AVX512
#define LSK_MR 12
#define LSK_NR 2  // registers across: 32 columns
#define LSK_ROW_PANELS 4  // panels that one row passes over side by side
#elif LSK_SET == LSK_AVX2
#define LSK_MR 6
#define LSK_NR 2  // 16 columns, twice
#define LSK_WIDE_ROWS 3  // rows so few that 32 columns are formed at once: sums enough to hide a multiply-add's latency
#define LSK_ROW_PANELS 2
#else
#define LSK_MR 6
#define LSK_NR 4  // 16 columns, twice
#define LSK_ROW_PANELS 1
#endif

#ifndef LSK_WIDE_ROWS
#define LSK_WIDE_ROWS 0
#endif
#define LSK_AHEAD 4096  // bytes from what is multiplied to what is asked of memory

LSK_INLINE void multiply_tile(float *c, ptrdiff_t c_stride, const float *a, int32_t format, const void *b,
                              ptrdiff_t k, int add, ptrdiff_t ahead, int m, int across) {
    const ptrdiff_t bytes = format == LSK_FP32 ? 4 : 2;
    vf sum[LSK_MR][LSK_PANEL / LSK_LANES];
    LSK_UNROLL
    for (int i = 0; i < m; i++)
        LSK_UNROLL
        for (int j = 0; j < across; j++) sum[i][j] = (vf){};
    for (ptrdiff_t at = 0; at < k; at++) {
        const char *next = (const char *)b + at * LSK_PANEL * bytes + ahead;
        __builtin_prefetch(next);
        if (format == LSK_FP32) __builtin_prefetch(next + 64);
        vf column[LSK_PANEL / LSK_LANES];
        LSK_UNROLL
        for (int j = 0; j < across; j++)
            column[j] = vf_load_as(format, b, at * LSK_PANEL + j * LSK_LANES);
        LSK_UNROLL
        for (int i = 0; i < m; i++) {
            vf row = vf_splat(a[at * m + i]);
            LSK_UNROLL
            for (int j = 0; j < across; j++) sum[i][j] = vf_fma(row, column[j], sum[i][j]);
        }
    }
    LSK_UNROLL
    for (int i = 0; i < m; i++)
        LSK_UNROLL
        for (int j = 0; j < across; j++) {
            float *to = c + i * c_stride + j * LSK_LANES;
            vf_store(to, add ? vf_load(to) + sum[i][j] : sum[i][j]);
        }
}

#define LSK_ROWS_CASE(M) \
    case M: multiply_tile(c, c_stride, a, format, b, k, add, ahead, M, M <= LSK_WIDE_ROWS ? LSK_PANEL / LSK_LANES : LSK_NR); break;

// m <= LSK_MR rows, 32 columns, k <= 128.
LSK_INLINE void multiply_strip(float *c, ptrdiff_t c_stride, const float *a, int32_t format, const void *b,
                               ptrdiff_t k, int add, ptrdiff_t ahead, ptrdiff_t m) {
    const ptrdiff_t width = m <= LSK_WIDE_ROWS ? LSK_PANEL : LSK_NR * LSK_LANES, bytes = format == LSK_FP32 ? 4 : 2;
    for (ptrdiff_t column = 0; column < LSK_PANEL; column += width, c += width, b = (const char *)b + width * bytes) {
        switch (m) {
            LSK_ROWS_CASE(1)
            LSK_ROWS_CASE(2)
            LSK_ROWS_CASE(3)
            LSK_ROWS_CASE(4)
            LSK_ROWS_CASE(5)
            LSK_ROWS_CASE(6)
#if LSK_MR == 12
            LSK_ROWS_CASE(7)
            LSK_ROWS_CASE(8)
            LSK_ROWS_CASE(9)
            LSK_ROWS_CASE(10)
            LSK_ROWS_CASE(11)
            LSK_ROWS_CASE(12)
#endif
        }
    }
}

// c [m x 32] = (add: c +) a b, over k of the strips' `depth`, from `first` on.
static void multiply(float *c, ptrdiff_t c_stride, const float *strips, ptrdiff_t depth, ptrdiff_t first,
                     const void *panel, int32_t format, ptrdiff_t m, ptrdiff_t k, int32_t add) {
    format = storage_format(format);
    const ptrdiff_t bytes = format == LSK_FP32 ? 4 : 2;
    for (ptrdiff_t row = 0; row < m; row += LSK_MR, c += LSK_MR * c_stride, strips += LSK_MR * depth) {
        const ptrdiff_t part = m - row < LSK_MR ? m - row : LSK_MR;
        // The first strip brings the panel into the cache. With one or two rows the processor runs ahead by itself.
        const ptrdiff_t ahead = row == 0 && part > 2 ? LSK_AHEAD : 0;
        for (ptrdiff_t at = 0; at < k; at += LSK_CHAIN) {
            const ptrdiff_t chain = k - at < LSK_CHAIN ? k - at : LSK_CHAIN;
            const float *a = strips + (first + at) * part;
            const void *b = (const char *)panel + at * LSK_PANEL * bytes;
            const int more = add || at > 0;
            if (format == LSK_FP32) multiply_strip(c, c_stride, a, LSK_FP32, b, chain, more, ahead, part);
            else if (format == LSK_FP16) multiply_strip(c, c_stride, a, LSK_FP16, b, chain, more, ahead, part);
            else multiply_strip(c, c_stride, a, LSK_BF16, b, chain, more, ahead, part);
        }
    }
}

// c [128] = a b for one row and four panels, each k x 32, `panel_bytes` apart. It is what decoding does: the head is
// read once, and several streams of it side by side keep memory busier than one after the other.
LSK_INLINE void multiply_row_as(float *c, const float *a, const void *panels, ptrdiff_t panel_bytes,
                                int32_t format, ptrdiff_t k) {
    enum { WIDE = LSK_PANEL / LSK_LANES, SIDE = LSK_ROW_PANELS };
    for (ptrdiff_t first = 0; first < LSK_TILE / LSK_PANEL; first += SIDE) {
        const char *b = (const char *)panels + first * panel_bytes;
        float *to = c + first * LSK_PANEL;
        for (ptrdiff_t chain = 0; chain < k; chain += LSK_CHAIN) {
            const ptrdiff_t end = k - chain < LSK_CHAIN ? k : chain + LSK_CHAIN;
            vf sum[SIDE][WIDE];
            LSK_UNROLL
            for (int p = 0; p < SIDE; p++)
                LSK_UNROLL
                for (int j = 0; j < WIDE; j++) sum[p][j] = (vf){};
            for (ptrdiff_t at = chain; at < end; at++) {
                const vf row = vf_splat(a[at]);
                LSK_UNROLL
                for (int p = 0; p < SIDE; p++)
                    LSK_UNROLL
                    for (int j = 0; j < WIDE; j++) {
                        vf column = vf_load_as(format, b + p * panel_bytes, at * LSK_PANEL + j * LSK_LANES);
                        sum[p][j] = vf_fma(row, column, sum[p][j]);
                    }
            }
            LSK_UNROLL
            for (int p = 0; p < SIDE; p++)
                LSK_UNROLL
                for (int j = 0; j < WIDE; j++) {
                    float *place = to + p * LSK_PANEL + j * LSK_LANES;
                    vf_store(place, chain > 0 ? vf_load(place) + sum[p][j] : sum[p][j]);
                }
        }
    }
}

static void multiply_row(float *c, const float *a, const void *panels, ptrdiff_t panel_bytes, int32_t format,
                         ptrdiff_t k) {
    format = storage_format(format);
    if (format == LSK_FP32) multiply_row_as(c, a, panels, panel_bytes, LSK_FP32, k);
    else if (format == LSK_FP16) multiply_row_as(c, a, panels, panel_bytes, LSK_FP16, k);
    else multiply_row_as(c, a, panels, panel_bytes, LSK_BF16, k);
}

// Strips of the left operand from its transpose: rows of k x m floats.
static void pack_strips_transposed(float *strips, const float *x, ptrdiff_t row_stride, ptrdiff_t m,
                                   ptrdiff_t k) {
    for (ptrdiff_t at = 0; at < k; at++)
        for (ptrdiff_t row = 0; row < m; row += LSK_MR) {
            ptrdiff_t part = m - row < LSK_MR ? m - row : LSK_MR;
            float *to = strips + row * k + at * part;
            if (part == LSK_MR) memcpy(to, x + at * row_stride + row, LSK_MR * sizeof(float));
            else for (ptrdiff_t i = 0; i < part; i++) to[i] = x[at * row_stride + row + i];
        }
}

// A panel of the right operand from rows of k x n elements, n <= 32; the rest is zero.
static void pack_panel(float *panel, const void *x, int32_t format, ptrdiff_t row_stride, ptrdiff_t n,
                       ptrdiff_t k) {
    format = storage_format(format);
    const ptrdiff_t bytes = format == LSK_FP32 ? 4 : 2;
    for (ptrdiff_t at = 0; at < k; at++, panel += LSK_PANEL) {
        const char *from = (const char *)x + at * row_stride * bytes;
        if (n == LSK_PANEL) {
            for (int j = 0; j < LSK_PANEL; j += LSK_LANES) vf_store(panel + j, vf_load_as(format, from, j));
        } else {
            for (ptrdiff_t j = 0; j < LSK_PANEL; j++) panel[j] = j < n ? load_one(format, from, j) : 0.0f;
        }
    }
}

// The panel of k rows of 32 codes of e4m3fn, each column times its scale: exact, as the scales are powers of two.
static void widen_panel(float *panel, const uint8_t *codes, const float *scales, ptrdiff_t k) {
    for (ptrdiff_t j = 0; j < LSK_PANEL; j += LSK_LANES) {
        const vf scale = vf_load(scales + j);
        for (ptrdiff_t at = j; at < k * LSK_PANEL; at += LSK_PANEL)
            vf_store(panel + at, widen_lanes((const char *)codes + at, LSK_E4M3FN) * scale);
    }
}

// Transposes a square of LSK_LANES registers in place: log2(LSK_LANES) rounds of swapping halves of pairs.
LSK_INLINE void transpose(vf v[LSK_LANES]) {
#if LSK_LANES == 16
#define LSK_SWAP(STEP, LOW, HIGH)                                    \
    for (int i = 0; i < 16; i++)                                     \
        if (!(i & STEP)) {                                           \
            vf x = v[i], y = v[i + STEP];                            \
            v[i] = LOW;                                              \
            v[i + STEP] = HIGH;                                      \
        }
#define S __builtin_shufflevector
    LSK_SWAP(8, S(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
             S(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
    LSK_SWAP(4, S(x, y, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
             S(x, y, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
    LSK_SWAP(2, S(x, y, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
             S(x, y, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
    LSK_SWAP(1, S(x, y, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
             S(x, y, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
#elif LSK_LANES == 8
#define LSK_SWAP(STEP, LOW, HIGH)                                    \
    for (int i = 0; i < 8; i++)                                      \
        if (!(i & STEP)) {                                           \
            vf x = v[i], y = v[i + STEP];                            \
            v[i] = LOW;                                              \
            v[i + STEP] = HIGH;                                      \
        }
#define S __builtin_shufflevector
    LSK_SWAP(4, S(x, y, 0, 1, 2, 3, 8, 9, 10, 11), S(x, y, 4, 5, 6, 7, 12, 13, 14, 15))
    LSK_SWAP(2, S(x, y, 0, 1, 8, 9, 4, 5, 12, 13), S(x, y, 2, 3, 10, 11, 6, 7, 14, 15))
    LSK_SWAP(1, S(x, y, 0, 8, 2, 10, 4, 12, 6, 14), S(x, y, 1, 9, 3, 11, 5, 13, 7, 15))
#else
#define LSK_SWAP(STEP, LOW, HIGH)                                    \
    for (int i = 0; i < 4; i++)                                      \
        if (!(i & STEP)) {                                           \
            vf x = v[i], y = v[i + STEP];                            \
            v[i] = LOW;                                              \
            v[i + STEP] = HIGH;                                      \
        }
#define S __builtin_shufflevector
    LSK_SWAP(2, S(x, y, 0, 1, 4, 5), S(x, y, 2, 3, 6, 7))
    LSK_SWAP(1, S(x, y, 0, 4, 2, 6), S(x, y, 1, 5, 3, 7))
#endif
#undef LSK_SWAP
#undef S
}

#if LSK_MR <= LSK_LANES
// `count` k of a strip of `part` rows, from a register of each row. Transposed registers are stored whole, each over the
// spare lanes of the one before, as long as `room` floats are left: the next strip is another thread's.
LSK_INLINE void store_strip(float *to, vf v[LSK_LANES], ptrdiff_t part, ptrdiff_t count, ptrdiff_t room) {
    transpose(v);
    for (ptrdiff_t i = 0; i < count; i++, to += part, room -= part) {
        if (room >= LSK_LANES) vf_store(to, v[i]);
        else memcpy(to, &v[i], (size_t)part * sizeof(float));
    }
}
#endif

// Strips of the left operand from rows of m x k elements.
static void pack_strips(float *strips, const void *x, int32_t format, ptrdiff_t row_stride, ptrdiff_t m,
                        ptrdiff_t k) {
    format = storage_format(format);
    const ptrdiff_t bytes = format == LSK_FP32 ? 4 : 2;
    for (ptrdiff_t first = 0; first < m; first += LSK_MR, strips += LSK_MR * k) {
        const char *rows = (const char *)x + first * row_stride * bytes;
        const ptrdiff_t part = m - first < LSK_MR ? m - first : LSK_MR;
        ptrdiff_t at = 0;
        if (part == 1)
            for (; at + LSK_LANES <= k; at += LSK_LANES) vf_store(strips + at, vf_load_as(format, rows, at));
#if LSK_MR <= LSK_LANES
        for (; at + LSK_LANES <= k; at += LSK_LANES) {
            vf v[LSK_LANES] = {{0}};
            LSK_UNROLL  // what stands for the rows that a narrow strip lacks is stored over
            for (int i = 0; i < LSK_MR; i++)
                v[i] = vf_load_as(format, rows + (i < part ? i : 0) * row_stride * bytes, at);
            store_strip(strips + at * part, v, part, LSK_LANES, (k - at) * part);
        }
        if (at < k && part > 1) {
            vf v[LSK_LANES] = {{0}};
            for (int i = 0; i < part; i++) v[i] = load_some(format, rows + i * row_stride * bytes, at, k - at);
            store_strip(strips + at * part, v, part, k - at, (k - at) * part);
            at = k;
        }
#endif
        for (; at < k; at++)
            for (ptrdiff_t i = 0; i < part; i++)
                strips[at * part + i] = load_one(format, rows + i * row_stride * bytes, at);
    }
}

// A panel of the right operand from its transpose: n <= 32 rows of k elements (rows of a head).
static void pack_panel_transposed(float *panel, const void *x, int32_t format, ptrdiff_t row_stride,
                                  ptrdiff_t n, ptrdiff_t k) {
    format = storage_format(format);
    const ptrdiff_t bytes = format == LSK_FP32 ? 4 : 2;
    const char *rows = (const char *)x;
    ptrdiff_t at = 0;
    if (n == LSK_PANEL)
        for (; at + LSK_LANES <= k; at += LSK_LANES)
            for (ptrdiff_t j = 0; j < LSK_PANEL; j += LSK_LANES) {
                vf v[LSK_LANES];
                for (int i = 0; i < LSK_LANES; i++) {
                    const char *row = rows + (j + i) * row_stride * bytes;
                    v[i] = vf_load_as(format, row, at);
                    // The next panel's rows: no prefetcher follows so many short runs.
                    __builtin_prefetch(row + (LSK_PANEL * row_stride + at) * bytes);
                }
                transpose(v);
                for (int i = 0; i < LSK_LANES; i++) vf_store(panel + (at + i) * LSK_PANEL + j, v[i]);
            }
    for (; at < k; at++)
        for (ptrdiff_t j = 0; j < LSK_PANEL; j++)
            panel[at * LSK_PANEL + j] = j < n ? load_one(format, rows + j * row_stride * bytes, at) : 0.0f;
}

// c [m x n] += bias, rounded once.
static void add_bias(float *c, ptrdiff_t c_stride, const float *bias, ptrdiff_t m, ptrdiff_t n) {
    for (ptrdiff_t row = 0; row < m; row++)
        for (ptrdiff_t j = 0; j < n; j++) c[row * c_stride + j] += bias[j];
}
