/* The JSON files of a model's folder: config.json, the index of shards, adapter_config.json. Refused, or a model that scores;
 * a model that begins anew with such a config, trained for a step. The first byte says which. */
#include "fuzz.h"

#include <unistd.h>

size_t fuzz_repair(uint8_t *data, size_t size) {
    (void)data;
    return size;
}

static char folder[300];
static int64_t values_loaded;

static void loading(void *context, int64_t done, int64_t total) {
    FUZZ_CHECK(context == folder && done >= 0 && done <= total);
    values_loaded = done;
}

static void prepare(void) {
    if (*folder) return;
    snprintf(folder, sizeof folder, "%s", fuzz_folder());
    lockstep_observe_loading(loading, folder);
    fuzz_copy("config.json");
    fuzz_copy("model.safetensors");
    fuzz_copy("adapter_config.json");
    fuzz_copy("adapter_model.safetensors");
}

static void score(const lockstep_model *model) {
    int32_t tokens[2] = {0, 1};
    double log_probs[2];
    int64_t shape = 2;
    lockstep_score_options options = LOCKSTEP_SCORE_OPTIONS_INIT;
    options.threads = 1;
    lockstep_tensor out = lockstep_tensor_of(log_probs, LOCKSTEP_FLOAT64, 1, &shape);
    lockstep_tensor in = lockstep_tensor_of(tokens, LOCKSTEP_INT32, 1, &shape);
    if (FUZZ_STATUS(lockstep_model_score(&out, NULL, model, &in, NULL, &options), "tokens layer") == LOCKSTEP_OK)
        FUZZ_CHECK(log_probs[0] == 0 && log_probs[1] <= 0);
}

/* A number that stands for a size in the text and is so large that the model would take gigabytes: begun anew, that is
 * no fault, but too slow to try. */
static int is_large(const uint8_t *data, size_t size) {
    int64_t product = 1, number = 0;
    for (size_t i = 0; i <= size; i++) {
        if (i < size && data[i] >= '0' && data[i] <= '9') {
            if (number < 1 << 30) number = 10 * number + data[i] - '0';
        } else {
            if (number > 256 && number != 10000) product *= number;
            if (product > 1 << 24) return 1;
            number = 0;
        }
    }
    return 0;
}

void fuzz_one(const uint8_t *data, size_t size) {
    static const char *const names[] = {"config.json", "model.safetensors.index.json", "adapter_config.json"};
    lockstep_model *model = (void *)&model;
    if (size == 0) return;
    prepare();
    int kind = data[0] % 3, anew = data[0] >= 128;
    fuzz_write(names[kind], ++data, --size);
    values_loaded = 0;
    lockstep_status status =
        FUZZ_STATUS(lockstep_model_load(&model, folder, kind == 2 ? folder : NULL, NULL), "config index tensor lockstep-fuzz");
    if (status == LOCKSTEP_OK) {
        FUZZ_CHECK(values_loaded > 0);
        score(model);
        lockstep_model_destroy(model);
    } else {
        FUZZ_CHECK(model == (void *)&model);
    }
    /* Begun anew: sizes that no memory holds must be refused, whatever their product. */
    if (kind == 0 && anew && !is_large(data, size)) {
        lockstep_trainer *trainer = (void *)&trainer;
        lockstep_trainer_options options = LOCKSTEP_TRAINER_OPTIONS_INIT;
        lockstep_recipe recipe;
        memset(&recipe, 0, sizeof recipe);
        recipe.struct_size = sizeof recipe;
        FUZZ_CHECK(lockstep_recipe_named(&recipe, "fp32") == LOCKSTEP_OK);
        options.deviation = 0.1;
        options.threads = 1;
        status = FUZZ_STATUS(lockstep_trainer_create(&trainer, folder, &recipe, &options), "config memory");
        if (status == LOCKSTEP_OK) lockstep_trainer_destroy(trainer);
        else FUZZ_CHECK(trainer == (void *)&trainer);
    }
    if (kind == 1) FUZZ_CHECK(unlink(fuzz_write(names[1], "", 0)) == 0);
    else fuzz_copy(names[kind]);
}
