/* One model as trainer and as rollout engine: what the engine says of the tokens it draws is what scoring says of
 * them, bit for bit, in fp16 too. Then a trainer in another precision. usage: models FOLDER */
#include <lockstep.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PROMPT = 5, DRAWN = 8, GROUP = 3, TOKENS = PROMPT + DRAWN };
static int32_t prompt[PROMPT] = {11, 3, 58, 90, 7};

static void must(lockstep_status status) {
    if (status == LOCKSTEP_OK) return;
    fprintf(stderr, "%s: %s\n", lockstep_status_name(status), lockstep_last_error());
    exit(1);
}

static lockstep_model *load(const char *folder, const char *name) {
    lockstep_recipe recipe = {.struct_size = sizeof recipe};
    lockstep_model *model;
    must(lockstep_recipe_named(&recipe, name));
    must(lockstep_model_load(&model, folder, NULL, &recipe));
    return model;
}

/* The log-probs of the tokens a rollout drew, as a trainer has them. */
static void score(double *log_probs, const lockstep_model *model, const lockstep_rollout *rollout) {
    int32_t ids[TOKENS];
    double found[TOKENS];
    int64_t shape[1] = {PROMPT + rollout->token_count};
    memcpy(ids, prompt, sizeof prompt);
    memcpy(ids + PROMPT, rollout->tokens, (size_t)rollout->token_count * sizeof *ids);
    lockstep_tensor tokens = lockstep_tensor_of(ids, LOCKSTEP_INT32, 1, shape);
    lockstep_tensor out = lockstep_tensor_of(found, LOCKSTEP_FLOAT64, 1, shape);
    must(lockstep_model_score(&out, NULL, model, &tokens, NULL, NULL));
    memcpy(log_probs, found + PROMPT, (size_t)rollout->token_count * sizeof *found);
}

int main(int count, char **arguments) {
    if (count != 2) return fprintf(stderr, "usage: models FOLDER\n"), 2;
    lockstep_model *fp16 = load(arguments[1], "fp16"), *bf16 = load(arguments[1], "bf16");
    lockstep_engine_options options = LOCKSTEP_ENGINE_OPTIONS_INIT;
    lockstep_engine *engine;
    static const uint64_t ids[GROUP] = {0, 1, 2};
    int64_t shape[1] = {PROMPT};
    lockstep_tensor tokens = lockstep_tensor_of(prompt, LOCKSTEP_INT32, 1, shape);
    options.max_tokens = DRAWN;
    options.seed = 1;
    must(lockstep_engine_create(&engine, fp16, &options));
    must(lockstep_engine_add(engine, &tokens, ids, GROUP));
    size_t running = GROUP;
    while (running > 0) must(lockstep_engine_step(engine, &running, NULL));

    lockstep_rollout rollout;
    int equal[2] = {0, 0};
    for (must(lockstep_engine_take(&rollout, engine, 0)); rollout.token_count >= 0;
         must(lockstep_engine_take(&rollout, engine, 0))) {
        double trainer[2][DRAWN];
        score(trainer[0], fp16, &rollout);
        score(trainer[1], bf16, &rollout);
        printf("sequence %d:", (int)rollout.id);
        for (int i = 0; i < rollout.token_count; i++) {
            printf(" %d", rollout.tokens[i]);
            for (int side = 0; side < 2; side++) equal[side] += trainer[side][i] == rollout.raw_log_probs[i];
        }
        printf("; the last has log-prob %.6f, in bf16 %.6f\n", rollout.raw_log_probs[rollout.token_count - 1],
               trainer[1][rollout.token_count - 1]);
    }
    printf("tokens with the bits of the rollout: fp16 trainer %d of %d, bf16 trainer %d\n", equal[0], GROUP * DRAWN,
           equal[1]);
    lockstep_engine_destroy(engine);
    lockstep_model_destroy(fp16);
    lockstep_model_destroy(bf16);
    return 0;
}
