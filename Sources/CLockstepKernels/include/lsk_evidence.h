// What the evidence of causes is summed up from.
#ifndef LSK_EVIDENCE_H
#define LSK_EVIDENCE_H

#include <stdint.h>

// Counts of the scaled log ratio z = d / (1 - p), p being the smaller probability of a token: how many tokens
// have an |z| in [2^e, 2^(e+1)). Rounding noise has one scale of z whatever the probability.
//
// Rows: 1 - p in (1/2, 1], (1/4, 1/2], ... (the last: the rest), each for d <= 0 and for d > 0; then the first
// and the last tokens of runs. After the rows one place for the tokens that are in none.
enum {
    LSK_EVIDENCE_SCALES = 8,
    LSK_EVIDENCE_OCTAVES = 40,
    LSK_EVIDENCE_LOWEST = -30,  // octaves below and d = 0 count as this one, those above as the highest
    LSK_EVIDENCE_FIRST_ROW = 2 * LSK_EVIDENCE_SCALES,
    LSK_EVIDENCE_LAST_ROW = LSK_EVIDENCE_FIRST_ROW + 1,
    LSK_EVIDENCE_ROWS = LSK_EVIDENCE_LAST_ROW + 1,
    LSK_EVIDENCE_BINS = LSK_EVIDENCE_ROWS * LSK_EVIDENCE_OCTAVES + 1
};

// Counts over one side's counted log-probs.
typedef struct {
    int64_t tested;     // |x| >= 1/16: where a grid can be told from the step of a float32 log-softmax
    int64_t bf16_grid;  // of these, the values that bf16 holds
    int64_t fp16_grid;  // of these, the values that fp16's mantissa holds
    int64_t above_zero;
    int64_t floored;    // x <= -1000: a mark, not a log-prob
    int64_t zero;       // x = 0, the other side below -2^-10
    int64_t zero_far;   // x = 0, the other side below -1
} lsk_evidence_side;

// Sums over the counted tokens of a span. Plain tokens have both log-probs in (-1000, 0). A pair is two plain
// tokens next to each other, t and t + 1, within a block of 256 tokens of the span.
typedef struct {
    lsk_evidence_side trainer, rollout;
    int64_t plain;
    int64_t pairs;
    // Over plain tokens, with z = d / s, x = ln q / s, s = max(1 - min(p, q), 2^-20).
    double z, zz, x, xx, xz;
    double square;            // d^2
    double square_up;         // d^2 where d > 0
    double trainer_spacing;   // 4^e, 2^e <= |ln p| < 2^(e+1): the squared spacing of a format is 4^-m of it
    double rollout_spacing;
    // Over pairs, of a = ln p and b = ln q.
    double neighbours;        // z_t z_{t+1}
    double here;              // (|a_t - b_t| + |a_{t+1} - b_{t+1}|) / 2
    double ahead;             // |a_t - b_{t+1}|
    double behind;            // |a_{t+1} - b_t|
    // Over the first and the last tokens of runs of counted tokens, d^2.
    double first_square, last_square;
    int64_t firsts, lasts;    // how many of them are plain
} lsk_evidence;

#endif
