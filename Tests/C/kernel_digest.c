/* Runs every kernel of one instruction set on seeded inputs of awkward sizes and prints a line for each:
 * its name and a digest of all it wrote. The leaf alone is linked, so it can be built for any processor
 * and the lines compared: check_aarch64.sh does.
 *
 * usage: kernel_digest baseline|avx2|avx512|neon. Ends with status 77 if this machine has no such set. */
#include "CLockstepKernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The instruction set, the rows of a strip, and 47 kernels. */
_Static_assert(sizeof(lsk_kernels) == 49 * sizeof(void *), "a kernel came or went: it needs a digest here");

/* ---- digests */

static uint64_t digest;

static void digest_begin(void) { digest = 0xcbf29ce484222325u; }

static void digest_bytes(const void *bytes, size_t count) { /* FNV-1a */
    for (size_t i = 0; i < count; i++) digest = (digest ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3u;
}

static void digest_integer(int64_t value) { digest_bytes(&value, sizeof value); }

/* The sign of a NaN that arithmetic makes differs between processors; no result depends on it. */
static void digest_double(double value) {
    if (value != value) value = __builtin_nan("");
    digest_bytes(&value, sizeof value);
}

/* Values of a 16-bit format or fp32, likewise whatever the sign of a NaN. */
static void digest_values(int32_t format, const void *values, size_t count) {
    const int is_float = format == LSK_FP32;
    const uint32_t infinity = is_float ? 0x7f800000u : format == LSK_FP16 ? 0x7c00u : 0x7f80u;
    const uint32_t magnitude = is_float ? 0x7fffffffu : 0x7fffu;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = is_float ? ((const uint32_t *)values)[i] : ((const uint16_t *)values)[i];
        if ((bits & magnitude) > infinity) bits = magnitude;
        digest_bytes(&bits, sizeof bits);
    }
}

static void digest_end(const char *name) { printf("%-28s %016llx\n", name, (unsigned long long)digest); }

/* ---- inputs, from integer arithmetic alone */

static uint64_t random_state;

static uint32_t random_bits(void) { /* splitmix64 */
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ (z >> 31)) >> 32);
}

/* In [-scale, scale), a multiple of scale / 2^23. */
static float random_float(float scale) { return (float)((int32_t)random_bits() >> 8) * 0x1p-23f * scale; }

static size_t size_of(int32_t format) {
    switch (format) {
    case LSK_FP64: return 8;
    case LSK_FP32: return 4;
    case LSK_FP16:
    case LSK_BF16: return 2;
    default: return 1;
    }
}

static const char *name_of(int32_t format) {
    static const char *const names[] = {"fp32", "fp16", "bf16", "fp64", "e4m3fn", "e5m2"};
    return names[format];
}

static const lsk_kernels *kernels;

static void *room(size_t bytes) {
    void *memory = calloc(bytes + 64, 1);
    if (memory == NULL) abort();
    return memory;
}

/* `count` values in [-scale, scale) in one of the formats. */
static void *random_values(int32_t format, size_t count, float scale) {
    float *values = room(count * 4);
    for (size_t i = 0; i < count; i++) values[i] = random_float(scale);
    if (format == LSK_FP32) return values;
    void *converted = room(count * size_of(format));
    lsk_convert_counts counts = {0, 0, 0};
    kernels->convert(converted, format, values, LSK_FP32, (ptrdiff_t)count, LSK_NEAREST_EVEN, 0, 0, &counts);
    free(values);
    return converted;
}

/* ---- convert.h */

static void digest_convert(void) {
    enum { COUNT = 40003 };
    static unsigned char source[8 * COUNT], destination[8 * COUNT];
    for (int32_t from = 0; from < 6; from++)
        for (int32_t to = 0; to < 6; to++) {
            char name[64];
            digest_begin();
            for (int32_t rounding = LSK_NEAREST_EVEN; rounding <= LSK_STOCHASTIC; rounding++)
                for (int part = 0; part < 2; part++) {
                    /* Any bits at all, then ordinary values. */
                    if (part == 0) {
                        for (size_t i = 0; i < sizeof source; i++) source[i] = (unsigned char)random_bits();
                    } else if (from == LSK_FP64) {
                        for (size_t i = 0; i < COUNT; i++) {
                            double value = (double)random_float(100) + (double)random_float(0x1p-20f);
                            memcpy(source + 8 * i, &value, 8);
                        }
                    } else {
                        void *values = random_values(from, COUNT, 100);
                        memcpy(source, values, COUNT * size_of(from));
                        free(values);
                    }
                    static const ptrdiff_t counts[] = {1, 3, 17, 2047, COUNT};
                    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
                        lsk_convert_counts happened = {0, 0, 0};
                        kernels->convert(destination, to, source, from, counts[i], rounding, 7, 5, &happened);
                        digest_bytes(destination, (size_t)counts[i] * size_of(to));
                        digest_integer(happened.overflow);
                        digest_integer(happened.underflow);
                        digest_integer(happened.nan);
                    }
                }
            snprintf(name, sizeof name, "convert_%s_%s", name_of(from), name_of(to));
            digest_end(name);
        }
}

/* ---- softmax.h */

static const lsk_logit_rule rules[] = {
    {1, 1, 0, 0, LSK_FP32},
    {0.7f, 0x1.6db6dcp+0f, -0x1.b6db6ep-26f, 0, LSK_FP32},
    {1, 1, 0, 30, LSK_BF16},
    {1.5f, 0x1.555556p-1f, -0x1.555556p-26f, 50, LSK_FP16},
};
enum { RULES = sizeof rules / sizeof *rules };
static const ptrdiff_t row_lengths[] = {1, 63, 130, 2048, 2049, 5003};
enum { ROW_LENGTHS = sizeof row_lengths / sizeof *row_lengths, LONGEST = 5003 };

