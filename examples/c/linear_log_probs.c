/* Log-probs straight from hidden states: the logits never exist in memory. A trainer scores the whole
 * sequence in one pass; a sampler meets its tokens one by one with a prepared head. Same bits. */
#include <inttypes.h>
#include <lockstep.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 24, H = 256, VOCAB = 8000 };
static lockstep_bf16 hidden[TOKENS * H], weight[VOCAB * H];
static int32_t targets[TOKENS];

/* Some value in [-0.5, 0.5), the same in every language. */
static float value(uint32_t i) {
    uint32_t x = i * 2654435761u;
    x = (x ^ x >> 15) * 2246822519u;
    return (float)((x ^ x >> 13) >> 8) * 0x1p-24f - 0.5f;
}

static void check(lockstep_status status) {
    if (status == LOCKSTEP_OK) return;
    fprintf(stderr, "%s: %s\n", lockstep_status_name(status), lockstep_last_error());
    exit(1);
}

int main(void) {
    float whole[TOKENS], entropy[TOKENS], single[TOKENS];
    int64_t matrix[2] = {TOKENS, H}, head_shape[2] = {VOCAB, H}, row[2] = {1, H};
    double sum = 0;
    int same = 0;
    for (uint32_t i = 0; i < TOKENS * H; i++) hidden[i] = lockstep_bf16_from_float(value(i));
    for (uint32_t i = 0; i < VOCAB * H; i++) weight[i] = lockstep_bf16_from_float(value(i + 1000003));
    for (int i = 0; i < TOKENS; i++) targets[i] = i * 331 % VOCAB;

    lockstep_log_probs_options options = LOCKSTEP_LOG_PROBS_OPTIONS_INIT;
    options.temperature = 0.8;
    options.logits_dtype = LOCKSTEP_BFLOAT16; /* the head's logits are rounded to BF16, as a 16-bit head does */

    /* The trainer: all tokens at once. */
    lockstep_tensor x = lockstep_tensor_of(hidden, LOCKSTEP_BFLOAT16, 2, matrix);
    lockstep_tensor w = lockstep_tensor_of(weight, LOCKSTEP_BFLOAT16, 2, head_shape);
    lockstep_tensor y = lockstep_tensor_of(targets, LOCKSTEP_INT32, 1, matrix);
    lockstep_tensor out = lockstep_tensor_of(whole, LOCKSTEP_FLOAT32, 1, matrix);
    lockstep_tensor spread = lockstep_tensor_of(entropy, LOCKSTEP_FLOAT32, 1, matrix);
    check(lockstep_linear_log_probs(&out, &spread, NULL, &x, &w, NULL, &y, &options));

    /* The sampler: one token after another. */
    lockstep_head *head;
    check(lockstep_head_create(&head, &w, NULL));
    for (int i = 0; i < TOKENS; i++) {
        lockstep_tensor xi = lockstep_tensor_of(hidden + i * H, LOCKSTEP_BFLOAT16, 2, row);
        lockstep_tensor yi = lockstep_tensor_of(targets + i, LOCKSTEP_INT32, 1, row);
        lockstep_tensor outi = lockstep_tensor_of(single + i, LOCKSTEP_FLOAT32, 1, row);
        check(lockstep_head_log_probs(&outi, NULL, NULL, head, &xi, &yi, &options));
    }
    lockstep_head_destroy(head);

    for (int i = 0; i < TOKENS; i++) {
        uint32_t bits;
        memcpy(&bits, &whole[i], sizeof bits);
        if (i < 4) printf("token %d: log-prob %.6f, bits %08" PRIx32 ", entropy %.6f\n", i, whole[i], bits, entropy[i]);
        same += memcmp(&whole[i], &single[i], sizeof bits) == 0;
        sum += whole[i];
    }
    printf("perplexity %.4f\n", exp(-sum / TOKENS));
    printf("one pass and one by one: %d of %d tokens have the same bits\n", same, TOKENS);
    return same == TOKENS ? 0 : 1;
}
