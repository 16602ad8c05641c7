/* A row's bits do not depend on its batch: 64 tokens are scored at once, one by one, and in between. */
#include <inttypes.h>
#include <lockstep.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 64, H = 576, VOCAB = 4096 };
static float hidden[TOKENS * H], weight[VOCAB * H];
static int32_t targets[TOKENS];

/* Some value in [-0.5, 0.5), the same in every language. */
static float value(uint32_t i) {
    uint32_t x = i * 2654435761u;
    x = (x ^ x >> 15) * 2246822519u;
    return (float)((x ^ x >> 13) >> 8) * 0x1p-24f - 0.5f;
}

/* The log-probs of all tokens, `batch` tokens in a call. */
static void score(float *log_probs, int batch) {
    for (int first = 0; first < TOKENS; first += batch) {
        int count = first + batch <= TOKENS ? batch : TOKENS - first;
        int64_t x_shape[2] = {count, H}, w_shape[2] = {VOCAB, H};
        lockstep_tensor x = lockstep_tensor_of(hidden + first * H, LOCKSTEP_FLOAT32, 2, x_shape);
        lockstep_tensor w = lockstep_tensor_of(weight, LOCKSTEP_FLOAT32, 2, w_shape);
        lockstep_tensor y = lockstep_tensor_of(targets + first, LOCKSTEP_INT32, 1, x_shape);
        lockstep_tensor out = lockstep_tensor_of(log_probs + first, LOCKSTEP_FLOAT32, 1, x_shape);
        if (lockstep_linear_log_probs(&out, NULL, NULL, &x, &w, NULL, &y, NULL) != LOCKSTEP_OK) {
            fprintf(stderr, "%s\n", lockstep_last_error());
            exit(1);
        }
    }
}

int main(void) {
    static const int batches[] = {64, 63, 8, 2, 1};
    float whole[TOKENS], found[TOKENS];
    int wrong = 0;
    for (uint32_t i = 0; i < TOKENS * H; i++) hidden[i] = value(i);
    for (uint32_t i = 0; i < VOCAB * H; i++) weight[i] = value(i + 1000003);
    for (int i = 0; i < TOKENS; i++) targets[i] = i * 61 % VOCAB;
    score(whole, TOKENS);
    for (int i = 0; i < 5; i++) {
        uint32_t bits;
        int same = 0;
        score(found, batches[i]);
        for (int t = 0; t < TOKENS; t++) same += memcmp(&found[t], &whole[t], sizeof found[t]) == 0;
        memcpy(&bits, &found[17], sizeof bits);
        printf("in batches of %2d: %d of 64 tokens have the same bits (token 17: %.6f, %08" PRIx32 ")\n", batches[i],
               same, found[17], bits);
        wrong += TOKENS - same;
    }
    return wrong != 0;
}
