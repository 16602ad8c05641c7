/* A loss scaler is a state machine: told of each step whether a gradient overflowed, it says whether to skip the step,
 * and moves the scale as its original does. Saved in the middle it goes on as if nothing had happened. */
#include <lockstep.h>
#include <stdio.h>
#include <stdlib.h>

enum { STEPS = 12 };
static const int overflows[STEPS] = {1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0};

static void must(lockstep_status status) {
    if (status == LOCKSTEP_OK) return;
    fprintf(stderr, "%s: %s\n", lockstep_status_name(status), lockstep_last_error());
    exit(1);
}

/* Saves a scaler, as with a checkpoint, and goes on with what was saved. */
static lockstep_scaler *reloaded(lockstep_scaler *scaler) {
    size_t size;
    must(lockstep_scaler_save(NULL, &size, scaler));
    void *bytes = malloc(size);
    if (bytes == NULL) exit(1);
    must(lockstep_scaler_save(bytes, &size, scaler));
    lockstep_scaler_destroy(scaler);
    must(lockstep_scaler_load(&scaler, bytes, size));
    free(bytes);
    return scaler;
}

int main(void) {
    static const char *const names[3] = {"torch", "deepspeed", "megatron"};
    for (int i = 0; i < 3; i++) {
        lockstep_scaler_options options = {.struct_size = sizeof options};
        lockstep_scaler_report report = {.struct_size = sizeof report};
        lockstep_scaler *scaler;
        must(lockstep_scaler_options_named(&options, names[i]));
        options.initial_scale = 1024;
        options.growth_interval = 3;
        must(lockstep_scaler_create(&scaler, &options));
        printf("%s:", names[i]);
        for (int step = 0; step < STEPS; step++) {
            if (step == STEPS / 2) scaler = reloaded(scaler);
            must(lockstep_scaler_update(&report, scaler, overflows[step]));
            printf(" %.0f%s", report.scale, report.skip ? " (skip)" : "");
        }
        printf("; %d of %d skipped, %d growths\n", (int)report.skipped, (int)report.steps, (int)report.growths);
        lockstep_scaler_destroy(scaler);
    }

    /* What scalers would have done with the largest gradients of a recorded run. */
    double maxima[8] = {0.2, 0.3, 1.5, 0.1, 0.1, 40.0, 0.2, 0.1}, scales[8];
    int64_t shape[1] = {8};
    lockstep_tensor recorded = lockstep_tensor_of(maxima, LOCKSTEP_FLOAT64, 1, shape);
    lockstep_tensor used = lockstep_tensor_of(scales, LOCKSTEP_FLOAT64, 1, shape);
    lockstep_scaler_report report = {.struct_size = sizeof report};
    must(lockstep_scaler_replay(&report, &used, NULL, &recorded, 65520, NULL));
    printf("replayed:");
    for (int step = 0; step < 8; step++) printf(" %.0f", scales[step]);
    printf("; %d skipped, the last is step %d\n", (int)report.skipped, (int)report.last_skipped);
    return 0;
}