static void digest_block(const lsk_lse_block *block) {
    digest_double(block->sum);
    digest_double(block->weighted);
    digest_integer(block->reference);
    digest_integer(block->flags);
}

static void digest_lse_row(int32_t format) {
    char name[64];
    digest_begin();
    static const float scales[] = {0.01f, 12, 700, 60000};
    for (size_t s = 0; s < sizeof scales / sizeof *scales; s++) {
        void *logits = random_values(format, LONGEST, scales[s]);
        for (int r = 0; r < RULES; r++)
            for (int i = 0; i < ROW_LENGTHS; i++)
                for (int32_t entropy = 0; entropy < 2; entropy++) {
                    lsk_lse_block blocks[3] = {{0}};
                    kernels->lse_row(blocks, logits, format, row_lengths[i], &rules[r], entropy);
                    for (ptrdiff_t b = 0; b * LSK_BLOCK < row_lengths[i]; b++) digest_block(&blocks[b]);
                }
        free(logits);
    }
    /* What makes flags: infinities, a NaN, values beyond 2^20. */
    static const float specials[] = {-__builtin_inff(), __builtin_inff(), __builtin_nanf(""), 3e6f, -3e6f};
    for (size_t s = 0; s < sizeof specials / sizeof *specials; s++) {
        float values[300];
        for (int i = 0; i < 300; i++) values[i] = s == 0 || i % 100 == 7 ? specials[s] : random_float(5);
        uint16_t narrow[300];
        lsk_convert_counts counts = {0, 0, 0};
        if (format != LSK_FP32)
            kernels->convert(narrow, format, values, LSK_FP32, 300, LSK_NEAREST_EVEN, 0, 0, &counts);
        lsk_lse_block block;
        kernels->lse_row(&block, format == LSK_FP32 ? (void *)values : narrow, format, 300, &rules[0], 1);
        digest_block(&block);
    }
    snprintf(name, sizeof name, "lse_row_%s", name_of(format));
    digest_end(name);
}

/* Tiles as a matrix product leaves them: what lse_reset, lse_tile and lse_finish make of them together. */
static void digest_lse_tile(void) {
    enum { ROWS = 5, STRIDE = 131 };
    digest_begin();
    for (int r = 0; r < RULES; r++)
        for (int32_t entropy = 0; entropy < 2; entropy++) {
            lsk_lse_state states[ROWS];
            for (int row = 0; row < ROWS; row++) kernels->lse_reset(&states[row]);
            static const ptrdiff_t columns[] = {128, 128, 1, 77};
            for (int t = 0; t < 4; t++) {
                float *tile = random_values(LSK_FP32, ROWS * STRIDE, (float)(10 + 20 * t));
                kernels->lse_tile(states, tile, STRIDE, ROWS, columns[t], &rules[r], entropy);
                free(tile);
            }
            for (int row = 0; row < ROWS; row++) {
                lsk_lse_block block;
                kernels->lse_finish(&block, &states[row]);
                digest_block(&block);
            }
        }
    digest_end("lse_tile");
}

static void digest_prepare_row(int32_t format) {
    char name[64];
    static float out[LONGEST];
    digest_begin();
    void *logits = random_values(format, LONGEST, 200);
    for (int r = 0; r < RULES; r++)
        for (int i = 0; i < ROW_LENGTHS; i++) {
            kernels->prepare_row(out, logits, format, row_lengths[i], &rules[r], 1.25f * (float)i);
            digest_bytes(out, (size_t)row_lengths[i] * sizeof *out);
        }
    free(logits);
    snprintf(name, sizeof name, "prepare_row_%s", name_of(format));
    digest_end(name);
}

static void digest_gradient_row(int32_t format) {
    char name[64];
    static float out[LONGEST];
    digest_begin();
    void *logits = random_values(format, LONGEST, 20);
    for (int r = 0; r < RULES; r++)
        for (int i = 0; i < ROW_LENGTHS; i++)
            for (int32_t to = LSK_FP32; to <= LSK_BF16; to++) {
                lsk_gradient_row row;
                memset(&row, 0, sizeof row); /* fields that a later version adds are 0 */
                row.d_log_prob = 0.75f;
                row.d_entropy = i % 2 ? -0.3f : 0;
                row.inverse_sum = 0x1.23456p-9f;
                row.entropy_offset = -2.5f;
                row.shift = i == 3 ? 1.5f : 0;
                row.reference = 17;
                ptrdiff_t target = row_lengths[i] - 1;
                kernels->gradient_row(out, to, logits, format, row_lengths[i], target, &rules[r], &row);
                digest_bytes(out, (size_t)row_lengths[i] * size_of(to));
            }
    free(logits);
    snprintf(name, sizeof name, "gradient_row_%s", name_of(format));
    digest_end(name);
}

/* The softmax of few scores is, bit for bit, what lse_row and gradient_row make of them; one it does not form it leaves. */
static void digest_softmax_row(void) {
    static const float scales[] = {0.01f, 12, 90, 60000, 3e6f};
    static const float specials[] = {-__builtin_inff(), __builtin_inff(), __builtin_nanf(""), 3e6f, -3e6f};
    const lsk_logit_rule rule = {.temperature = 1, .inverse = 1};
    digest_begin();
    for (ptrdiff_t count = 1; count <= LSK_LANE_COUNT; count++)
        for (int c = 0; c < 10; c++)
            for (int32_t to = LSK_FP32; to <= LSK_BF16; to++) {
                float scores[LSK_LANE_COUNT], out[LSK_LANE_COUNT], apart[LSK_LANE_COUNT];
                for (ptrdiff_t i = 0; i < count; i++) scores[i] = random_float(scales[c % 5]);
                if (c >= 5) scores[count / 2] = specials[c - 5];
                memset(out, 0x5a, sizeof out);
                memset(apart, 0x5a, sizeof apart);
                const int32_t formed = kernels->softmax_row(out, to, scores, count);
                if (formed) {
                    lsk_lse_block block;
                    kernels->lse_row(&block, scores, LSK_FP32, count, &rule, 0);
                    lsk_gradient_row row;
                    memset(&row, 0, sizeof row);
                    row.d_log_prob = -1;
                    row.inverse_sum = (float)(1 / block.sum);
                    row.reference = block.reference;
                    kernels->gradient_row(apart, to, scores, LSK_FP32, count, -1, &rule, &row);
                }
                if (memcmp(out, apart, sizeof out) != 0) {
                    fprintf(stderr, "softmax_row differs from lse_row and gradient_row at %td scores\n", count);
                    exit(1);
                }
                digest_integer(formed);
                digest_bytes(out, sizeof out);
            }
    digest_end("softmax_row");
}

