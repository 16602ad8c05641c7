/* A policy step in parts: GRPO's clipped objective on two micro-batches, with the loss of the whole. */
#include <lockstep.h>
#include <stdio.h>
#include <stdlib.h>

enum { SEQUENCES = 6, LENGTH = 100, TOKENS = SEQUENCES * LENGTH };
static float trainer[TOKENS], current[TOKENS], gradient[TOKENS];
static double advantages[SEQUENCES] = {1, -1, 0.5, -0.5, 2, -2};

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

/* The sequences from `first` on as a batch, in tensors over our arrays. */
typedef struct {
    int64_t shape[2];
    lockstep_tensor current, trainer, advantages, gradient;
    lockstep_batch batch;
} part;

static void take(part *p, int64_t first, int64_t count) {
    const lockstep_batch batch = LOCKSTEP_BATCH_INIT;
    p->shape[0] = count;
    p->shape[1] = LENGTH;
    p->current = lockstep_tensor_of(current + first * LENGTH, LOCKSTEP_FLOAT32, 2, p->shape);
    p->trainer = lockstep_tensor_of(trainer + first * LENGTH, LOCKSTEP_FLOAT32, 2, p->shape);
    p->gradient = lockstep_tensor_of(gradient + first * LENGTH, LOCKSTEP_FLOAT32, 2, p->shape);
    p->advantages = lockstep_tensor_of(advantages + first, LOCKSTEP_FLOAT64, 1, p->shape);
    p->batch = batch;
    p->batch.current_log_probs = &p->current;
    p->batch.trainer_log_probs = &p->trainer;
    p->batch.advantages = &p->advantages;
}

int main(void) {
    for (uint32_t i = 0; i < TOKENS; i++) {
        trainer[i] = value(i) - 0.5f;
        current[i] = trainer[i] + value(TOKENS + i);
    }
    lockstep_objective_options options = LOCKSTEP_OBJECTIVE_OPTIONS_INIT;
    options.term = LOCKSTEP_TERM_CLIP;
    options.high = 1.28;
    options.aggregation = LOCKSTEP_SEQ_MEAN_TOKEN_MEAN;

    part parts[2], all;
    take(&parts[0], 0, 4);
    take(&parts[1], 4, 2);
    take(&all, 0, SEQUENCES);
    lockstep_objective *objective = NULL;
    check(lockstep_objective_create(&objective, &options));
    for (int i = 0; i < 2; i++) /* first what the denominators count, ... */
        check(lockstep_objective_count(objective, &parts[i].batch));
    for (int i = 0; i < 2; i++) { /* ... then loss and gradient */
        check(lockstep_objective_evaluate(objective, &parts[i].gradient, NULL, &parts[i].batch));
        const float *d = parts[i].gradient.data;
        printf("d loss / d log-prob of %d sequences: %.9f, %.9f\n", (int)parts[i].shape[0], d[0], d[1]);
    }

    lockstep_objective_report report, whole;
    report.struct_size = whole.struct_size = sizeof report;
    check(lockstep_objective_read(&report, objective));
    lockstep_objective_destroy(objective);
    printf("loss %.9f over %d tokens of %d sequences\n", report.loss, (int)report.tokens, (int)report.sequences);
    printf("ratio %.4f to %.4f, mean %.4f\n", report.ratio_min, report.ratio_max, report.ratio_mean);
    printf("clipped %.1f %% below, %.1f %% above\n", 100 * report.clip_low, 100 * report.clip_high);
    check(lockstep_objective_loss(&whole, NULL, NULL, &all.batch, &options));
    printf("the whole at once: %s\n", whole.loss == report.loss ? "the same bits" : "another loss");
    return 0;
}
