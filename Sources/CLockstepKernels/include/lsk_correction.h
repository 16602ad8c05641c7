// What the correction kernels read and write. Values of the enumerations are those of lockstep.h.
#ifndef LSK_CORRECTION_H
#define LSK_CORRECTION_H

#include <stdint.h>

enum {
    LSK_LEVEL_TOKEN = 0,
    LSK_LEVEL_SEQUENCE_SUM = 1,
    LSK_LEVEL_SEQUENCE_MEAN = 2,
    LSK_LEVEL_SEGMENT_SUM = 3,
    LSK_LEVEL_SEGMENT_MEAN = 4,
    LSK_LEVEL_SEQUENCE_EVERY = 5
};

enum {
    LSK_WEIGHTS_ONE = 0,
    LSK_WEIGHTS_RAW = 1,
    LSK_WEIGHTS_TRUNCATE = 2,
    LSK_WEIGHTS_CLIP = 3,
    LSK_WEIGHTS_MASK = 4
};

enum {
    LSK_STATISTIC_RATIO = 0,
    LSK_STATISTIC_K2 = 1,
    LSK_STATISTIC_K3 = 2,
    LSK_STATISTIC_EXP_ABS = 3,
    LSK_STATISTIC_PROBABILITY_DIFFERENCE = 4,
    LSK_STATISTIC_BINARY_KL = 5
};

enum { LSK_SIDE_BOTH = 0, LSK_SIDE_BY_ADVANTAGE = 1, LSK_SIDE_NEGATIVE_ADVANTAGE = 2 };

// The policies of a span, and the pairs of them that have a log ratio: the first over the second.
enum { LSK_TRAINER = 0, LSK_ROLLOUT = 1, LSK_CURRENT = 2, LSK_POLICIES = 3 };
enum { LSK_TRAINER_ROLLOUT = 0, LSK_CURRENT_ROLLOUT = 1, LSK_CURRENT_TRAINER = 2 };

// Rejection rules in one call at most.
enum { LSK_REJECTIONS = 16 };

// A sequence, or a run of its tokens, contiguous. A token counts if the mask lets it and all that is given
// here of it is finite.
typedef struct {
    const void *_Nullable log_probs[LSK_POLICIES];  // NULL: of no use
    int32_t formats[LSK_POLICIES];                  // LSK_FP32, LSK_FP16, LSK_BF16 or LSK_FP64
    int32_t advantage_format;
    const void *_Nullable advantages;  // NULL: of no use
    int64_t advantage_stride;          // 1, or 0: all tokens have one
    const uint8_t *_Nullable mask;     // not 0: the token counts; NULL: all do
    int64_t count;
} lsk_correction_span;

// Keeps what has low <= x <= high.
typedef struct {
    int32_t statistic, level, policies, side;
    double low, high;
} lsk_rejection;

typedef struct {
    int32_t weights, level;
    double low, high;
    double log_ratio_min, log_ratio_max;  // exponents are clamped to them
    double divisor;                       // of the weights that are written
    double second_moment_cut;             // tokens with a d^2 above are rejected
    int64_t rejection_count;
    lsk_rejection rejections[LSK_REJECTIONS];
} lsk_correction_rule;

// Sums over units (tokens, sequences or segments), each of a value w.
typedef struct {
    int64_t units;
    double sum;            // w
    double square;         // w^2
    double excess;         // w - 1
    double excess_square;  // (w - 1)^2
    double least, largest; // +inf and -inf without units
} lsk_weight_sums;

// What one rule found on its own. Tokens of a rule that judges every token of a sequence are its units.
typedef struct {
    int64_t tokens;   // rejected
    int64_t clamped;  // log ratios
    int64_t units;
    double sum;       // of the statistic
    double least, largest;
} lsk_rejection_sums;

// Of one sequence. Token i belongs to lane i mod 8; lanes are added in order, then by halves. With a level of
// segments that holds within each segment, and segments are added in order.
typedef struct {
    int64_t tokens;         // that count
    int64_t non_finite;     // that the mask lets count
    int64_t kept;           // tokens
    int64_t clamped;        // log ratios of the weights' level
    int64_t below, above;   // units whose ratio is below `low`, above `high`
    int64_t second_moment;  // tokens that its cut rejects
    lsk_weight_sums ratio, weight, kept_weight;
    lsk_rejection_sums rejections[LSK_REJECTIONS];
} lsk_correction_sums;

#endif
