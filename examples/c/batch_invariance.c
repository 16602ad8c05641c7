/* A row's bits do not depend on its batch: token 17 is scored alone and among others. */
#include <inttypes.h>
#include <lockstep.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 64, H = 576, VOCAB = 4096, TOKEN = 17 };
static float hidden[TOKENS * H], weight[VOCAB * H];
static int32_t targets[TOKENS];

/* Some value in [-0.5, 0.5), the same in every language. */
static float value(uint32_t i) {
    uint32_t x = i * 2654435761u;
    x = (x ^ x >> 15) * 2246822519u;
    return (float)((x ^ x >> 13) >> 8) * 0x1p-24f - 0.5f;
}

/* The log-prob of token 17 in a batch of `count` tokens that starts at `first`. */
static float score(int first, int count) {
    int64_t x_shape[2] = {count, H}, w_shape[2] = {VOCAB, H};
    float log_probs[TOKENS];
    lockstep_tensor x = lockstep_tensor_of(hidden + first * H, LOCKSTEP_FLOAT32, 2, x_shape);
    lockstep_tensor w = lockstep_tensor_of(weight, LOCKSTEP_FLOAT32, 2, w_shape);
    lockstep_tensor y = lockstep_tensor_of(targets + first, LOCKSTEP_INT32, 1, x_shape);
    lockstep_tensor out = lockstep_tensor_of(log_probs, LOCKSTEP_FLOAT32, 1, x_shape);
    if (lockstep_linear_log_probs(&out, NULL, NULL, &x, &w, NULL, &y, NULL) != LOCKSTEP_OK) {
        fprintf(stderr, "%s\n", lockstep_last_error());
        exit(1);
    }
    return log_probs[TOKEN - first];
}

int main(void) {
    static const int batches[][2] = {{17, 1}, {16, 2}, {15, 3}, {10, 8}, {0, 64}};
    int same = 1;
    for (uint32_t i = 0; i < TOKENS * H; i++) hidden[i] = value(i);
    for (uint32_t i = 0; i < VOCAB * H; i++) weight[i] = value(i + 1000003);
    for (int i = 0; i < TOKENS; i++) targets[i] = i * 61 % VOCAB;
    const float alone = score(TOKEN, 1);
    for (int i = 0; i < 5; i++) {
        float found = score(batches[i][0], batches[i][1]);
        uint32_t bits;
        memcpy(&bits, &found, sizeof bits);
        printf("in a batch of %2d: log-prob %.6f, bits %08" PRIx32 "\n", batches[i][1], found, bits);
        same = same && memcmp(&found, &alone, sizeof found) == 0;
    }
    printf("the same bits: %s\n", same ? "yes" : "no");
    return same ? 0 : 1;
}
