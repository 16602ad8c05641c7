/* lockstep.h: keep the policy you train and the policy you sample from the same policy.
 *
 * In RL fine-tuning one engine samples (the rollout policy mu) and another trains (the trainer
 * policy pi). Same weights, different rounding: mu != pi. This library computes log-probs whose
 * bits depend on their inputs alone, and measures how far two engines are apart.
 *
 *     #include <stdio.h>
 *     #include <lockstep.h>
 *
 *     int main(void) {
 *         float logits[2 * 4] = {1, 2, 3, 4,  0, 0, 8, 0};
 *         int32_t targets[2] = {3, 2};
 *         float log_probs[2];
 *         int64_t matrix[2] = {2, 4}, vector[1] = {2};
 *         lockstep_tensor x = lockstep_tensor_of(logits, LOCKSTEP_FLOAT32, 2, matrix);
 *         lockstep_tensor y = lockstep_tensor_of(targets, LOCKSTEP_INT32, 1, vector);
 *         lockstep_tensor out = lockstep_tensor_of(log_probs, LOCKSTEP_FLOAT32, 1, vector);
 *         if (lockstep_log_probs(&out, NULL, NULL, NULL, &x, &y, NULL) != LOCKSTEP_OK) {
 *             fprintf(stderr, "%s\n", lockstep_last_error());
 *             return 1;
 *         }
 *         printf("%.6f %.6f\n", log_probs[0], log_probs[1]);
 *         return 0;
 *     }
 *
 * The promises, which hold for every function below:
 *
 * - A result is a pure function of the inputs and options. It does not depend on the batch a row
 *   came in, on `threads`, on `instruction_set`, or on the floating-point mode of the caller
 *   (flush-to-zero and the rounding direction are set for the call, then restored).
 * - Bad input is an error, never a crash: the status says what kind, lockstep_last_error() says
 *   which argument, at which index, and what to do. On error the outputs are untouched.
 * - `const` means it may be used from many threads at once. Nothing here is global but a pool of
 *   worker threads, which survives fork().
 * - Outputs come first, then handles, then inputs, options last. An output marked "optional" may
 *   be NULL. NULL options mean the defaults.
 * - Counts of zero are not errors: nothing is written, and the call succeeds.
 *
 * Letters in shapes: tokens (rows), vocab (columns of the logits), H (hidden size).
 * Logarithms are natural; entropies and divergences are in nats.
 *
 * Sections: 1 version, status, errors.  2 tensors and number formats.  3 log-probs.  4 mismatch.
 * 5 logs.  6 corrections.  7 advantages.  8 objectives.  9 presets.  10 models and engines.
 */
#ifndef LOCKSTEP_H
#define LOCKSTEP_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------------------------------------------
 * 1. Version, status, errors
 * ------------------------------------------------------------------------------------------ */

#define LOCKSTEP_VERSION_MAJOR 1
#define LOCKSTEP_VERSION_MINOR 0
#define LOCKSTEP_VERSION_PATCH 0

/* Version of the library that is loaded: major * 10000 + minor * 100 + patch. */
int32_t lockstep_version(void);

/* The same as text, "1.0.0"; a release candidate adds which, "1.0.0-rc1". A static string; never NULL. */
const char *lockstep_version_string(void);

/* What every fallible function returns. */
typedef int32_t lockstep_status;
enum {
    LOCKSTEP_OK = 0,
    /* An argument is wrong: NULL, a bad shape, dtype, enum, size, or a value out of range. */
    LOCKSTEP_ERROR_INVALID_ARGUMENT = 1,
    /* The arguments are well formed, but this combination is not offered. */
    LOCKSTEP_ERROR_UNSUPPORTED = 2,
    /* A value that counts is NaN or infinite where the result would be undefined. */
    LOCKSTEP_ERROR_NON_FINITE = 3,
    LOCKSTEP_ERROR_OUT_OF_MEMORY = 4,
    /* A defect of this library: please report the message. */
    LOCKSTEP_ERROR_INTERNAL = 5,
    /* The operating system refused a file: it is not there, locked, or the disk is full. */
    LOCKSTEP_ERROR_FILE = 6,
    /* Bytes that were read are not what was written: damaged, cut off, or of another kind. */
    LOCKSTEP_ERROR_BAD_DATA = 7
};

/* "LOCKSTEP_OK", "LOCKSTEP_ERROR_...", or "unknown status". A static string; never NULL. */
const char *lockstep_status_name(lockstep_status status);

/* The message of the last failed call on this thread: argument, index, what to do. Empty if none
 * failed. Valid until the next call of this library on this thread. Never NULL. */
const char *lockstep_last_error(void);

/* The instruction sets a kernel is built for. Results are the same bits on all of them; the choice
 * exists for tests and benchmarks. */
typedef int32_t lockstep_instruction_set;
enum {
    LOCKSTEP_INSTRUCTION_SET_BEST = 0, /* the best this machine has */
    LOCKSTEP_INSTRUCTION_SET_BASELINE = 1,
    LOCKSTEP_INSTRUCTION_SET_AVX2 = 2,
    LOCKSTEP_INSTRUCTION_SET_AVX512 = 3,
    LOCKSTEP_INSTRUCTION_SET_NEON = 4
};

/* 1 if this machine can run `set`, else 0 (also for an unknown value). */
int32_t lockstep_has_instruction_set(lockstep_instruction_set set);

/* ---------------------------------------------------------------------------------------------
 * 2. Tensors and number formats
 * ------------------------------------------------------------------------------------------ */

/* One value of a 16-bit or 8-bit format. One-member structs, so that they cannot be mixed up. */
typedef struct { uint16_t bits; } lockstep_fp16;       /* 1 sign, 5 exponent, 10 mantissa bits */
typedef struct { uint16_t bits; } lockstep_bf16;       /* 1, 8, 7 */
typedef struct { uint8_t bits; } lockstep_fp8_e4m3fn;  /* 1, 4, 3; no infinity, maximum 448 */
typedef struct { uint8_t bits; } lockstep_fp8_e5m2;    /* 1, 5, 2; IEEE-like, maximum 57,344 */

/* The type of one element. Layout and codes are DLPack's DLDataType; `lanes` is 1. */
typedef struct {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
} lockstep_dtype;

/* The dtypes this library knows, as the integer code | bits << 8 | lanes << 16 (the bytes of a
 * lockstep_dtype on a little-endian machine). Turn one into a dtype with lockstep_dtype_of(). */
enum {
    LOCKSTEP_FLOAT32 = 2 | 32 << 8 | 1 << 16,
    LOCKSTEP_FLOAT64 = 2 | 64 << 8 | 1 << 16,
    LOCKSTEP_FLOAT16 = 2 | 16 << 8 | 1 << 16,
    LOCKSTEP_BFLOAT16 = 4 | 16 << 8 | 1 << 16,
    LOCKSTEP_FLOAT8_E4M3FN = 10 | 8 << 8 | 1 << 16,
    LOCKSTEP_FLOAT8_E5M2 = 12 | 8 << 8 | 1 << 16,
    LOCKSTEP_INT32 = 0 | 32 << 8 | 1 << 16,
    LOCKSTEP_INT64 = 0 | 64 << 8 | 1 << 16,
    LOCKSTEP_UINT8 = 1 | 8 << 8 | 1 << 16,
    LOCKSTEP_UINT64 = 1 | 64 << 8 | 1 << 16,
    LOCKSTEP_BOOL = 6 | 8 << 8 | 1 << 16,
    /* Emulated formats, for studying what fewer bits do: LOCKSTEP_E8M + N has the range of fp32 and N explicit
     * mantissa bits (1 to 23; 7 are bf16's values, 23 fp32's), LOCKSTEP_E5M + N the range of fp16, with its
     * subnormals and infinity (1 to 10; 10 are fp16's values). A value is stored in a 32-bit float, so they save no
     * memory. lockstep_convert and lockstep_ulp_distance take them as the dtype of a tensor, recipes and
     * logits_dtype as a number; elsewhere such a tensor is given as what it is in memory, LOCKSTEP_FLOAT32.
     * DLPack counts its codes from 0 up (17 so far) and gives none from 192 to 234. */
    LOCKSTEP_E8M = 192 | 32 << 8 | 1 << 16,
    LOCKSTEP_E5M = 224 | 32 << 8 | 1 << 16
};

/* Where the data lives. Layout is DLPack's DLDevice. Only the CPU (type 1) is accepted. */
typedef struct {
    int32_t device_type;
    int32_t device_id;
} lockstep_device;

/* A borrowed buffer. Layout is DLPack's DLTensor, so a tensor of PyTorch, JAX or NumPy is passed
 * without a copy. `strides` are in elements; NULL means C order. `data` must be aligned to its
 * element. The library never keeps the pointer after the call, except where it says so. */
typedef struct {
    void *data;
    lockstep_device device;
    int32_t ndim;
    lockstep_dtype dtype;
    const int64_t *shape;
    const int64_t *strides;
    uint64_t byte_offset;
} lockstep_tensor;

/* The dtype for one of the LOCKSTEP_FLOAT32... codes above. */
static inline lockstep_dtype lockstep_dtype_of(int32_t code) {
    lockstep_dtype dtype;
    dtype.code = (uint8_t)(code & 0xff);
    dtype.bits = (uint8_t)((code >> 8) & 0xff);
    dtype.lanes = (uint16_t)((code >> 16) & 0xffff);
    return dtype;
}

/* A C-ordered tensor on the CPU over memory of the caller. `shape` is borrowed, not copied. */
static inline lockstep_tensor lockstep_tensor_of(void *data, int32_t dtype, int32_t ndim,
                                                 const int64_t *shape) {
    lockstep_tensor tensor;
    tensor.data = data;
    tensor.device.device_type = 1;
    tensor.device.device_id = 0;
    tensor.ndim = ndim;
    tensor.dtype = lockstep_dtype_of(dtype);
    tensor.shape = shape;
    tensor.strides = NULL;
    tensor.byte_offset = 0;
    return tensor;
}

/* How a value between two neighbours of the destination format is rounded. */
typedef int32_t lockstep_rounding;
enum {
    LOCKSTEP_ROUND_NEAREST_EVEN = 0,
    LOCKSTEP_ROUND_TOWARD_ZERO = 1,
    /* Up with a probability equal to the distance from below, so that the expectation is the
     * value, resolved to 2^-32. The random number of element i is a function of `seed` and i alone
     * (word i mod 4 of Philox4x32-10 at counter i / 4), so the result does not depend on threads or
     * on how an array is cut by `first_index`. */
    LOCKSTEP_ROUND_STOCHASTIC = 2
};

/* Growable: appended fields read as zero when struct_size is smaller. */
typedef struct {
    uint32_t struct_size;
    lockstep_rounding rounding;
    uint64_t seed;        /* stochastic rounding: the seed */
    uint64_t first_index; /* stochastic rounding: the index of the first element */
    int32_t threads;      /* 0: one for each processor this process may use */
    lockstep_instruction_set instruction_set;
} lockstep_convert_options;

#define LOCKSTEP_CONVERT_OPTIONS_INIT { sizeof(lockstep_convert_options), 0, 0, 0, 0, 0 }

/* What happened in a conversion. Frozen. */
typedef struct {
    int64_t overflow;  /* to nearest: finite values that became infinity, or NaN in e4m3fn; toward
                        * zero and stochastic: those beyond the largest finite value, which became it */
    int64_t underflow; /* non-zero values that became zero */
    int64_t nan;       /* NaN in the source */
} lockstep_convert_counts;

/* Converts every element of `source` to the format of `destination`.
 *
 * Shapes: equal, any number of dimensions up to 8; both in C order or with strides.
 * Formats: fp16, bf16, fp32, fp64, fp8 e4m3fn, fp8 e5m2, e8mN, e5mN, each way. Widening is exact; narrowing
 * rounds once, as `rounding` says, directly from the source format. Subnormals are kept. A NaN
 * stays a NaN with its sign, the top bits of its payload and the quiet bit set (within one format,
 * bits are copied); an infinity stays one (in e4m3fn, which has none, it becomes NaN).
 * Overflow to nearest: infinity (e4m3fn: NaN), as ml_dtypes and IEEE 754 do; toward zero: the
 * largest finite value. Stochastic rounding overflows as toward zero does beyond the largest
 * finite value, and otherwise only between two neighbours. From e8mN and e5mN the floats that are there
 * are read, whether the format has them or not.
 * `counts` is optional. `destination` may be `source` only when the formats have one size; any other
 * overlap, and first_index + count beyond 2^64, are errors. */
lockstep_status lockstep_convert(const lockstep_tensor *destination,
                                 lockstep_convert_counts *counts,
                                 const lockstep_tensor *source,
                                 const lockstep_convert_options *options);

/* Distance in units in the last place: how many representable steps lie between a and b.
 *
 * Shapes: `distance` uint64, `a` and `b` of one format, all of equal shape. +0 and -0 are the same
 * value (0). Two NaN are 0 apart; a NaN and a number UINT64_MAX. Infinity is one step beyond the
 * largest finite value. A float that e8mN or e5mN does not have counts as the nearest it has. */
lockstep_status lockstep_ulp_distance(const lockstep_tensor *distance, const lockstep_tensor *a,
                                      const lockstep_tensor *b);

/* One value at a time: to float exactly, from float to nearest even. */
float lockstep_fp16_to_float(lockstep_fp16 value);
float lockstep_bf16_to_float(lockstep_bf16 value);
float lockstep_fp8_e4m3fn_to_float(lockstep_fp8_e4m3fn value);
float lockstep_fp8_e5m2_to_float(lockstep_fp8_e5m2 value);
lockstep_fp16 lockstep_fp16_from_float(float value);
lockstep_bf16 lockstep_bf16_from_float(float value);
lockstep_fp8_e4m3fn lockstep_fp8_e4m3fn_from_float(float value);
lockstep_fp8_e5m2 lockstep_fp8_e5m2_from_float(float value);

/* ---------------------------------------------------------------------------------------------
 * 3. Log-probs
 *
 * For a row of logits x, y_v = soft_cap(x_v) / temperature, and
 *
 *     log_prob     = y_target - log_sum_exp
 *     log_sum_exp  = ln sum_v exp(y_v)
 *     entropy      = log_sum_exp - sum_v softmax(y)_v y_v
 *
 * Logits, hidden states and heads are fp32, fp16 or bf16. They are widened to fp32 exactly.
 * Order of arithmetic (what fixes the bits): docs/Numerics.md. Log-probs are never above 0.
 * A logit of -inf contributes exactly nothing; a target at -inf has log-prob -inf.
 * A counted row with a NaN, with +inf, or with only -inf is LOCKSTEP_ERROR_NON_FINITE, and the
 * message names the row. Rows whose target is `ignore_index` are never read: outputs are 0.
 * ------------------------------------------------------------------------------------------ */

/* Growable: appended fields read as zero when struct_size is smaller. */
typedef struct {
    uint32_t struct_size;
    int32_t ignore_index; /* rows with this target are skipped; -100 by default */
    double temperature;   /* in [1e-6, 1e6]; 1 by default. 0 is an error: a limit, not a policy */
    double soft_cap;      /* 0: none. Else y = soft_cap * tanh(x / soft_cap), before the temperature */
    /* Keep only the top_k largest logits (0: all), of them those at or above min_p (below), then only
     * the smallest set of the largest whose probability reaches top_p (1: all) of what is left: all
     * after the temperature, as samplers do. Logits equal to the smallest kept one are kept too, so the
     * kept set does not depend on any order. */
    double top_p;
    int32_t top_k;
    /* Round each logit to this dtype before the log-softmax: LOCKSTEP_FLOAT16 or LOCKSTEP_BFLOAT16
     * for a 16-bit head, LOCKSTEP_E8M + N, LOCKSTEP_E5M + N, 0 or LOCKSTEP_FLOAT32 for none. A logit beyond
     * fp16 becomes infinite. */
    int32_t logits_dtype;
    int32_t threads; /* 0: one for each processor this process may use */
    lockstep_instruction_set instruction_set;
    /* Keep only logits whose probability is at least this share of the largest one's, in [0, 1]; 0: all. */
    double min_p;
} lockstep_log_probs_options;

#define LOCKSTEP_LOG_PROBS_OPTIONS_INIT \
    { sizeof(lockstep_log_probs_options), -100, 1.0, 0.0, 1.0, 0, 0, 0, 0, 0.0 }

/* Log-prob of each row's target, from logits.
 *
 * log_probs    [tokens]          fp32 or fp64; optional
 * entropy      [tokens]          fp32 or fp64; optional
 * log_sum_exp  [tokens]          fp32 or fp64; optional. As fp64 it can be given to the backward.
 * kept_mass    [tokens]          fp32 or fp64; optional. The probability of the kept set before it
 *                                was cut: 1 without top_k, top_p and min_p
 * logits       [tokens x vocab]  fp32, fp16 or bf16; the last dimension contiguous, any row stride
 * targets      [tokens]          int32 or int64, in [0, vocab) or ignore_index
 *
 * With top_k, top_p or min_p, log_probs, entropy and log_sum_exp are those of the kept set renormalised
 * (what a serving engine calls "processed"); a target outside it has log-prob -inf.
 * Reads each logit once. Extra memory: at most 1 MB + 64 bytes a token; with a kept set, also 12
 * bytes a vocabulary entry for each thread. */
lockstep_status lockstep_log_probs(const lockstep_tensor *log_probs,
                                   const lockstep_tensor *entropy,
                                   const lockstep_tensor *log_sum_exp,
                                   const lockstep_tensor *kept_mass,
                                   const lockstep_tensor *logits, const lockstep_tensor *targets,
                                   const lockstep_log_probs_options *options);

/* Gradient of sum_t d_log_probs[t] log_prob[t] + d_entropy[t] entropy[t] with respect to the logits.
 *
 * d_logits     [tokens x vocab]  fp32, fp16 or bf16; written, not accumulated. May be the logits
 *                                themselves (same data and dtype): then they are overwritten.
 * d_log_probs  [tokens]          fp32 or fp64; optional (NULL: zero)
 * d_entropy    [tokens]          fp32 or fp64; optional (NULL: zero)
 * log_sum_exp  [tokens]          fp64, from the forward call with the same options; optional: NULL
 *                                computes it again (one more pass). The bits are the same.
 *                                Given, rows are not checked again: a NaN among a row's logits then
 *                                gives a NaN gradient of that row, not an error.
 * others                         as in lockstep_log_probs
 *
 * With p = softmax(y):  dL/dy_v = d_log_prob (1[v = target] - p_v) - d_entropy p_v (ln p_v + entropy),
 * then through temperature and soft-cap. Rows at ignore_index get zeros. Rounding to logits_dtype
 * passes gradients straight through. top_k, top_p and min_p: LOCKSTEP_ERROR_UNSUPPORTED. */
lockstep_status lockstep_log_probs_backward(const lockstep_tensor *d_logits,
                                            const lockstep_tensor *d_log_probs,
                                            const lockstep_tensor *d_entropy,
                                            const lockstep_tensor *log_sum_exp,
                                            const lockstep_tensor *logits,
                                            const lockstep_tensor *targets,
                                            const lockstep_log_probs_options *options);

/* Log-prob of each row's target, from hidden states and a head: logits = hidden weight^T + bias.
 * The tokens x vocab logits never exist in memory. The result equals, bit for bit,
 * lockstep_log_probs of the logits formed by the same product rule (docs/Numerics.md).
 *
 * log_probs, entropy, log_sum_exp, targets: as in lockstep_log_probs
 * hidden  [tokens x H]  fp32, fp16 or bf16; the last dimension contiguous
 * weight  [vocab x H]   fp32, fp16 or bf16 (need not be hidden's); the last dimension contiguous
 * bias    [vocab]       fp32, fp16 or bf16; optional
 *
 * top_k, top_p and min_p: LOCKSTEP_ERROR_UNSUPPORTED. Extra memory: at most 6 MB + 1 MB a thread + 64 bytes
 * a token, for H up to 1,000,000. */
lockstep_status lockstep_linear_log_probs(const lockstep_tensor *log_probs,
                                          const lockstep_tensor *entropy,
                                          const lockstep_tensor *log_sum_exp,
                                          const lockstep_tensor *hidden,
                                          const lockstep_tensor *weight,
                                          const lockstep_tensor *bias,
                                          const lockstep_tensor *targets,
                                          const lockstep_log_probs_options *options);

