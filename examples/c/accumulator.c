/* A log on many machines: each worker adds up its sequences and sends some bytes; merged, they say what one
 * pass over the whole log says, bit for bit, and what made the mismatch. Here the trainer's log-probs were
 * stored in BF16. */
#include <lockstep.h>
#include <stdio.h>
#include <stdlib.h>

enum { SEQUENCES = 40, LENGTH = 500 };

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

/* What an accumulator holds, as bytes: to be sent, or kept. Equal content gives equal bytes. */
static unsigned char *save(const lockstep_mismatch_accumulator *accumulator, size_t *size) {
    check(lockstep_mismatch_accumulator_save(NULL, size, accumulator));
    unsigned char *bytes = malloc(*size);
    if (bytes == NULL) exit(1);
    check(lockstep_mismatch_accumulator_save(bytes, size, accumulator));
    return bytes;
}

/* A worker's share of the log, every so-many-th sequence, added as it is read. */
static unsigned char *work(int worker, int workers, size_t *size) {
    int64_t shape[1] = {LENGTH}, one[1] = {1}, id;
    float rollout[LENGTH];
    uint16_t trainer[LENGTH];
    lockstep_tensor mu = lockstep_tensor_of(rollout, LOCKSTEP_FLOAT32, 1, shape);
    lockstep_tensor pi = lockstep_tensor_of(trainer, LOCKSTEP_BFLOAT16, 1, shape);
    lockstep_tensor ids = lockstep_tensor_of(&id, LOCKSTEP_INT64, 1, one);
    lockstep_mismatch_accumulator *accumulator;
    check(lockstep_mismatch_accumulator_create(&accumulator, NULL));
    for (id = worker; id < SEQUENCES; id += workers) {
        for (int t = 0; t < LENGTH; t++) {
            float half = value((uint32_t)(id * LENGTH + t)) + 0.5f;
            rollout[t] = -8 * half * half;
        }
        check(lockstep_convert(&pi, NULL, &mu, NULL));
        check(lockstep_mismatch_accumulator_update(accumulator, &pi, &mu, NULL, NULL, &ids, NULL));
    }
    unsigned char *bytes = save(accumulator, size);
    lockstep_mismatch_accumulator_destroy(accumulator);
    return bytes;
}

int main(void) {
    static const int cuts[3] = {1, 2, 7};
    lockstep_mismatch_accumulator *total = NULL;
    for (int cut = 0; cut < 3; cut++) {
        lockstep_mismatch_accumulator_destroy(total);
        check(lockstep_mismatch_accumulator_create(&total, NULL));
        for (int worker = cuts[cut] - 1; worker >= 0; worker--) { /* in any order */
            lockstep_mismatch_accumulator *part;
            size_t size;
            unsigned char *sent = work(worker, cuts[cut], &size);
            check(lockstep_mismatch_accumulator_load(&part, sent, size));
            check(lockstep_mismatch_accumulator_merge(total, part));
            lockstep_mismatch_accumulator_destroy(part);
            free(sent);
        }
        lockstep_mismatch found;
        uint32_t hash = 2166136261u; /* FNV-1a of all that the accumulator holds */
        size_t size;
        unsigned char *bytes = save(total, &size);
        for (size_t i = 0; i < size; i++) hash = (hash ^ bytes[i]) * 16777619u;
        free(bytes);
        found.struct_size = sizeof found;
        check(lockstep_mismatch_accumulator_report(&found, total));
        printf("%d worker%s %lld tokens, k3 (%.4f +- %.4f)e-5, hash %08x\n", cuts[cut], cuts[cut] == 1 ? ": " : "s:",
               (long long)found.tokens, 1e5 * found.k3.value, 1e5 * found.k3.standard_error, (unsigned)hash);
    }
    lockstep_cause_finding causes[LOCKSTEP_CAUSE_COUNT];
    check(lockstep_mismatch_accumulator_causes(causes, NULL, total));
    printf("cause: %s, %.0f %% sure, explains %.0f %%\n",
           causes[0].cause == LOCKSTEP_CAUSE_STORED_IN_16_BITS ? "stored in 16 bits" : "another",
           100 * causes[0].confidence, 100 * causes[0].score);
    lockstep_mismatch_accumulator_destroy(total);
    return 0;
}
