/* Bytes of a saved monitor, and steps after them: refused, or a monitor that saves itself as the same bytes, and goes on. Bytes
 * that are too few for one are options. */
#include "fuzz.h"

/* FNV-1a over the words, of which the third is the size. What stands behind the size, with what is left over after whole
 * words, are the steps. */
static size_t saved_size(const uint8_t *data, size_t size) {
    if (size < 32) return size;
    uint64_t told = fuzz_get(data + 16, 8);
    return told >= 32 && told <= size ? (size_t)told : size;
}

size_t fuzz_repair(uint8_t *data, size_t size) {
    if (size < 32) return size;
    size_t whole = saved_size(data, size) / 8 * 8;
    uint64_t sum = 0xcbf29ce484222325u;
    fuzz_put(data + 16, whole, 8);
    for (size_t i = 0; i + 8 < whole; i += 8) sum = (sum ^ fuzz_get(data + i, 8)) * 0x100000001b3u;
    fuzz_put(data + whole - 8, sum, 8);
    return size;
}

static void read_all(const lockstep_monitor *monitor) {
    for (lockstep_monitor_statistic i = LOCKSTEP_MONITOR_K3; i <= LOCKSTEP_MONITOR_MAX_ABS_LOG_RATIO; i++) {
        lockstep_monitor_reading reading;
        FUZZ_CHECK(lockstep_monitor_read(&reading, monitor, i) == LOCKSTEP_OK);
        FUZZ_CHECK(reading.score >= 0 && reading.score <= 50);
        FUZZ_CHECK((reading.since_step == -1) == (reading.score == 0) || reading.since_step < 0);
    }
}

static void check_saved(const lockstep_monitor *monitor, const uint8_t *wanted, size_t wanted_size) {
    uint8_t bytes[65536];
    size_t size = sizeof bytes;
    lockstep_monitor *again = NULL;
    FUZZ_CHECK(lockstep_monitor_save(bytes, &size, monitor) == LOCKSTEP_OK);
    if (wanted) FUZZ_CHECK(size == wanted_size && memcmp(bytes, wanted, size) == 0);
    FUZZ_CHECK(lockstep_monitor_load(&again, bytes, size) == LOCKSTEP_OK);
    lockstep_monitor_destroy(again);
}

static void check_options(const uint8_t *data, size_t size) {
    lockstep_monitor *monitor = NULL;
    lockstep_monitor_options options = LOCKSTEP_MONITOR_OPTIONS_INIT;
    fuzz_bytes bytes = {data, size};
    options.learning_steps = (int32_t)fuzz_integer(&bytes);
    options.false_alarms_per_1000 = fuzz_double(&bytes);
    if (fuzz_u8(&bytes) > 128) options.struct_size = (uint32_t)fuzz_pick(&bytes, 0, sizeof options);
    if (FUZZ_STATUS(lockstep_monitor_create(&monitor, &options), "learning false_alarms") == LOCKSTEP_OK)
        check_saved(monitor, NULL, 0);
    lockstep_monitor_destroy(monitor);
}

void fuzz_one(const uint8_t *data, size_t size) {
    lockstep_monitor *monitor = (void *)&monitor;
    if (size < 32) check_options(data, size);
    size_t first = saved_size(data, size);
    lockstep_status status = lockstep_monitor_load(&monitor, data, first);
    if (FUZZ_STATUS(status, "bytes monitor") != LOCKSTEP_OK) {
        FUZZ_CHECK(monitor == (void *)&monitor);
        return;
    }
    check_saved(monitor, data, first);
    read_all(monitor);
    fuzz_bytes rest = {data + first, size - first};
    int64_t step = (int64_t)fuzz_bits(&rest, 4);
    while (rest.left > 0) {
        lockstep_mismatch mismatch;
        lockstep_monitor_alarm alarm, before;
        memset(&mismatch, 0, sizeof mismatch);
        memset(&alarm, 0xa5, sizeof alarm);
        mismatch.struct_size = sizeof mismatch;
        alarm.struct_size = sizeof alarm;
        before = alarm;
        step = rest.next[0] == 255 ? fuzz_integer(&rest) : step + 1;
        mismatch.tokens = fuzz_u8(&rest) < 224 ? 1000 : fuzz_integer(&rest);
        int times = (int)fuzz_pick(&rest, 1, 48);
        mismatch.k3.value = fuzz_double(&rest);
        mismatch.chi_square.value = fuzz_double(&rest);
        mismatch.mean_ratio.value = fuzz_double(&rest);
        mismatch.ess = fuzz_double(&rest);
        mismatch.max_abs_log_ratio = fuzz_double(&rest);
        for (int i = 0; i < times; i++, step += step < INT64_MAX) {
            status = FUZZ_STATUS(lockstep_monitor_update(&alarm, monitor, step, &mismatch), "step mismatch");
            if (status != LOCKSTEP_OK) {
                FUZZ_CHECK(memcmp(&alarm, &before, sizeof alarm) == 0);
                break;
            }
            FUZZ_CHECK(alarm.level >= LOCKSTEP_MONITOR_LEARNING && alarm.level <= LOCKSTEP_MONITOR_ALARM);
            FUZZ_CHECK(alarm.step == step && alarm.score >= 0);
            alarm = before;
            mismatch.k3.value *= 1.01;
        }
        read_all(monitor);
        check_saved(monitor, NULL, 0);
    }
    FUZZ_CHECK(lockstep_monitor_reset(monitor) == LOCKSTEP_OK);
    read_all(monitor);
    check_saved(monitor, NULL, 0);
    lockstep_monitor_destroy(monitor);
}