/* Gradients of sum_t d_log_probs[t] log_prob[t] + d_entropy[t] entropy[t] with respect to hidden
 * states, head and bias. All three are ADDED to what the buffers hold: clear them first.
 *
 * d_hidden  [tokens x H]  fp32, fp16 or bf16; optional
 * d_weight  [vocab x H]   fp32, fp16 or bf16; optional
 * d_bias    [vocab]       fp32; optional
 * others                  as in lockstep_log_probs_backward and lockstep_linear_log_probs
 *
 * The logits are formed again, never stored. Sums are fp32; a 16-bit buffer gets the sum of the whole
 * call, rounded once as it is added. To add up micro-batches, take an fp32 d_weight: micro-batches of a
 * multiple of 128 tokens, given in order, then leave the same bits in d_weight and d_bias as one batch.
 * Extra memory for H up to 8,192: at most 24 MB + 1 MB a thread; with a 16-bit d_weight, also 8 KB x H,
 * and 4 bytes x H a token. */
lockstep_status lockstep_linear_log_probs_backward(const lockstep_tensor *d_hidden,
                                                   const lockstep_tensor *d_weight,
                                                   const lockstep_tensor *d_bias,
                                                   const lockstep_tensor *d_log_probs,
                                                   const lockstep_tensor *d_entropy,
                                                   const lockstep_tensor *log_sum_exp,
                                                   const lockstep_tensor *hidden,
                                                   const lockstep_tensor *weight,
                                                   const lockstep_tensor *bias,
                                                   const lockstep_tensor *targets,
                                                   const lockstep_log_probs_options *options);

/* A head copied once into the layout the kernels read, for repeated use (decoding, many batches). */
typedef struct lockstep_head lockstep_head;

/* Copies `weight` [vocab x H] and `bias` [vocab] (optional) into a new head, in weight's format.
 * Takes as much memory as the weight; keeps no pointer to it. Destroy with lockstep_head_destroy. */
lockstep_status lockstep_head_create(lockstep_head **head, const lockstep_tensor *weight,
                                     const lockstep_tensor *bias);

/* Frees a head. NULL is a no-op. No call may be using it. */
void lockstep_head_destroy(lockstep_head *head);

/* lockstep_linear_log_probs with a prepared head: the same bits, faster for few tokens. */
lockstep_status lockstep_head_log_probs(const lockstep_tensor *log_probs,
                                        const lockstep_tensor *entropy,
                                        const lockstep_tensor *log_sum_exp,
                                        const lockstep_head *head, const lockstep_tensor *hidden,
                                        const lockstep_tensor *targets,
                                        const lockstep_log_probs_options *options);

/* ---------------------------------------------------------------------------------------------
 * 4. Mismatch
 *
 * How far the trainer policy pi is from the rollout policy mu on tokens that mu drew. Per token,
 *
 *     d = ln pi - ln mu   (log ratio)        r = exp(d) = pi / mu   (ratio)
 *
 * Log-probs are fp32, fp64, fp16 or bf16, in one of two layouts, the same for all inputs:
 *   packed  [tokens], with offsets [sequences + 1] int64: sequence i is [offsets[i], offsets[i+1]);
 *           the first is 0, the last the number of tokens (offsets NULL: one sequence)
 *   padded  [sequences x length], offsets NULL
 * A mask (uint8 or bool, shape of the log-probs, optional) says which tokens count. A masked token
 * is never read: a NaN there changes nothing. A sequence without counted tokens enters nothing and
 * is reported in `empty_sequences`. A NaN or infinite log-prob at a counted token is
 * LOCKSTEP_ERROR_NON_FINITE naming sequence and position, or is dropped and counted (`exclude`).
 * Formulas and their sources: docs/Glossary.md.
 * ------------------------------------------------------------------------------------------ */

/* What to do with a non-finite log-prob at a token that counts. */
typedef int32_t lockstep_non_finite;
enum {
    LOCKSTEP_NON_FINITE_STRICT = 0,  /* an error naming sequence and position */
    LOCKSTEP_NON_FINITE_EXCLUDE = 1  /* the token leaves value and denominator, and is counted */
};

/* Growable: appended fields read as zero when struct_size is smaller. */
typedef struct {
    uint32_t struct_size;
    lockstep_non_finite non_finite;
    int32_t threads; /* 0: one for each processor this process may use */
    lockstep_instruction_set instruction_set;
} lockstep_mismatch_options;

#define LOCKSTEP_MISMATCH_OPTIONS_INIT { sizeof(lockstep_mismatch_options), 0, 0, 0 }

/* A mean and its standard error, clustered by sequence (tokens of one sequence are not independent
 * draws). The error is NaN with fewer than two sequences. Frozen. */
typedef struct {
    double value;
    double standard_error;
} lockstep_estimate;

/* The statistics of one log. Values are NaN where no token counts. Growable: set struct_size before
 * the call; only that many bytes are written. */
typedef struct {
    uint32_t struct_size;
    uint32_t reserved; /* 0 */

    int64_t tokens;          /* tokens that count */
    int64_t masked_tokens;   /* tokens the mask leaves out */
    int64_t excluded_tokens; /* tokens dropped as non-finite (`exclude`) */
    int64_t sequences;       /* sequences with a token that counts */
    int64_t empty_sequences; /* sequences without */

    /* Over tokens. */
    lockstep_estimate mean_log_ratio;     /* mean d */
    lockstep_estimate k1;                 /* KL(mu || pi): mean(-d), unbiased, may be negative */
    lockstep_estimate k2;                 /* KL(mu || pi): mean(d^2 / 2) */
    lockstep_estimate k3;                 /* KL(mu || pi): mean(exp(d) - 1 - d), >= 0 */
    lockstep_estimate mean_abs_log_ratio; /* mean |d| */
    lockstep_estimate rms_log_ratio;      /* sqrt(mean d^2) */
    double max_abs_log_ratio;             /* max |d| ... */
    int64_t max_abs_sequence;             /* ... its sequence (the first of equals; -1 if none; of an
                                           * accumulator the id, of equals the smallest) ... */
    int64_t max_abs_position;             /* ... and its index in that sequence (-1 if none) */
    lockstep_estimate mean_abs_prob_diff; /* mean |exp(ln pi) - exp(ln mu)| */
    double max_abs_prob_diff;
    double pearson;           /* correlation of the two probabilities */
    double one_minus_pearson; /* the same, without cancellation */
    lockstep_estimate share_differing;    /* tokens whose two log-probs differ in bits */
    lockstep_estimate share_outside_mlperf; /* tokens with r outside [0.999, 1.002] */
    lockstep_estimate share_outside_1pct;   /* ... outside [0.99, 1.01] */
    lockstep_estimate share_outside_5pct;
    lockstep_estimate share_outside_10pct;
    lockstep_estimate chi_square;         /* mean(r^2) - 1; a sample value, may be negative */
    lockstep_estimate mean_ratio;         /* mean r: 1 in expectation */
    double ess;                           /* (sum r)^2 / (n sum r^2), in (0, 1] */
    lockstep_estimate mean_exp_abs_log_ratio; /* mean exp|d|: "multiplicative probability error" */
    double trainer_perplexity;            /* exp(-mean ln pi) over tokens */
    double rollout_perplexity;
    double perplexity_ratio;              /* trainer / rollout */
    lockstep_estimate mean_rollout_log_prob; /* mean ln mu: minus the rollout's sample entropy */
    /* Quantiles of d at 0.1, 1, 5, 25, 50, 75, 95, 99, 99.9 %: linear between order statistics. */
    double log_ratio_quantiles[9];

    /* Over sequences: S = sum of d over a sequence's counted tokens. */
    lockstep_estimate sequence_log_ratio; /* mean S; minus the KL per sequence of the paper's figure */
    double sequence_log_ratio_std;        /* sample standard deviation of S (n - 1) */
    lockstep_estimate sequence_mean_log_ratio; /* mean over sequences of mean d */
    lockstep_estimate sequence_mean_exp_abs;   /* mean over sequences of mean exp|d| */
    double sequence_ess;                  /* ESS of the weights exp(S) */
    lockstep_estimate share_sequences_masked; /* sequences with mean exp|d| > 2, where NeMo RL's recipes drop them */
    lockstep_estimate slope_per_1000;     /* least-squares slope of S on length, per 1,000 tokens */
    double mean_sequence_length;          /* counted tokens a sequence */
    int64_t max_sequence_length;

    /* Standard errors of values above that are functions of means, by the delta method. None is given for
     * maxima and quantiles (no mean), the correlation, or the sequence ESS: the last is ruled by its few
     * largest weights, and an error that assumes otherwise would mislead. */
    double ess_standard_error;
    double trainer_perplexity_standard_error;
    double rollout_perplexity_standard_error;
    double perplexity_ratio_standard_error;
    double sequence_log_ratio_std_standard_error;

    /* Sequences with exp(mean d) outside [0.999, 1.002]: those that MLPerf's sequence mask drops. */
    lockstep_estimate share_sequences_outside_mlperf;
} lockstep_mismatch;

/* Measures the mismatch of two log-prob arrays: all statistics above in one call. */
lockstep_status lockstep_mismatch_measure(lockstep_mismatch *mismatch,
                                          const lockstep_tensor *trainer_log_probs,
                                          const lockstep_tensor *rollout_log_probs,
                                          const lockstep_tensor *mask,
                                          const lockstep_tensor *offsets,
                                          const lockstep_mismatch_options *options);

/* One sequence of a log. Frozen. Everything is 0 for a sequence without counted tokens. */
typedef struct {
    int64_t tokens;            /* counted tokens */
    double log_ratio;          /* S = sum d */
    double mean_log_ratio;     /* S / tokens */
    double mean_abs_log_ratio; /* mean |d| */
    double max_abs_log_ratio;  /* max |d| */
    double mean_exp_abs;       /* mean exp|d| */
    double k3;                 /* mean(exp(d) - 1 - d) */
} lockstep_mismatch_sequence;

/* The per-sequence values behind the statistics. `count` must be the number of sequences. */
lockstep_status lockstep_mismatch_sequences(lockstep_mismatch_sequence *sequences, size_t count,
                                            const lockstep_tensor *trainer_log_probs,
                                            const lockstep_tensor *rollout_log_probs,
                                            const lockstep_tensor *mask,
                                            const lockstep_tensor *offsets,
                                            const lockstep_mismatch_options *options);

/* What a profile is taken over. */
typedef int32_t lockstep_mismatch_axis;
enum {
    LOCKSTEP_AXIS_POSITION = 0,    /* how many counted tokens of its sequence came before */
    LOCKSTEP_AXIS_PROBABILITY = 1, /* the rollout probability exp(ln mu) */
    LOCKSTEP_AXIS_LOG_RATIO = 2    /* d itself: a histogram */
};

/* One bucket of a profile: tokens whose axis value is in [lower, upper). Frozen. Means are NaN in an
 * empty bucket. */
typedef struct {
    double lower, upper;
    int64_t tokens;
    double mean_log_ratio;
    double mean_abs_log_ratio;
    double k3;
} lockstep_mismatch_bucket;

/* Statistics by bucket of position, of probability, or of the log ratio.
 *
 * buckets  [bucket_count]
 * edges    [bucket_count + 1] doubles, strictly increasing; -INFINITY and INFINITY are allowed at the
 *          ends. The last bucket includes its upper edge. Tokens outside all buckets are left out. */
lockstep_status lockstep_mismatch_profile(lockstep_mismatch_bucket *buckets, size_t bucket_count,
                                          const double *edges, lockstep_mismatch_axis axis,
                                          const lockstep_tensor *trainer_log_probs,
                                          const lockstep_tensor *rollout_log_probs,
                                          const lockstep_tensor *mask,
                                          const lockstep_tensor *offsets,
                                          const lockstep_mismatch_options *options);

/* The statistics of a log that comes in parts: in constant memory, on any number of machines.
 *
 * A sequence is the atom. As long as none is cut in two, parts may be added in any order and grouping,
 * and accumulators merged in any order: the result is the same bits, and so are its bytes. That holds
 * because every sum over sequences is exact: it is rounded once, when it is reported.
 *
 * Memory does not grow with the number of tokens: about 0.3 MB, at most 10 MB whatever is added (besides what
 * `exact_quantiles` keeps). An update takes as much again for each thread while it runs. Beyond 2^48 tokens
 * or sequences, update and merge are LOCKSTEP_ERROR_INVALID_ARGUMENT. */
typedef struct lockstep_mismatch_accumulator lockstep_mismatch_accumulator;

/* Growable: appended fields read as zero when struct_size is smaller. */
typedef struct {
    uint32_t struct_size;
    /* 1: keep every d that is not 0, 8 bytes each, and report exact quantiles. 0: report them from a
     * sketch, in constant memory; an order statistic is then within 2^-8 of its |d| where 2^-24 <= |d| <
     * 2^8, within 2^-24 absolutely below, and a value between 2^8 and max |d| above. */
    int32_t exact_quantiles;
    /* 1: keep what _report needs and nothing else, and no quantiles (they are NaN): some kilobytes when
     * saved, for one accumulator a training step. Merging into it leaves the rest of `other` out. Not
     * together with exact_quantiles. */
    int32_t summary;
} lockstep_mismatch_accumulator_options;

#define LOCKSTEP_MISMATCH_ACCUMULATOR_OPTIONS_INIT { sizeof(lockstep_mismatch_accumulator_options), 0, 0 }

/* Makes an accumulator of nothing. Destroy it with lockstep_mismatch_accumulator_destroy. */
lockstep_status lockstep_mismatch_accumulator_create(
    lockstep_mismatch_accumulator **accumulator, const lockstep_mismatch_accumulator_options *options);

/* Frees an accumulator. NULL is a no-op. No call may be using it. */
void lockstep_mismatch_accumulator_destroy(lockstep_mismatch_accumulator *accumulator);

/* Adds whole sequences; all of them or, on an error, none.
 *
 * ids  [sequences] uint64 or int64, optional: what each sequence is called, the same however the log is cut
 *      (an int64 is taken as its bits). By default sequences are numbered as they come, which depends on
 *      the cut. Ids name the token of max |d| and decide between equals, so merged results have the bits of
 *      one pass only if ids are given.
 * others  as in lockstep_mismatch_measure
 *
 * A sequence added twice counts twice. */
lockstep_status lockstep_mismatch_accumulator_update(lockstep_mismatch_accumulator *accumulator,
                                                     const lockstep_tensor *trainer_log_probs,
                                                     const lockstep_tensor *rollout_log_probs,
                                                     const lockstep_tensor *mask,
                                                     const lockstep_tensor *offsets,
                                                     const lockstep_tensor *ids,
                                                     const lockstep_mismatch_options *options);

/* Adds all that `other` holds, which stays as it is; it must keep all that this accumulator keeps. */
lockstep_status lockstep_mismatch_accumulator_merge(lockstep_mismatch_accumulator *accumulator,
                                                    const lockstep_mismatch_accumulator *other);

/* Every statistic of what was added: those of lockstep_mismatch_measure of the whole log, bit for bit,
 * but for the quantiles (see the options) and, without ids, max_abs_sequence. */
lockstep_status lockstep_mismatch_accumulator_report(lockstep_mismatch *mismatch,
                                                     const lockstep_mismatch_accumulator *accumulator);

/* Below, an array's count is asked for and given alike: `count` (never NULL) holds on entry the room in the
 * array, which is not read if the array is NULL; on return, how many elements there are. */

/* Statistics by bucket. Position and probability have fixed buckets, all of which are returned:
 *   position     0, 1, 2, 3, 4, 6, 8, 12...: two an octave, the last from 1.5 2^20 on
 *   probability  -ln mu between 2^-20 and 64 in two buckets an octave, one beyond each end. A token's bucket
 *                is decided by ln mu; the edges, exp of that, are rounded
 *   log ratio    the bins of the sketch that have tokens, 128 an octave for 2^-24 <= |d| < 2^8: `tokens`
 *                alone, the means are NaN */
lockstep_status lockstep_mismatch_accumulator_profile(lockstep_mismatch_bucket *buckets, size_t *count,
                                                      const lockstep_mismatch_accumulator *accumulator,
                                                      lockstep_mismatch_axis axis);

/* What a histogram over sequences counts by. */
typedef int32_t lockstep_sequence_quantity;
enum {
    LOCKSTEP_SEQUENCE_LOG_RATIO = 0,     /* S, the sum of d */
    LOCKSTEP_SEQUENCE_MEAN_LOG_RATIO = 1 /* the mean of d */
};

/* Sequences of one class of lengths with a value in [lower, upper). Frozen. */
typedef struct {
    int64_t min_tokens, max_tokens; /* counted tokens; the last class is open: INT64_MAX */
    double lower, upper;
    int64_t sequences;
} lockstep_mismatch_sequence_bin;

/* How many sequences have which S or mean d, by length (powers of two; all from 2^23 on in one class): the
 * bins with sequences, by length, then value. Bins are those of the log-ratio profile. From them follows
 * what a threshold on sequences would drop. */
lockstep_status lockstep_mismatch_accumulator_histogram(lockstep_mismatch_sequence_bin *bins, size_t *count,
                                                        const lockstep_mismatch_accumulator *accumulator,
                                                        lockstep_sequence_quantity quantity);

/* A sequence of the sample. Frozen. */
typedef struct {
    uint64_t id;
    int64_t tokens;            /* counted tokens */
    double log_ratio;          /* S = sum d */
    double mean_log_ratio;     /* S / tokens */
    double mean_abs_log_ratio; /* mean |d| */
    double max_abs_log_ratio;  /* max |d| */
    double mean_exp_abs;       /* mean exp|d| */
    double k3;                 /* mean(exp(d) - 1 - d) */
} lockstep_mismatch_sample;

/* A sample of at most 1,024 sequences with counted tokens: those whose ids have the smallest hashes
 * (splitmix64), in that order, so the first of them are a sample too. The same however the log was cut. */
lockstep_status lockstep_mismatch_accumulator_sample(lockstep_mismatch_sample *sample, size_t *count,
                                                     const lockstep_mismatch_accumulator *accumulator);

/* The at most 32 sequences with the largest |S| above 0, the worst first; of equals those with the smaller id. */
lockstep_status lockstep_mismatch_accumulator_worst_sequences(
    lockstep_mismatch_sample *sequences, size_t *count, const lockstep_mismatch_accumulator *accumulator);

/* One token. Frozen. */
typedef struct {
    uint64_t id;              /* of its sequence */
    int64_t position;         /* index in the sequence */
    double log_ratio;         /* d */
    double rollout_log_prob;  /* ln mu */
} lockstep_mismatch_token;

/* The at most 32 tokens with the largest |d| above 0, the worst first; of equals those with the smaller id,
 * then position. */
lockstep_status lockstep_mismatch_accumulator_worst(lockstep_mismatch_token *tokens, size_t *count,
                                                    const lockstep_mismatch_accumulator *accumulator);

/* Writes an accumulator as bytes, to be stored or sent and loaded anywhere.
 *
 * bytes  [*size], or NULL to ask for the size
 * size   in: room in `bytes`, not read if that is NULL; out: how many the accumulator takes
 *
 * The same content gives the same bytes, whatever the parts it came in. */
lockstep_status lockstep_mismatch_accumulator_save(void *bytes, size_t *size,
                                                   const lockstep_mismatch_accumulator *accumulator);

/* Makes an accumulator from saved bytes. Bytes that are damaged, cut off or too long are
 * LOCKSTEP_ERROR_BAD_DATA, those of a newer format LOCKSTEP_ERROR_UNSUPPORTED. Any bytes are safe to give. */
lockstep_status lockstep_mismatch_accumulator_load(lockstep_mismatch_accumulator **accumulator,
                                                   const void *bytes, size_t size);

/* What can make trainer and rollout log-probs differ. docs/Causes.md: how each shows, and what to do. */
typedef int32_t lockstep_cause;
enum {
    LOCKSTEP_CAUSE_TEMPERATURE = 1,     /* one side divides its logits by another temperature */
    LOCKSTEP_CAUSE_RAW_LOG_PROBS = 2,   /* the rollout logged log-probs from before its temperature */
    LOCKSTEP_CAUSE_TRUNCATION = 3,      /* one side renormalises over what top-p, top-k or min-p kept */
    LOCKSTEP_CAUSE_STORED_IN_16_BITS = 4, /* a column was computed or stored in 16 bits */
    LOCKSTEP_CAUSE_MISALIGNMENT = 5,    /* tokens or sequences of the two columns do not belong together */
    LOCKSTEP_CAUSE_ENDS = 6,            /* first or last tokens, fill values, tokens to be masked */
    LOCKSTEP_CAUSE_OUTLIERS = 7,        /* few tokens far beyond all others, mostly of one sign */
    LOCKSTEP_CAUSE_OTHER_WEIGHTS = 8,   /* coarser than any 16-bit rounding: other weights or prompts */
    LOCKSTEP_CAUSE_ROUNDING = 9,        /* what is left of two engines that do the same */
    LOCKSTEP_CAUSE_UNKNOWN = 10,        /* a mismatch that behaves like none of these */
    LOCKSTEP_CAUSE_COUNT = 10
};