/* ---- gemm.h */

enum { MOST_ROWS = 29, C_STRIDE = 37 };

/* Strips are laid out for the registers of the instruction set: their digest is that of a product. */
static void digest_multiply(int32_t format, int transposed) {
    char name[64];
    static const ptrdiff_t depths[] = {1, 7, 33, LSK_CHAIN};
    digest_begin();
    for (size_t d = 0; d < sizeof depths / sizeof *depths; d++)
        for (ptrdiff_t m = 1; m <= MOST_ROWS; m += 1 + m / 8) {
            ptrdiff_t k = depths[d], stride = transposed ? MOST_ROWS + 2 : k + 3;
            int32_t left = transposed ? LSK_FP32 : format;
            void *x = random_values(left, (size_t)((transposed ? k : m) * stride), 2);
            void *panel = random_values(format, (size_t)(k * LSK_PANEL), 2);
            ptrdiff_t strip = kernels->strip_rows * k;
            float *strips = room((size_t)((m / kernels->strip_rows + 1) * strip) * sizeof(float));
            float *c = room((size_t)(m * C_STRIDE) * sizeof(float));
            if (transposed) kernels->pack_strips_transposed(strips, x, stride, m, k);
            else kernels->pack_strips(strips, x, left, stride, m, k);
            kernels->multiply(c, C_STRIDE, strips, k, 0, panel, format, m, k, 0);
            digest_bytes(c, (size_t)(m * C_STRIDE) * sizeof(float));
            kernels->multiply(c, C_STRIDE, strips, k, 0, panel, format, m, k, 1);
            float bias[LSK_PANEL];
            for (int i = 0; i < LSK_PANEL; i++) bias[i] = random_float(1);
            kernels->add_bias(c, C_STRIDE, bias, m, LSK_PANEL - 1);
            digest_bytes(c, (size_t)(m * C_STRIDE) * sizeof(float));
            free(x);
            free(panel);
            free(strips);
            free(c);
        }
    snprintf(name, sizeof name, "multiply_%s%s", name_of(format), transposed ? "_transposed" : "");
    digest_end(name);
}

/* One row times four panels is, bit for bit, what each panel gives alone. */
static void digest_multiply_row(int32_t format) {
    char name[64];
    static const ptrdiff_t depths[] = {1, 127, LSK_CHAIN, 300};
    digest_begin();
    for (size_t d = 0; d < sizeof depths / sizeof *depths; d++) {
        const ptrdiff_t k = depths[d], panel_bytes = k * LSK_PANEL * (ptrdiff_t)size_of(format);
        float *row = random_values(LSK_FP32, (size_t)k, 2), together[LSK_TILE], apart[LSK_TILE];
        char *panels = random_values(format, (size_t)(k * LSK_TILE), 2);
        kernels->multiply_row(together, row, panels, panel_bytes, format, k);
        for (ptrdiff_t i = 0; i < LSK_TILE / LSK_PANEL; i++)
            kernels->multiply(apart + i * LSK_PANEL, LSK_TILE, row, k, 0, panels + i * panel_bytes, format, 1, k, 0);
        if (memcmp(together, apart, sizeof apart) != 0) {
            fprintf(stderr, "multiply_row differs from multiply at k = %td\n", k);
            exit(1);
        }
        digest_bytes(together, sizeof together);
        free(row);
        free(panels);
    }
    snprintf(name, sizeof name, "multiply_row_%s", name_of(format));
    digest_end(name);
}

static void digest_pack_panel(int32_t format) {
    char name[64];
    enum { K = 45, STRIDE = 50 };
    digest_begin();
    void *x = random_values(format, (size_t)(STRIDE * 50), 2);
    static const ptrdiff_t widths[] = {1, 31, 32};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        static float panel[K * LSK_PANEL];
        kernels->pack_panel(panel, x, format, STRIDE, widths[i], K);
        digest_bytes(panel, sizeof panel);
        kernels->pack_panel_transposed(panel, x, format, STRIDE, widths[i], K);
        digest_bytes(panel, sizeof panel);
    }
    free(x);
    snprintf(name, sizeof name, "pack_panel_%s", name_of(format));
    digest_end(name);
}

static void digest_widen_panel(void) {
    enum { K = 45 };
    static uint8_t codes[K * LSK_PANEL];
    static float scales[LSK_PANEL], panel[K * LSK_PANEL];
    for (size_t i = 0; i < sizeof codes; i++) codes[i] = (uint8_t)(i < 256 ? i : random_bits());
    for (int i = 0; i < LSK_PANEL; i++) scales[i] = i % 2 ? 0x1p-9f : 0x1p3f;
    kernels->widen_panel(panel, codes, scales, K);
    digest_begin();
    digest_values(LSK_FP32, panel, K * LSK_PANEL);
    digest_end("widen_panel_e4m3fn");
}

/* ---- layers.h */

