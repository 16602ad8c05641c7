// What the evidence of causes is summed up in.
#ifndef LSK_EVIDENCE_H
#define LSK_EVIDENCE_H

#include <stdint.h>

// A run is a maximal stretch of counted tokens of a sequence. Its first and its last token are its ends.
// A token is proper if it counts and both log-probs are in (-1000, 0), and plain if it is proper and no
// end.
//
// The scaled log ratio z = d / s, s = max(1 - p, 2^-20), p the smaller probability: rounding noise has
// one scale of z whatever p is. Counted is how many tokens have an |z| in [2^e, 2^(e+1)), by rows: plain
// tokens with s in (1/2, 1], (1/4, 1/2], ... (the last: the rest), each for d <= 0 and for d > 0; then
// proper first and last tokens of runs. Behind the rows one place takes all others.
enum {
    LSK_EVIDENCE_SCALES = 8,
    LSK_EVIDENCE_OCTAVES = 40,
    LSK_EVIDENCE_LOWEST = -30,  // e of the first octave, which takes all below, d = 0 too; the last all above
    LSK_EVIDENCE_FIRST_ROW = 2 * LSK_EVIDENCE_SCALES,
    LSK_EVIDENCE_LAST_ROW = LSK_EVIDENCE_FIRST_ROW + 1,
    LSK_EVIDENCE_ROWS = LSK_EVIDENCE_LAST_ROW + 1,
    LSK_EVIDENCE_BINS = LSK_EVIDENCE_ROWS * LSK_EVIDENCE_OCTAVES + 1,
    LSK_EVIDENCE_COPIES = 2  // of the counts: token i adds to copy i mod 2, ends to the first
};

// Where in its sequence a span is.
enum { LSK_SPAN_STARTS_SEQUENCE = 1, LSK_SPAN_ENDS_SEQUENCE = 2 };

// Counts over the counted log-probs x of one side; y is the other side's.
typedef struct {
    // Among the first 256 tokens of the span:
    int64_t tested;     // |x| >= 1/4: there a float32 log-softmax has steps much finer than fp16's
    int64_t bf16_grid;  // of these, with no more than bf16's 8 significant bits
    int64_t fp16_grid;  // ... fp16's 11
    // Among all:
    int64_t above_zero;
    int64_t marks;      // x <= -1000: no log-prob, a mark
    int64_t zero;       // x = 0 and y < -2^-10
    int64_t zero_far;   // x = 0 and y < -1
} lsk_evidence_side;

// Sums over a span. A pair is two plain tokens next to each other, t and t + 1, not divided by a multiple of
// 256 tokens from the start of the span.
typedef struct {
    lsk_evidence_side trainer, rollout;
    int64_t plain, up, equal;  // plain tokens; of these with d > 0, and with d = 0
    int64_t first, last;       // proper first and last tokens of runs
    int64_t pairs;
    // Over plain tokens; x = ln q / s.
    double z, zz, x, xx, xz;
    double log_ratio, square;  // d, d^2
    double rise, rise_square;  // the same where d > 0
    double ratio;              // exp d
    double trainer_square;     // (ln p)^2
    double rollout_square;     // (ln q)^2
    double first_square, last_square;  // d^2 over proper first and last tokens
    // Over pairs; a = ln p, b = ln q.
    double ahead;              // |a_t - b_t+1|
    double behind;             // |a_t+1 - b_t|
} lsk_evidence;

#endif