/* How much speaks for a cause. Frozen. */
typedef struct {
    lockstep_cause cause;
    uint32_t reserved; /* 0 */
    double score;      /* about which share of the sum of d^2 it explains if it is there, in [0, 1] */
    double confidence; /* how strongly the log shows it, in [0, 1]; from 1/2 on it counts as found */
} lockstep_cause_finding;

/* The figures from which causes are judged. Growable: set struct_size before the call.
 *
 * A run is a maximal stretch of counted tokens of a sequence. Plain tokens are no first or last token of a
 * run, both their log-probs are in (-1000, 0), and their sequence is not misaligned. p is the smaller of a
 * token's two probabilities, z = d / max(1 - p, 2^-20): rounding noise has one scale of z, whatever p. Where
 * there are no plain tokens the figures about them are 0. */
typedef struct {
    uint32_t struct_size;
    uint32_t reserved; /* 0 */
    int64_t tokens;    /* plain tokens */
    int64_t sequences; /* sequences with a plain token */
    double trainer_bf16_share; /* of its log-probs x with |x| >= 1/4 among the first 256 of each 4,096
                                * tokens, the share that bf16 holds; 0 with fewer than 20 of them */
    double trainer_fp16_share; /* ... that fp16's significand holds */
    double rollout_bf16_share;
    double rollout_fp16_share;
    double stored_share;       /* share of the sum of d^2 that rounding to those formats makes */
    int64_t trainer_above_zero; /* log-probs above 0 */
    int64_t rollout_above_zero;
    int64_t trainer_marks;      /* log-probs of -1000 or less: marks, as vLLM's -9999 */
    int64_t rollout_marks;
    int64_t trainer_zeros;      /* log-probs of 0 where the other side's is below -2^-10 */
    int64_t trainer_zeros_far;  /* ... below -1 */
    int64_t rollout_zeros;
    int64_t rollout_zeros_far;
    int64_t sequences_ahead;  /* misaligned: the trainer's fit the rollout's next token (2 times) better */
    int64_t sequences_behind; /* ... its previous token */
    double pearson;           /* of the two probabilities, over all tokens; NaN if one does not vary */
    int64_t first_tokens;     /* first tokens of runs */
    int64_t first_far;        /* of these, those with an |z| at least 16 times the median (in octaves) */
    int64_t last_tokens;
    int64_t last_far;
    double noise_scale;       /* median |z| */
    double noise_rms;         /* root mean square of z */
    double noise_bits;        /* log2(5.5 / noise_scale): mantissa bits that round so; NaN if none */
    double noise_growth;      /* log2 of median |z| at 1 - p in (2^-6, 2^-2] over that at 1 - p > 1/2 */
    double far_share;         /* share of tokens with an |z| at least 16 times the median (in octaves) */
    int64_t far_down;         /* tokens with an |z| at least 32 times the median and d < 0, d > 0 */
    int64_t far_up;
    double far_square_share;  /* their share of the sum of z^2 */
    double slope;             /* least squares of z on ln q / (1 - p), q the rollout's: slope, */
    double slope_r2;          /* share of the variance explained, */
    double slope_t;           /* slope over its standard error, */
    double entropy_scale;     /* intercept over slope */
    double slope_square_share; /* share of the sum of z^2 explained */
    double mean_ratio_excess; /* mean r - 1 */
    double mean_ratio_t;      /* over its standard error, clustered by sequence */
    double share_up;          /* share of the tokens with d != 0 that have d > 0 */
    double one_sidedness;     /* sum d / sum |d| */
    double square_one_sidedness; /* sum d |d| / sum d^2 */
    double clustering;        /* mean square of a sequence's sum of z, over that of independent tokens */
    double plain_square_share; /* shares of the sum of d^2: plain tokens, */
    double ends_square_share;  /* first and last tokens of runs, */
    double misaligned_square_share; /* misaligned sequences */
} lockstep_mismatch_evidence;

/* Judges from the log alone what made its log-probs differ.
 *
 * causes    [LOCKSTEP_CAUSE_COUNT]: every cause once, those found first, by score times confidence
 * evidence  optional: the figures behind them
 *
 * Several causes may be found. None is where all log-probs are equal; with fewer than 500 plain tokens or 10
 * sequences only faults that single tokens show are. */
lockstep_status lockstep_mismatch_accumulator_causes(lockstep_cause_finding *causes,
                                                     lockstep_mismatch_evidence *evidence,
                                                     const lockstep_mismatch_accumulator *accumulator);

/* The exact divergences of two rows of logits, over the whole vocabulary. Frozen. */
typedef struct {
    double kl_rollout_trainer; /* KL(mu || pi), >= 0 */
    double kl_trainer_rollout; /* KL(pi || mu), >= 0 */
    double total_variation;    /* sum |pi - mu| / 2, in [0, 1] */
    double jensen_shannon;     /* in [0, ln 2] */
    double same_top1;          /* 1 if both rows have their first maximum at one id, else 0 */
} lockstep_divergence;

/* Exact divergences of two logits matrices.
 *
 * mean   one value, optional: the means over counted rows (NaN if none). A KL may be +inf, where one
 *        policy gives 0 to what the other can draw.
 * rows   [row_count], optional: each row's values (0 for a masked row). row_count is then tokens.
 * trainer_logits, rollout_logits  [tokens x vocab]  fp32, fp16 or bf16, any row stride
 * mask   [tokens] uint8 or bool, optional
 * options  temperature, soft_cap, logits_dtype, threads and instruction_set are used; the others
 *          must have their defaults. The same options apply to both sides. */
lockstep_status lockstep_mismatch_exact(lockstep_divergence *mean, lockstep_divergence *rows,
                                        size_t row_count, const lockstep_tensor *trainer_logits,
                                        const lockstep_tensor *rollout_logits,
                                        const lockstep_tensor *mask,
                                        const lockstep_log_probs_options *options);

/* Early warning: watches the mismatch of a training run, one step at a time, and says when it leaves
 * its own floor, long before the reward shows it. Four statistics that the tail of the log ratios moves
 * are followed, each by a cumulative-sum chart of its logarithm against a floor learnt from the first
 * steps; growth of a KL by less than a fifth, or by less than 5 % in 100 steps, passes for normal. The
 * thresholds are calibrated: the rate of false alarms is known (docs/EarlyWarning.md).
 *
 * A level can shift for a good reason (another weight format, engine version or batch size): call
 * lockstep_monitor_reset then. Where all steps of the floor are exactly zero, any difference is an
 * alarm. Not for concurrent use, but for calls that take it as `const`. */
typedef struct lockstep_monitor lockstep_monitor;

typedef int32_t lockstep_monitor_level;
enum {
    LOCKSTEP_MONITOR_LEARNING = 0, /* too few steps: the floor is still being learnt */
    LOCKSTEP_MONITOR_OK = 1,       /* nothing beyond what noise does */
    LOCKSTEP_MONITOR_WATCH = 2,    /* as high as noise gets ten times as often as an alarm */
    LOCKSTEP_MONITOR_ALARM = 3     /* the mismatch has left its floor */
};

typedef int32_t lockstep_monitor_statistic;
enum {
    LOCKSTEP_MONITOR_K3 = 0,          /* k3 */
    LOCKSTEP_MONITOR_CHI_SQUARE = 1,  /* mean((r - 1)^2) = chi_square - 2 (mean_ratio - 1) */
    LOCKSTEP_MONITOR_ESS_LOSS = 2,    /* 1 - ess */
    LOCKSTEP_MONITOR_MAX_ABS_LOG_RATIO = 3 /* max |d|, for the number of tokens */
};

/* Growable: appended fields read as zero when struct_size is smaller. */
typedef struct {
    uint32_t struct_size;
    int32_t learning_steps;       /* steps that teach the floor, 20 to 1000; calibrated with 40 */
    double false_alarms_per_1000; /* false alarms tolerated in 1,000 steps, 0.1 to 10 */
} lockstep_monitor_options;

#define LOCKSTEP_MONITOR_OPTIONS_INIT { sizeof(lockstep_monitor_options), 40, 1.0 }

/* What a monitor says at a step. Growable: set struct_size before the call; only that many bytes are
 * written. */
typedef struct {
    uint32_t struct_size;
    lockstep_monitor_level level;
    lockstep_monitor_statistic statistic; /* the one furthest above its floor, for its threshold */
    int32_t steps_to_learn; /* how many more steps it takes to learn the floor; 0 after that */
    int64_t step;
    int64_t since_step;     /* first step of the growth, as far as can be told; -1 where score is 0 */
    double value;           /* the statistic at this step; NaN where no token counts */
    double floor;           /* what the floor lets expect, same unit; NaN while learning */
    double score;           /* accumulated distance from the floor in its standard deviations, at most
                               50; INFINITY where a floor of exactly zero was left */
    double threshold;       /* the score at which the level becomes alarm; NaN while learning */
    /* How often in 1,000 steps noise gets a score this high: from 0.1 to 30, the range that was
     * calibrated (a higher score is still 0.1). NaN while learning; 0 where an exact zero was left. */
    double false_alarms_per_1000;
    double false_alarm_probability; /* that noise gets a score this high within 1,000 steps */
} lockstep_monitor_alarm;

/* One statistic of a monitor after its last step. Frozen. */
typedef struct {
    double value;       /* NaN before the first step with tokens */
    double floor;       /* NaN while learning, 0 where it is exactly zero */
    double scale;       /* standard deviation of its logarithm; NaN while learning */
    double score;
    double threshold;   /* the score at which this statistic raises an alarm */
    int64_t since_step; /* -1 where score is 0 */
} lockstep_monitor_reading;

/* Makes a monitor that knows nothing of the run. Destroy with lockstep_monitor_destroy. */
lockstep_status lockstep_monitor_create(lockstep_monitor **monitor,
                                        const lockstep_monitor_options *options);

/* Frees a monitor. NULL is a no-op. No call may be using it. */
void lockstep_monitor_destroy(lockstep_monitor *monitor);

/* Takes the mismatch of one step (tokens, k3, chi_square, mean_ratio, ess and max_abs_log_ratio are
 * read), and judges. `step` is not negative and increases from call to call; gaps are fine. A step
 * without tokens changes nothing but the last step. Infinite statistics (ratios that overflow) count as
 * far above any floor. A NaN k3 or max_abs_log_ratio where tokens count is LOCKSTEP_ERROR_NON_FINITE.
 * On error the monitor is as before. */
lockstep_status lockstep_monitor_update(lockstep_monitor_alarm *alarm, lockstep_monitor *monitor,
                                        int64_t step, const lockstep_mismatch *mismatch);

/* One statistic after the last step: for tables and plots. */
lockstep_status lockstep_monitor_read(lockstep_monitor_reading *reading,
                                      const lockstep_monitor *monitor,
                                      lockstep_monitor_statistic statistic);

/* Forgets floor, scores and last step, and learns again. The options stay. */
lockstep_status lockstep_monitor_reset(lockstep_monitor *monitor);

/* Writes the monitor as bytes, to be kept with a checkpoint: what was loaded from them goes on with the
 * same alarms, bit for bit. A few hundred bytes, while learning 40 more for each step (at most 41,000).
 *
 * bytes  [*size], or NULL to ask for the size
 * size   in: room in `bytes`, not read if that is NULL; out: how many the monitor takes */
lockstep_status lockstep_monitor_save(void *bytes, size_t *size, const lockstep_monitor *monitor);

/* Makes a monitor from saved bytes, options included. Damaged or cut off bytes are LOCKSTEP_ERROR_BAD_DATA,
 * those of a newer format LOCKSTEP_ERROR_UNSUPPORTED. Destroy with lockstep_monitor_destroy. */
lockstep_status lockstep_monitor_load(lockstep_monitor **monitor, const void *bytes, size_t size);

/* ---------------------------------------------------------------------------------------------
 * 5. Logs
 *
 * Lockstep's own log: what each engine said of each token, lossless, in about 8 bytes a token with
 * both engines (prime-rl's JSON takes about 115). A file is a header, then one record a sequence; its
 * name ends in ".lockstep" by custom. docs/LogFormat.md specifies every byte.
 *
 *     lockstep_log_header header = LOCKSTEP_LOG_HEADER_INIT;
 *     lockstep_log_writer *writer;
 *     header.model = "my-model";
 *     lockstep_log_writer_create(&writer, "run.lockstep", &header, NULL);
 *     lockstep_log_writer_append(writer, &sequence);            (once for each sequence)
 *     lockstep_log_writer_close(writer);
 *     lockstep_log_writer_destroy(writer);
 *
 * A record is in the file when append returns, so the death of the process loses none; after sync a
 * power cut loses none either. What was being written at that moment is left out by readers, who
 * report it, and replaced by the next writer that appends. Writers and readers are not `const`: one
 * thread at a time each; any number of readers beside one writer.
 *
 * A log in a file is read, never mapped, and nothing in it is believed before its checksum matches:
 * whatever the bytes, the outcome is a status.
 * ------------------------------------------------------------------------------------------ */

/* What the rollout's log-probs are the log-probs of. */
typedef int32_t lockstep_log_prob_mode;
enum {
    LOCKSTEP_LOG_PROB_UNKNOWN = 0,
    LOCKSTEP_LOG_PROB_RAW = 1,      /* the model's distribution, before temperature and truncation */
    LOCKSTEP_LOG_PROB_PROCESSED = 2 /* the one that was sampled from, after both */
};

/* What is true of a whole log. Everything is optional: a text that is not known is NULL or "", a
 * number that is not known is -1 (`created`: 0). Texts are UTF-8 of at most 65,535 bytes. Growable:
 * appended fields read as zero when struct_size is smaller. */
typedef struct {
    uint32_t struct_size;
    lockstep_log_prob_mode log_prob_mode;
    double temperature;    /* of sampling; 0 is greedy, -1 not known */
    double top_p;          /* in (0, 1], 1 is none, -1 not known */
    double min_p;          /* in [0, 1], 0 is none, -1 not known */
    int32_t top_k;         /* 0 is none, -1 not known */
    int32_t format_version; /* of the file; set by lockstep_log_reader_header, not read by writers */
    int64_t created;       /* seconds since 1970-01-01 UTC, 0 not known; this library reads no clock */
    const char *model;
    /* The engine that trains: its name and version, the weights it ran with if the whole log is of one,
     * and its number formats as free text, such as "bf16": of the body, of the head's product, and of
     * the logits that the log-softmax saw. */
    const char *trainer_engine;
    const char *trainer_version;
    const char *trainer_weights;
    const char *trainer_body;
    const char *trainer_head;
    const char *trainer_logits;
    /* The same of the engine that samples. */
    const char *rollout_engine;
    const char *rollout_version;
    const char *rollout_weights;
    const char *rollout_body;
    const char *rollout_head;
    const char *rollout_logits;
    /* Anything else: `pairs` keys, all different and not empty, each with its value. They are stored in
     * the order of the keys' bytes. */
    size_t pairs;
    const char *const *keys;
    const char *const *values;
} lockstep_log_header;

#define LOCKSTEP_LOG_HEADER_INIT \
    { sizeof(lockstep_log_header), 0, -1, -1, -1, -1, 0, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, \
      NULL, NULL, NULL, NULL, NULL, NULL, 0, NULL, NULL }

/* One sequence to append. Growable: appended fields read as zero when struct_size is smaller. */
typedef struct {
    uint32_t struct_size;
    uint32_t reserved;     /* 0 */
    uint64_t id;           /* what identifies the sequence, however a log is cut over processes */
    int64_t step;          /* the training step; -1 not known */
    int64_t prompt_tokens; /* tokens at the beginning that are the prompt; -1 not known */
    const float *reward;   /* one value; optional */
    const float *advantage; /* one value; optional */
    /* At least one of the three columns; all that are given have one length. Every bit of a float comes
     * back, those of NaN and of masked tokens too; fp16 and bf16 are widened to fp32 exactly. */
    const lockstep_tensor *token_ids;         /* [tokens] int32, or int64 within its range; optional */
    const lockstep_tensor *rollout_log_probs; /* [tokens] fp32, fp16 or bf16; optional */
    const lockstep_tensor *trainer_log_probs; /* [tokens] likewise; optional */
    const lockstep_tensor *mask;              /* [tokens] uint8 or bool; optional: all tokens count */
} lockstep_log_sequence;

#define LOCKSTEP_LOG_SEQUENCE_INIT \
    { sizeof(lockstep_log_sequence), 0, 0, -1, -1, NULL, NULL, NULL, NULL, NULL, NULL }

/* What to do about a file of the name that a writer is given. */
typedef int32_t lockstep_log_mode;
enum {
    /* Make a new file; it is an error if there is one. */
    LOCKSTEP_LOG_CREATE = 0,
    /* Go on with a log after its last whole record, removing an unfinished one; or make a new file. */
    LOCKSTEP_LOG_APPEND = 1,
    /* Make a new log in place of another log; a file of another kind is left alone. */
    LOCKSTEP_LOG_REPLACE = 2
};

/* Growable: appended fields read as zero when struct_size is smaller. */
typedef struct {
    uint32_t struct_size;
    lockstep_log_mode mode;
    int64_t sync_every; /* sync after so many records; 0: only when asked, and on close */
} lockstep_log_writer_options;

#define LOCKSTEP_LOG_WRITER_OPTIONS_INIT { sizeof(lockstep_log_writer_options), 0, 0 }

/* A log that is being written. */
typedef struct lockstep_log_writer lockstep_log_writer;

/* Opens a log for writing. `path` is UTF-8. `header` NULL: nothing is known, or, going on with a log,
 * the header it has; one that is given must then be the same, `created` aside.
 *
 * The file is locked for writers (flock) until it is closed: a second writer is LOCKSTEP_ERROR_FILE. On
 * a file system without locks, see to it that there is one. Going on reads the log once. A log that is
 * damaged before its end is LOCKSTEP_ERROR_BAD_DATA and is left as it is. */
lockstep_status lockstep_log_writer_create(lockstep_log_writer **writer, const char *path,
                                           const lockstep_log_header *header,
                                           const lockstep_log_writer_options *options);

/* Appends one record. When this returns LOCKSTEP_OK the record survives the end of the process.
 * LOCKSTEP_ERROR_FILE, a full disk: the log holds what it held before, and the call may be made
 * again. */
lockstep_status lockstep_log_writer_append(lockstep_log_writer *writer,
                                           const lockstep_log_sequence *sequence);

/* Waits until all that was appended is on the disk. After a failure the writer cannot be used: the
 * system may have dropped what it could not write. */
lockstep_status lockstep_log_writer_sync(lockstep_log_writer *writer);

/* Marks the end of the log, syncs, and unlocks the file. Closing again does nothing; appending is then
 * an error. A log without the mark is as good: the mark lets a reader say that nothing is missing. */
lockstep_status lockstep_log_writer_close(lockstep_log_writer *writer);

/* Frees a writer, closing it first if that was not done; errors are then not seen. In a child made by
 * fork() nothing is written. NULL is a no-op. */
void lockstep_log_writer_destroy(lockstep_log_writer *writer);

/* What to do about a damaged record. */
typedef int32_t lockstep_log_damage;
enum {
    LOCKSTEP_LOG_DAMAGE_STRICT = 0, /* an error that names it, after everything before it was given */
    LOCKSTEP_LOG_DAMAGE_SKIP = 1    /* go on with the next whole record, and count */
};

/* Growable: appended fields read as zero when struct_size is smaller. */
typedef struct {
    uint32_t struct_size;
    lockstep_log_damage damage;
} lockstep_log_reader_options;

#define LOCKSTEP_LOG_READER_OPTIONS_INIT { sizeof(lockstep_log_reader_options), 0 }

/* A log that is being read. */
typedef struct lockstep_log_reader lockstep_log_reader;

/* Opens a log in a file, which may still be written. `path` is UTF-8. LOCKSTEP_ERROR_BAD_DATA if it is
 * no log or its header is damaged, LOCKSTEP_ERROR_UNSUPPORTED if it is of a newer format. */
lockstep_status lockstep_log_reader_open(lockstep_log_reader **reader, const char *path,
                                         const lockstep_log_reader_options *options);

/* The same for the bytes of a log in memory, which must stay until the reader is destroyed. */
lockstep_status lockstep_log_reader_open_memory(lockstep_log_reader **reader, const void *bytes,
                                                size_t size,
                                                const lockstep_log_reader_options *options);

/* The header. Set struct_size before the call; only that many bytes are written. Texts are valid until
 * the reader is destroyed; a text that is not known is "", never NULL. */