static void digest_layers(int32_t format) {
    enum { LONG = 4099 };
    static const ptrdiff_t counts[] = {1, 7, 16, 64, 65, 576, 2049, LONG};
    static const float scales[] = {0.01f, 3, 90, 60000};
    char name[64];
    digest_begin();
    for (size_t s = 0; s < sizeof scales / sizeof *scales; s++)
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
            const ptrdiff_t count = counts[i];
            const size_t bytes = (size_t)count * size_of(format);
            void *a = random_values(format, LONG, scales[s]), *b = random_values(format, LONG, scales[s]);
            void *out = room(2 * LONG * 4);
            float *weight = random_values(LSK_FP32, LONG, 2), *wide = random_values(LSK_FP32, 2 * LONG, scales[s]);
            for (int each = 0; each < 2; each++) {
                kernels->rms_norm(out, a, weight, format, count, 1e-5, each);
                digest_bytes(out, bytes);
                kernels->silu_multiply(out, format, a, b, format, count, each);
                digest_bytes(out, bytes);
            }
            kernels->silu_multiply(out, format, weight, wide, LSK_FP32, count, 0);
            digest_bytes(out, bytes);
            kernels->add_times(out, a, b, 0.3f, format, count);
            digest_bytes(out, bytes);
            kernels->rotate(a, weight, wide, format, count / 2, 0);
            digest_bytes(a, bytes);
            /* What the first rotation made infinite in fp16 becomes NaN in the second. */
            kernels->rotate(a, weight, wide, format, count / 2, 1);
            digest_values(format, a, (size_t)count);
            kernels->add_rms_norm(out, b, a, weight, format, count, 1e-5);
            digest_values(format, out, (size_t)count);
            digest_values(format, b, (size_t)count);
            /* Two rows of a wider matrix into one of another width; 60,000 leaves the range of fp16 now and then. */
            wide[count / 2] = 7e4f;
            digest_integer(kernels->store_rows(out, count + 3, format, wide, LONG, 2, count));
            digest_bytes(out, bytes);
            digest_bytes((char *)out + (size_t)(count + 3) * size_of(format), bytes);
            digest_integer(kernels->non_finite_values(out, format, count));
            free(a);
            free(b);
            free(out);
            free(weight);
            free(wide);
        }
    snprintf(name, sizeof name, "layers_%s", name_of(format));
    digest_end(name);
}

/* ---- training.h */

static void digest_training(void) {
    enum { LONG = 4099 };
    static const ptrdiff_t counts[] = {1, 7, 16, 64, 65, 576, 2049, LONG};
    digest_begin();
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        const ptrdiff_t count = counts[i];
        const size_t bytes = (size_t)count * sizeof(float);
        float *a = random_values(LSK_FP32, LONG, 3), *b = random_values(LSK_FP32, LONG, 90);
        float *weight = random_values(LSK_FP32, LONG, 2), *sums = random_values(LSK_FP32, LONG, 1);
        float *out = room(LONG * 4);
        int64_t *high = room(LONG * 8), *low = room(LONG * 8);
        const double dot = kernels->dot(a, b, count);
        digest_bytes(&dot, sizeof dot);
        kernels->rms_norm_backward(out, sums, a, b, weight, count, 1e-5);
        digest_bytes(out, bytes);
        digest_bytes(sums, bytes);
        kernels->silu_multiply_backward(out, sums, b, a, weight, count);
        digest_bytes(out, bytes);
        digest_bytes(sums, bytes);
        kernels->softmax_backward(out, a, b, count);
        digest_bytes(out, bytes);
        digest_integer(kernels->store_rounded(out, count, LSK_FP16, b, count, 1, count));
        digest_bytes(out, bytes);
        digest_integer(kernels->store_rounded(out, count, LSK_BF16, b, count, 1, count));
        digest_bytes(out, bytes);
        kernels->column_sums(out, a, 5, (LONG - 5) / 5, 5);
        digest_bytes(out, 5 * sizeof(float));
        memset(high, 0, LONG * 8);
        memset(low, 0, LONG * 8);
        digest_integer(kernels->fixed_add(high, low, b, 0.3f, count));
        digest_bytes(high, (size_t)count * 8);
        digest_bytes(low, (size_t)count * 8);
        free(a);
        free(b);
        free(weight);
        free(sums);
        free(out);
        free(high);
        free(low);
    }
    digest_end("training");
}

/* ---- optimizer.h */

static void digest_optimizer(void) {
    enum { LONG = 4099 };
    static const ptrdiff_t counts[] = {1, 7, 16, 31, 65, LONG};
    static const float scales[] = {1e-30f, 0.01f, 60000};
    const lsk_adamw_rule rule = {0.7f, 0.1f, 0.95f, 0.05f, 3.2f, 1e-8f, 0.999f, 0.01f};
    digest_begin();
    for (size_t s = 0; s < sizeof scales / sizeof *scales; s++)
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
            const ptrdiff_t count = counts[i];
            const size_t bytes = (size_t)count * sizeof(float);
            float *gradients = random_values(LSK_FP32, LONG, scales[s]), *masters = random_values(LSK_FP32, LONG, 1);
            float *first = random_values(LSK_FP32, LONG, scales[s]), *second = random_values(LSK_FP32, LONG, scales[s]);
            float largest;
            for (ptrdiff_t j = 0; j < count; j++) second[j] *= second[j];
            digest_double(kernels->gradient_squares(&largest, gradients, count));
            digest_bytes(&largest, sizeof largest);
            kernels->adamw(masters, first, second, gradients, count, &rule);
            digest_bytes(masters, bytes);
            digest_bytes(first, bytes);
            digest_bytes(second, bytes);
            free(gradients);
            free(masters);
            free(first);
            free(second);
        }
    digest_end("optimizer");
}

/* ---- layers.h: a tiled softmax */

