/* Section 4 of the header: early warning. */
#include "arguments.h"

#include <math.h>
#include <stdlib.h>

typedef struct {
    growable options;
    lockstep_mismatch mismatch;
    int64_t step;
    lockstep_monitor_statistic statistic;
    uint32_t alarm_size;
    int null_output, null_monitor, null_input;
    size_t capacity;
    struct {
        lockstep_monitor *monitor;
        lockstep_monitor_alarm alarm;
        lockstep_monitor_reading reading;
        unsigned char bytes[1024];
        size_t size;
    } outputs;
} fixture;

/* Statistics of a step whose KL is `k3`, as small noise has them, off by up to 5 % from step to step. */
static lockstep_mismatch mismatch_of(int64_t step, double k3) {
    lockstep_mismatch m;
    memset(&m, 0, sizeof m);
    k3 *= 0.95 + 0.1 * (double)(step * 7919 % 101) / 100;
    m.struct_size = sizeof m;
    m.tokens = 10000;
    m.k3.value = k3;
    m.mean_ratio.value = 1;
    m.chi_square.value = 2 * k3;
    m.ess = 1 / (1 + 2 * k3);
    m.max_abs_log_ratio = 10 * sqrt(k3);
    return m;
}

static void fixture_init(fixture *f) {
    static const lockstep_monitor_options options = LOCKSTEP_MONITOR_OPTIONS_INIT;
    memset(f, 0, sizeof *f);
    memcpy(f->options.bytes, &options, sizeof options);
    f->mismatch = mismatch_of(1, 1e-3);
    f->alarm_size = sizeof f->outputs.alarm;
    f->step = 1;
    f->capacity = sizeof f->outputs.bytes;
}

static lockstep_monitor_options *options_of(fixture *f) {
    return (lockstep_monitor_options *)(void *)&f->options;
}

static lockstep_status create(fixture *f) {
    lockstep_status status =
        lockstep_monitor_create(f->null_output ? NULL : &f->outputs.monitor, options_of(f));
    if (status == LOCKSTEP_OK) lockstep_monitor_destroy(f->outputs.monitor);
    return status;
}

/* Calls on a fresh monitor that has taken one step. */
static lockstep_status with_monitor(fixture *f, lockstep_status (*call)(fixture *, lockstep_monitor *)) {
    lockstep_monitor *monitor = NULL;
    lockstep_monitor_alarm alarm;
    lockstep_mismatch first = mismatch_of(0, 1e-3);
    alarm.struct_size = sizeof alarm;
    CHECK_OK(lockstep_monitor_create(&monitor, NULL));
    CHECK_OK(lockstep_monitor_update(&alarm, monitor, 0, &first));
    lockstep_status status = call(f, f->null_monitor ? NULL : monitor);
    lockstep_monitor_destroy(monitor); /* must not clear the message */
    return status;
}

static lockstep_status update_with(fixture *f, lockstep_monitor *monitor) {
    lockstep_monitor_alarm *alarm = &f->outputs.alarm;
    alarm->struct_size = f->alarm_size;
    lockstep_status status = lockstep_monitor_update(f->null_output ? NULL : alarm, monitor, f->step,
                                                     f->null_input ? NULL : &f->mismatch);
    if (status != LOCKSTEP_OK) memset(&alarm->struct_size, TEST_CANARY, sizeof alarm->struct_size);
    return status;
}

static lockstep_status read_with(fixture *f, lockstep_monitor *monitor) {
    return lockstep_monitor_read(f->null_output ? NULL : &f->outputs.reading, monitor, f->statistic);
}

static lockstep_status save_with(fixture *f, lockstep_monitor *monitor) {
    size_t size = f->capacity;
    lockstep_status status = lockstep_monitor_save(f->null_input ? NULL : f->outputs.bytes,
                                                   f->null_output ? NULL : &size, monitor);
    if (status == LOCKSTEP_OK) f->outputs.size = size;
    else CHECK(size == f->capacity);
    return status;
}

static lockstep_status reset_with(fixture *f, lockstep_monitor *monitor) {
    (void)f;
    return lockstep_monitor_reset(monitor);
}

static lockstep_status update(fixture *f) { return with_monitor(f, update_with); }
static lockstep_status read_one(fixture *f) { return with_monitor(f, read_with); }
static lockstep_status save(fixture *f) { return with_monitor(f, save_with); }
static lockstep_status reset(fixture *f) { return with_monitor(f, reset_with); }