lockstep_status lockstep_log_reader_header(lockstep_log_header *header,
                                           const lockstep_log_reader *reader);

/* Some whole sequences, packed as in section 4. The tensors are the reader's memory: they, and their
 * shapes, are valid until its next call. Growable: set struct_size before the call; only that many
 * bytes are written. */
typedef struct {
    uint32_t struct_size;
    uint32_t reserved;  /* 0 */
    int64_t sequences;  /* 0 at the end of the log */
    int64_t tokens;
    lockstep_tensor trainer_log_probs; /* [tokens] fp32; NaN in a sequence that has none */
    lockstep_tensor rollout_log_probs; /* [tokens] fp32; NaN in a sequence that has none */
    lockstep_tensor mask;              /* [tokens] bool */
    lockstep_tensor offsets;           /* [sequences + 1] int64: where each sequence begins */
    lockstep_tensor token_ids;         /* [tokens] int32; -1 in a sequence that has none */
    lockstep_tensor ids;               /* [sequences] uint64 */
    lockstep_tensor steps;             /* [sequences] int64; -1 not known */
    lockstep_tensor prompt_tokens;     /* [sequences] int64; -1 not known */
    lockstep_tensor rewards;           /* [sequences] fp32; NaN not known */
    lockstep_tensor advantages;        /* [sequences] fp32; NaN not known */
    lockstep_tensor columns;           /* [sequences] uint8: LOCKSTEP_LOG_HAS_... added up */
    lockstep_tensor positions;         /* [sequences] int64: the byte where each record begins */
} lockstep_log_batch;

/* Which columns a sequence has. */
enum {
    LOCKSTEP_LOG_HAS_TOKEN_IDS = 1,
    LOCKSTEP_LOG_HAS_ROLLOUT = 2,
    LOCKSTEP_LOG_HAS_TRAINER = 4
};

/* The next sequences: as many as have `max_tokens` tokens or fewer together, but at least one (one
 * without tokens weighs as one token). At the end of the log LOCKSTEP_OK and 0 sequences; ask again
 * later, and a log that is still being written may have more.
 *
 * A damaged record is LOCKSTEP_ERROR_BAD_DATA naming its place, after the sequences before it have been
 * given, and again at each call. After LOCKSTEP_ERROR_OUT_OF_MEMORY or LOCKSTEP_ERROR_FILE the reader stands where it
 * stood. A record that was not written whole ends the log: see the summary.
 * Memory: 21 bytes a token and 49 a sequence of the largest batch, up to twice that as it grows, and
 * the longest record. */
lockstep_status lockstep_log_reader_next(lockstep_log_batch *batch, lockstep_log_reader *reader,
                                         int64_t max_tokens);

/* Goes to a record: one of a batch's `positions`, or 0 for the first. Counts of the summary begin
 * anew. */
lockstep_status lockstep_log_reader_seek(lockstep_log_reader *reader, int64_t position);

/* How a log was found to be, up to what was read. Growable: set struct_size before the call; only that
 * many bytes are written. */
typedef struct {
    uint32_t struct_size;
    int32_t is_closed;     /* 1: what was read last is the mark of a writer that closed the log */
    int64_t sequences;     /* read */
    int64_t tokens;        /* of these */
    int64_t position;      /* the byte after the last record read */
    int64_t size;          /* bytes of the log */
    int64_t cut_off_bytes; /* at the end, of a record that was not written whole; 0 if none, and
                            * before the end was reached */
    int64_t damaged_places; /* skipped (LOCKSTEP_LOG_DAMAGE_SKIP) ... */
    int64_t skipped_bytes;  /* ... and the bytes there */
} lockstep_log_summary;

lockstep_status lockstep_log_reader_summary(lockstep_log_summary *summary,
                                            const lockstep_log_reader *reader);

/* Frees a reader. NULL is a no-op. */
void lockstep_log_reader_destroy(lockstep_log_reader *reader);

/* ---------------------------------------------------------------------------------------------
 * 6. Corrections
 *
 * The rollout mu drew the tokens, the trainer pi learns from them. Corrections, advantages and
 * objectives say how, and take one batch between them. Four policies may be told apart: the rollout;
 * the trainer, as it was when the batch was scored (PPO's ratio is against it); the current one, which
 * is being updated; the reference. Say `trainer` = `rollout` for the field's bypass mode.
 * ------------------------------------------------------------------------------------------ */

/* What corrections and objectives are computed from. All members may be NULL; a function says which it
 * needs. Log-probs are fp32, fp64, fp16 or bf16 in one of the layouts of section 4, the same for all:
 * packed [tokens] with `offsets`, or padded [sequences x length]. A token that `mask` leaves out is never
 * read from any of them. Growable: appended members read as NULL when struct_size is smaller. */
typedef struct {
    uint32_t struct_size;
    uint32_t reserved; /* 0 */
    const lockstep_tensor *trainer_log_probs;
    const lockstep_tensor *rollout_log_probs;
    const lockstep_tensor *current_log_probs;
    const lockstep_tensor *reference_log_probs;
    const lockstep_tensor *entropies;  /* of the current policy, nats */
    const lockstep_tensor *advantages; /* fp32 or fp64, in the layout of the log-probs, or one for each
                                        * sequence: [sequences] or [sequences x 1]. What fits both is
                                        * read as one for each token */
    const lockstep_tensor *weights;    /* of a correction, in the layout of the log-probs */
    const lockstep_tensor *mask;       /* uint8 or bool: tokens that count; NULL: all */
    const lockstep_tensor *kept;       /* uint8 or bool: tokens that a correction kept; NULL: all */
    const lockstep_tensor *selected;   /* uint8 or bool: tokens that a covariance rule picked */
    const lockstep_tensor *offsets;    /* int64 [sequences + 1]; packed only */
    const lockstep_tensor *groups;     /* int32 or int64 [sequences]: which prompt a sequence answers */
    const lockstep_tensor *ids;        /* int64 or uint64 [sequences]: which sequence it is, wherever it
                                        * stands; NULL: 0, 1, 2... */
} lockstep_batch;

#define LOCKSTEP_BATCH_INIT { sizeof(lockstep_batch), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/* What is compared of pi and mu: d = ln pi - ln mu of each token, or all d of a sequence or of a segment
 * (a run of counted tokens, such as one turn) made one by sum or mean. */
typedef int32_t lockstep_level;
enum {
    LOCKSTEP_LEVEL_TOKEN = 0,
    LOCKSTEP_LEVEL_SEQUENCE_SUM = 1,  /* the ratio of the whole sequence: exact, and wild if it is long */
    LOCKSTEP_LEVEL_SEQUENCE_MEAN = 2, /* its geometric mean: comparable across lengths, and biased */
    LOCKSTEP_LEVEL_SEGMENT_SUM = 3,
    LOCKSTEP_LEVEL_SEGMENT_MEAN = 4,
    /* For rejections only: judges each token, and rejects a sequence that has one outside. */
    LOCKSTEP_LEVEL_SEQUENCE_EVERY = 5
};

/* The weight of a ratio r = exp(d) at its level. */
typedef int32_t lockstep_weights;
enum {
    LOCKSTEP_WEIGHTS_ONE = 0,      /* 1: no reweighting */
    LOCKSTEP_WEIGHTS_RAW = 1,      /* r */
    LOCKSTEP_WEIGHTS_TRUNCATE = 2, /* min(r, high): TIS */
    LOCKSTEP_WEIGHTS_CLIP = 3,     /* r clipped into [low, high] */
    LOCKSTEP_WEIGHTS_MASK = 4      /* r inside [low, high], 0 outside: MIS, IcePop */
};

/* What a rejection looks at; p and q are the token's probabilities under its two policies, d = ln p - ln q. */
typedef int32_t lockstep_rejection_statistic;
enum {
    LOCKSTEP_STATISTIC_RATIO = 0,   /* exp of the level's d: p / q */
    LOCKSTEP_STATISTIC_K2 = 1,      /* d^2 / 2 */
    LOCKSTEP_STATISTIC_K3 = 2,      /* exp(d) - 1 - d */
    LOCKSTEP_STATISTIC_EXP_ABS = 3, /* exp|d| */
    LOCKSTEP_STATISTIC_PROBABILITY_DIFFERENCE = 4, /* p - q */
    /* KL(Bernoulli(q) || Bernoulli(p)) with the sign of p - q: the token against all others. */
    LOCKSTEP_STATISTIC_BINARY_KL = 5
};

/* Which two policies a rejection compares. */
typedef int32_t lockstep_policies;
enum {
    LOCKSTEP_POLICIES_TRAINER_ROLLOUT = 0, /* p = pi, q = mu */
    LOCKSTEP_POLICIES_CURRENT_ROLLOUT = 1,
    LOCKSTEP_POLICIES_CURRENT_TRAINER = 2
};

/* Whether the advantage A of a token decides which bound it must keep. */
typedef int32_t lockstep_side;
enum {
    LOCKSTEP_SIDE_BOTH = 0,
    LOCKSTEP_SIDE_BY_ADVANTAGE = 1,      /* `high` where A > 0, `low` where A <= 0: DPPO */
    LOCKSTEP_SIDE_NEGATIVE_ADVANTAGE = 2 /* both, but only where A < 0: off-policy sequence masking */
};

/* A rule that keeps a token if low <= x <= high, bounds included; -INFINITY or INFINITY is no bound. At the
 * level of a sequence or segment x is the sum or mean of its tokens' statistics (of RATIO: exp of the sum or
 * mean of d), and all its tokens are judged by it. Frozen. Rules of the field, with their usual bounds:
 *
 *   MLPerf's sequence mask     RATIO, SEQUENCE_MEAN, [0.999, 1.002]
 *   veto (slime)               RATIO, SEQUENCE_EVERY, [1e-4, inf]
 *   verl's seq_max_k3          K3, SEQUENCE_EVERY, [-inf, high]
 *   NeMo RL's sequence mask    EXP_ABS, SEQUENCE_MEAN, [-inf, 2]
 *   DeepSeek-V3.2's OPSM       RATIO, SEQUENCE_MEAN, CURRENT_ROLLOUT, NEGATIVE_ADVANTAGE, [exp(-delta), inf]
 *   DPPO, total variation      PROBABILITY_DIFFERENCE, TOKEN, CURRENT_ROLLOUT, BY_ADVANTAGE, [-0.2, 0.2]
 *   DPPO, binary KL            BINARY_KL, TOKEN, CURRENT_ROLLOUT, BY_ADVANTAGE, [-low, high]
 *
 * Intervals are on p / q. verl's k1 rejection has them on q / p: [a, b] there is [1 / b, 1 / a] here. */
typedef struct {
    lockstep_rejection_statistic statistic;
    lockstep_level level;
    lockstep_policies policies;
    lockstep_side side;
    double low;
    double high;
} lockstep_rejection;

/* Growable: appended fields read as zero when struct_size is smaller. */
typedef struct {
    uint32_t struct_size;
    lockstep_weights weights;
    lockstep_level level; /* of the weights; not SEQUENCE_EVERY */
    lockstep_non_finite non_finite;
    /* 0 <= low <= high. ONE, RAW and TRUNCATE only count the ratios outside those they do not use. */
    double low;
    double high;
    /* The log ratio of a level is clamped to this range before it is exponentiated or squared, and counted
     * if it was; it must hold 0. Infinite: no clamp, but weights without a bound need log_ratio_max <= 80. */
    double log_ratio_min;
    double log_ratio_max;
    /* 1: divide the weights by their mean over tokens, sequences or segments, as `level` says, after the
     * bounds were applied and the statistics taken (verl's order). Nothing is done if the mean is 0. */
    int32_t normalize;
    int32_t threads; /* 0: one for each processor this process may use */
    lockstep_instruction_set instruction_set;
    uint32_t reserved; /* 0 */
    /* Not 0: also reject the tokens with the largest d^2 (trainer over rollout), so that the mean d^2 of the
     * rest is below this (M2PO's tau). Equal d^2 are rejected together, so no order can show; where even
     * the smallest is too large all are rejected. */
    double second_moment;
    const lockstep_rejection *rejections; /* [rejection_count], all of which must keep a token; NULL if 0 */
    size_t rejection_count;               /* 16 at most */
} lockstep_correction_options;

#define LOCKSTEP_CORRECTION_OPTIONS_INIT \
    { sizeof(lockstep_correction_options), LOCKSTEP_WEIGHTS_TRUNCATE, LOCKSTEP_LEVEL_TOKEN, 0, 0.0, 2.0, \
      -20.0, 20.0, 0, 0, 0, 0, 0.0, NULL, 0 }

/* Statistics of a ratio or weight over units. NaN without units. Frozen. */
typedef struct {
    int64_t units;
    double mean;
    double std; /* of the population: ess = 1 / (1 + (std / mean)^2) */
    double min, max;
    double ess; /* (sum w)^2 / (units sum w^2), in (0, 1]; 0 if all weights are 0 */
} lockstep_weight_statistics;

/* What a correction did. A unit is a token, sequence or segment, as the level of the weights says. Growable:
 * set struct_size before the call; only that many bytes are written. */
typedef struct {
    uint32_t struct_size;
    int32_t empty;           /* 1: no token is left: all were rejected, or none counts */
    int64_t tokens;          /* tokens that count */
    int64_t masked_tokens;   /* tokens the mask leaves out */
    int64_t excluded_tokens; /* tokens dropped as non-finite (`exclude`) */
    int64_t sequences;       /* sequences with a token that counts */
    int64_t empty_sequences; /* sequences without */
    int64_t rejected_tokens; /* tokens that count and were rejected */
    int64_t rejected_sequences; /* sequences with all their tokens rejected */
    int64_t touched_sequences;  /* sequences with any token rejected */
    int64_t clamped;         /* units whose log ratio was clamped */
    int64_t below, above;    /* units with a ratio below `low`, above `high`: what the bounds modified */
    int64_t second_moment_tokens; /* tokens rejected by `second_moment` */
    int64_t max_sequence_length;
    double mean_sequence_length;  /* counted tokens a sequence. Weights of sequence sums die with length */
    double second_moment_cut;     /* `second_moment` rejected tokens with a larger d^2; INFINITY: none */
    double normalizer;            /* what the weights were divided by; 1 without `normalize` */
    lockstep_weight_statistics ratio;       /* before: the ratio, after the clamp of its exponent */
    lockstep_weight_statistics weight;      /* after the bounds, before `normalize` */
    lockstep_weight_statistics kept_weight; /* the same over units of which a token is kept */
} lockstep_correction;

/* What one rejection did, whatever the others did. Frozen. */
typedef struct {
    int64_t tokens;            /* rejected */
    int64_t sequences;         /* with all their tokens rejected */
    int64_t touched_sequences; /* with any token rejected */
    int64_t clamped;           /* log ratios that were clamped */
    int64_t units;             /* values of the statistic: tokens, sequences or segments, as its level says */
    double mean, min, max;     /* of the statistic; NaN without units */
} lockstep_rejection_count;

/* Weights for the tokens of a batch, and which of them to keep.
 *
 * weights     fp32 or fp64 in the layout of the batch; optional. 0 where a token does not count; a token
 *             that is rejected keeps its weight
 * kept        uint8 or bool in the layout of the batch; optional. 1 where a token counts and is not rejected
 * correction  the report; optional
 * counts      [rejection_count], what each rejection did; optional
 * batch       trainer_log_probs and rollout_log_probs (for two policies, give the current one as trainer);
 *             current_log_probs if a rejection compares it; advantages if one has a side; mask; offsets
 *
 * A NaN or infinity in one of these at a token that counts is LOCKSTEP_ERROR_NON_FINITE naming sequence and
 * position, or drops the token (`exclude`). If every token is rejected the call succeeds: `empty` is 1.
 * Sums over the batch are exact, so nothing depends on the order of sequences.
 * Extra memory: none for tokens, but 8 bytes for each with d^2 >= second_moment. */
lockstep_status lockstep_correct(const lockstep_tensor *weights, const lockstep_tensor *kept,
                                 lockstep_correction *correction, lockstep_rejection_count *counts,
                                 const lockstep_batch *batch, const lockstep_correction_options *options);

/* ---------------------------------------------------------------------------------------------
 * 7. Advantages
 *
 * What a sequence earned, compared with what was to be expected:
 *
 *     A = (R - baseline) / scale
 *
 * An estimator is a choice of baseline and scale. R is the reward of a sequence, or the sum of the rewards of
 * its tokens; n, mean and std are those of its group, the sequences that answer the same prompt. Groups may
 * have any sizes, and their sequences stand anywhere in the batch.
 *
 *     GRPO                     (R - mean) / (std + epsilon)
 *     DR_GRPO                  R - mean
 *     LEAVE_ONE_OUT            R - mean of the group's others = n / (n - 1) (R - mean): RLOO
 *     REINFORCE_PLUS_PLUS      G_t, whitened
 *     REINFORCE_PLUS_PLUS_BASELINE   R - mean, whitened
 *     OPO                      R - sum(length R) / sum(length)
 *     REMAX                    R - the baseline that is given: the reward of the prompt's greedy answer
 *     GPG                      (R - mean) / share of the batch's rewards that are not 0
 *     PASS_AT_K                R - second best, over std + epsilon, for the group's best; 0 for the others
 *     MAX_RL                   (R - mean) / (mean + epsilon)
 *     GDPO                     sum over kinds of reward of weight (R - mean) / (std + epsilon), whitened
 *     GAE                      e_t + gamma lambda A_(t+1), e_t = r_t + gamma V_(t+1) - V_t; whitened
 *     OPTIMAL_TOKEN_BASELINE   G_t - sum(G_t W_t) / (sum(W_t) + epsilon) over the group's sequences that have
 *                              a token at t, W_t = sum up to t of (1 - 2 p + sum of squared p) weight^2
 *     MULTI_TURN_TOKEN_BASELINE   the same, t counting only the tokens that count
 *
 * r_t is the reward of a token, G_t = r_t + gamma G_(t+1) the discounted reward to go, t + 1 being the next token
 * that counts (a tool's answer between two turns discounts nothing). Whitened: minus the mean
 * over the batch's tokens, over sqrt(variance + 1e-8). Deviations are over n - 1.
 *
 * Conventions. Where a scale is 0 (all rewards equal) the difference, usually 0 too, stays as it is. The rewards of
 * a group that are equal give advantages of exactly 0. A sequence without a token that counts does not exist.
 * Everything is computed in fp64 from exact sums: the order of sequences and groups and padding do not change a
 * bit. Sequences that stand in no group with another, and truncated ones, as the options say.
 * ------------------------------------------------------------------------------------------ */

/* How rewards become advantages. */
typedef int32_t lockstep_advantage_estimator;
enum {
    LOCKSTEP_ADVANTAGE_GRPO = 0,
    LOCKSTEP_ADVANTAGE_DR_GRPO = 1,
    LOCKSTEP_ADVANTAGE_LEAVE_ONE_OUT = 2,
    LOCKSTEP_ADVANTAGE_REINFORCE_PLUS_PLUS = 3,
    LOCKSTEP_ADVANTAGE_REINFORCE_PLUS_PLUS_BASELINE = 4,
    LOCKSTEP_ADVANTAGE_OPO = 5,
    LOCKSTEP_ADVANTAGE_REMAX = 6,
    LOCKSTEP_ADVANTAGE_GPG = 7,
    LOCKSTEP_ADVANTAGE_PASS_AT_K = 8,
    LOCKSTEP_ADVANTAGE_MAX_RL = 9,
    LOCKSTEP_ADVANTAGE_GDPO = 10,
    LOCKSTEP_ADVANTAGE_GAE = 11,
    LOCKSTEP_ADVANTAGE_OPTIMAL_TOKEN_BASELINE = 12,
    LOCKSTEP_ADVANTAGE_MULTI_TURN_TOKEN_BASELINE = 13
};

/* What R - baseline is divided by. */
typedef int32_t lockstep_advantage_scale;
enum {
    LOCKSTEP_SCALE_OF_ESTIMATOR = 0,
    LOCKSTEP_SCALE_NONE = 1,
    LOCKSTEP_SCALE_GROUP_STD = 2,      /* + epsilon */
    LOCKSTEP_SCALE_OTHERS_STD = 3,     /* of the group's others, + epsilon (with LEAVE_ONE_OUT: NeMo RL's GRPO) */
    LOCKSTEP_SCALE_BATCH_STD = 4,      /* of the batch's rewards, + epsilon */
    LOCKSTEP_SCALE_GROUP_MEAN = 5,     /* + epsilon; rewards must not be negative */
    LOCKSTEP_SCALE_NON_ZERO_SHARE = 6  /* the share of the batch's rewards that are not 0 */
};