static void digest_softmax_tiles(void) {
    enum { COUNT = 1000 };
    digest_begin();
    for (float scale = 0.1f; scale < 1000; scale *= 10) {
        float *x = random_values(LSK_FP32, COUNT, scale), maximum = -__builtin_inff(), sum = 0;
        for (ptrdiff_t at = 0, count = 1; at + count <= COUNT; at += count, count = count % 64 + 9) {
            if (count > 64) count = 64;
            float correction = kernels->softmax_tile(x + at, count, &maximum, &sum);
            digest_bytes(&correction, sizeof correction);
            digest_bytes(&sum, sizeof sum);
        }
        digest_bytes(x, COUNT * sizeof *x);
        free(x);
    }
    digest_end("softmax_tile");
}

/* ---- mismatch.h */

static void digest_sums(const lsk_mismatch_sums *sums) {
    const double values[] = {
        sums->log_ratio, sums->square, sums->magnitude, sums->k3, sums->ratio, sums->ratio_square,
        sums->exp_magnitude, sums->probability_gap, sums->rollout, sums->sum_shift, sums->gap_shift,
        sums->sum, sums->sum_square, sums->gap, sums->gap_square, sums->sum_gap, sums->largest,
        sums->largest_gap};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) digest_double(values[i]);
    digest_integer(sums->tokens);
    digest_integer(sums->non_finite);
    digest_integer(sums->differing);
    digest_integer(sums->largest_at);
    for (int band = 0; band < LSK_MISMATCH_BANDS; band++) digest_integer(sums->outside[band]);
}

static void digest_bucket(const lsk_mismatch_bucket *bucket) {
    digest_double(bucket->tokens);
    digest_double(bucket->log_ratio);
    digest_double(bucket->magnitude);
    digest_double(bucket->k3);
}

static void digest_profile(const lsk_mismatch_profile *profile) {
    digest_integer(profile->before);
    for (int i = 0; i < LSK_POSITION_BUCKETS; i++) digest_bucket(&profile->position[i]);
    for (int i = 0; i < LSK_PROBABILITY_BUCKETS; i++) digest_bucket(&profile->probability[i]);
}

static void digest_evidence_side(const lsk_evidence_side *side) {
    const int64_t counts[] = {side->tested, side->bf16_grid, side->fp16_grid, side->above_zero,
                              side->marks,  side->zero,      side->zero_far};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) digest_integer(counts[i]);
}

static void digest_evidence(const lsk_evidence *e) {
    digest_evidence_side(&e->trainer);
    digest_evidence_side(&e->rollout);
    const int64_t counts[] = {e->plain, e->up, e->equal, e->first, e->last, e->pairs};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) digest_integer(counts[i]);
    const double sums[] = {e->z, e->zz, e->x, e->xx, e->xz, e->log_ratio, e->square, e->rise, e->rise_square,
                           e->ratio, e->trainer_square, e->rollout_square, e->first_square, e->last_square,
                           e->ahead, e->behind};
    for (size_t i = 0; i < sizeof sums / sizeof *sums; i++) digest_double(sums[i]);
}

static void digest_mismatch(int32_t trainer_format, int32_t rollout_format) {
    enum { COUNT = 1003, ROOM = COUNT + 8 };
    static const int64_t counts[] = {1, 7, 256, 257, COUNT};
    static const float spreads[] = {0.001f, 0.5f, 30};
    static uint64_t histogram[LSK_MISMATCH_BINS];
    static uint64_t octaves[LSK_EVIDENCE_COPIES * LSK_EVIDENCE_BINS];
    static uint8_t mask[COUNT], counted[ROOM];
    static lsk_bin_range ranges[LSK_MISMATCH_BINS];
    static double log_ratio[ROOM], k3[ROOM], probability[ROOM];
    char name[64];
    digest_begin();
    for (size_t s = 0; s < sizeof spreads / sizeof *spreads; s++)
        for (int masked = 0; masked < 2; masked++) {
            /* Log-probs in (-8, 0], the two policies' apart by up to the spread; some are not finite. */
            float *a = room(COUNT * 4), *b = room(COUNT * 4);
            for (int i = 0; i < COUNT; i++) {
                b[i] = random_float(4) - 4;
                a[i] = b[i] + random_float(spreads[s]);
                if (i % 97 == 50) a[i] = i % 2 ? -__builtin_inff() : __builtin_nanf("");
                mask[i] = random_bits() % 3 != 0;
            }
            lsk_convert_counts ignored = {0, 0, 0};
            void *trainer = room(COUNT * 8), *rollout = room(COUNT * 8);
            kernels->convert(trainer, trainer_format, a, LSK_FP32, COUNT, LSK_NEAREST_EVEN, 0, 0, &ignored);
            kernels->convert(rollout, rollout_format, b, LSK_FP32, COUNT, LSK_NEAREST_EVEN, 0, 0, &ignored);
            int64_t range_count = 0;
            for (int bin = 0; bin < LSK_MISMATCH_BINS - 1; bin++) {
                if (random_bits() % 2 == 0) continue;
                const lsk_bin_range *last = ranges + range_count - 1;
                if (range_count > 0 && last->first + (int)last->count == bin) ranges[range_count - 1].count++;
                else ranges[range_count++] = (lsk_bin_range){bin, 1};
            }
            for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
                const lsk_mismatch_span span = {
                    trainer, rollout, masked ? mask : NULL, trainer_format, rollout_format, counts[i]};
                lsk_mismatch_sums sums;
                lsk_mismatch_profile profile = {.before = 5};
                memset(histogram, 0, sizeof histogram);
                kernels->mismatch_sums(&sums, histogram, &profile, &span);
                digest_sums(&sums);
                digest_profile(&profile);
                /* The last bin takes the padding too: its count is not a result. */
                digest_bytes(histogram, (LSK_MISMATCH_BINS - 1) * sizeof *histogram);
                lsk_evidence evidence;
                memset(octaves, 0, sizeof octaves);
                kernels->mismatch_evidence(&sums, NULL, NULL, &evidence, octaves, (int32_t)(i % 4), &span);
                digest_evidence(&evidence);
                for (int copy = 0; copy < LSK_EVIDENCE_COPIES; copy++)
                    digest_bytes(octaves + copy * LSK_EVIDENCE_BINS, (LSK_EVIDENCE_BINS - 1) * sizeof *octaves);
                int64_t found = kernels->mismatch_select(log_ratio, ranges, range_count, &span);
                digest_integer(found);
                digest_bytes(log_ratio, (size_t)found * sizeof *log_ratio);
                digest_integer(kernels->mismatch_terms(log_ratio, k3, probability, counted, &span));
                digest_bytes(log_ratio, (size_t)counts[i] * sizeof *log_ratio);
                digest_bytes(k3, (size_t)counts[i] * sizeof *k3);
                digest_bytes(probability, (size_t)counts[i] * sizeof *probability);
                digest_bytes(counted, (size_t)counts[i]);
            }
            free(a);
            free(b);
            free(trainer);
            free(rollout);
        }
    snprintf(name, sizeof name, "mismatch_%s_%s", name_of(trainer_format), name_of(rollout_format));
    digest_end(name);
}