static lockstep_status load(fixture *f) {
    unsigned char bytes[1024];
    size_t size = sizeof bytes;
    lockstep_monitor *monitor = NULL;
    CHECK_OK(lockstep_monitor_create(&monitor, NULL));
    CHECK_OK(lockstep_monitor_save(bytes, &size, monitor));
    lockstep_monitor_destroy(monitor);
    bytes[f->step % 1024] ^= f->statistic != 0;
    if (f->capacity < size || f->capacity == SIZE_MAX) size = f->capacity;
    lockstep_status status = lockstep_monitor_load(f->null_output ? NULL : &f->outputs.monitor,
                                                   f->null_input ? NULL : bytes, size);
    if (status == LOCKSTEP_OK) lockstep_monitor_destroy(f->outputs.monitor);
    return status;
}

static void bad_input_is_refused(void) {
    const uint32_t size = sizeof(lockstep_monitor_options);
    ACCEPTED(create, (void)0);
    CHECK(lockstep_monitor_create(NULL, NULL) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    REFUSED(create, INVALID_ARGUMENT, "monitor", f.null_output = 1);
    REFUSED(create, INVALID_ARGUMENT, "struct_size", f.options.struct_size = 0);
    REFUSED(create, INVALID_ARGUMENT, "struct_size", f.options.struct_size = 8);
    REFUSED(create, INVALID_ARGUMENT, "struct_size", f.options.struct_size = UINT32_MAX);
    REFUSED(create, INVALID_ARGUMENT, "options", f.options.struct_size = size + 8, f.options.bytes[size + 7] = 1);
    ACCEPTED(create, f.options.struct_size = size + 8);
    REFUSED(create, INVALID_ARGUMENT, "learning_steps", options_of(&f)->learning_steps = 19);
    REFUSED(create, INVALID_ARGUMENT, "learning_steps", options_of(&f)->learning_steps = INT32_MIN);
    REFUSED(create, INVALID_ARGUMENT, "learning_steps", options_of(&f)->learning_steps = INT32_MAX);
    REFUSED(create, INVALID_ARGUMENT, "false_alarms", options_of(&f)->false_alarms_per_1000 = 0);
    REFUSED(create, INVALID_ARGUMENT, "false_alarms", options_of(&f)->false_alarms_per_1000 = 10.5);
    REFUSED(create, INVALID_ARGUMENT, "false_alarms", options_of(&f)->false_alarms_per_1000 = NAN);

    ACCEPTED(update, (void)0);
    ACCEPTED(update, f.step = INT64_MAX);
    ACCEPTED(update, f.mismatch.struct_size += 8);
    ACCEPTED(update, f.mismatch.k3.value = INFINITY, f.mismatch.ess = NAN);
    ACCEPTED(update, f.mismatch.tokens = INT64_MAX);
    ACCEPTED(update, f.mismatch.tokens = 0, f.mismatch.k3.value = NAN, f.mismatch.max_abs_log_ratio = NAN);
    REFUSED(update, INVALID_ARGUMENT, "alarm", f.null_output = 1);
    REFUSED(update, INVALID_ARGUMENT, "alarm", f.alarm_size = 0);
    REFUSED(update, INVALID_ARGUMENT, "alarm", f.alarm_size = sizeof f.outputs.alarm - 1);
    REFUSED(update, INVALID_ARGUMENT, "monitor", f.null_monitor = 1);
    REFUSED(update, INVALID_ARGUMENT, "mismatch", f.null_input = 1);
    REFUSED(update, INVALID_ARGUMENT, "mismatch", f.mismatch.struct_size = 0);
    REFUSED(update, INVALID_ARGUMENT, "step is 0", f.step = 0);
    REFUSED(update, INVALID_ARGUMENT, "step is", f.step = INT64_MIN);
    REFUSED(update, INVALID_ARGUMENT, "tokens", f.mismatch.tokens = -1);
    REFUSED(update, NON_FINITE, "k3", f.mismatch.k3.value = NAN);
    REFUSED(update, NON_FINITE, "max_abs_log_ratio", f.mismatch.max_abs_log_ratio = INFINITY);
    REFUSED(update, INVALID_ARGUMENT, "k3", f.mismatch.k3.value = -1e-9);

    ACCEPTED(read_one, f.statistic = LOCKSTEP_MONITOR_MAX_ABS_LOG_RATIO);
    REFUSED(read_one, INVALID_ARGUMENT, "reading", f.null_output = 1);
    REFUSED(read_one, INVALID_ARGUMENT, "monitor", f.null_monitor = 1);
    REFUSED(read_one, INVALID_ARGUMENT, "statistic", f.statistic = 4);
    REFUSED(read_one, INVALID_ARGUMENT, "statistic", f.statistic = -1);

    ACCEPTED(reset, (void)0);
    REFUSED(reset, INVALID_ARGUMENT, "monitor", f.null_monitor = 1);
    lockstep_monitor_destroy(NULL);

    ACCEPTED(save, (void)0);
    ACCEPTED(save, f.null_input = 1);
    REFUSED(save, INVALID_ARGUMENT, "size is 16", f.capacity = 16);
    REFUSED(save, INVALID_ARGUMENT, "size is 0", f.capacity = 0);
    REFUSED(save, INVALID_ARGUMENT, "size", f.null_output = 1);
    REFUSED(save, INVALID_ARGUMENT, "monitor", f.null_monitor = 1);

    ACCEPTED(load, (void)0);
    REFUSED(load, INVALID_ARGUMENT, "monitor", f.null_output = 1);
    REFUSED(load, INVALID_ARGUMENT, "bytes", f.null_input = 1);
    REFUSED(load, INVALID_ARGUMENT, "size", f.capacity = SIZE_MAX);
    REFUSED(load, BAD_DATA, "bytes", f.capacity = 0);
    REFUSED(load, BAD_DATA, "bytes", f.capacity = 40);
    REFUSED(load, BAD_DATA, "saved monitor", f.statistic = 1);
    REFUSED(load, BAD_DATA, "version 0", f.statistic = 1, f.step = 8);
    REFUSED(load, UNSUPPORTED, "version", f.statistic = 1, f.step = 9);
    REFUSED(load, BAD_DATA, "damaged", f.statistic = 1, f.step = 40);
}

static int64_t first_alarm(lockstep_monitor *monitor, int64_t from, int64_t to, double (*k3)(int64_t)) {
    for (int64_t t = from; t < to; t++) {
        lockstep_mismatch m = mismatch_of(t, k3(t));
        lockstep_monitor_alarm alarm;
        alarm.struct_size = sizeof alarm;
        CHECK_OK(lockstep_monitor_update(&alarm, monitor, t, &m));
        CHECK(alarm.step == t && (alarm.level == LOCKSTEP_MONITOR_LEARNING) == (t < 39));
        if (alarm.level == LOCKSTEP_MONITOR_ALARM) return t;
    }
    return -1;
}

static double flat(int64_t t) { (void)t; return 1e-3; }
static double doubled(int64_t t) { return t < 100 ? 1e-3 : 2e-3; }

static void growth_is_an_alarm_and_noise_is_not(void) {
    lockstep_monitor *monitor = NULL;
    CHECK_OK(lockstep_monitor_create(&monitor, NULL));
    CHECK(first_alarm(monitor, 0, 1000, flat) == -1);
    lockstep_monitor_destroy(monitor);
    CHECK_OK(lockstep_monitor_create(&monitor, NULL));
    int64_t at = first_alarm(monitor, 0, 1000, doubled);
    CHECK(at > 100 && at < 112);
    lockstep_monitor_reading reading;
    CHECK_OK(lockstep_monitor_read(&reading, monitor, LOCKSTEP_MONITOR_K3));
    CHECK(reading.since_step == 100 && reading.score > 0 && fabs(reading.floor - 1e-3) < 5e-5);
    lockstep_monitor_destroy(monitor);
}

static void a_saved_monitor_goes_on(void) {
    lockstep_monitor *whole = NULL, *restored = NULL;
    CHECK_OK(lockstep_monitor_create(&whole, NULL));
    for (int64_t t = 0; t < 110; t++) {
        size_t size = 0;
        CHECK_OK(lockstep_monitor_save(NULL, &size, whole));
        void *bytes = malloc(size);
        size_t written = size;
        CHECK_OK(lockstep_monitor_save(bytes, &written, whole));
        CHECK(written == size);
        lockstep_monitor_destroy(restored);
        CHECK_OK(lockstep_monitor_load(&restored, bytes, size));
        free(bytes);
        lockstep_monitor_alarm a, b;
        memset(&a, 0, sizeof a);
        memset(&b, 0, sizeof b);
        a.struct_size = b.struct_size = sizeof a;
        lockstep_mismatch m = mismatch_of(t, doubled(t));
        CHECK_OK(lockstep_monitor_update(&a, whole, t, &m));
        CHECK_OK(lockstep_monitor_update(&b, restored, t, &m));
        CHECK(memcmp(&a, &b, sizeof a) == 0);
    }
    lockstep_monitor_destroy(whole);
    lockstep_monitor_destroy(restored);
}

int main(void) {
    TEST(bad_input_is_refused);
    TEST(growth_is_an_alarm_and_noise_is_not);
    TEST(a_saved_monitor_goes_on);
    return test_report();
}
