/* Texts that name something: recipes, presets, scalers, tasks. What is accepted names itself so again. */
#include "fuzz.h"

size_t fuzz_repair(uint8_t *data, size_t size) {
    (void)data;
    return size;
}

void fuzz_one(const uint8_t *data, size_t size) {
    char *name = malloc(size + 1);
    FUZZ_CHECK(name != NULL);
    memcpy(name, data, size);
    name[size] = 0;

    lockstep_recipe recipe, again;
    memset(&recipe, 0xa5, sizeof recipe);
    recipe.struct_size = sizeof recipe;
    again = recipe;
    if (FUZZ_STATUS(lockstep_recipe_named(&recipe, name), "recipe name") == LOCKSTEP_OK) {
        char text[256];
        size_t length = 0;
        int32_t matches = 0;
        FUZZ_CHECK(lockstep_recipe_text(text, sizeof text, &length, &recipe) == LOCKSTEP_OK && strlen(text) == length);
        FUZZ_CHECK(lockstep_recipe_named(&again, text) == LOCKSTEP_OK);
        FUZZ_CHECK(memcmp(&again, &recipe, sizeof recipe) == 0);
        FUZZ_CHECK(lockstep_recipe_matches(&matches, &recipe, &again) == LOCKSTEP_OK && matches == 1);
    } else {
        FUZZ_CHECK(memcmp(&again, &recipe, sizeof recipe) == 0);
    }

    lockstep_preset preset = LOCKSTEP_PRESET_INIT;
    lockstep_correction_options correction = LOCKSTEP_CORRECTION_OPTIONS_INIT;
    lockstep_advantage_options advantages = LOCKSTEP_ADVANTAGE_OPTIONS_INIT;
    lockstep_objective_options objective = LOCKSTEP_OBJECTIVE_OPTIONS_INIT;
    if (FUZZ_STATUS(lockstep_preset_read(&preset, &correction, &advantages, &objective, name), "name preset") == LOCKSTEP_OK)
        FUZZ_CHECK(strcmp(preset.name, name) == 0 && *preset.text != 0);
    else
        FUZZ_CHECK(preset.name == NULL);

    lockstep_scaler_options scaler;
    memset(&scaler, 0, sizeof scaler);
    scaler.struct_size = sizeof scaler;
    if (FUZZ_STATUS(lockstep_scaler_options_named(&scaler, name), "name scaler") == LOCKSTEP_OK) {
        lockstep_scaler *made = NULL;
        FUZZ_CHECK(lockstep_scaler_create(&made, &scaler) == LOCKSTEP_OK);
        lockstep_scaler_destroy(made);
    } else {
        FUZZ_CHECK(scaler.growth_interval == 0);
    }

    lockstep_task *task = (void *)&task;
    if (FUZZ_STATUS(lockstep_task_create(&task, name, NULL), "name file task") == LOCKSTEP_OK) lockstep_task_destroy(task);
    else FUZZ_CHECK(task == (void *)&task);
    free(name);
}