/* Whether advantages are whitened over the tokens of the batch. */
typedef int32_t lockstep_advantage_whitening;
enum { LOCKSTEP_WHITEN_AS_ESTIMATOR = 0, LOCKSTEP_WHITEN_NO = 1, LOCKSTEP_WHITEN_YES = 2 };

/* What a group of one gets, which has nothing to be compared with. */
typedef int32_t lockstep_single_sequence;
enum {
    LOCKSTEP_SINGLE_ZERO = 0, /* advantage 0, and no part in whitening */
    LOCKSTEP_SINGLE_RAW = 1   /* as if the mean were 0 and the std 1 (verl's grpo, rloo, opo, gpg) */
};

/* What becomes of a response that was cut off at the length limit. */
typedef int32_t lockstep_truncated_response;
enum {
    LOCKSTEP_TRUNCATED_KEEP = 0, /* nothing special; `truncated` is not read */
    LOCKSTEP_TRUNCATED_ZERO = 1, /* its reward counts in baselines and scales, its advantage is 0 */
    LOCKSTEP_TRUNCATED_DROP = 2  /* its reward is not read and counts nowhere, its advantage is 0 */
};

/* What sequences earned, and what some estimators compare it with. fp32 or fp64: 16 bits are refused, as they
 * cannot hold differences of rewards. Every value that is read must be finite, and of a magnitude of 1e100 at
 * most; a token that does not count is not read. Growable: appended members read as NULL when struct_size is
 * smaller. */
typedef struct {
    uint32_t struct_size;
    uint32_t reserved;                   /* 0 */
    const lockstep_tensor *rewards;      /* [sequences]; or one for each token, in the layout of the batch (what
                                          * fits both is read so); GDPO: [sequences x kinds] */
    const lockstep_tensor *truncated;    /* [sequences] uint8 or bool: cut off at the length limit */
    const lockstep_tensor *baselines;    /* [sequences]; REMAX */
    const lockstep_tensor *values;       /* a critic's, one for each token; GAE */
    const lockstep_tensor *squared_mass; /* one for each token: the sum of squared probabilities over the
                                          * vocabulary, exp(log_sum_exp(2 y) - 2 log_sum_exp(y)); OPTIMAL_... */
    const lockstep_tensor *kind_weights; /* [kinds]; GDPO; NULL: 1 each */
} lockstep_rewards;

#define LOCKSTEP_REWARDS_INIT { sizeof(lockstep_rewards), 0, 0, 0, 0, 0, 0, 0 }

/* Growable: appended fields read as zero when struct_size is smaller. */
typedef struct {
    uint32_t struct_size;
    lockstep_advantage_estimator estimator;
    lockstep_advantage_scale scale; /* estimators with a baseline for each sequence; else leave it 0 */
    lockstep_advantage_whitening whiten;
    lockstep_single_sequence singles;
    lockstep_truncated_response truncated;
    int32_t population_std; /* 1: standard deviations over n, not n - 1 */
    /* OPTIMAL_TOKEN_BASELINE: where the longest sequence of a group goes on after the second longest has
     * ended, the only baseline is its own. 0: subtract none there (as verl does); 1: subtract it. The end of
     * the second longest is its number of counted tokens. */
    int32_t tail_baseline;
    double epsilon;         /* added to the scale; -1: 1e-6 (OPTIMAL_TOKEN_BASELINE: 1e-8) */
    double gamma;           /* in [0, 1]; REINFORCE++, REMAX with rewards of tokens, GAE, OPTIMAL_... */
    double lambda;          /* in [0, 1]; GAE */
} lockstep_advantage_options;

#define LOCKSTEP_ADVANTAGE_OPTIONS_INIT \
    { sizeof(lockstep_advantage_options), 0, 0, 0, 0, 0, 0, 0, -1.0, 1.0, 1.0 }

/* Advantages of a batch.
 *
 * advantages  [sequences], or in the layout of the batch: then 0 at tokens that do not count. fp32 or fp64
 * returns     likewise; optional. What was compared: R, or G_t (GAE: its advantages before whitening + values,
 *             what a critic is to learn). 0 for a sequence without an advantage (GAE: the values)
 * rewards     see lockstep_rewards
 * batch       may be NULL, or have nothing but `groups`, where neither lengths nor single tokens are needed.
 *             `groups` for all estimators with a mean or std of the group; `mask`, `offsets` (or any other
 *             array of tokens) for lengths and tokens; `trainer_log_probs` and, optional, `weights` for
 *             OPTIMAL_TOKEN_BASELINE
 *
 * REINFORCE_PLUS_PLUS, GAE and both optimal token baselines give each token its own advantage, as does REMAX
 * when rewards are one for each token: [sequences] is then an error. A reward of a sequence is taken as that of its
 * last token. A PASS_AT_K group of one is an error. Memory: 16 bytes a token where tokens differ, else
 * 400 a sequence at most. */
lockstep_status lockstep_advantages(const lockstep_tensor *advantages, const lockstep_tensor *returns,
                                    const lockstep_rewards *rewards, const lockstep_batch *batch,
                                    const lockstep_advantage_options *options);

/* DAPO's soft penalty of long responses, to be added to rewards: 0 up to max_length - buffer tokens, then falling
 * evenly to -factor at max_length, and staying there.
 *
 * penalties  [sequences]  fp32 or fp64
 * lengths    [sequences]  int32 or int64: tokens of each response, 0 or more
 * `buffer` is in 1 ... max_length; `factor`, 0 or more. */
lockstep_status lockstep_overlong_penalty(const lockstep_tensor *penalties, const lockstep_tensor *lengths,
                                          int64_t max_length, int64_t buffer, double factor);

/* ---------------------------------------------------------------------------------------------
 * 8. Objectives
 *
 * An objective is a term (what one token contributes to the loss, to be minimised), an aggregation (how
 * terms become a loss), and regularisers. Of it come the loss, its exact gradient with respect to the
 * current log-probs, and what happened. A token counts if the mask lets it; its term acts if a correction
 * kept it:
 *
 *     loss = scale / D  sum_i 1 / n_i  sum_t  acts w term + kl_coefficient kl - entropy_coefficient H
 *
 * with w the weights of a correction, and D and n_i by the aggregation. Everything but the current log-probs
 * and the entropies is a constant to the gradient.
 *
 * Letters: A advantage; c current log-prob; delta = c - trainer log-prob; x the log ratio, which is delta
 * or its sequence's, within the clamps; r = exp(x); [..] a constant to the gradient.
 * ------------------------------------------------------------------------------------------ */

/* The objective of one token. */
typedef int32_t lockstep_objective_term;
enum {
    /* max(-A min(r, ratio_max), -A clamp(r, low, high)), at most -A dual where A < 0. PPO, GRPO, DAPO;
     * with ratio_level GSPO. Tokens marked in `selected` (clip-cov) have no term. */
    LOCKSTEP_TERM_CLIP = 0,
    LOCKSTEP_TERM_REINFORCE = 1, /* -A c */
    LOCKSTEP_TERM_RATIO = 2,     /* -A r */
    LOCKSTEP_TERM_CISPO = 3,     /* -[clamp(r, low, high)] A c */
    LOCKSTEP_TERM_SAPO = 4,      /* -A 4 / tau sigmoid(tau (r - 1)), tau_positive where A > 0, else tau_negative */
    LOCKSTEP_TERM_TOPR = 5,      /* -A c where A > 0, else -[min(r, 1)] A c */
    LOCKSTEP_TERM_SQUARED = 6,   /* -A c + coefficient / 2 x^2: Kimi k1.5, DRO */
    LOCKSTEP_TERM_KL_COV = 7,    /* -A r, + coefficient |x| where `selected` */
    /* -A r w, r the exponential of the mean over the sequence of delta held at ln high (A > 0) or ln low
     * (A < 0), w the geometric mean of its weights. */
    LOCKSTEP_TERM_GMPO = 8,
    /* -[phi] A c, ln phi = rate + shape ln u - rate u, by the sign of A, where u is exp of the sum over the
     * sequence of delta and of the logarithms of its weights, in [1e-8, exp(log_ratio_max)]. In these two
     * logarithms a weight is held in [1e-8, e^20]. */
    LOCKSTEP_TERM_VESPO = 9
};

/* What the ratio is of. GMPO and VESPO bring their own: leave it TOKEN. */
typedef int32_t lockstep_ratio_level;
enum {
    LOCKSTEP_RATIO_TOKEN = 0,
    LOCKSTEP_RATIO_SEQUENCE = 1,       /* exp(mean delta) over the sequence: GSPO */
    LOCKSTEP_RATIO_SEQUENCE_TOKEN = 2, /* the same value, the gradient of a token's own: GSPO-token */
    LOCKSTEP_RATIO_SEQUENCE_SUM = 3    /* exp(sum delta) */
};

/* How terms become a loss. Only sequences, and prompts, with a token that counts are counted. */
typedef int32_t lockstep_aggregation;
enum {
    LOCKSTEP_TOKEN_MEAN = 0,             /* sum over all tokens / their number */
    LOCKSTEP_TOKEN_SUM = 1,              /* sum over all tokens */
    LOCKSTEP_SEQ_MEAN_TOKEN_SUM = 2,     /* mean over sequences of their sums */
    LOCKSTEP_SEQ_MEAN_TOKEN_MEAN = 3,    /* mean over sequences of their means */
    LOCKSTEP_SEQ_MEAN_TOKEN_SUM_NORM = 4,/* mean over sequences of their sums / length: Dr. GRPO */
    LOCKSTEP_PROMPT_MEAN = 5             /* mean over prompts (`groups`) of the mean over all their tokens */
};

/* Which tokens the denominators count. */
typedef int32_t lockstep_denominator;
enum {
    /* All: a rejected token has no term, but stays in the number (so rejection does not scale the others
     * up), in the mean of a sequence's delta, and keeps its regularisers. */
    LOCKSTEP_DENOMINATOR_ORIGINAL = 0,
    /* Those kept: a rejected token is as if it were masked. */
    LOCKSTEP_DENOMINATOR_KEPT = 1
};

/* An estimator of the divergence of the current policy from the reference, of y = reference - current. */
typedef int32_t lockstep_kl_estimator;
enum {
    LOCKSTEP_KL_NONE = 0,
    LOCKSTEP_KL_K1 = 1, /* -y: unbiased, may be negative */
    LOCKSTEP_KL_K2 = 2, /* y^2 / 2 */
    LOCKSTEP_KL_K3 = 3, /* exp(y) - 1 - y, without cancellation */
    LOCKSTEP_KL_ABS = 4 /* |y| */
};

/* Where its gradient comes from. Beyond a clamp it is 0, but for K2's, which knows none. */
typedef int32_t lockstep_kl_gradient;
enum {
    LOCKSTEP_KL_GRADIENT_DIRECT = 0, /* the estimator's derivative */
    LOCKSTEP_KL_GRADIENT_RATIO = 1,  /* the estimator times r, in the loss too: unbiased off policy */
    LOCKSTEP_KL_GRADIENT_SCORE_FUNCTION = 2, /* its derivative, + the estimator itself */
    LOCKSTEP_KL_GRADIENT_K2 = 3      /* k2's derivative, whatever the estimator: -y (straight through) */
};

/* Growable: appended fields read as zero when struct_size is smaller. Start from _INIT, which is PPO: the
 * clipped term in [0.8, 1.2], the mean over tokens. */
typedef struct {
    uint32_t struct_size;
    lockstep_objective_term term;
    lockstep_ratio_level ratio_level;
    lockstep_aggregation aggregation;
    lockstep_denominator denominator;
    lockstep_kl_estimator kl;
    lockstep_kl_gradient kl_gradient;
    lockstep_non_finite non_finite; /* STRICT: a NaN or infinity at a token that counts is an error */
    double low, high;     /* bounds of the ratio itself, low in [0, 1], high >= 1: 0.8, 1.2. Not distances
                           * from 1: that mistake (a CISPO held at 0.2) is refused */
    double dual;          /* above 1 (PPO's dual clip: 3); 0: none */
    double ratio_max;     /* at least 1; 0: none */
    double coefficient;   /* SQUARED, KL_COV */
    double tau_positive, tau_negative;     /* SAPO: 1, 1.05 */
    double shape_positive, rate_positive;  /* VESPO, A >= 0: 2, 3 */
    double shape_negative, rate_negative;  /* VESPO, A < 0: 3, 2 */
    /* A log ratio is clamped before it is exponentiated: -20, 20; infinite: at +-700, where exp ends. Tokens
     * that were clamped are counted; the gradient through the ratio is 0 there. */
    double log_ratio_min, log_ratio_max;
    double kl_coefficient;
    double kl_input_max;  /* |y| is held at it: 20; 0: none, which is 700 */
    double kl_output_max; /* the estimate is held at +-it; 0: none */
    double entropy_coefficient;
    double length;        /* SEQ_MEAN_TOKEN_SUM_NORM: the constant */
    double scale;         /* of the whole loss: 1. A data-parallel mean over ranks wants their number here */
    int32_t threads;      /* 0: one for each processor this process may use */
    lockstep_instruction_set instruction_set;
} lockstep_objective_options;

#define LOCKSTEP_OBJECTIVE_OPTIONS_INIT \
    { sizeof(lockstep_objective_options), 0, 0, 0, 0, 0, 0, 0, 0.8, 1.2, 0, 0, 0, 1, 1.05, 2, 3, 3, 2, -20, 20, \
      0, 20, 0, 0, 0, 1, 0, 0 }

/* The loss and what happened. Means and shares are over tokens that count, and NaN where there is nothing to
 * take them of. Growable: set struct_size before the call; only that many bytes are written. */
typedef struct {
    uint32_t struct_size;
    int32_t empty; /* 1: no token has a policy term, and policy_loss is 0 */
    double loss;   /* policy_loss + kl_loss + entropy_loss */
    double policy_loss, kl_loss, entropy_loss;
    int64_t tokens;             /* that count */
    int64_t masked_tokens;      /* that the masks leave out */
    int64_t excluded_tokens;    /* dropped as non-finite (`exclude`) */
    int64_t rejected_tokens;    /* that count but have no policy term */
    int64_t sequences;          /* with a token that counts */
    int64_t empty_sequences;    /* without */
    int64_t rejected_sequences; /* that count, without any policy term */
    int64_t clamped_tokens;     /* whose log ratio, or their sequence's, was clamped */
    int64_t kl_clamped_tokens;
    /* Of the ratio, rejected tokens included: a correction must not hide what it rejects. */
    double ratio_mean, ratio_min, ratio_max;
    double clip_low;  /* CLIP: r < low where A < 0; CISPO: r < low */
    double clip_high; /* CLIP: r > high where A > 0; CISPO: r > high; TOPR: r > 1 where A <= 0 */
    double clip_dual; /* held at -A dual */
    double approx_kl_k1; /* KL(trainer || current): mean(-delta) */
    double approx_kl_k3; /* the same: mean(exp(delta) - 1 - delta), delta within the clamps */
    double kl;        /* the divergence from the reference, without its coefficient and ratio */
    double entropy;
} lockstep_objective_report;

/* Loss and gradient of a whole batch.
 *
 * report       the loss and what happened
 * d_log_probs  fp32 or fp64, the layout of the batch; optional. d loss / d current log-prob; 0 where no token
 *              counts. A gradient beyond what fp32 holds becomes infinite there
 * d_entropies  the same for the entropies; optional
 * batch        current_log_probs and advantages; trainer_log_probs, but for REINFORCE on its own;
 *              reference_log_probs for `kl`, entropies for entropy_coefficient, selected for KL_COV, groups
 *              for PROMPT_MEAN; weights and kept if there is a correction. What is not needed is not read
 *
 * If no token counts, or everything was rejected, the call succeeds: `empty` is 1, and what there is nothing
 * to sum of is 0. The bits do not depend on padding, on what stands where no token counts, or on the order of
 * the sequences.
 *
 * Errors: LOCKSTEP_ERROR_INVALID_ARGUMENT for what is missing or does not fit, LOCKSTEP_ERROR_NON_FINITE
 * naming array, sequence and position, LOCKSTEP_ERROR_UNSUPPORTED for a ratio_level beside GMPO or VESPO. */
lockstep_status lockstep_objective_loss(lockstep_objective_report *report, const lockstep_tensor *d_log_probs,
                                        const lockstep_tensor *d_entropies, const lockstep_batch *batch,
                                        const lockstep_objective_options *options);

/* The same for a batch that comes in parts (micro-batches, ranks): first _count every part, then _evaluate
 * every part. Gradients and report have the bits of the whole at once, however it was cut into whole sequences,
 * as sums over sequences are exact. A handle is used by one thread at a time. */
typedef struct lockstep_objective lockstep_objective;

/* What the denominators count. Frozen. */
typedef struct {
    int64_t tokens;
    int64_t sequences;
    int64_t prompts; /* PROMPT_MEAN; else 0 */
} lockstep_objective_counts;

/* Makes an objective; destroy it with lockstep_objective_destroy. */
lockstep_status lockstep_objective_create(lockstep_objective **objective,
                                          const lockstep_objective_options *options);

/* Frees an objective. NULL is a no-op. */
void lockstep_objective_destroy(lockstep_objective *objective);

/* Adds a part to the denominators: the first pass. */
lockstep_status lockstep_objective_count(lockstep_objective *objective, const lockstep_batch *batch);

/* The denominators so far, of this handle's parts and of what was added. */
lockstep_status lockstep_objective_counted(lockstep_objective_counts *counts,
                                           const lockstep_objective *objective);

/* Adds what was counted elsewhere, as on another rank; it has other sequences, and other prompts. */
lockstep_status lockstep_objective_add_counts(lockstep_objective *objective,
                                              const lockstep_objective_counts *counts);

/* Adds a part to the loss and writes its gradient: the second pass. A part that was not counted is
 * LOCKSTEP_ERROR_INVALID_ARGUMENT where that can be seen: by its prompt, or by more tokens than there are. */
lockstep_status lockstep_objective_evaluate(lockstep_objective *objective, const lockstep_tensor *d_log_probs,
                                            const lockstep_tensor *d_entropies, const lockstep_batch *batch);

/* The loss of what was evaluated so far, and what happened. After lockstep_objective_add_counts it is this
 * handle's share: the losses of all ranks add up. */
lockstep_status lockstep_objective_read(lockstep_objective_report *report, const lockstep_objective *objective);

/* Forgets what was counted and evaluated: for the next batch. */
lockstep_status lockstep_objective_reset(lockstep_objective *objective);

/* The divergence from the reference, token by token, for use in rewards: kl_coefficient times the estimate,
 * times `weights` if there are any.
 *
 * values, gradients  as d_log_probs above; `gradients` (optional) by the current log-prob
 * batch              current_log_probs and reference_log_probs
 * options            kl (not NONE), kl_gradient (not RATIO: give the ratio as weights), the clamps and
 *                    kl_coefficient (which _INIT leaves at 0) are used */
lockstep_status lockstep_kl_penalty(const lockstep_tensor *values, const lockstep_tensor *gradients,
                                    const lockstep_batch *batch, const lockstep_objective_options *options);

/* Moves an adaptive coefficient (never NULL) towards a target divergence:
 *
 *     coefficient *= 1 + clamp(kl / target - 1, -0.2, 0.2) steps / horizon */
lockstep_status lockstep_kl_coefficient_update(double *coefficient, double kl, double target, double horizon,
                                               double steps);

/* Rules that pick the tokens whose covariance (A - mean A) (c - mean c) drives entropy down (Cui et al. 2025). */
typedef int32_t lockstep_covariance_rule;
enum {
    /* A random share of the tokens with a covariance in (low, high) that the clip does not hold already. */
    LOCKSTEP_COVARIANCE_CLIP = 0,
    /* The share with the largest covariance. */
    LOCKSTEP_COVARIANCE_KL = 1
};

/* Growable. */
typedef struct {
    uint32_t struct_size;
    lockstep_covariance_rule rule;
    double share;               /* of the tokens that count, in [0, 1]; at least one token is picked: 2e-4 */
    double low, high;           /* CLIP: 1, 5 */
    double ratio_low, ratio_high; /* CLIP: the bounds of the ratio, as in the objective: 0.8, 1.2 */
    uint64_t seed;              /* CLIP: which share */
} lockstep_covariance_options;

#define LOCKSTEP_COVARIANCE_OPTIONS_INIT { sizeof(lockstep_covariance_options), 0, 0.0002, 1, 5, 0.8, 1.2, 0 }

/* Picks tokens over a whole batch, for `selected`.
 *
 * selected  uint8 or bool, the layout of the batch: 1 where picked
 * count     how many; optional
 * batch     current_log_probs, advantages; trainer_log_probs for CLIP; ids, so that the choice does not depend on
 *           where a sequence stands
 *
 * The random choice is by the hash of seed, id and position; equal covariances go by id and position. */
