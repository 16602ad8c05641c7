// What the mismatch kernels read and write.
#ifndef LSK_MISMATCH_H
#define LSK_MISMATCH_H

#include <stdint.h>

// A run of tokens of one sequence: contiguous log-probs of both policies and, unless NULL, their mask.
typedef struct {
    const void *_Nonnull trainer;
    const void *_Nonnull rollout;
    const uint8_t *_Nullable mask;  // not 0: the token counts
    int32_t trainer_format;         // LSK_FP32, LSK_FP16, LSK_BF16 or LSK_FP64
    int32_t rollout_format;
    int64_t count;                  // at most 65535
} lsk_mismatch_span;

// Bands of the ratio r, in the order of the header: MLPerf, 1 %, 5 %, 10 %.
enum { LSK_MISMATCH_BANDS = 4 };

// Sums over the counted tokens of a span. A token counts if the mask lets it and both log-probs are
// finite. d = trainer - rollout, r = exp(d), p and q the two probabilities.
//
// Token i belongs to lane i mod 8; a lane adds its tokens in order, and the lanes are added by halves.
// So every sum is a function of the span alone.
typedef struct {
    int64_t tokens;
    int64_t non_finite;  // tokens the mask lets count, with a log-prob that is not finite
    int64_t differing;   // d != 0, or a zero of the other sign
    int64_t outside[LSK_MISMATCH_BANDS];
    double log_ratio;         // d
    double square;            // d^2
    double magnitude;         // |d|
    double k3;                // exp(d) - 1 - d
    double ratio;             // r
    double ratio_square;      // r^2
    double exp_magnitude;     // exp|d|
    double probability_gap;   // |p - q|
    double rollout;           // ln q
    // Of s = p + q and g = p - q, less their values at the first counted token (the shifts): no square of
    // a value near 1 is ever taken from another.
    double sum_shift, gap_shift;
    double sum, sum_square;
    double gap, gap_square;
    double sum_gap;
    double largest;           // max |d|, -1 if no token counts
    int64_t largest_at;       // its index in the span, the first of equals
    double largest_gap;       // max |p - q|
} lsk_mismatch_sums;

// A histogram of d, fine enough that the tokens of a few bins can be selected from and quantiles read off, and
// small enough to stay in the cache: 7 bits of mantissa for 2^-24 <= |d| < 2^8 (clamped outside), negative below,
// a bin of its own for 0, positive above. The last bin takes the tokens that do not count.
enum {
    LSK_MISMATCH_HALF_BINS = 4096,
    LSK_MISMATCH_BINS = 2 * LSK_MISMATCH_HALF_BINS + 2,
    LSK_MISMATCH_ZERO_BIN = LSK_MISMATCH_HALF_BINS,
    LSK_MISMATCH_UNCOUNTED_BIN = LSK_MISMATCH_BINS - 1
};

// Buckets of a profile.
//
// By position, which is how many counted tokens of the sequence came before: 0, 1, then two an octave, [2^k,
// 1.5 2^k) and [1.5 2^k, 2^(k+1)), to the last from 1.5 2^20 on.
//
// By the probability q that drew the token, growing. Rounding noise grows with 1 - q, so the edges are dense at
// 1: ln q is -2^k or -1.5 2^k from -64 to -2^-20; the first bucket is below, the last beyond.
enum { LSK_POSITION_BUCKETS = 42, LSK_PROBABILITY_BUCKETS = 54, LSK_PROBABILITY_COPIES = 4 };

// What a bucket sums up.
typedef struct {
    double tokens;
    double log_ratio;  // d
    double k3;         // exp(d) - 1 - d
    double magnitude;  // |d|
} lsk_mismatch_bucket;

// The profiles of a span. `before` is moved on: give the number of counted tokens of the sequence before the
// span, 0 for its first.
typedef struct {
    int64_t before;
    lsk_mismatch_bucket position[LSK_POSITION_BUCKETS];
    lsk_mismatch_bucket probability[LSK_PROBABILITY_BUCKETS];
    // What the kernel adds to while it goes over a span: zero before and after, but for the last bucket, which
    // takes the tokens that do not count.
    lsk_mismatch_bucket copies[LSK_PROBABILITY_COPIES][LSK_PROBABILITY_BUCKETS + 1];
} lsk_mismatch_profile;

// Bins first, first + 1, ..., as many as `count`.
typedef struct {
    int32_t first;
    uint32_t count;
} lsk_bin_range;

#endif
