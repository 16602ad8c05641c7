/* How far apart are two engines? Here the trainer's log-probs are the rollout's, stored in 16 bits:
 * what BF16 costs against FP16, before any arithmetic differs. */
#include <lockstep.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { SEQUENCES = 8, LENGTH = 500, TOKENS = SEQUENCES * LENGTH };
static float rollout[TOKENS];
static uint16_t trainer[TOKENS];

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

static lockstep_mismatch measure(int32_t format) {
    int64_t shape[2] = {SEQUENCES, LENGTH};
    lockstep_tensor mu = lockstep_tensor_of(rollout, LOCKSTEP_FLOAT32, 2, shape);
    lockstep_tensor pi = lockstep_tensor_of(trainer, format, 2, shape);
    lockstep_mismatch mismatch;
    mismatch.struct_size = sizeof mismatch;
    check(lockstep_convert(&pi, NULL, &mu, NULL));
    check(lockstep_mismatch_measure(&mismatch, &pi, &mu, NULL, NULL, NULL));
    return mismatch;
}

static void print(const char *name, double bf16, double fp16) { printf("%-32s %12.4g %12.4g\n", name, bf16, fp16); }

int main(void) {
    for (uint32_t i = 0; i < TOKENS; i++) rollout[i] = -8 * (value(i) + 0.5f) * (value(i) + 0.5f);
    const lockstep_mismatch b = measure(LOCKSTEP_BFLOAT16), f = measure(LOCKSTEP_FLOAT16);
    printf("%lld tokens in %lld sequences %15s %12s\n", (long long)b.tokens, (long long)b.sequences, "bf16", "fp16");
    print("mean |log ratio|", b.mean_abs_log_ratio.value, f.mean_abs_log_ratio.value);
    print("max |log ratio|", b.max_abs_log_ratio, f.max_abs_log_ratio);
    print("KL(rollout || trainer), k3", b.k3.value, f.k3.value);
    print("tokens that differ", b.share_differing.value, f.share_differing.value);
    print("effective sample size, sequences", b.sequence_ess, f.sequence_ess);
    printf("FP16 is %.1f times nearer a token, %.0f times in KL\n",
           b.mean_abs_log_ratio.value / f.mean_abs_log_ratio.value, b.k3.value / f.k3.value);
    return 0;
}
