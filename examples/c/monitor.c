/* Early warning: a training loop whose two engines begin to drift apart at step 80, and one call a step
 * that says so. */
#include <lockstep.h>
#include <stdio.h>
#include <stdlib.h>

enum { TOKENS = 4000, STEPS = 200, DRIFTS_FROM = 80 };
static const char *const levels[] = {"learning", "ok", "watch", "alarm"};
static const char *const statistics[] = {"k3", "chi_square", "ess_loss", "max_abs_log_ratio"};
static float rollout[TOKENS], trainer[TOKENS];

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

/* What your trainer has at a step: both engines' log-probs of the tokens that were sampled. */
static void sample(int step) {
    float noise = 0.125f * (float)(1 + 0.03125 * (step > DRIFTS_FROM ? step - DRIFTS_FROM : 0));
    for (int t = 0; t < TOKENS; t++) {
        uint32_t i = (uint32_t)(step * TOKENS + t);
        float half = value(i) + 0.5f;
        rollout[t] = -8 * half * half;
        trainer[t] = rollout[t] + noise * half * value(i + 1000000);
    }
}

int main(void) {
    int64_t shape[1] = {TOKENS};
    lockstep_tensor mu = lockstep_tensor_of(rollout, LOCKSTEP_FLOAT32, 1, shape);
    lockstep_tensor pi = lockstep_tensor_of(trainer, LOCKSTEP_FLOAT32, 1, shape);
    lockstep_mismatch found;
    lockstep_monitor_alarm alarm;
    lockstep_monitor_level last = -1;
    lockstep_monitor *monitor;
    found.struct_size = sizeof found;
    alarm.struct_size = sizeof alarm;
    check(lockstep_monitor_create(&monitor, NULL));
    for (int step = 0; step < STEPS; step++) {
        sample(step);
        check(lockstep_mismatch_measure(&found, &pi, &mu, NULL, NULL, NULL));
        check(lockstep_monitor_update(&alarm, monitor, step, &found));
        if (alarm.level != last) printf("step %3d: %s\n", step, levels[alarm.level]);
        last = alarm.level;
        if (last == LOCKSTEP_MONITOR_ALARM) break; /* look before the reward falls */
    }
    printf("%s is %.4g, its floor %.4g, growing since step %lld\n", statistics[alarm.statistic], alarm.value,
           alarm.floor, (long long)alarm.since_step);
    printf("score %.1f, an alarm from %.1f on\n", alarm.score, alarm.threshold);
    lockstep_monitor_destroy(monitor);
    return 0;
}