lockstep_status lockstep_covariance_select(const lockstep_tensor *selected, size_t *count,
                                           const lockstep_batch *batch,
                                           const lockstep_covariance_options *options);

/* ---------------------------------------------------------------------------------------------
 * 9. Presets
 *
 * A preset is a named algorithm of the field, such as "paper/grpo-token-tis": options of all three sections
 * above, and which log-probs stand where. It is a place to begin: the options are plain structs, to be changed.
 *
 *     lockstep_correction_options correction = LOCKSTEP_CORRECTION_OPTIONS_INIT;
 *     lockstep_objective_options objective = LOCKSTEP_OBJECTIVE_OPTIONS_INIT;
 *     lockstep_preset preset = LOCKSTEP_PRESET_INIT;
 *     lockstep_preset_read(&preset, &correction, NULL, &objective, "paper/grpo-token-tis");
 *     puts(preset.text);
 * ------------------------------------------------------------------------------------------ */

/* Which log-probs stand where. */
typedef int32_t lockstep_preset_policies;
enum {
    /* The correction compares trainer and rollout, the objective's ratio is current over trainer. */
    LOCKSTEP_PRESET_THREE_POLICIES = 0,
    /* Bypass: give lockstep_correct the current log-probs as trainer_log_probs too, and the objective the rollout's
     * as trainer_log_probs. */
    LOCKSTEP_PRESET_TWO_POLICIES = 1
};

/* What a preset is. The texts are static, UTF-8, and never NULL. Growable: set struct_size before the call; only
 * that many bytes are written. */
typedef struct {
    uint32_t struct_size;
    lockstep_preset_policies policies;
    const char *name;
    const char *summary; /* what it is, in a sentence */
    const char *source;  /* where it is from */
    const char *doubts;  /* what of it is inferred and not confirmed; "" if nothing is */
    /* All of it, a line for each part, made from the options: weights, mask, advantage, term, aggregation. */
    const char *text;
    int32_t reference_is_rollout; /* 1: give the rollout's log-probs as reference_log_probs too */
    uint32_t reserved;            /* 0 */
} lockstep_preset;

#define LOCKSTEP_PRESET_INIT { sizeof(lockstep_preset), 0, 0, 0, 0, 0, 0, 0, 0 }

/* The names of the presets, in the order of docs/Presets.md: a static string, or NULL from their number on. */
const char *lockstep_preset_name(size_t index);

/* Reads a preset into options, each of which is optional and keeps its struct_size (start from _INIT: only that
 * many bytes are written). non_finite, threads and instruction_set become the defaults; `rejections` points
 * to static memory. `length` of the objective is 0 where the aggregation needs one (SEQ_MEAN_TOKEN_SUM_NORM),
 * which no preset can know: set it. An unknown name is LOCKSTEP_ERROR_INVALID_ARGUMENT and lists the nearest. */
lockstep_status lockstep_preset_read(lockstep_preset *preset, lockstep_correction_options *correction,
                                     lockstep_advantage_options *advantages,
                                     lockstep_objective_options *objective, const char *name);

/* ---------------------------------------------------------------------------------------------
 * 10. Models and engines
 *
 * A decoder-only transformer from a Hugging Face folder, scored teacher-forced (what a trainer does) and
 * sampled from with a cache of keys and values (what a rollout engine does). Both have one order of
 * arithmetic, so what the engine says of a token it drew is what scoring says of it, bit for bit: in any
 * batch, on any threads, in any recipe. docs/Models.md has the order, and the families:
 * Llama, Mistral, Qwen2, Qwen3, Mixtral, Qwen3-MoE.
 *
 *     lockstep_recipe recipe = {sizeof recipe};
 *     lockstep_model *model;
 *     lockstep_recipe_named(&recipe, "fp16");
 *     lockstep_model_load(&model, "folder", NULL, &recipe);
 *     lockstep_model_score(&log_probs, NULL, model, &tokens, &offsets, NULL);
 *     lockstep_model_destroy(model);
 * ------------------------------------------------------------------------------------------ */

/* The order of a model's arithmetic, and what it rounds. Products and sums are float32 in all; "rounded" is to the
 * recipe's activations where nothing else is said. Each is a function of a sequence's tokens alone, and is scored in
 * and sampled from. The others model the stacks of the field (docs/Models.md), so that a pair of engines differs as
 * real ones do. */
typedef int32_t lockstep_order;
enum {
    /* Products in chains of 128 k; attention's softmax over a whole row; each operation rounded once: norm,
     * projection, head norm, rotation, attention, residual sum, activation. */
    LOCKSTEP_ORDER_LOCKSTEP = 0,
    /* As lockstep, but the product of weights with each half of k is formed by itself, then their sum. */
    LOCKSTEP_ORDER_SPLIT_K = 1,
    /* As lockstep, but the softmax meets 64 keys at a time: e^(score - largest so far), rounded to the recipe's
     * probabilities, sums what it multiplies in float32, scaled whenever the largest grows; divided by the sum of
     * the unrounded terms at the end. */
    LOCKSTEP_ORDER_FLASH = 2,
    /* As lockstep, but rounded after every elementary operation: a normalised value before its weight, each product of
     * a rotation, a score and then its scaling, silu before `up`, an expert's weighted result and each sum of them. */
    LOCKSTEP_ORDER_EAGER = 3,
    /* Products as split-k, attention as flash, and less rounding: the norm before the MLP is of the residual sum
     * before that was rounded, gate and up stay float32 until their product is rounded. */
    LOCKSTEP_ORDER_FUSED = 4
};

/* The precision of a model's computation: the dtype, as LOCKSTEP_FLOAT32, LOCKSTEP_FLOAT16, LOCKSTEP_BFLOAT16,
 * LOCKSTEP_E8M + N or LOCKSTEP_E5M + N, that each kind of value is stored in, and the order. A trainer takes none of
 * 8 bits. Two engines give the same
 * bits if, and only if, their recipes are equal. Growable: set struct_size before the call. */
typedef struct {
    uint32_t struct_size;
    /* Weights; norms' too. LOCKSTEP_FLOAT8_E4M3FN, of a rollout engine alone: the layers' matrices in 8 bits with a
     * power of two for each row; embedding, head, norms, biases and the router of experts are as activations. */
    int32_t parameters;
    int32_t activations;   /* what passes from operation to operation */
    int32_t cache;         /* keys and values; of a rollout engine also LOCKSTEP_FLOAT8_E4M3FN or _E5M2, scale 1 */
    int32_t probabilities; /* of attention */
    int32_t logits;        /* before the log-softmax; LOCKSTEP_FLOAT32 is an "fp32 head" */
    lockstep_order order;  /* 0: lockstep */
    int32_t gradients;     /* of activations, in a backward pass; 0: as activations */
} lockstep_recipe;

/* The recipe of a name: "fp32", "fp16", "bf16", "e8m5" (or any other emulated format); with "-fp8weights" and "-fp8cache"
 * after it (both e4m3fn), and, all but the first, with "-fp32head": "bf16-fp8cache-fp32head"; for another order than lockstep with "+split-k", "+flash", "+eager" or
 * "+fused" after it: "bf16+eager". */
lockstep_status lockstep_recipe_named(lockstep_recipe *recipe, const char *name);

/* Writes the name of a recipe, which is what lockstep_recipe_named takes; of one without a name its parts, "parameters
 * fp16, activations fp16, cache bf16...". `length` gets the bytes without the 0 at the end: where capacity is not
 * greater nothing is written, so a call with capacity 0 (and text NULL) asks for the length alone. */
lockstep_status lockstep_recipe_text(char *text, size_t capacity, size_t *length, const lockstep_recipe *recipe);

/* Whether engines of two recipes give the same bits: 1, or 0 where a format or the order differs. */
lockstep_status lockstep_recipe_matches(int32_t *matches, const lockstep_recipe *trainer,
                                        const lockstep_recipe *rollout);

/* A model's weights, once, in the layout the kernels read: the files are not needed afterwards. `const` use is
 * safe from many threads. Free with lockstep_model_destroy. */
typedef struct lockstep_model lockstep_model;

/* What a model is. Growable: set struct_size before the call; only that many bytes are written. */
typedef struct {
    uint32_t struct_size;
    int32_t layers;
    int64_t vocab;
    int64_t hidden_size;
    int64_t positions;  /* the longest sequence */
    int64_t parameters; /* numbers, those of a tied head once */
    const char *family; /* "llama", "qwen3_moe"...; lives as long as the model */
} lockstep_model_info;

/* Loads a folder: config.json and model.safetensors, or shards with model.safetensors.index.json, of fp64,
 * fp32, fp16 or bf16, converted to the recipe's parameters.
 *
 * path     the folder, UTF-8
 * adapter  a folder with a LoRA adapter in PEFT's layout, merged into the weights in one rounding; optional
 * recipe   NULL: fp32
 *
 * Errors name file and tensor: LOCKSTEP_ERROR_FILE, LOCKSTEP_ERROR_BAD_DATA (damaged; a tensor that is missing, left
 * over or of another shape), LOCKSTEP_ERROR_NON_FINITE (a weight that the recipe cannot hold),
 * LOCKSTEP_ERROR_UNSUPPORTED (a family or setting that is not known: it says which). */
lockstep_status lockstep_model_load(lockstep_model **model, const char *path, const char *adapter,
                                    const lockstep_recipe *recipe);

/* Told how many values of a checkpoint have been read, and how many it has: after each tensor; at the end both are equal. */
typedef void (*lockstep_loading_observer)(void *context, int64_t done, int64_t total);

/* Sets who is told, on the calling thread, of the loading of checkpoints: by lockstep_model_load and every other
 * function that takes a folder (trainers, audits, runs). NULL: nobody, as at first. It is called on that thread, and
 * must not call this function. */
void lockstep_observe_loading(lockstep_loading_observer observer, void *context);

/* The same of bytes in memory, such as lockstep_run_policy writes: a safetensors file whose metadata has config.json under
 * "config". They are not needed afterwards. */
lockstep_status lockstep_model_load_bytes(lockstep_model **model, const void *bytes, size_t size,
                                          const lockstep_recipe *recipe);

lockstep_status lockstep_model_get_info(lockstep_model_info *info, const lockstep_model *model);

/* Frees a model. NULL is a no-op. */
void lockstep_model_destroy(lockstep_model *model);

/* Growable: appended fields read as zero when struct_size is smaller. */
typedef struct {
    uint32_t struct_size;
    int32_t threads; /* 0: one for each processor this process may use */
    lockstep_instruction_set instruction_set;
    uint32_t reserved; /* 0 */
    double temperature; /* in [1e-6, 1e6]; 1 by default */
} lockstep_score_options;

#define LOCKSTEP_SCORE_OPTIONS_INIT { sizeof(lockstep_score_options), 0, 0, 0, 1.0 }

/* Log-prob of each token given those before it in its sequence.
 *
 * log_probs  [tokens]         fp32 or fp64; 0 for the first token of a sequence, which has nothing before it
 * entropy    [tokens]         fp32 or fp64, nats, of the distribution the token was drawn from; optional
 * tokens     [tokens]         int32 or int64, in [0, vocab)
 * offsets    [sequences + 1]  int64: sequence i is [offsets[i], offsets[i + 1]); NULL: one sequence
 *
 * Memory: an activation row for each token and one layer's keys and values, never tokens x vocab. A value that
 * leaves the recipe's range is LOCKSTEP_ERROR_NON_FINITE naming layer and operation. */
lockstep_status lockstep_model_score(const lockstep_tensor *log_probs, const lockstep_tensor *entropy,
                                     const lockstep_model *model, const lockstep_tensor *tokens,
                                     const lockstep_tensor *offsets, const lockstep_score_options *options);

/* What lockstep_model_score_counting met. Growable: set struct_size before the call; only that many bytes are written. */
typedef struct {
    uint32_t struct_size;
    int32_t overflow_layer; /* of the first: -1 the embedding, the number of layers what follows them; -1 without */
    int64_t sequences;
    int64_t overflows;      /* sequences in which a value left the recipe's range */
    int64_t overflow_tokens; /* tokens of those */
    int64_t overflow_sequence; /* the first of them; -1 without */
    const char *overflow_operation; /* its operation, "MLP down"; "" without; lives as long as the model */
} lockstep_score_report;

/* As lockstep_model_score, but a value that leaves the recipe's range is no error: the sequence where it happens gets
 * NaN for all its log-probs and entropies, and `report` counts it. The others have the bits that they have without it.
 * Where something overflowed, sequences are scored again one by one. */
lockstep_status lockstep_model_score_counting(lockstep_score_report *report, const lockstep_tensor *log_probs,
                                              const lockstep_tensor *entropy, const lockstep_model *model,
                                              const lockstep_tensor *tokens, const lockstep_tensor *offsets,
                                              const lockstep_score_options *options);

/* The logits that follow each token, as its log-softmax sees them: rounded to the recipe's logits; one that it cannot
 * hold is infinite. For exact divergences of two recipes (lockstep_mismatch_exact).
 *
 * logits  [tokens x vocab]  fp32, contiguous: much memory, which lockstep_model_score does without
 * The others are those of lockstep_model_score; the options' temperature is left to the log-softmax. */
lockstep_status lockstep_model_logits(const lockstep_tensor *logits, const lockstep_model *model,
                                      const lockstep_tensor *tokens, const lockstep_tensor *offsets,
                                      const lockstep_score_options *options);

/* How tokens are drawn, and when to stop. Growable: appended fields read as zero when struct_size is smaller. */
typedef struct {
    uint32_t struct_size;
    int32_t top_k;      /* keep only the largest logits; 0: all */
    double temperature; /* in [1e-6, 1e6], or 0 for the most probable token; 1 by default */
    double top_p;       /* keep only the smallest set whose probability reaches this; 1: all */
    double min_p;       /* keep only logits of at least this share of the largest probability; 0: all */
    uint64_t seed;      /* with a sequence's id and a position, decides each draw */
    const int32_t *stop_ids; /* [stop_id_count]; a sequence ends with one of these, which is part of it */
    size_t stop_id_count;
    int64_t max_tokens; /* drawn for a sequence, at most; 256 by default */
    int64_t capacity;   /* sequences that run at a time, 1 to 512; 32 by default */
    int32_t threads;    /* 0: one for each processor this process may use */
    lockstep_instruction_set instruction_set;
} lockstep_engine_options;

#define LOCKSTEP_ENGINE_OPTIONS_INIT \
    { sizeof(lockstep_engine_options), 0, 1.0, 1.0, 0.0, 0, NULL, 0, 256, 32, 0, 0 }

/* Samples from a model; sequences join and leave a running batch. What is drawn for a sequence depends on its
 * prompt, its id and the options: not on the batch. One thread at a time. Keeps the model alive. */
typedef struct lockstep_engine lockstep_engine;

lockstep_status lockstep_engine_create(lockstep_engine **engine, const lockstep_model *model,
                                       const lockstep_engine_options *options);

/* Adds `count` sequences that answer one prompt ([tokens] int32 or int64): its keys and values are computed
 * once. Each id makes draws of its own. */
lockstep_status lockstep_engine_add(lockstep_engine *engine, const lockstep_tensor *prompt,
                                    const uint64_t *ids, size_t count);

/* Draws a token for every running sequence, after reading the prompts that fit. `running` gets the number of
 * sequences that wait or run, `finished` of those ready to be taken; both optional. */
lockstep_status lockstep_engine_step(lockstep_engine *engine, size_t *running, size_t *finished);

/* Why a sequence ended. */
typedef int32_t lockstep_finish;
enum {
    LOCKSTEP_FINISH_RUNNING = 0,
    LOCKSTEP_FINISH_STOP = 1,  /* with a stop id */
    LOCKSTEP_FINISH_LENGTH = 2 /* at max_tokens, or at the end of the context */
};

/* A sequence that was drawn. The arrays are the engine's, valid until the next call with it. Frozen. */
typedef struct {
    uint64_t id;
    int64_t token_count;
    const int32_t *tokens;              /* [token_count], without the prompt */
    const double *raw_log_probs;        /* under the model, at temperature 1, nothing cut */
    const double *processed_log_probs;  /* under what they were drawn from */
    const double *kept_mass;            /* the probability, at the temperature, of what the cuts kept */
    lockstep_finish finish;
    int32_t reserved;
} lockstep_rollout;

/* Takes a finished sequence out of the engine, in the order they ended, of one step by id; `token_count` is -1 if
 * there is none. After a failed step, with `unfinished` 1, also those still running, as far as they have come:
 * until then every step fails as that one did. */
lockstep_status lockstep_engine_take(lockstep_rollout *rollout, lockstep_engine *engine, int32_t unfinished);

/* Frees an engine. NULL is a no-op. */
void lockstep_engine_destroy(lockstep_engine *engine);

/* What the values of a lockstep_headroom are. */
enum {
    LOCKSTEP_HEADROOM_ACTIVATION = 0,     /* what an operation of the forward pass gave */
    LOCKSTEP_HEADROOM_WEIGHT = 1,         /* a tensor of the checkpoint */
    LOCKSTEP_HEADROOM_GRADIENT = 2,       /* the gradient of what an operation was given, times the loss scale */
    LOCKSTEP_HEADROOM_WEIGHT_GRADIENT = 3 /* the gradient of a tensor, times the loss scale */
};

/* How magnitudes lie in the range of fp16, from 2^-24 over 2^-14 (its smallest normal number) to 65,504. Frozen. */
typedef struct {
    const char *name;  /* the tensor's, or the operation's; lives as long as the audit */
    int32_t kind;      /* LOCKSTEP_HEADROOM_... */
    int32_t layer;     /* of an operation: -1 the embedding, the number of layers what follows them */
    int64_t count;     /* values looked at */
    double largest;    /* magnitude, of finite values; log2(65504 / largest) bits are left above it */
    int64_t subnormal;   /* not 0 and below 2^-14: fewer than 11 bits in fp16 */
    int64_t vanishing;   /* of these, those that become 0: at most 2^-25 */
    int64_t overflowing; /* finite, and infinite in fp16: 65,520 and more */
    int64_t non_finite;
} lockstep_headroom;

/* The FP16 headroom of a checkpoint. */
typedef struct lockstep_audit lockstep_audit;

/* Looks at every tensor of a folder as it is stored and, given `tokens` and `offsets` as in
 * lockstep_model_score (optional), at what every operation of every layer gives for them in float32. */
lockstep_status lockstep_audit_create(lockstep_audit **audit, const char *path, const lockstep_tensor *tokens,
                                      const lockstep_tensor *offsets, const lockstep_score_options *options);

/* The same and the backward pass: what it gives, in float32, for the mean of the negative log-probs of all tokens but
 * each sequence's first, times `loss_scale`, in [2^-60, 2^60]. `tokens` is not optional. Takes the memory of training. */
lockstep_status lockstep_audit_create_backward(lockstep_audit **audit, const char *path,
                                               const lockstep_tensor *tokens, const lockstep_tensor *offsets,
                                               double loss_scale, const lockstep_score_options *options);

/* Row `index`, and how many there are; each optional. Tensors by name, then operations by layer; then gradients of
 * operations in the order of the backward pass, and of tensors by name. */
lockstep_status lockstep_audit_read(lockstep_headroom *row, size_t *count, const lockstep_audit *audit,
                                    size_t index);

/* Frees an audit. NULL is a no-op. */
void lockstep_audit_destroy(lockstep_audit *audit);

/* How far the results of one operation in two engines are apart, element by element, as float32. Growable: set
 * struct_size before the call; only that many bytes are written. */
typedef struct {
    uint32_t struct_size;
    int32_t layer;         /* -1 the embedding, the number of layers what follows them */
    const char *operation; /* "attention output"; lives as long as the localiser */
    int64_t rows;          /* tokens */
    int64_t columns;       /* elements of each */
    int64_t differing;     /* elements whose bits differ */
    int64_t non_finite;    /* elements that are infinite or NaN on a side; they are in no mean */
    int64_t first_row;     /* of the first element whose bits differ; -1 if none does */
    int64_t first_column;
    double max_abs;        /* of the differences, as are the next two */
    double mean_abs;
    double rms;            /* root of the mean square */
    double relative_rms;   /* sqrt(sum (a - b)^2 / sum a^2): 0 without a difference, infinite where all a are 0 */
} lockstep_difference;

/* Compares two matrices [tokens x width], or [tokens], of one shape and any of fp32, fp16, bf16 and fp64 (rounded to
 * fp32 first), rows contiguous. `relative_rms` is relative to `first`; `layer` is -1 and `operation` NULL. */