/* ---- exact.h */

static void digest_exact(int products) {
    enum { COUNT = 45, STRIDE = 48 };
    static double sums[3 * STRIDE], a[STRIDE], b[STRIDE];
    digest_begin();
    memset(sums, 0, sizeof sums);
    for (int round = 0; round < 200; round++) {
        uint64_t refused = 0;
        for (int i = 0; i < COUNT; i++) {
            a[i] = __builtin_ldexp((double)random_float(1), (int)(random_bits() % (round < 100 ? 80 : 1600)) - 700);
            b[i] = (double)random_float(1);
        }
        digest_integer(kernels->exact_add(sums, STRIDE, a, products ? b : NULL, COUNT, &refused));
        digest_integer((int64_t)refused);
    }
    digest_bytes(sums, sizeof sums);
    digest_end(products ? "exact_products" : "exact_values");
}

/* ---- divergence.h */

static void digest_divergence(int32_t trainer_format, int32_t rollout_format) {
    enum { COUNT = 1003, ROOM = COUNT + 16 };
    static const int64_t counts[] = {1, 7, 16, 257, COUNT};
    static const lsk_divergence_rule divergence_rules[] = {
        {1, 0, LSK_FP32}, {0.7, 0, LSK_BF16}, {1.5, 30, LSK_FP16}, {1, 1.25, LSK_FP32}};
    static double y[2][ROOM];
    char name[64];
    digest_begin();
    for (size_t r = 0; r < sizeof divergence_rules / sizeof *divergence_rules; r++)
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
            const int32_t formats[2] = {trainer_format, rollout_format};
            lsk_divergence_row rows[2];
            for (int side = 0; side < 2; side++) {
                void *logits = random_values(formats[side], COUNT, 20);
                kernels->divergence_row(&rows[side], y[side], logits, formats[side], counts[i], &divergence_rules[r]);
                digest_double(rows[side].maximum);
                digest_double(rows[side].total);
                digest_integer(rows[side].top);
                digest_integer(rows[side].failed);
                digest_bytes(y[side], (size_t)counts[i] * sizeof(double));
                free(logits);
            }
            lsk_divergence_sums sums;
            kernels->divergence_sums(&sums, y[0], rows[0].total, y[1], rows[1].total, 0.125, counts[i]);
            digest_double(sums.kl_rollout_trainer);
            digest_double(sums.kl_trainer_rollout);
            digest_double(sums.difference);
            digest_double(sums.jensen_shannon);
        }
    snprintf(name, sizeof name, "divergence_%s_%s", name_of(trainer_format), name_of(rollout_format));
    digest_end(name);
}

/* ---- correction.h */

static void digest_weights(const lsk_weight_sums *sums) {
    digest_integer(sums->units);
    digest_double(sums->sum);
    digest_double(sums->square);
    digest_double(sums->excess);
    digest_double(sums->excess_square);
    digest_double(sums->least);
    digest_double(sums->largest);
}

