/* Calls every function of the first header, with its options and results as they were, and prints what comes back, bit by
 * bit. Built with the first header and with today's it must print the same: see Tests/C/run.sh. */
#include <lockstep.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 6, VOCAB = 300, HIDDEN = 16 };
static float logits[ROWS][VOCAB], other[ROWS][VOCAB], hidden[ROWS][HIDDEN], weight[VOCAB][HIDDEN], bias[VOCAB];
static int32_t targets[ROWS] = {5, 0, 299, -100, 17, 17};
static float log_probs[ROWS], entropy[ROWS], mass[ROWS], rollout[ROWS], ones[ROWS];
static double sums[ROWS];
static float d_logits[ROWS][VOCAB], d_hidden[ROWS][HIDDEN], d_weight[VOCAB][HIDDEN], d_bias[VOCAB];
static const int64_t by_vocab[2] = {ROWS, VOCAB}, by_hidden[2] = {ROWS, HIDDEN}, head_shape[2] = {VOCAB, HIDDEN};
static const int64_t rows[1] = {ROWS}, vocab[1] = {VOCAB}, three[1] = {3};

static void need(lockstep_status status, const char *what) {
    if (status == LOCKSTEP_OK) return;
    printf("%s: %s: %s\n", what, lockstep_status_name(status), lockstep_last_error());
    exit(1);
}
#define NEED(call) need(call, #call)

static void show(const char *name, const void *bytes, size_t count) {
    uint64_t digest = 14695981039346656037u; /* FNV-1a */
    for (size_t i = 0; i < count; i++) digest = (digest ^ ((const unsigned char *)bytes)[i]) * 1099511628211u;
    printf("%s %016llx\n", name, (unsigned long long)digest);
}
#define SHOW(array) show(#array, array, sizeof array)

/* Values that spread over several binades, the same everywhere. */
static void fill(float *values, size_t count, uint32_t seed) {
    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        values[i] = (float)(int32_t)seed / (float)(1 << 28);
    }
}

static lockstep_tensor floats(void *data, int32_t ndim, const int64_t *shape) {
    return lockstep_tensor_of(data, LOCKSTEP_FLOAT32, ndim, shape);
}

/* A result in memory of its own, whose end must stay as it was: a program of yesterday gave no more room. */
static void measure(const lockstep_tensor *trainer, const lockstep_tensor *sampler, const lockstep_tensor *offsets) {
    lockstep_mismatch_options options = LOCKSTEP_MISMATCH_OPTIONS_INIT;
    unsigned char *room = malloc(sizeof(lockstep_mismatch) + 64);
    lockstep_mismatch *mismatch = (lockstep_mismatch *)room;
    if (room == NULL) exit(2);
    memset(room, 0xa5, sizeof *mismatch + 64);
    mismatch->struct_size = sizeof *mismatch;
    NEED(lockstep_mismatch_measure(mismatch, trainer, sampler, NULL, offsets, &options));
    for (int i = 0; i < 64; i++)
        if (room[sizeof *mismatch + i] != 0xa5) exit(3);
    mismatch->struct_size = 0; /* the one field in which the two programs differ */
    show("mismatch", mismatch, offsetof(lockstep_mismatch, max_sequence_length) + sizeof mismatch->max_sequence_length);
    free(room);
}