lockstep_status lockstep_difference_measure(lockstep_difference *difference, const lockstep_tensor *first,
                                            const lockstep_tensor *second);

/* Writes what every operation of every layer gives for some sequences, `tokens` and `offsets` as in
 * lockstep_model_score, to a new safetensors file: tensors [tokens x width] in the recipe's activations, "embedding",
 * "layer.3.attention output", "final norm", "logits" as the recipe rounds them, and "tokens" and "offsets".
 * docs/Locate.md has the names. A file that exists is LOCKSTEP_ERROR_FILE; after an error no file is left. */
lockstep_status lockstep_model_dump(const char *path, const lockstep_model *model, const lockstep_tensor *tokens,
                                    const lockstep_tensor *offsets, const lockstep_score_options *options);

/* Growable: appended fields read as zero when struct_size is smaller. */
typedef struct {
    uint32_t struct_size;
    int32_t threads; /* 0: one for each processor this process may use */
    lockstep_instruction_set instruction_set;
    uint32_t reserved;               /* 0 */
    const lockstep_model *reference; /* the same model in fp32, which does the layers of `ranges`; optional */
    const int32_t *ranges;           /* [range_count x 2]: the first layer, and the one after the last */
    size_t range_count;
} lockstep_localiser_options;

#define LOCKSTEP_LOCALISER_OPTIONS_INIT { sizeof(lockstep_localiser_options), 0, 0, 0, NULL, NULL, 0 }

/* Finds where two engines of one model part: both do the same tokens side by side, a layer at a time. One thread at a
 * time. Keeps its models alive. Free with lockstep_localiser_destroy. */
typedef struct lockstep_localiser lockstep_localiser;

/* Begins: `trainer` and `rollout` are the same checkpoint under two recipes, `tokens` and `offsets` as in
 * lockstep_model_score (copied). Memory: some rows of activations for each token, one layer's keys and values, and
 * one layer's results of 512 rows. Models of two shapes, and ranges that are empty or beyond the layers, are
 * LOCKSTEP_ERROR_INVALID_ARGUMENT. */
lockstep_status lockstep_localiser_create(lockstep_localiser **localiser, const lockstep_model *trainer,
                                          const lockstep_model *rollout, const lockstep_tensor *tokens,
                                          const lockstep_tensor *offsets,
                                          const lockstep_localiser_options *options);

/* Does a step (the embedding, a layer, the final norm, a pass over a head); without any left, nothing. `done` and
 * `total`, optional, get their numbers: repeat until they are equal. A value that leaves its recipe's range is
 * LOCKSTEP_ERROR_NON_FINITE naming engine, layer and operation, and ends it. */
lockstep_status lockstep_localiser_step(lockstep_localiser *localiser, size_t *done, size_t *total);

/* Row `index` of the operations of the steps done so far, and how many rows there are; each optional. By layer, in the
 * order they are done; at the end, of the log-probs. The operations inside of experts are left out. */
lockstep_status lockstep_localiser_read(lockstep_difference *row, size_t *count,
                                        const lockstep_localiser *localiser, size_t index);

/* Which part of the engines is swapped, to see what it makes of the mismatch. */
typedef int32_t lockstep_swap;
enum {
    LOCKSTEP_SWAP_NONE = 0,
    LOCKSTEP_SWAP_HEAD_ALONE = 1, /* both heads on the trainer's hidden states */
    LOCKSTEP_SWAP_BODY_ALONE = 2, /* the trainer's head, its logits in fp32, on both hidden states */
    LOCKSTEP_SWAP_FP32_HEADS = 3, /* logits of both in fp32 */
    LOCKSTEP_SWAP_FP32_HEAD_OF_TRAINER = 4,
    LOCKSTEP_SWAP_FP32_HEAD_OF_ROLLOUT = 5,
    LOCKSTEP_SWAP_LAYERS = 6 /* + i: the reference does layers `ranges[i]` of both; if they are the last, norm and head too */
};

/* Log-probs of all tokens after the last step, with a part swapped: what lockstep_mismatch_measure takes.
 *
 * trainer, rollout  [tokens]  fp32 or fp64; 0 for the first token of a sequence */
lockstep_status lockstep_localiser_log_probs(const lockstep_tensor *trainer, const lockstep_tensor *rollout,
                                             const lockstep_localiser *localiser, lockstep_swap swap);

/* Frees a localiser. NULL is a no-op. */
void lockstep_localiser_destroy(lockstep_localiser *localiser);

/* ---------------------------------------------------------------------------------------------
 * 11. Loss scalers and optimiser
 *
 * FP16 gradients need a scaled loss: a scaler is told of each step whether its gradients are finite, says whether
 * to skip it, and moves the scale as PyTorch, DeepSpeed or Megatron-LM do, state for state. docs/Optimiser.md.
 *
 *     lockstep_scaler_update(&report, scaler, norm.non_finite > 0);
 *     if (!report.skip) lockstep_adamw_step(&masters, &first, &second, NULL, &gradients, &options);
 * ------------------------------------------------------------------------------------------ */

/* Whose rule moves a loss scale. */
typedef int32_t lockstep_scaler_kind;
enum {
    LOCKSTEP_SCALER_CONSTANT = 0,
    /* torch.amp.GradScaler: every overflow backs off; growth after growth_interval clean steps. */
    LOCKSTEP_SCALER_TORCH = 1,
    /* DeepSpeed's DynamicLossScaler: overflows use up the hysteresis first; growth at clean step number
     * growth_interval + 1 after an overflow, then every growth_interval. Back-off divides by growth_factor. */
    LOCKSTEP_SCALER_DEEPSPEED = 2,
    /* Megatron-LM's DynamicGradScaler: as torch, but the first hysteresis - 1 overflows since the last growth only
     * skip. */
    LOCKSTEP_SCALER_MEGATRON = 3
};

/* Growable. Fill it with lockstep_scaler_options_named. */
typedef struct {
    uint32_t struct_size;
    lockstep_scaler_kind kind;
    double initial_scale;  /* positive; torch and Megatron keep it in float32 */
    double growth_factor;  /* more than 1 */
    double backoff_factor; /* between 0 and 1; DeepSpeed: 0.5, and not used */
    double minimum_scale;  /* the floor of back-off */
    double maximum_scale;  /* a growth beyond this is not made: the largest float32 */
    int64_t growth_interval;
    int32_t hysteresis;             /* overflows until a back-off; 1 but for DeepSpeed and Megatron */
    int32_t consecutive_hysteresis; /* DeepSpeed: 1 refills the hysteresis at every clean step */
} lockstep_scaler_options;

/* The options of a name, the peers' own defaults:
 *
 *     constant   65536, for ever
 *     torch      65536, interval 2000, no floor
 *     deepspeed  65536, interval 1000, hysteresis 2, floor 1
 *     megatron   2^32, interval 1000, hysteresis 2, floor 1
 *     paper      torch with interval 400
 *
 * `options` has its struct_size set: only that many bytes are written. */
lockstep_status lockstep_scaler_options_named(lockstep_scaler_options *options, const char *name);

/* What a scaler says after a step. Growable: set struct_size before the call. */
typedef struct {
    uint32_t struct_size;
    int32_t skip;     /* 1: the step's gradients were not finite; leave the weights as they are */
    double scale;     /* of the next step's loss */
    /* 1: the last overflow left the scale at its floor (minimum_scale, but at least 1; of a constant one, itself):
     * an alarm, as the next overflow cannot be backed off from. Until a growth; if constant, until a clean step. */
    int32_t at_floor;
    uint32_t reserved;       /* 0 */
    int64_t steps;           /* updates so far */
    int64_t skipped;         /* of them, those to be skipped */
    int64_t growths;
    int64_t backoffs;
    int64_t floor_overflows; /* overflows that left the scale at its floor */
    int64_t skipped_in_a_row;
    int64_t longest_skip;    /* the most steps skipped in a row */
    int64_t last_skipped;    /* counted from 0; -1 if there is none */
} lockstep_scaler_report;

/* A loss scale and its state. One thread at a time. Free with lockstep_scaler_destroy. */
typedef struct lockstep_scaler lockstep_scaler;

/* Makes a scaler. NULL options: those of "torch". */
lockstep_status lockstep_scaler_create(lockstep_scaler **scaler, const lockstep_scaler_options *options);

/* Frees a scaler. NULL is a no-op. */
void lockstep_scaler_destroy(lockstep_scaler *scaler);

/* Takes a step: `found_non_finite` is not 0 if its gradients, of all ranks together, hold an infinity or a NaN. */
lockstep_status lockstep_scaler_update(lockstep_scaler_report *report, lockstep_scaler *scaler,
                                       int32_t found_non_finite);

/* The report of the last step; before the first, the initial scale and zeros. */
lockstep_status lockstep_scaler_read(lockstep_scaler_report *report, const lockstep_scaler *scaler);

/* The options a scaler was made with. */
lockstep_status lockstep_scaler_get_options(lockstep_scaler_options *options, const lockstep_scaler *scaler);

/* Writes a scaler as bytes with a checksum, to be kept with a checkpoint. `size` holds the room in `bytes`, and
 * gets the number of bytes; with `bytes` NULL only that. */
lockstep_status lockstep_scaler_save(void *bytes, size_t *size, const lockstep_scaler *scaler);

/* Makes the scaler that lockstep_scaler_save wrote: it goes on with the same scales. Damaged bytes are
 * LOCKSTEP_ERROR_BAD_DATA. */
lockstep_status lockstep_scaler_load(lockstep_scaler **scaler, const void *bytes, size_t size);

/* What a scaler would have done in a recorded run: one overflows where maximum x scale, in float64, is at least
 * `limit`. The recorded gradients are taken as they are: a skip would in truth have changed what follows.
 *
 * report   after the last step
 * scales   [steps]  fp64; the scale each step ran with; optional
 * skipped  [steps]  uint8 or bool; optional
 * maxima   [steps]  fp32 or fp64: the largest |gradient| of each step before scaling; infinite or NaN overflows
 * limit    65520 for fp16, from where a value rounds to infinity; positive */
lockstep_status lockstep_scaler_replay(lockstep_scaler_report *report, const lockstep_tensor *scales,
                                       const lockstep_tensor *skipped, const lockstep_tensor *maxima,
                                       double limit, const lockstep_scaler_options *options);

/* Growable: appended fields read as zero when struct_size is smaller. */
typedef struct {
    uint32_t struct_size;
    int32_t threads; /* 0: one for each processor this process may use */
    lockstep_instruction_set instruction_set;
    uint32_t reserved; /* 0 */
    double max_norm;   /* clip the norm to this; 0: not */
    double scale;      /* what gradients are to be divided by: loss scale x accumulated micro-batches; 1 by default */
} lockstep_gradient_options;

#define LOCKSTEP_GRADIENT_OPTIONS_INIT { sizeof(lockstep_gradient_options), 0, 0, 0, 0.0, 1.0 }

/* The gradients of a step. Frozen. */
typedef struct {
    double norm;        /* their 2-norm, divided by scale; infinite or NaN if one is */
    double largest;     /* the largest magnitude as it stands, not divided */
    double factor;      /* what to multiply gradients by: min(1, max_norm / (norm + 1e-6)) / scale */
    int64_t non_finite; /* how many are infinite or NaN: if any, skip the step */
} lockstep_gradient_norm;

/* The norm of `count` tensors of gradients together, and what clips it, as torch.nn.utils.clip_grad_norm_ has it.
 *
 * gradients  fp32, any shape, contiguous. Squares are exact in float64; chunks of 65,536 elements of a tensor are
 *            added in 32 lanes and then in order: the bits do not depend on threads or instruction set. */
lockstep_status lockstep_gradients_measure(lockstep_gradient_norm *norm, const lockstep_tensor *gradients,
                                           size_t count, const lockstep_gradient_options *options);

/* How a 16-bit master takes a step. */
typedef int32_t lockstep_master_rounding;
enum {
    LOCKSTEP_MASTER_NEAREST = 0,
    LOCKSTEP_MASTER_STOCHASTIC = 1, /* of seed, step and element */
    LOCKSTEP_MASTER_KAHAN = 2       /* what rounding leaves is kept in `compensation`, and counts from then on */
};

/* Growable: appended fields read as zero when struct_size is smaller. */
typedef struct {
    uint32_t struct_size;
    int32_t threads; /* 0: one for each processor this process may use */
    lockstep_instruction_set instruction_set;
    lockstep_master_rounding rounding; /* of 16-bit masters */
    int64_t step;          /* 1 for the first: the bias correction */
    double learning_rate;  /* 0.001 */
    double beta1, beta2;   /* in [0, 1): 0.9, 0.999 */
    double epsilon;        /* in (0, 1]: 1e-8 */
    double weight_decay;   /* decoupled: 0.01; 0 for norms and biases */
    double gradient_scale; /* gradients are multiplied by this first: lockstep_gradient_norm.factor; 1 */
    double largest;        /* lockstep_gradient_norm.largest, which saves a pass; 0: it is looked for */
    uint64_t seed;         /* STOCHASTIC */
} lockstep_adamw_options;

#define LOCKSTEP_ADAMW_OPTIONS_INIT \
    { sizeof(lockstep_adamw_options), 0, 0, 0, 1, 0.001, 0.9, 0.999, 1e-8, 0.01, 1.0, 0.0, 0 }

/* One step of AdamW, in place and element by element:
 *
 *     g = gradient gradient_scale
 *     m += (1 - beta1) (g - m)
 *     v = beta2 v + (1 - beta2) g g
 *     master = master (1 - rate decay) - rate / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
 *
 * masters         fp32; fp16 and bf16 for study: widened, changed in float32, rounded back
 * first_moments   fp32, zeros before the first step
 * second_moments  fp32, zeros before the first step
 * compensation    KAHAN: the dtype of masters, zeros before the first step; else NULL
 * gradients       fp32, memory of their own
 *
 * All of one shape, contiguous. A gradient that is infinite, NaN or, scaled, beyond 1e18 is
 * LOCKSTEP_ERROR_NON_FINITE, and nothing is written. */
lockstep_status lockstep_adamw_step(const lockstep_tensor *masters, const lockstep_tensor *first_moments,
                                    const lockstep_tensor *second_moments,
                                    const lockstep_tensor *compensation, const lockstep_tensor *gradients,
                                    const lockstep_adamw_options *options);

/* What comes after the warm-up. */
typedef int32_t lockstep_schedule_shape;
enum {
    LOCKSTEP_SCHEDULE_CONSTANT = 0,
    LOCKSTEP_SCHEDULE_LINEAR = 1,
    LOCKSTEP_SCHEDULE_COSINE = 2 /* half a cosine */
};

/* Growable: appended fields read as zero when struct_size is smaller. */
typedef struct {
    uint32_t struct_size;
    lockstep_schedule_shape shape;
    double peak;          /* 0.001 */
    int64_t warmup_steps; /* the rate rises from 0 to the peak in so many steps; 0: at once */
    int64_t total_steps;  /* where LINEAR and COSINE end: more than warmup_steps */
    double final_share;   /* the last rate as a share of the peak, in [0, 1] */
} lockstep_schedule_options;

#define LOCKSTEP_SCHEDULE_OPTIONS_INIT { sizeof(lockstep_schedule_options), 0, 0.001, 0, 0, 0.0 }

/* The learning rate of update number `step`, the first being 1 (transformers' schedules of the same names, from
 * their second update on; rate is never NULL). */
lockstep_status lockstep_learning_rate(double *rate, int64_t step, const lockstep_schedule_options *options);

/* ---------------------------------------------------------------------------------------------
 * 12. Training
 *
 * Forward and backward passes in a recipe's formats over float32 masters. A sequence's log-probs have the bits
 * of lockstep_model_score; gradients are exact sums over sequences, rounded once: they depend on neither threads, nor the
 * order of a batch, nor how it is cut into calls. docs/Training.md has the order of arithmetic.
 *
 *     lockstep_trainer *trainer;
 *     lockstep_trainer_create(&trainer, "folder", &recipe, NULL);
 *     lockstep_trainer_accumulate(&report, &log_probs, NULL, trainer, &tokens, &offsets, &d_log_probs, NULL,
 *                                 1024.0, 1.0);
 *     lockstep_trainer_gradients(&gradients, trainer);
 *     lockstep_trainer_masters(&masters, &count, trainer);  (an optimiser's step: masters[i] -= ...)
 *     lockstep_trainer_clear(trainer);
 *     lockstep_trainer_snapshot(&model, trainer);           (for the rollout engine)
 * ------------------------------------------------------------------------------------------ */

/* Growable: appended fields read as zero when struct_size is smaller. */
typedef struct {
    uint32_t struct_size;
    int32_t threads; /* 0: one for each processor this process may use */
    lockstep_instruction_set instruction_set;
    int32_t recomputes;    /* 1: keep only the layers' inputs for the backward pass; the bits are the same */
    const char *adapter;   /* a LoRA adapter in PEFT's layout, which alone is trained; NULL: none */
    int64_t rank;          /* of a new LoRA adapter, which alone is trained; 0: none */
    double alpha;          /* W + alpha / rank B A */
    const char *targets;   /* ends of the names of adapted matrices, with spaces between; NULL: "q_proj k_proj v_proj o_proj" */
    uint64_t seed;         /* of a new adapter, or of a model that begins anew */
    double deviation;      /* above 0: only config.json is read, matrices begin as normal numbers of this deviation,
                              norms as 1, biases as 0 */
} lockstep_trainer_options;

#define LOCKSTEP_TRAINER_OPTIONS_INIT { sizeof(lockstep_trainer_options), 0, 0, 0, NULL, 0, 0.0, NULL, 0, 0.0 }

/* A model that is trained. One thread at a time. Free with lockstep_trainer_destroy. */
typedef struct lockstep_trainer lockstep_trainer;

/* Loads a folder as lockstep_model_load does, or begins a model anew. */
lockstep_status lockstep_trainer_create(lockstep_trainer **trainer, const char *path,
                                        const lockstep_recipe *recipe, const lockstep_trainer_options *options);

/* A tensor of the flat buffers of masters and gradients. Frozen. */
typedef struct {
    const char *name; /* in a checkpoint, or in PEFT's layout; lives as long as the trainer */
    size_t offset;    /* of its first element */
    size_t count;
    int64_t shape[2]; /* 1 behind the last dimension */
    int32_t dimensions;
    int32_t decays; /* 1: weight decay is meant for it (matrices); 0: norms and biases */
} lockstep_parameter;

/* Tensor `index`, in the order of their names, how many tensors there are, and how many elements; each optional. */
lockstep_status lockstep_trainer_parameter(lockstep_parameter *parameter, size_t *tensors, size_t *elements,
                                           const lockstep_trainer *trainer, size_t index);

/* Lends the float32 masters, to be read or changed before the next call with the trainer, which then has what was
 * changed: ask again before each change. */
lockstep_status lockstep_trainer_masters(float **masters, size_t *count, lockstep_trainer *trainer);

/* What a backward pass met. Growable: set struct_size before the call. */
typedef struct {
    uint32_t struct_size;
    int32_t overflow_layer; /* of the first sequence that overflowed: -1 the embedding, the number of layers what follows */
    int64_t sequences;
    int64_t overflows;         /* sequences in whose backward pass a value left its format */
    int64_t overflow_sequence; /* the first of them; -1: none */
    char overflow_operation[48]; /* whose gradient it was; empty: none */
} lockstep_backward_report;

/* Adds the gradients of sum_t d_log_probs[t] log_prob_t + d_entropy[t] entropy_t.
 *
 * report       optional
 * log_probs    [tokens]         fp32 or fp64, as lockstep_model_score writes them; optional
 * entropy      [tokens]         likewise; optional
 * tokens       [tokens]         int32 or int64, in [0, vocab)
 * offsets      [sequences + 1]  int64; NULL: one sequence
 * d_log_probs  [tokens]         fp32 or fp64, finite; a sequence's first is not read
 * d_entropy    [tokens]         likewise; optional
 * loss_scale   from 2^-60 to 2^60; multiplies them on the way and is taken out again where gradients are added
 * temperature  divides the logits; 1: none
 *
 * An overflow of the backward pass is no error: outputs are written, the report says where, and
 * lockstep_trainer_gradients gives NaN until lockstep_trainer_clear. One of the forward pass is LOCKSTEP_ERROR_NON_FINITE naming layer and operation, and has the
 * same effect. After other errors nothing has been added. At most 2^24 tokens until lockstep_trainer_clear. */
lockstep_status lockstep_trainer_accumulate(
    lockstep_backward_report *report, const lockstep_tensor *log_probs, const lockstep_tensor *entropy,
    lockstep_trainer *trainer, const lockstep_tensor *tokens, const lockstep_tensor *offsets,
    const lockstep_tensor *d_log_probs, const lockstep_tensor *d_entropy, double loss_scale, double temperature);