/* Every statistic with every level, other policies and sides in turn; every weight with every level. */
static void digest_correction(int32_t format, int32_t level) {
    enum { COUNT = 515, STATISTICS = LSK_STATISTIC_BINARY_KL + 1 };
    static const int64_t counts[] = {1, 9, 256, COUNT};
    static uint8_t mask[COUNT], kept[COUNT];
    static double weights[COUNT], squares[COUNT];
    static float floats[COUNT];
    char name[64];
    digest_begin();
    for (int32_t mode = LSK_WEIGHTS_ONE; mode <= LSK_WEIGHTS_MASK; mode++) {
        float *values[LSK_POLICIES + 1];
        void *stored[LSK_POLICIES];
        for (int policy = 0; policy < LSK_POLICIES; policy++) values[policy] = room(COUNT * 4);
        values[LSK_POLICIES] = room(COUNT * 4);
        for (int i = 0; i < COUNT; i++) {
            values[LSK_ROLLOUT][i] = random_float(4) - 4;
            values[LSK_TRAINER][i] = values[LSK_ROLLOUT][i] + random_float(mode == 0 ? 30 : 0.5f);
            values[LSK_CURRENT][i] = values[LSK_TRAINER][i] + random_float(0.25f);
            values[LSK_POLICIES][i] = random_float(1);
            if (i % 97 == 50) values[i % LSK_POLICIES][i] = i % 2 ? -__builtin_inff() : __builtin_nanf("");
            mask[i] = random_bits() % 5 != 0;
        }
        lsk_convert_counts ignored = {0, 0, 0};
        for (int policy = 0; policy < LSK_POLICIES; policy++) {
            stored[policy] = room(COUNT * 8);
            kernels->convert(stored[policy], format, values[policy], LSK_FP32, COUNT, LSK_NEAREST_EVEN, 0, 0,
                             &ignored);
        }
        lsk_correction_rule rule = {.weights = mode, .level = level == LSK_LEVEL_SEQUENCE_EVERY ? 0 : level,
                                    .low = 0.75, .high = 1.5, .log_ratio_min = -20, .log_ratio_max = 20,
                                    .divisor = mode == 1 ? 0.875 : 1, .second_moment_cut = mode == 2 ? 0.125 : __builtin_inf(),
                                    .rejection_count = STATISTICS};
        for (int32_t i = 0; i < STATISTICS; i++) {
            const lsk_rejection rejection = {i, level, (i + mode) % 3, (i + mode / 2) % 3, i < 4 ? 0.5 : -0.125, 1.5};
            rule.rejections[i] = rejection;
        }
        for (size_t each = 0; each < 2 * sizeof counts / sizeof *counts; each++) {
            /* Then again with two policies and no advantages. */
            const size_t i = each / 2;
            const int plain = each % 2;
            if (plain)
                for (int32_t r = 0; r < STATISTICS; r++) rule.rejections[r].policies = rule.rejections[r].side = 0;
            const lsk_correction_span span = {
                {stored[0], stored[1], plain ? NULL : stored[2]}, {format, format, format}, LSK_FP32,
                plain ? NULL : values[LSK_POLICIES], (int64_t)i % 2, i == 3 ? NULL : mask, counts[i]};
            lsk_correction_sums sums;
            digest_integer(kernels->correction_check(&span));
            kernels->correct_sequence(&sums, floats, LSK_FP32, NULL, &span, &rule);
            kernels->correct_sequence(&sums, weights, LSK_FP64, kept, &span, &rule);
            digest_bytes(floats, (size_t)counts[i] * sizeof *floats);
            digest_bytes(weights, (size_t)counts[i] * sizeof *weights);
            digest_bytes(kept, (size_t)counts[i]);
            digest_integer(sums.tokens);
            digest_integer(sums.non_finite);
            digest_integer(sums.kept);
            digest_integer(sums.clamped);
            digest_integer(sums.below);
            digest_integer(sums.above);
            digest_integer(sums.second_moment);
            digest_weights(&sums.ratio);
            digest_weights(&sums.weight);
            digest_weights(&sums.kept_weight);
            for (int r = 0; r < STATISTICS; r++) {
                digest_integer(sums.rejections[r].tokens);
                digest_integer(sums.rejections[r].clamped);
                digest_integer(sums.rejections[r].units);
                digest_double(sums.rejections[r].sum);
                digest_double(sums.rejections[r].least);
                digest_double(sums.rejections[r].largest);
            }
            for (int32_t r = 0; r < STATISTICS; r++) {
                rule.rejections[r].policies = (r + mode) % 3;
                rule.rejections[r].side = (r + mode / 2) % 3;
            }
            int64_t below;
            double sum;
            int64_t found = kernels->correction_select(squares, &below, &sum, 0.0625, &span);
            digest_integer(found);
            digest_integer(below);
            digest_double(sum);
            digest_bytes(squares, (size_t)found * sizeof *squares);
        }
        for (int policy = 0; policy < LSK_POLICIES; policy++) free(stored[policy]);
        for (int policy = 0; policy <= LSK_POLICIES; policy++) free(values[policy]);
    }
    snprintf(name, sizeof name, "correction_%s_level_%d", name_of(format), level);
    digest_end(name);
}

/* ---- objective.h */

enum { OBJECTIVE_COUNT = 700 };

/* The counts, the sums and the gradients of a span. */
static void digest_terms(const lsk_objective_span *span, const lsk_objective_rule *rule) {
    static double gradient[OBJECTIVE_COUNT], d_entropies[OBJECTIVE_COUNT];
    static float narrow[OBJECTIVE_COUNT];
    lsk_objective_counts counts;
    kernels->objective_count(&counts, span, rule);
    digest_integer(counts.tokens);
    digest_integer(counts.acting);
    lsk_objective_level found;
    lsk_objective_sums sums;
    if (rule->level != LSK_RATIO_TOKEN) kernels->objective_level(&found, &counts, span, rule);
    kernels->objective_terms(&sums, gradient, LSK_FP64, d_entropies, LSK_FP64, span, rule,
                             rule->level != LSK_RATIO_TOKEN ? &found : NULL, 0.37);
    digest_double(sums.policy);
    digest_double(sums.kl);
    digest_double(sums.entropy);
    digest_double(sums.by_log_ratio);
    digest_double(sums.delta);
    digest_double(sums.k3);
    digest_double(sums.ratio);
    digest_integer(sums.clamped);
    for (int64_t i = 0; i < span->count; i++) digest_double(gradient[i] + 0);
    /* What is written in fp32 may take another way, without masks. */
    const lsk_objective_sums wide = sums;
    kernels->objective_terms(&sums, narrow, LSK_FP32, NULL, LSK_FP32, span, rule,
                             rule->level != LSK_RATIO_TOKEN ? &found : NULL, 0.37);
    if (memcmp(&sums, &wide, sizeof sums) != 0) {
        fprintf(stderr, "objective_terms: sums with a gradient in fp32 differ from those with one in fp64\n");
        exit(1);
    }
    for (int64_t i = 0; i < span->count; i++)
        if (narrow[i] != (float)gradient[i]) {
            fprintf(stderr, "objective_terms: the gradient of token %lld in fp32 is not that in fp64, rounded\n",
                    (long long)i);
            exit(1);
        }
}