int main(void) {
    lockstep_log_probs_options options = LOCKSTEP_LOG_PROBS_OPTIONS_INIT;
    lockstep_convert_options conversion = LOCKSTEP_CONVERT_OPTIONS_INIT;
    lockstep_convert_counts counts;
    lockstep_head *head;
    lockstep_mismatch_sequence sequences[2];
    lockstep_mismatch_bucket buckets[2];
    lockstep_divergence mean, divergences[ROWS];
    const double edges[3] = {-1, 0, 1};
    int64_t begins[3] = {0, 2, ROWS};
    uint64_t distances[ROWS];
    uint16_t halves[ROWS][VOCAB];
    int32_t version = lockstep_version();

    fill(&logits[0][0], ROWS * VOCAB, 1);
    fill(&hidden[0][0], ROWS * HIDDEN, 2);
    fill(&weight[0][0], VOCAB * HIDDEN, 3);
    fill(bias, VOCAB, 4);
    for (int i = 0; i < ROWS; i++) ones[i] = 1;

    lockstep_tensor x = floats(logits, 2, by_vocab), h = floats(hidden, 2, by_hidden), w = floats(weight, 2, head_shape);
    lockstep_tensor b = floats(bias, 1, vocab), y = lockstep_tensor_of(targets, LOCKSTEP_INT32, 1, rows);
    lockstep_tensor out = floats(log_probs, 1, rows), e = floats(entropy, 1, rows);
    lockstep_tensor s = lockstep_tensor_of(sums, LOCKSTEP_FLOAT64, 1, rows);
    lockstep_tensor m = floats(mass, 1, rows), r = floats(rollout, 1, rows), one = floats(ones, 1, rows);
    lockstep_tensor dx = floats(d_logits, 2, by_vocab), dh = floats(d_hidden, 2, by_hidden);
    lockstep_tensor dw = floats(d_weight, 2, head_shape), db = floats(d_bias, 1, vocab);
    lockstep_tensor half = lockstep_tensor_of(halves, LOCKSTEP_FLOAT16, 2, by_vocab), o = floats(other, 2, by_vocab);
    lockstep_tensor begin = lockstep_tensor_of(begins, LOCKSTEP_INT64, 1, three);
    lockstep_tensor far = lockstep_tensor_of(distances, LOCKSTEP_UINT64, 1, rows);

    if (version < 100 || strlen(lockstep_version_string()) < 5) return 4;
    if (lockstep_has_instruction_set(LOCKSTEP_INSTRUCTION_SET_BEST) != 1) return 5;

    printf("scalars %04x %04x %02x %02x %a %a %a %a\n", lockstep_fp16_from_float(1.7f).bits,
           lockstep_bf16_from_float(1.7f).bits, lockstep_fp8_e4m3fn_from_float(1.7f).bits,
           lockstep_fp8_e5m2_from_float(1.7f).bits, (double)lockstep_fp16_to_float((lockstep_fp16){0x3c01}),
           (double)lockstep_bf16_to_float((lockstep_bf16){0x3f81}),
           (double)lockstep_fp8_e4m3fn_to_float((lockstep_fp8_e4m3fn){0x39}),
           (double)lockstep_fp8_e5m2_to_float((lockstep_fp8_e5m2){0x3d}));
    conversion.rounding = LOCKSTEP_ROUND_STOCHASTIC;
    conversion.seed = 7;
    NEED(lockstep_convert(&half, &counts, &x, &conversion));
    SHOW(halves);
    show("counts", &counts, sizeof counts);
    NEED(lockstep_convert(&o, NULL, &half, NULL));
    SHOW(other);

    options.temperature = 0.75;
    options.soft_cap = 30;
    options.top_k = 200;
    options.top_p = 0.98;
    NEED(lockstep_log_probs(&out, &e, &s, &m, &x, &y, &options));
    SHOW(log_probs), SHOW(entropy), SHOW(sums), SHOW(mass);
    NEED(lockstep_log_probs(&r, NULL, NULL, NULL, &o, &y, &options));
    SHOW(rollout);
    NEED(lockstep_ulp_distance(&far, &out, &r));
    SHOW(distances);
    options.top_k = 0;
    options.top_p = 1;
    NEED(lockstep_log_probs(&out, NULL, &s, NULL, &x, &y, &options));
    NEED(lockstep_log_probs(&r, NULL, NULL, NULL, &o, &y, &options));
    NEED(lockstep_log_probs_backward(&dx, &one, NULL, &s, &x, &y, &options));
    SHOW(d_logits);
    log_probs[3] = rollout[3] = -1; /* of the row that was ignored */
    measure(&out, &r, &begin);
    NEED(lockstep_mismatch_sequences(sequences, 2, &out, &r, NULL, &begin, NULL));
    SHOW(sequences);
    NEED(lockstep_mismatch_profile(buckets, 2, edges, LOCKSTEP_AXIS_LOG_RATIO, &out, &r, NULL, &begin, NULL));
    SHOW(buckets);
    NEED(lockstep_mismatch_exact(&mean, divergences, ROWS, &x, &o, NULL, &options));
    show("mean", &mean, sizeof mean), SHOW(divergences);

    NEED(lockstep_linear_log_probs(&out, &e, &s, &h, &w, &b, &y, &options));
    SHOW(log_probs), SHOW(entropy), SHOW(sums);
    NEED(lockstep_linear_log_probs_backward(&dh, &dw, &db, &one, NULL, &s, &h, &w, &b, &y, &options));
    SHOW(d_hidden), SHOW(d_weight), SHOW(d_bias);
    NEED(lockstep_head_create(&head, &w, &b));
    NEED(lockstep_head_log_probs(&out, NULL, NULL, head, &h, &y, &options));
    SHOW(log_probs);
    lockstep_head_destroy(head);

    options.struct_size = 3;
    if (lockstep_log_probs(&out, NULL, NULL, NULL, &x, &y, &options) != LOCKSTEP_ERROR_INVALID_ARGUMENT) return 6;
    if (strstr(lockstep_last_error(), "struct_size") == NULL) return 7;
    return 0;
}