/* Writes what was added since lockstep_trainer_clear, unscaled, each sum rounded once: [elements] fp32, contiguous. */
lockstep_status lockstep_trainer_gradients(const lockstep_tensor *gradients, lockstep_trainer *trainer);

/* Sets the gradients to zero. */
lockstep_status lockstep_trainer_clear(lockstep_trainer *trainer);

/* The masters as they are, rounded to the recipe's parameters: what the next pass computes with. Free with
 * lockstep_model_destroy; later steps do not change it. LOCKSTEP_ERROR_NON_FINITE names a tensor that does not fit. */
lockstep_status lockstep_trainer_snapshot(lockstep_model **model, lockstep_trainer *trainer);

/* Frees a trainer. NULL is a no-op. */
void lockstep_trainer_destroy(lockstep_trainer *trainer);

/* ---------------------------------------------------------------------------------------------
 * 13. Tasks
 *
 * Problems whose answers can be checked, made from seeds. A problem is a function of (seed, index) alone. Tokens are
 * characters; a response is right (1) or not (0).
 *
 *     chain      y' = (a y + b) mod 7, 32 times. Prompt: a b y; response: 32 digits, no stop. A digit has two fonts, 0-6
 *                and a-g, that mean the same. Right if there are 32 and the last is.
 *     arithmetic 23+456= or 345*7= (3 digits). The sum or product follows the last # of the response, in decimal
 *                without leading zeros; before it the response may work it out.
 *     sort       8 digits, 31415926=, in rising order
 *     reverse    8 letters, abcdefgh=, backwards
 *     countdown  3,7,25,2:45= (4 numbers): an expression of + - * / and parentheses with each number exactly once
 *                that gives the target; a division must leave no rest
 *     file:PATH  a JSON object a line with "prompt" and "answer", strings. The final answer is what follows the last
 *                #, or, without one, the last line that is not blank, without spaces around it. Right if that of the
 *                response is that of the answer, character by character. Indices go through the file over and over, in
 *                orders that the seed decides.
 *
 * All but chain end a response with the stop id; one that does not end with it is not right. Ids beyond the
 * vocabulary (models pad theirs) make a response wrong.
 * ------------------------------------------------------------------------------------------ */

/* Growable: appended fields read as zero when struct_size is smaller. */
typedef struct {
    uint32_t struct_size;
    int32_t size; /* how large problems are, as the numbers above; 0: those */
} lockstep_task_options;

#define LOCKSTEP_TASK_OPTIONS_INIT { sizeof(lockstep_task_options), 0 }

/* Growable: set struct_size before the call; only that many bytes are written. */
typedef struct {
    uint32_t struct_size;
    int32_t vocab;            /* ids are [0, vocab) */
    int32_t stop_id;          /* -1: a response ends at longest_response */
    uint32_t reserved;        /* 0 */
    int64_t longest_prompt;   /* ids */
    int64_t longest_response; /* ids, stop id included: what to limit sampling to */
    int64_t problems;         /* of a file; 0: as many as there are indices */
} lockstep_task_info;

/* A task. `const` use is safe from many threads. Free with lockstep_task_destroy. */
typedef struct lockstep_task lockstep_task;

lockstep_status lockstep_task_create(lockstep_task **task, const char *name,
                                     const lockstep_task_options *options);

/* Frees a task. NULL is a no-op. */
void lockstep_task_destroy(lockstep_task *task);

lockstep_status lockstep_task_get_info(lockstep_task_info *info, const lockstep_task *task);

/* Writes the prompt of problem `index` (0 to 2^48). `count` holds the room in `tokens`, in ids, and gets their
 * number; with `tokens` NULL only that. */
lockstep_status lockstep_task_prompt(int32_t *tokens, size_t *count, const lockstep_task *task, int64_t index,
                                     uint64_t seed);

/* The same of a solution, stop id included. Each of its steps (chain: a number; arithmetic: a digit; sort, reverse: an
 * element; countdown: a number) is wrong with probability `error_rate`, and what follows goes on from there. Of n
 * steps, (1 - error_rate)^n solutions are right; of chain's, 1/7 + 6/7 (1 - 7/6 error_rate)^n. A file's are its answers:
 * error_rate must be 0. */
lockstep_status lockstep_task_demonstration(int32_t *tokens, size_t *count, const lockstep_task *task,
                                            int64_t index, uint64_t seed, double error_rate);

/* 1 if the response solves the problem of the prompt, else 0.
 *
 * prompt    [tokens]  int32 or int64: of lockstep_task_prompt, or another of that form
 * response  [tokens]  int32 or int64: what follows it, stop id included */
lockstep_status lockstep_task_reward(double *reward, const lockstep_task *task, const lockstep_tensor *prompt,
                                     const lockstep_tensor *response);

/* The ids of a UTF-8 text; a character that the vocabulary lacks is an error with its place. `count` as above. */
lockstep_status lockstep_task_encode(int32_t *tokens, size_t *count, const lockstep_task *task,
                                     const char *text);

/* The UTF-8 text of ids. `size` holds the room in `text`, in bytes, and gets their number, the 0 at the end included;
 * with `text` NULL only that. The stop id is the line feed, of a file U+0003. */
lockstep_status lockstep_task_decode(char *text, size_t *size, const lockstep_task *task,
                                     const lockstep_tensor *tokens);

/* ---------------------------------------------------------------------------------------------
 * 14. Runs
 *
 * Reinforcement learning: groups of responses from the rollout engine, rewards, advantages, a correction, an objective,
 * backward passes and AdamW, step after step. A run is a pure function of its options and its environment: the same
 * bits on any number of threads, whole or step by step, and from a checkpoint (docs/ReinforcementLearning.md).
 *
 *     lockstep_run *run = NULL;
 *     lockstep_run_options options = LOCKSTEP_RUN_OPTIONS_INIT;
 *     lockstep_environment environment = LOCKSTEP_ENVIRONMENT_INIT;
 *     options.algorithm = "paper/grpo";
 *     environment.task = task;
 *     lockstep_run_create(&run, &options, &environment);
 *     for (int step = 0; step < 500; ++step) lockstep_run_step(&metrics, run);
 *     lockstep_run_destroy(run);
 * ------------------------------------------------------------------------------------------ */

/* Writes the prompt of a problem: at most `room` ids, and their number. Not 0 stops the step. It may be called again
 * for a problem, and gives the same prompt then. */
typedef int32_t (*lockstep_prompt_callback)(void *context, int32_t *tokens, size_t *count, size_t room,
                                            int64_t problem);

/* Writes what a response is worth: a finite number. Not 0 stops the step. `step` is -1 outside of one. */
typedef int32_t (*lockstep_reward_callback)(void *context, double *reward, int64_t step, int64_t problem,
                                            int64_t sample, const int32_t *prompt, size_t prompt_count,
                                            const int32_t *response, size_t response_count);

/* Where prompts come from, and what responses are worth: a task, or callbacks. Callbacks are called by the thread that
 * called the run, one at a time. Everything it points to must outlive what was made with it.
 * Growable: appended fields read as zero when struct_size is smaller. */
typedef struct {
    uint32_t struct_size;
    int32_t max_tokens;         /* of a response; with a task 0: its own */
    const lockstep_task *task;  /* NULL: callbacks */
    uint64_t task_seed;         /* of the task's problems */
    const int64_t *problems;    /* [problem_count] the problems to draw from */
    size_t problem_count;       /* with problems NULL 0: the next ones in each step, without an end */
    void *context;              /* for the callbacks */
    lockstep_prompt_callback prompt;
    lockstep_reward_callback reward;
    const int32_t *stop_ids;    /* [stop_id_count] with callbacks: what ends a response */
    size_t stop_id_count;
    const char *name;           /* with callbacks: what checkpoints call it; NULL: "callbacks" */
} lockstep_environment;

#define LOCKSTEP_ENVIRONMENT_INIT \
    { sizeof(lockstep_environment), 0, NULL, 0, NULL, 0, NULL, NULL, NULL, NULL, 0, NULL }

/* What a run is a function of, with its environment. Growable: appended fields read as zero when struct_size is
 * smaller. */
typedef struct {
    uint32_t struct_size;
    int32_t prompts;     /* 16, of a step */
    int32_t samples;     /* 8, responses to each: the group */
    int32_t updates;     /* 2, from the rollouts of a step, each from its share of the prompts */
    const char *model;   /* a Hugging Face folder; NULL: a new model of the chain task */
    const char *adapter; /* NULL, or a LoRA adapter in PEFT's layout that is trained in place of the model */
    uint64_t model_seed; /* of a new model, or of a new adapter */
    double deviation;    /* 0.1, of a new model's matrices */
    int32_t lora_rank;   /* 0: all weights; else a new adapter of this rank is trained */
    int32_t recompute;   /* 1: keep only the layers' inputs for the backward pass; the same bits */
    double lora_alpha;   /* W' = W + alpha / rank B A */
    const lockstep_recipe *trainer;                   /* NULL: fp16 */
    const lockstep_recipe *rollout;                   /* NULL: the trainer's */
    const char *algorithm;                            /* a preset; NULL: the four below */
    const lockstep_correction_options *correction;    /* NULL: weights of 1 */
    const lockstep_advantage_options *advantages;     /* NULL: Dr. GRPO */
    const lockstep_objective_options *objective;      /* NULL: the default of section 8 */
    int32_t policies;                                 /* 0: three, 1: two (lockstep_preset) */
    int32_t threads;                                  /* 0: one for each processor this process may use */
    double temperature;                               /* 1, of drawing and scoring */
    uint64_t seed;                                    /* of prompts and tokens */
    double beta1;                                     /* 0.9 */
    double beta2;                                     /* 0.95 */
    double epsilon;                                   /* 1e-8 */
    double weight_decay;                              /* 0 */
    const lockstep_schedule_options *schedule;        /* NULL: 2e-4, constant */
    double max_norm;                                  /* 1; 0: no clipping */
    const lockstep_scaler_options *scaler;            /* NULL: torch's if gradients are fp16, else a constant 1 */
    int32_t learning_steps;                           /* 40, of the early warning */
    lockstep_instruction_set instruction_set;
    double false_alarms_per_1000;                     /* 1, of the early warning */
} lockstep_run_options;

#define LOCKSTEP_RUN_OPTIONS_INIT                                                                           \
    { sizeof(lockstep_run_options), 16, 8, 2, NULL, NULL, 0, 0.1, 0, 0, 0.0, NULL, NULL, NULL, NULL, NULL,   \
      NULL, 0, 0, 1.0, 0, 0.9, 0.95, 1e-8, 0.0, NULL, 1.0, NULL, 40, LOCKSTEP_INSTRUCTION_SET_BEST, 1.0 }

/* What happened in a step. pi is the trainer before the step's updates, mu the rollout engine; means over tokens are of
 * the responses'. NaN where there is nothing to take a mean of. Growable: set struct_size before the call; only that many
 * bytes are written. */
typedef struct {
    uint32_t struct_size;
    int32_t scale_at_floor;        /* 1: the next overflow cannot be backed off from */
    int64_t step;                  /* from 1 */
    int64_t responses;
    int64_t tokens;                /* of the responses */
    int64_t equal_groups;          /* groups all of whose rewards are equal: nothing to learn from differences */
    int64_t updates;               /* taken since the start of the run */
    int64_t skipped;               /* updates of this step that were skipped: a gradient was not finite */
    int64_t skipped_total;
    double reward_mean;
    double share_right;            /* of responses with a reward of at least 1 */
    double response_length;        /* mean tokens */
    double share_truncated;        /* of responses that were cut off */
    double k3;                     /* KL(mu || pi) of a token */
    double mean_abs_log_ratio;     /* |ln pi - ln mu| */
    double max_abs_log_ratio;
    double ess;                    /* effective sample size of tokens' ratios, a share */
    double sequence_ess;           /* of sequences' */
    double sequence_log_ratio_std;
    double entropy;                /* of pi, nats */
    double loss;                   /* mean over the updates */
    double clip_share;             /* of tokens that a bound of the objective held */
    double share_masked;           /* of tokens that the correction left out: rejected, or of weight 0 */
    double gradient_norm;          /* before clipping, the largest of the updates that were not skipped */
    double learning_rate;
    double loss_scale;             /* after the step */
    double monitor_score;          /* of the early warning: section 5 */
    int32_t monitor;               /* LOCKSTEP_MONITOR_... */
    int32_t monitor_statistic;
    double max_abs_prob_diff;      /* |pi - mu| */
} lockstep_run_metrics;

#define LOCKSTEP_RUN_METRICS_INIT                                                                            \
    { sizeof(lockstep_run_metrics), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, \
      0, 0, 0, 0 }

/* A run. One call at a time. Free with lockstep_run_destroy. */
typedef struct lockstep_run lockstep_run;

lockstep_status lockstep_run_create(lockstep_run **run, const lockstep_run_options *options,
                                    const lockstep_environment *environment);

/* Takes a step. What callbacks refuse leaves the run as it was, and the step can be taken again; a policy that diverged
 * (LOCKSTEP_ERROR_NON_FINITE, naming what first) ends it: every further step says so. So does a lack of memory to learn; if
 * it lacked to draw responses the step can be taken again. */
lockstep_status lockstep_run_step(lockstep_run_metrics *metrics, lockstep_run *run);

/* Responses that the next step needs, to one prompt: so many sequences, with ids from first_id on, drawn at the temperature
 * with the seed. An engine (section 10) of the run's policy and of its rollout recipe gives the bits that the step would
 * draw, on any machine. Growable: set struct_size before the call; only that many bytes are written. */
typedef struct {
    uint32_t struct_size;
    int32_t max_tokens;      /* of a response */
    int64_t step;            /* from 1 */
    int64_t problem;
    uint64_t first_id;
    int64_t samples;
    const int32_t *prompt;   /* [prompt_count] as stop_ids, the run's, valid until the next call with it */
    size_t prompt_count;
    const int32_t *stop_ids; /* [stop_id_count] */
    size_t stop_id_count;
    double temperature;
    uint64_t seed;
} lockstep_rollout_request;

#define LOCKSTEP_ROLLOUT_REQUEST_INIT { sizeof(lockstep_rollout_request), 0, 0, 0, 0, 0, NULL, 0, NULL, 0, 0.0, 0 }

/* Reads request `index` of the next step, and the number of them; each may be NULL. They stay the same until that step was
 * taken, and may call back for prompts. */
lockstep_status lockstep_run_request(lockstep_rollout_request *request, size_t *count, lockstep_run *run,
                                     size_t index);

/* Gives responses to requests of step `step`, drawn elsewhere, as lockstep_engine_take has them (kept_mass is not read);
 * the step draws the prompts of which not all were given. Those of another step, whose policy was another, are refused, as
 * are those that differ from what was given before for an id; nothing is taken then. */
lockstep_status lockstep_run_give(lockstep_run *run, int64_t step, const lockstep_rollout *rollouts, size_t count);

/* Writes the policy as it is, for lockstep_model_load_bytes: a safetensors file, whose metadata has config.json under
 * "config", of weights in fp16 or bf16 if the rollout recipe's parameters are that, else in fp32. `size` holds the room in
 * `bytes`, and gets their number; with `bytes` NULL only that. */
lockstep_status lockstep_run_policy(void *bytes, size_t *size, lockstep_run *run);

/* The mean reward of `samples` responses to each of `count` problems, by the policy as it is.
 *
 * rewards      [count]  written
 * problems     [count]  their numbers
 * seed         of the draws, which are not those of a run with the same seed
 * temperature  0 takes the most probable tokens */
lockstep_status lockstep_run_evaluate(double *rewards, lockstep_run *run, const int64_t *problems, size_t count,
                                      int64_t samples, uint64_t seed, double temperature);

/* Saves the run in a folder, as a folder step-N in it that transformers loads (PEFT, if an adapter is trained). It is
 * there as a whole or not at all; checkpoints before the last `kept` (at least 1) are removed after it. A disk that is
 * full is LOCKSTEP_ERROR_FILE, and the checkpoints before are still there. */
lockstep_status lockstep_run_save(lockstep_run *run, const char *folder, int64_t kept);

/* Goes on where the newest checkpoint in a folder was taken: before the first step. `step` gets its step, 0 if there is
 * none, and the run begins. A damaged one is LOCKSTEP_ERROR_BAD_DATA, with `allow_older` not 0 only if none is whole. One
 * of a run with other options is LOCKSTEP_ERROR_INVALID_ARGUMENT, naming the first. A folder that cannot be read is
 * LOCKSTEP_ERROR_FILE. If reading failed half-way no step can be taken until resuming succeeds. */
lockstep_status lockstep_run_resume(int64_t *step, lockstep_run *run, const char *folder, int32_t allow_older);

/* Frees a run. NULL is a no-op. */
void lockstep_run_destroy(lockstep_run *run);

/* The first problems, from 0 or from the environment's own, to which a model's answers have a mean reward in
 * [low, high]: the paper's perfectible set, from 20 to 80 % of 32 samples. Too few among `candidates` is an error.
 *
 * problems  [count]  written */
lockstep_status lockstep_find_perfectible(int64_t *problems, size_t count, const lockstep_model *model,
                                          const lockstep_environment *environment, int64_t candidates,
                                          int64_t samples, double low, double high, uint64_t seed,
                                          int32_t threads);

/* Supervised training on a task's demonstrations: the mean cross-entropy of the responses' tokens, AdamW (0.9, 0.95) without
 * weight decay, a cosine to 0 after 50 steps of warm-up, norm clipped to 1. Demonstrations are those of the seed, one after
 * another. Growable: appended fields read as zero when struct_size is smaller. */
typedef struct {
    uint32_t struct_size;
    int32_t batch;                 /* 64 demonstrations a step */
    const lockstep_task *task;     /* it must outlive the run */
    const char *model;             /* a Hugging Face folder; NULL: a new model of the chain task */
    uint64_t model_seed;           /* of a new model, or of a new adapter */
    double deviation;              /* 0.1, of a new model's matrices */
    const lockstep_recipe *recipe; /* NULL: fp32 */
    int64_t steps;                 /* 1200: where the cosine ends */
    uint64_t seed;                 /* of the demonstrations */
    double error_rate;             /* of their steps (section 13) */
    double learning_rate;          /* 0.003, the peak */
    int32_t threads;               /* 0: one for each processor this process may use */
    int32_t lora_rank;             /* 0: all weights; else a new adapter of this rank is trained */
    double lora_alpha;             /* W' = W + alpha / rank B A */
    const char *adapter;           /* NULL, or a LoRA adapter in PEFT's layout that is trained in place of the model */
} lockstep_supervised_options;

#define LOCKSTEP_SUPERVISED_OPTIONS_INIT \
    { sizeof(lockstep_supervised_options), 64, NULL, NULL, 0, 0.1, NULL, 1200, 0, 0.0, 0.003, 0, 0, 0.0, NULL }

/* What happened in a step. Growable: set struct_size before the call; only that many bytes are written. */
typedef struct {
    uint32_t struct_size;
    int32_t skipped;      /* 1: the update was skipped, as a gradient was not finite */
    int64_t step;         /* from 1 */
    int64_t tokens;       /* of the responses */
    double loss;          /* mean -ln p of them, nats */
    double gradient_norm; /* before clipping */
    double learning_rate;
    double loss_scale; /* after the step */
} lockstep_supervised_metrics;

#define LOCKSTEP_SUPERVISED_METRICS_INIT \
    { sizeof(lockstep_supervised_metrics), 0, 0, 0, 0, 0, 0, 0 }

/* A supervised run. One call at a time. Free with lockstep_supervised_destroy. */
typedef struct lockstep_supervised lockstep_supervised;

lockstep_status lockstep_supervised_create(lockstep_supervised **run,
                                           const lockstep_supervised_options *options);

/* As lockstep_run_step, lockstep_run_save and lockstep_run_resume. */
lockstep_status lockstep_supervised_step(lockstep_supervised_metrics *metrics, lockstep_supervised *run);
lockstep_status lockstep_supervised_save(lockstep_supervised *run, const char *folder, int64_t kept);
lockstep_status lockstep_supervised_resume(int64_t *step, lockstep_supervised *run, const char *folder,
                                           int32_t allow_older);

/* Writes config.json and model.safetensors, or an adapter as PEFT has it, into a folder; they must not be there yet. */
lockstep_status lockstep_supervised_save_model(lockstep_supervised *run, const char *folder);

/* Frees a run. NULL is a no-op. */
void lockstep_supervised_destroy(lockstep_supervised *run);

#ifdef __cplusplus
}
#endif

#endif /* LOCKSTEP_H */