static void digest_objective(int32_t term, int32_t level) {
    enum { COUNT = OBJECTIVE_COUNT };
    static double gradient[COUNT];
    static uint8_t mask[COUNT], kept[COUNT], selected[COUNT];
    char name[64];
    digest_begin();
    for (int32_t format = LSK_FP32; format <= LSK_FP64; format++)
        for (int32_t kl = LSK_KL_NONE; kl <= LSK_KL_ABS; kl++) {
            lsk_objective_span span;
            lsk_objective_rule rule;
            memset(&span, 0, sizeof span);
            memset(&rule, 0, sizeof rule);
            for (int i = 0; i < LSK_OBJECTIVE_INPUTS; i++) {
                span.input[i] = random_values(format, COUNT, 2);
                span.format[i] = format;
            }
            for (int i = 0; i < COUNT; i++) {
                mask[i] = random_bits() % 8 != 0;
                kept[i] = random_bits() % 8 != 0;
                selected[i] = random_bits() % 8 == 0;
            }
            span.mask = mask;
            span.kept = kept;
            span.selected = selected;
            span.count = COUNT - kl;
            rule.term = term;
            rule.level = term == LSK_GMPO ? LSK_RATIO_SEQUENCE : term == LSK_VESPO ? LSK_RATIO_SEQUENCE_SUM : level;
            rule.kl = kl;
            rule.kl_gradient = (term + level + kl) % 4;
            rule.low = 0.8;
            rule.high = 1.25;
            rule.log_low = -0.25;
            rule.log_high = 0.25;
            rule.dual = 3;
            rule.ratio_max = 2;
            rule.coefficient = 0.5;
            rule.tau_positive = 1;
            rule.tau_negative = 1.05;
            rule.shape_positive = rule.rate_negative = 2;
            rule.rate_positive = rule.shape_negative = 3;
            rule.log_ratio_min = -2.5;
            rule.log_ratio_max = 2.5;
            rule.kl_coefficient = 0.125;
            rule.kl_input = 3;
            rule.kl_output = 5;
            rule.entropy_coefficient = 0.01;
            digest_terms(&span, &rule);
            /* All tokens do the same: one advantage, and nothing that leaves one out. */
            lsk_objective_span even = span;
            even.mask = even.kept = even.selected = NULL;
            even.input[LSK_INPUT_ADVANTAGE] = even.input[LSK_INPUT_WEIGHT] = even.input[LSK_INPUT_ENTROPY] = NULL;
            even.advantage = kl % 2 ? 1.25 : -0.75;
            if (rule.term != LSK_KL_COV) digest_terms(&even, &rule);
            if (format == LSK_FP32 && rule.term != LSK_KL_COV) {
                /* As it mostly is: log ratios near 0 with some far from it, and bounds that do not act. */
                float *current = (float *)(uintptr_t)span.input[LSK_INPUT_CURRENT];
                float *reference = (float *)(uintptr_t)span.input[LSK_INPUT_REFERENCE];
                for (int i = 0; i < COUNT; i++) {
                    const float scale = i / 8 % 5 == 3 ? 0.6f : 0.05f;
                    current[i] = ((const float *)span.input[LSK_INPUT_TRAINER])[i] + random_float(scale);
                    reference[i] = current[i] + random_float(scale);
                }
                lsk_objective_rule usual = rule;
                usual.ratio_max = __builtin_inf();
                usual.kl_gradient = LSK_KL_DIRECT;
                even.input[LSK_INPUT_WEIGHT] = span.input[LSK_INPUT_WEIGHT];
                for (int way = 0; way < 4; way++) {
                    usual.dual = way < 2 ? 1.05 : __builtin_inf();
                    usual.kl_output = way % 2 ? 5 : 0.001;
                    even.advantage = way % 3 ? 1.25 : -0.75;
                    digest_terms(&even, &usual);
                }
            }
            if (kl != LSK_KL_NONE) {
                kernels->objective_kl(gradient, LSK_FP64, NULL, LSK_FP64, &span, &rule);
                for (int64_t i = 0; i < span.count; i++) digest_double(gradient[i] + 0);
            }
            for (int i = 0; i < LSK_OBJECTIVE_INPUTS; i++) free((void *)(uintptr_t)span.input[i]);
        }
    snprintf(name, sizeof name, "objective_%d_%d", term, level);
    digest_end(name);
}

int main(int count, char **arguments) {
    static const char *const sets[] = {"baseline", "avx2", "avx512", "neon"};
    for (int32_t set = LSK_BASELINE; set <= LSK_NEON; set++)
        if (count == 2 && strcmp(arguments[1], sets[set - 1]) == 0) {
            kernels = lsk_kernels_for(set);
            if (kernels == NULL) return 77;
        }
    if (kernels == NULL) {
        fprintf(stderr, "usage: kernel_digest baseline|avx2|avx512|neon\n");
        return 2;
    }
    uint64_t mode = lsk_float_mode_enter();
    random_state = 1;
    digest_convert();
    for (int32_t format = LSK_FP32; format <= LSK_BF16; format++) {
        digest_lse_row(format);
        digest_prepare_row(format);
        digest_gradient_row(format);
        digest_multiply(format, 0);
        digest_multiply(format, 1);
        digest_multiply_row(format);
        digest_pack_panel(format);
        digest_layers(format);
    }
    digest_training();
    digest_optimizer();
    digest_lse_tile();
    digest_softmax_tiles();
    digest_softmax_row();
    digest_widen_panel();
    for (int32_t trainer = LSK_FP32; trainer <= LSK_FP64; trainer++)
        for (int32_t rollout = LSK_FP32; rollout <= LSK_FP64; rollout++) digest_mismatch(trainer, rollout);
    for (int32_t trainer = LSK_FP32; trainer <= LSK_BF16; trainer++)
        for (int32_t rollout = LSK_FP32; rollout <= LSK_BF16; rollout++) digest_divergence(trainer, rollout);
    for (int32_t format = LSK_FP32; format <= LSK_FP64; format++)
        for (int32_t level = 0; level <= LSK_LEVEL_SEQUENCE_EVERY; level++) digest_correction(format, level);
    digest_exact(0);
    digest_exact(1);
    for (int32_t term = LSK_CLIP; term <= LSK_VESPO; term++)
        for (int32_t level = LSK_RATIO_TOKEN; level <= LSK_RATIO_SEQUENCE_SUM; level++) digest_objective(term, level);
    lsk_float_mode_leave(mode);
    return 0;
}
