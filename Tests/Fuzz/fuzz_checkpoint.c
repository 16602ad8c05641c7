/* The files of a run's checkpoint. The first byte says which file the others are: run.json, the optimiser's moments or the
 * model's weights under a right checksum, or the list of checksums itself. Refused, or resumed and saved again. */
#include "fuzz.h"

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

size_t fuzz_repair(uint8_t *data, size_t size) {
    (void)data;
    return size;
}

enum { FILES = 5 };

/* In the order of their names, as the list has them. */
static const char *const names[FILES] = {"config.json", "model.safetensors", "optimizer.safetensors", "run.json",
                                         "checksums.txt"};
static struct {
    uint8_t *bytes;
    size_t size;
} saved[FILES];
static lockstep_task *task;
static lockstep_run *run;
static char folder[300];

static lockstep_run *make(void) {
    lockstep_run *made = NULL;
    lockstep_run_options options = LOCKSTEP_RUN_OPTIONS_INIT;
    lockstep_environment environment = LOCKSTEP_ENVIRONMENT_INIT;
    options.model = TINY;
    options.prompts = 2;
    options.samples = 2;
    options.threads = 1;
    options.algorithm = "paper/grpo";
    environment.task = task;
    FUZZ_CHECK(lockstep_run_create(&made, &options, &environment) == LOCKSTEP_OK);
    return made;
}

static void prepare(void) {
    lockstep_task_options size = LOCKSTEP_TASK_OPTIONS_INIT;
    lockstep_run_metrics metrics = LOCKSTEP_RUN_METRICS_INIT;
    char path[400];
    size.size = 3;
    snprintf(folder, sizeof folder, "%s/run", fuzz_folder());
    FUZZ_CHECK(lockstep_task_create(&task, "chain", &size) == LOCKSTEP_OK);
    run = make();
    FUZZ_CHECK(lockstep_run_step(&metrics, run) == LOCKSTEP_OK && lockstep_run_save(run, folder, 1) == LOCKSTEP_OK);
    lockstep_run_destroy(run);
    run = make();
    for (int i = 0; i < FILES; i++) {
        snprintf(path, sizeof path, "%s/step-00000001/%s", folder, names[i]);
        FILE *file = fopen(path, "rb");
        FUZZ_CHECK(file != NULL && (saved[i].bytes = malloc(1 << 16)) != NULL);
        saved[i].size = fread(saved[i].bytes, 1, 1 << 16, file);
        fclose(file);
    }
}

static void put(int which, const uint8_t *bytes, size_t size) {
    char name[100];
    snprintf(name, sizeof name, "run/step-00000001/%s", names[which]);
    fuzz_write(name, bytes, size);
}

void fuzz_one(const uint8_t *data, size_t size) {
    if (size == 0) return;
    if (run == NULL) prepare();
    int which = 1 + data[0] % 4;
    data++;
    size--;
    for (int i = 0; i < FILES - 1; i++)
        if (i != which) put(i, saved[i].bytes, saved[i].size);
        else put(i, data, size);
    if (which == FILES - 1) {
        put(which, data, size);
    } else {
        char text[1024];
        size_t length = 0;
        for (int i = 0; i < FILES - 1; i++)
            length += (size_t)snprintf(text + length, sizeof text - length, "%08x %zu %s\n",
                                       i == which ? fuzz_crc32c(data, size) : fuzz_crc32c(saved[i].bytes, saved[i].size),
                                       i == which ? size : saved[i].size, names[i]);
        length += (size_t)snprintf(text + length, sizeof text - length, "%08x\n", fuzz_crc32c((uint8_t *)text, length));
        put(FILES - 1, (uint8_t *)text, length);
    }
    int64_t step = -7;
    lockstep_status status = FUZZ_STATUS(lockstep_run_resume(&step, run, folder, data[-1] >= 128), "step-00000001 bytes monitor scaler");
    FUZZ_CHECK((status == LOCKSTEP_OK) == (step >= 0) && (status == LOCKSTEP_OK || step == -7));
    if (status != LOCKSTEP_OK) FUZZ_CHECK(status != LOCKSTEP_ERROR_FILE || which == FILES - 1);
    if (status == LOCKSTEP_OK && step < INT64_MAX) { /* it goes on */
        lockstep_run_metrics metrics = LOCKSTEP_RUN_METRICS_INIT;
        lockstep_run_request(NULL, &(size_t){0}, run, 0);
        status = FUZZ_STATUS(lockstep_run_step(&metrics, run), "step layer gradient");
        lockstep_run_destroy(run);
        run = make();
    }
}
