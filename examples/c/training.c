/* Steps of FP16 training, by hand: a scaled backward pass, the scaler's verdict, clipping, AdamW. The first loss scale is
 * too large on purpose. Gradients are exact sums: how a batch is cut leaves no trace. usage: training FOLDER */
#include <lockstep.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SEQUENCES = 8, PROMPT = 3, RESPONSE = 32, LENGTH = PROMPT + RESPONSE };
static int32_t tokens[SEQUENCES * LENGTH];
static float log_probs[SEQUENCES * LENGTH];
static double d_log_probs[SEQUENCES * LENGTH]; /* of the loss, the mean of -ln p over the responses */

static void must(lockstep_status status) {
    if (status == LOCKSTEP_OK) return;
    fprintf(stderr, "%s: %s\n", lockstep_status_name(status), lockstep_last_error());
    exit(1);
}

static void demonstrations(void) {
    lockstep_task *task;
    must(lockstep_task_create(&task, "chain", NULL));
    for (int i = 0; i < SEQUENCES; i++) {
        int32_t *sequence = tokens + i * LENGTH;
        size_t room = PROMPT, rest = RESPONSE;
        must(lockstep_task_prompt(sequence, &room, task, i, 1));
        must(lockstep_task_demonstration(sequence + PROMPT, &rest, task, i, 1, 0.0));
        for (int t = PROMPT; t < LENGTH; t++) d_log_probs[i * LENGTH + t] = -1.0 / (SEQUENCES * RESPONSE);
    }
    lockstep_task_destroy(task);
}

/* Adds the gradients of some sequences. */
static void pass(lockstep_trainer *trainer, int first, int count, double scale) {
    int64_t offsets[SEQUENCES + 1], shape[1] = {count * LENGTH}, ends[1] = {count + 1};
    for (int i = 0; i <= count; i++) offsets[i] = i * LENGTH;
    lockstep_tensor ids = lockstep_tensor_of(tokens + first * LENGTH, LOCKSTEP_INT32, 1, shape);
    lockstep_tensor found = lockstep_tensor_of(log_probs + first * LENGTH, LOCKSTEP_FLOAT32, 1, shape);
    lockstep_tensor wanted = lockstep_tensor_of(d_log_probs + first * LENGTH, LOCKSTEP_FLOAT64, 1, shape);
    lockstep_tensor bounds = lockstep_tensor_of(offsets, LOCKSTEP_INT64, 1, ends);
    must(lockstep_trainer_accumulate(NULL, &found, NULL, trainer, &ids, &bounds, &wanted, NULL, scale, 1.0));
}

int main(int count, char **arguments) {
    if (count != 2) return fprintf(stderr, "usage: training FOLDER\n"), 2;
    lockstep_recipe recipe = {.struct_size = sizeof recipe};
    lockstep_trainer *trainer;
    size_t size;
    float *values;
    must(lockstep_recipe_named(&recipe, "fp16"));
    must(lockstep_trainer_create(&trainer, arguments[1], &recipe, NULL));
    must(lockstep_trainer_masters(&values, &size, trainer));
    float *buffers = calloc(4 * size, sizeof *buffers);
    if (buffers == NULL) return 1;
    int64_t shape[1] = {(int64_t)size};
    lockstep_tensor gradients = lockstep_tensor_of(buffers, LOCKSTEP_FLOAT32, 1, shape);
    lockstep_tensor first = lockstep_tensor_of(buffers + size, LOCKSTEP_FLOAT32, 1, shape);
    lockstep_tensor second = lockstep_tensor_of(buffers + 2 * size, LOCKSTEP_FLOAT32, 1, shape);
    demonstrations();

    pass(trainer, 0, SEQUENCES, 1024);
    must(lockstep_trainer_gradients(&gradients, trainer));
    memcpy(buffers + 3 * size, buffers, size * sizeof *buffers);
    must(lockstep_trainer_clear(trainer));
    pass(trainer, 5, 3, 1024);
    pass(trainer, 0, 5, 1024);
    must(lockstep_trainer_gradients(&gradients, trainer));
    must(lockstep_trainer_clear(trainer));
    printf("gradients of one batch and of two parts: %s\n",
           memcmp(buffers, buffers + 3 * size, size * sizeof *buffers) == 0 ? "the same bits" : "different");

    lockstep_scaler_options settings = {.struct_size = sizeof settings};
    lockstep_scaler_report verdict = {.struct_size = sizeof verdict};
    lockstep_gradient_options clipping = LOCKSTEP_GRADIENT_OPTIONS_INIT;
    lockstep_adamw_options adamw = LOCKSTEP_ADAMW_OPTIONS_INIT;
    lockstep_scaler *scaler;
    must(lockstep_scaler_options_named(&settings, "torch"));
    settings.initial_scale = 0x1p25;
    must(lockstep_scaler_create(&scaler, &settings));
    must(lockstep_scaler_read(&verdict, scaler));
    clipping.max_norm = 1.0;
    adamw.weight_decay = 0.0;
    for (int step = 1; step <= 6; step++) {
        lockstep_gradient_norm norm;
        double loss = 0.0, scale = verdict.scale;
        pass(trainer, 0, SEQUENCES, scale);
        for (int t = 0; t < SEQUENCES * LENGTH; t++) loss += d_log_probs[t] * log_probs[t];
        must(lockstep_trainer_gradients(&gradients, trainer)); /* the scale is out of them already */
        must(lockstep_trainer_clear(trainer));
        must(lockstep_gradients_measure(&norm, &gradients, 1, &clipping));
        must(lockstep_scaler_update(&verdict, scaler, norm.non_finite > 0));
        printf("step %d: loss %.6f, scale %.0f, ", step, loss, scale);
        if (verdict.skip) {
            printf("skipped\n");
            continue;
        }
        printf("gradient norm %.6f\n", norm.norm);
        must(lockstep_trainer_masters(&values, NULL, trainer));
        lockstep_tensor masters = lockstep_tensor_of(values, LOCKSTEP_FLOAT32, 1, shape);
        adamw.gradient_scale = norm.factor;
        must(lockstep_adamw_step(&masters, &first, &second, NULL, &gradients, &adamw));
        adamw.step++; /* of updates: one that was skipped does not count */
    }
    uint64_t sum = 0;
    for (size_t i = 0; i < size; i++) {
        uint32_t bits;
        memcpy(&bits, values + i, sizeof bits);
        sum += bits;
    }
    printf("%zu masters, the sum of their bit patterns is %llu\n", size, (unsigned long long)sum);
    free(buffers);
    lockstep_scaler_destroy(scaler);
    lockstep_trainer_destroy(trainer);
    return 0;
}
