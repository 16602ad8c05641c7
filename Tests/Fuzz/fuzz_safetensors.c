/* A safetensors file: as a model's bytes, as a model's file and as an adapter's. Refused, or a model that scores. The first
 * byte says which, and the recipe. */
#include "fuzz.h"

/* The header's length, if it is beyond the file, is made that of the text that ends with the last brace. */
size_t fuzz_repair(uint8_t *data, size_t size) {
    if (size < 12) return size;
    if (fuzz_get(data + 1, 8) > size - 9) {
        size_t end = size;
        while (end > 9 && data[end - 1] != '}') end--;
        fuzz_put(data + 1, end - 9, 8);
    }
    return size;
}

static char folder[300], adapter[300];

static void prepare(void) {
    if (*folder) return;
    snprintf(folder, sizeof folder, "%s", fuzz_folder());
    snprintf(adapter, sizeof adapter, "%s", fuzz_folder());
    fuzz_copy("config.json");
    fuzz_copy("adapter_config.json");
}

static void use(lockstep_model *model) {
    lockstep_model_info info;
    lockstep_score_options options = LOCKSTEP_SCORE_OPTIONS_INIT;
    int32_t tokens[3] = {0, 0, 0};
    double log_probs[3];
    int64_t shape = 3;
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    FUZZ_CHECK(lockstep_model_get_info(&info, model) == LOCKSTEP_OK);
    FUZZ_CHECK(info.layers > 0 && info.vocab > 0 && info.hidden_size > 0 && info.positions > 0 && info.parameters > 0);
    if (info.positions < shape) shape = info.positions;
    tokens[2] = (int32_t)info.vocab - 1;
    options.threads = 1;
    lockstep_tensor out = lockstep_tensor_of(log_probs, LOCKSTEP_FLOAT64, 1, &shape);
    lockstep_tensor in = lockstep_tensor_of(tokens, LOCKSTEP_INT32, 1, &shape);
    lockstep_status status = FUZZ_STATUS(lockstep_model_score(&out, NULL, model, &in, NULL, &options), "layer token head");
    if (status == LOCKSTEP_OK) FUZZ_CHECK(log_probs[0] == 0 && log_probs[shape - 1] <= 0);
    else FUZZ_CHECK(status == LOCKSTEP_ERROR_NON_FINITE);
    lockstep_model_destroy(model);
}

void fuzz_one(const uint8_t *data, size_t size) {
    static const char *const names[] = {"fp32", "fp16", "bf16", "e8m5", "bf16-fp8weights"};
    lockstep_recipe recipe;
    lockstep_model *model = (void *)&model;
    lockstep_status status;
    if (size == 0) return;
    prepare();
    memset(&recipe, 0, sizeof recipe);
    recipe.struct_size = sizeof recipe;
    FUZZ_CHECK(lockstep_recipe_named(&recipe, names[(data[0] >> 4) % 5]) == LOCKSTEP_OK);
    size--;
    switch (data++ [0] & 3) {
    case 0: case 1: status = lockstep_model_load_bytes(&model, data, size, &recipe); break;
    case 2:
        fuzz_write("model.safetensors", data, size);
        status = lockstep_model_load(&model, folder, NULL, &recipe);
        lockstep_audit *audit = NULL;
        if (FUZZ_STATUS(lockstep_audit_create(&audit, folder, NULL, NULL, NULL), "model.safetensors config") == LOCKSTEP_OK) {
            size_t count = 0;
            lockstep_headroom row;
            FUZZ_CHECK(lockstep_audit_read(NULL, &count, audit, 0) == LOCKSTEP_OK);
            for (size_t i = 0; i < count; i++) {
                FUZZ_CHECK(lockstep_audit_read(&row, NULL, audit, i) == LOCKSTEP_OK && row.name != NULL);
                FUZZ_CHECK(row.subnormal + row.overflowing + row.non_finite <= row.count && row.vanishing <= row.subnormal);
            }
        }
        lockstep_audit_destroy(audit);
        break;
    default:
        fuzz_write("adapter_model.safetensors", data, size);
        status = lockstep_model_load(&model, TINY, adapter, &recipe);
    }
    if (FUZZ_STATUS(status, "safetensors bytes config tensor") == LOCKSTEP_OK) use(model);
    else FUZZ_CHECK(model == (void *)&model);
}
