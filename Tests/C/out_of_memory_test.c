/* Out of memory: every allocation that is as large as an input fails in turn, in every family of calls on arrays. The
 * call is LOCKSTEP_ERROR_OUT_OF_MEMORY, has written nothing, holds on to nothing, and succeeds when it is made again. */
#include "arguments.h"
#include "memory_faults.h"

enum { MOST = 20000, ROWS = 40, VOCAB = 3000, WIDTH = 24 };

static int64_t sequences, tokens; /* of the batch: a sequence has two tokens */
static float trainer[2 * MOST], rollout[2 * MOST], current[2 * MOST], entropies[2 * MOST], squared_mass[2 * MOST];
static double earned[2 * MOST];
static uint8_t mask[2 * MOST];
static int64_t offsets[MOST + 1], groups[MOST];
static uint64_t ids[MOST];
static float logits[ROWS * VOCAB], hidden[ROWS * WIDTH], weight[VOCAB * WIDTH];
static int32_t targets[ROWS];

static argument of_tokens[6], of_mask, of_offsets, of_groups, of_ids, of_rewards;
static argument of_logits, of_hidden, of_weight, of_targets;
static const lockstep_tensor *const pi = &of_tokens[0].tensor, *const mu = &of_tokens[1].tensor;

static void make_inputs(int64_t count) {
    uint32_t random = 7;
    sequences = count;
    tokens = 2 * count;
    for (int64_t i = 0; i < tokens; i++) {
        random = random * 1664525u + 1013904223u;
        trainer[i] = -1 - (float)(random >> 8) * 0x1p-24f;
        rollout[i] = trainer[i] + ((float)(random & 255) - 128) * 0x1p-12f;
        current[i] = trainer[i] + ((float)(random >> 4 & 255) - 128) * 0x1p-12f;
        entropies[i] = 2;
        squared_mass[i] = 0.9f;
        mask[i] = 1;
        earned[i] = (double)(random >> 30);
    }
    for (int64_t i = 0; i <= sequences; i++) offsets[i] = 2 * i;
    for (int64_t i = 0; i < sequences; i++) {
        groups[i] = i / 2;
        ids[i] = (uint64_t)i * 3;
    }
    for (int i = 0; i < ROWS * VOCAB; i++) logits[i] = (float)(i * 37 % 101) * 0.125f;
    for (int i = 0; i < ROWS * WIDTH; i++) hidden[i] = (float)(i * 29 % 31) * 0.0625f;
    for (int i = 0; i < VOCAB * WIDTH; i++) weight[i] = (float)(i * 23 % 53) * 0.03125f;
    for (int i = 0; i < ROWS; i++) targets[i] = i * 71 % VOCAB;
    argument_init(&of_tokens[0], trainer, LOCKSTEP_FLOAT32, tokens, 0);
    argument_init(&of_tokens[1], rollout, LOCKSTEP_FLOAT32, tokens, 0);
    argument_init(&of_tokens[2], current, LOCKSTEP_FLOAT32, tokens, 0);
    argument_init(&of_tokens[3], entropies, LOCKSTEP_FLOAT32, tokens, 0);
    argument_init(&of_tokens[4], squared_mass, LOCKSTEP_FLOAT32, tokens, 0);
    argument_init(&of_tokens[5], earned, LOCKSTEP_FLOAT64, tokens, 0);
    argument_init(&of_rewards, earned, LOCKSTEP_FLOAT64, sequences, 0);
    argument_init(&of_mask, mask, LOCKSTEP_UINT8, tokens, 0);
    argument_init(&of_offsets, offsets, LOCKSTEP_INT64, sequences + 1, 0);
    argument_init(&of_groups, groups, LOCKSTEP_INT64, sequences, 0);
    argument_init(&of_ids, ids, LOCKSTEP_UINT64, sequences, 0);
    argument_init(&of_logits, logits, LOCKSTEP_FLOAT32, ROWS, VOCAB);
    argument_init(&of_hidden, hidden, LOCKSTEP_FLOAT32, ROWS, WIDTH);
    argument_init(&of_weight, weight, LOCKSTEP_FLOAT32, VOCAB, WIDTH);
    argument_init(&of_targets, targets, LOCKSTEP_INT32, ROWS, 0);
}

/* An output at a place of `results`. */
static const lockstep_tensor *output(argument *a, unsigned char *results, size_t place, int32_t dtype, int64_t rows,
                                     int64_t columns) {
    argument_init(a, results + place, dtype, rows, columns);
    return &a->tensor;
}

/* Where results are put: structs at the beginning, three arrays of tokens behind them. */
enum { FIRST = 1 << 16, PART = (MEMORY_RESULTS - FIRST) / 192 * 64, SECOND = FIRST + PART, THIRD = SECOND + PART };

/* A struct of results that has its size first. */
#define GROWING(type, name, results) \
    type *name = (void *)(results); \
    memset(name, 0, sizeof *name); \
    name->struct_size = sizeof *name

/* --- Formats and log-probs --- */

static lockstep_log_probs_options log_probs_options(void) {
    lockstep_log_probs_options options = LOCKSTEP_LOG_PROBS_OPTIONS_INIT;
    options.threads = 2;
    return options;
}

static lockstep_status convert(unsigned char *results) {
    argument to;
    lockstep_convert_options options = LOCKSTEP_CONVERT_OPTIONS_INIT;
    options.threads = 2;
    return SHORT_OF_MEMORY(results, lockstep_convert(output(&to, results, FIRST, LOCKSTEP_BFLOAT16, tokens, 0),
                                                     (void *)results, pi, &options));
}

static lockstep_status log_probs(unsigned char *results) {
    argument a, b;
    lockstep_log_probs_options options = log_probs_options();
    return SHORT_OF_MEMORY(results, lockstep_log_probs(output(&a, results, FIRST, LOCKSTEP_FLOAT32, ROWS, 0),
                                                       output(&b, results, SECOND, LOCKSTEP_FLOAT32, ROWS, 0), NULL, NULL,
                                                       &of_logits.tensor, &of_targets.tensor, &options));
}

static lockstep_status kept_log_probs(unsigned char *results) {
    argument a, b;
    lockstep_log_probs_options options = log_probs_options();
    options.top_k = 50;
    options.top_p = 0.9;
    return SHORT_OF_MEMORY(results, lockstep_log_probs(output(&a, results, FIRST, LOCKSTEP_FLOAT32, ROWS, 0), NULL, NULL,
                                                       output(&b, results, SECOND, LOCKSTEP_FLOAT32, ROWS, 0),
                                                       &of_logits.tensor, &of_targets.tensor, &options));
}

static lockstep_status log_probs_backward(unsigned char *results) {
    argument d, up;
    lockstep_log_probs_options options = log_probs_options();
    argument_init(&up, trainer, LOCKSTEP_FLOAT32, ROWS, 0);
    return SHORT_OF_MEMORY(results, lockstep_log_probs_backward(output(&d, results, FIRST, LOCKSTEP_FLOAT32, ROWS, VOCAB),
                                                                &up.tensor, NULL, NULL, &of_logits.tensor,
                                                                &of_targets.tensor, &options));
}

static lockstep_status linear_log_probs(unsigned char *results) {
    argument a;
    lockstep_log_probs_options options = log_probs_options();
    return SHORT_OF_MEMORY(
        results, lockstep_linear_log_probs(output(&a, results, FIRST, LOCKSTEP_FLOAT32, ROWS, 0), NULL, NULL,
                                           &of_hidden.tensor, &of_weight.tensor, NULL, &of_targets.tensor, &options));
}

static lockstep_status linear_log_probs_backward(unsigned char *results) {
    argument d_hidden, d_weight, up;
    lockstep_log_probs_options options = log_probs_options();
    argument_init(&up, trainer, LOCKSTEP_FLOAT32, ROWS, 0);
    memset(results, 0, MEMORY_RESULTS); /* the gradients are added to what is there */
    return SHORT_OF_MEMORY(results, lockstep_linear_log_probs_backward(
                                        output(&d_hidden, results, FIRST, LOCKSTEP_FLOAT32, ROWS, WIDTH),
                                        output(&d_weight, results, SECOND, LOCKSTEP_BFLOAT16, VOCAB, WIDTH), NULL, &up.tensor,
                                        NULL, NULL, &of_hidden.tensor, &of_weight.tensor, NULL, &of_targets.tensor,
                                        &options));
}

static lockstep_status head_create(unsigned char *results) {
    argument a;
    lockstep_log_probs_options options = log_probs_options();
    lockstep_head *head = NULL;
    lockstep_status status = SHORT_OF_MEMORY(results, lockstep_head_create(&head, &of_weight.tensor, NULL));
    CHECK_OK(lockstep_head_log_probs(output(&a, results, FIRST, LOCKSTEP_FLOAT32, ROWS, 0), NULL, NULL, head,
                                     &of_hidden.tensor, &of_targets.tensor, &options));
    lockstep_head_destroy(head);
    return status;
}

static lockstep_status head_log_probs(unsigned char *results) {
    argument a;
    lockstep_log_probs_options options = log_probs_options();
    lockstep_head *head = NULL;
    lockstep_status status;
    CHECK_OK(lockstep_head_create(&head, &of_weight.tensor, NULL));
    status = SHORT_OF_MEMORY(results, lockstep_head_log_probs(output(&a, results, FIRST, LOCKSTEP_FLOAT32, ROWS, 0), NULL,
                                                              NULL, head, &of_hidden.tensor, &of_targets.tensor, &options));
    lockstep_head_destroy(head);
    return status;
}

/* --- Mismatch --- */

static lockstep_mismatch_options mismatch_options(void) {
    lockstep_mismatch_options options = LOCKSTEP_MISMATCH_OPTIONS_INIT;
    options.threads = 2;
    return options;
}

static lockstep_status measure(unsigned char *results) {
    lockstep_mismatch_options options = mismatch_options();
    GROWING(lockstep_mismatch, found, results);
    return SHORT_OF_MEMORY(
        results, lockstep_mismatch_measure(found, pi, mu, &of_mask.tensor, &of_offsets.tensor, &options));
}

static lockstep_status by_sequence(unsigned char *results) {
    lockstep_mismatch_options options = mismatch_options();
    return SHORT_OF_MEMORY(results, lockstep_mismatch_sequences((void *)results, (size_t)sequences, pi, mu, NULL,
                                                                &of_offsets.tensor, &options));
}

static lockstep_status profile(unsigned char *results) {
    static const double edges[4] = {0, 1, 2, 3};
    lockstep_mismatch_options options = mismatch_options();
    return SHORT_OF_MEMORY(results, lockstep_mismatch_profile((void *)results, 3, edges, LOCKSTEP_AXIS_POSITION, pi, mu,
                                                              NULL, &of_offsets.tensor, &options));
}

static lockstep_status exact(unsigned char *results) {
    lockstep_log_probs_options options = log_probs_options();
    return SHORT_OF_MEMORY(results, lockstep_mismatch_exact((void *)results, (void *)(results + FIRST), ROWS,
                                                            &of_logits.tensor, &of_logits.tensor, NULL, &options));
}

static lockstep_mismatch_accumulator *accumulator(int32_t exact_quantiles, int updates) {
    lockstep_mismatch_accumulator_options options = LOCKSTEP_MISMATCH_ACCUMULATOR_OPTIONS_INIT;
    lockstep_mismatch_options how = mismatch_options();
    lockstep_mismatch_accumulator *made = NULL;
    options.exact_quantiles = exact_quantiles;
    CHECK_OK(lockstep_mismatch_accumulator_create(&made, &options));
    for (int i = 0; i < updates; i++)
        CHECK_OK(lockstep_mismatch_accumulator_update(made, pi, mu, NULL, &of_offsets.tensor, &of_ids.tensor, &how));
    return made;
}

/* What an accumulator holds, but for the values of exact quantiles beyond the room. */
static void accumulated(unsigned char *results, lockstep_mismatch_accumulator *used) {
    static unsigned char bytes[1 << 25];
    size_t size = sizeof bytes;
    CHECK_OK(lockstep_mismatch_accumulator_save(bytes, &size, used));
    memcpy(results, bytes, size < MEMORY_RESULTS ? size : MEMORY_RESULTS);
    lockstep_mismatch_accumulator_destroy(used);
}

static lockstep_status accumulator_update(unsigned char *results) {
    lockstep_mismatch_options options = mismatch_options();
    lockstep_mismatch_accumulator *used = accumulator(0, 1);
    lockstep_status status = SHORT_OF_MEMORY(results, lockstep_mismatch_accumulator_update(
                                                          used, pi, mu, &of_mask.tensor, &of_offsets.tensor, NULL, &options));
    accumulated(results, used);
    return status;
}

static lockstep_status exact_update(unsigned char *results) {
    lockstep_mismatch_options options = mismatch_options();
    lockstep_mismatch_accumulator *used = accumulator(1, 1);
    lockstep_status status = SHORT_OF_MEMORY(results, lockstep_mismatch_accumulator_update(
                                                          used, pi, mu, NULL, &of_offsets.tensor, NULL, &options));
    accumulated(results, used);
    return status;
}

static lockstep_status accumulator_merge(unsigned char *results) {
    lockstep_mismatch_accumulator *used = accumulator(1, 1), *other = accumulator(1, 2);
    lockstep_status status = SHORT_OF_MEMORY(results, lockstep_mismatch_accumulator_merge(used, other));
    lockstep_mismatch_accumulator_destroy(other);
    accumulated(results, used);
    return status;
}

static lockstep_status accumulator_report(unsigned char *results) {
    lockstep_mismatch_accumulator *used = accumulator(1, 1);
    GROWING(lockstep_mismatch, found, results);
    lockstep_status status = SHORT_OF_MEMORY(results, lockstep_mismatch_accumulator_report(found, used));
    lockstep_mismatch_accumulator_destroy(used);
    return status;
}

static lockstep_status accumulator_bytes(unsigned char *results) {
    lockstep_mismatch_accumulator *used = accumulator(0, 1);
    size_t *size = (void *)results;
    lockstep_status status;
    *size = MEMORY_RESULTS - FIRST;
    status = SHORT_OF_MEMORY(results, lockstep_mismatch_accumulator_save(results + FIRST, size, used));
    lockstep_mismatch_accumulator_destroy(used);
    return status;
}

static lockstep_status accumulator_load(unsigned char *results) {
    static unsigned char bytes[1 << 25];
    lockstep_mismatch_accumulator *used = accumulator(1, 1), *loaded = NULL;
    size_t size = sizeof bytes;
    lockstep_status status;
    CHECK_OK(lockstep_mismatch_accumulator_save(bytes, &size, used));
    lockstep_mismatch_accumulator_destroy(used);
    status = SHORT_OF_MEMORY(results, lockstep_mismatch_accumulator_load(&loaded, bytes, size));
    accumulated(results, loaded);
    return status;
}

static lockstep_status accumulator_causes(unsigned char *results) {
    lockstep_mismatch_accumulator *used = accumulator(0, 1);
    GROWING(lockstep_mismatch_evidence, evidence, results);
    lockstep_status status =
        SHORT_OF_MEMORY(results, lockstep_mismatch_accumulator_causes((void *)(results + FIRST), evidence, used));
    lockstep_mismatch_accumulator_destroy(used);
    return status;
}

/* --- Corrections, advantages, objectives --- */

static lockstep_batch batch(void) {
    lockstep_batch made = LOCKSTEP_BATCH_INIT;
    made.trainer_log_probs = pi;
    made.rollout_log_probs = mu;
    made.current_log_probs = &of_tokens[2].tensor;
    made.reference_log_probs = mu;
    made.entropies = &of_tokens[3].tensor;
    made.advantages = &of_rewards.tensor;
    made.mask = &of_mask.tensor;
    made.offsets = &of_offsets.tensor;
    made.groups = &of_groups.tensor;
    made.ids = &of_ids.tensor;
    return made;
}

static lockstep_status correct(unsigned char *results) {
    argument a, b;
    lockstep_batch given_batch = batch();
    lockstep_correction_options options = LOCKSTEP_CORRECTION_OPTIONS_INIT;
    GROWING(lockstep_correction, report, results);
    options.threads = 2;
    options.level = LOCKSTEP_LEVEL_SEQUENCE_MEAN;
    options.normalize = 1;
    options.second_moment = 1e-9;
    return SHORT_OF_MEMORY(results, lockstep_correct(output(&a, results, FIRST, LOCKSTEP_FLOAT32, tokens, 0),
                                                     output(&b, results, SECOND, LOCKSTEP_UINT8, tokens, 0), report, NULL,
                                                     &given_batch, &options));
}

static lockstep_advantage_estimator estimator;

static lockstep_status advantages(unsigned char *results) {
    argument a, kinds;
    lockstep_batch given_batch = batch();
    lockstep_rewards rewards = LOCKSTEP_REWARDS_INIT;
    lockstep_advantage_options options = LOCKSTEP_ADVANTAGE_OPTIONS_INIT;
    options.estimator = estimator;
    rewards.rewards = &of_rewards.tensor;
    if (estimator == LOCKSTEP_ADVANTAGE_REMAX) rewards.baselines = &of_rewards.tensor;
    if (estimator == LOCKSTEP_ADVANTAGE_GAE) rewards.values = &of_tokens[2].tensor;
    if (estimator >= LOCKSTEP_ADVANTAGE_OPTIMAL_TOKEN_BASELINE) rewards.squared_mass = &of_tokens[4].tensor;
    if (estimator == LOCKSTEP_ADVANTAGE_GDPO) {
        argument_init(&kinds, earned, LOCKSTEP_FLOAT64, sequences, 2);
        rewards.rewards = &kinds.tensor;
    }
    return SHORT_OF_MEMORY(results, lockstep_advantages(output(&a, results, FIRST, LOCKSTEP_FLOAT32, tokens, 0), NULL,
                                                        &rewards, &given_batch, &options));
}

static lockstep_objective_options objective_options(void) {
    lockstep_objective_options options = LOCKSTEP_OBJECTIVE_OPTIONS_INIT;
    options.threads = 2;
    options.kl = LOCKSTEP_KL_K3;
    options.kl_coefficient = 0.1;
    options.entropy_coefficient = 0.01;
    options.ratio_level = LOCKSTEP_RATIO_SEQUENCE;
    options.aggregation = LOCKSTEP_PROMPT_MEAN;
    return options;
}

static lockstep_status objective_loss(unsigned char *results) {
    argument a, b;
    lockstep_batch given_batch = batch();
    lockstep_objective_options options = objective_options();
    GROWING(lockstep_objective_report, report, results);
    return SHORT_OF_MEMORY(results, lockstep_objective_loss(report, output(&a, results, FIRST, LOCKSTEP_FLOAT32, tokens, 0),
                                                            output(&b, results, SECOND, LOCKSTEP_FLOAT32, tokens, 0),
                                                            &given_batch, &options));
}

static lockstep_status objective_count(unsigned char *results) {
    lockstep_batch given_batch = batch();
    lockstep_objective_options options = objective_options();
    lockstep_objective *objective = NULL;
    lockstep_status status;
    CHECK_OK(lockstep_objective_create(&objective, &options));
    status = SHORT_OF_MEMORY(results, lockstep_objective_count(objective, &given_batch));
    CHECK_OK(lockstep_objective_counted((void *)results, objective));
    lockstep_objective_destroy(objective);
    return status;
}

static lockstep_status objective_evaluate(unsigned char *results) {
    argument a;
    lockstep_batch given_batch = batch();
    lockstep_objective_options options = objective_options();
    lockstep_objective *objective = NULL;
    lockstep_status status;
    GROWING(lockstep_objective_report, report, results);
    CHECK_OK(lockstep_objective_create(&objective, &options));
    CHECK_OK(lockstep_objective_count(objective, &given_batch));
    status = SHORT_OF_MEMORY(results, lockstep_objective_evaluate(
                                          objective, output(&a, results, FIRST, LOCKSTEP_FLOAT32, tokens, 0), NULL, &given_batch));
    CHECK_OK(lockstep_objective_read(report, objective));
    lockstep_objective_destroy(objective);
    return status;
}

static lockstep_status kl_penalty(unsigned char *results) {
    argument a;
    lockstep_batch given_batch = batch();
    lockstep_objective_options options = objective_options();
    return SHORT_OF_MEMORY(results, lockstep_kl_penalty(output(&a, results, FIRST, LOCKSTEP_FLOAT32, tokens, 0), NULL,
                                                        &given_batch, &options));
}

static lockstep_status covariance(unsigned char *results) {
    argument a;
    lockstep_batch given_batch = batch();
    lockstep_covariance_options options = LOCKSTEP_COVARIANCE_OPTIONS_INIT;
    options.rule = LOCKSTEP_COVARIANCE_KL;
    options.share = 0.5;
    return SHORT_OF_MEMORY(results, lockstep_covariance_select(output(&a, results, FIRST, LOCKSTEP_UINT8, tokens, 0),
                                                               (void *)results, &given_batch, &options));
}

/* --- Optimiser --- */

static lockstep_status scaler_replay(unsigned char *results) {
    argument a;
    lockstep_scaler_options options;
    GROWING(lockstep_scaler_report, report, results);
    options.struct_size = sizeof options;
    CHECK_OK(lockstep_scaler_options_named(&options, "torch"));
    return SHORT_OF_MEMORY(results, lockstep_scaler_replay(report, output(&a, results, FIRST, LOCKSTEP_FLOAT64, sequences, 0),
                                                           NULL, &of_rewards.tensor, 65520, &options));
}

static lockstep_status gradients_measure(unsigned char *results) {
    lockstep_gradient_options options = LOCKSTEP_GRADIENT_OPTIONS_INIT;
    lockstep_tensor tensors[2];
    tensors[0] = *pi;
    tensors[1] = of_weight.tensor;
    options.threads = 2;
    return SHORT_OF_MEMORY(results, lockstep_gradients_measure((void *)results, tensors, 2, &options));
}

static lockstep_status adamw(unsigned char *results) {
    argument masters, first, second;
    lockstep_adamw_options options = LOCKSTEP_ADAMW_OPTIONS_INIT;
    memset(results, 0, MEMORY_RESULTS);
    options.threads = 2;
    return SHORT_OF_MEMORY(results, lockstep_adamw_step(output(&masters, results, FIRST, LOCKSTEP_FLOAT32, tokens, 0),
                                                        output(&first, results, SECOND, LOCKSTEP_FLOAT32, tokens, 0),
                                                        output(&second, results, THIRD, LOCKSTEP_FLOAT32, tokens, 0), NULL,
                                                        pi, &options));
}

static const struct {
    const char *name;
    memory_scenario scenario;
} scenarios[] = {
    {"convert", convert},
    {"log_probs", log_probs},
    {"log_probs, kept set", kept_log_probs},
    {"log_probs_backward", log_probs_backward},
    {"linear_log_probs", linear_log_probs},
    {"linear_log_probs_backward", linear_log_probs_backward},
    {"head_create", head_create},
    {"head_log_probs", head_log_probs},
    {"mismatch_measure", measure},
    {"mismatch_sequences", by_sequence},
    {"mismatch_profile", profile},
    {"mismatch_exact", exact},
    {"accumulator_update", accumulator_update},
    {"accumulator_update, exact", exact_update},
    {"accumulator_merge", accumulator_merge},
    {"accumulator_report", accumulator_report},
    {"accumulator_save", accumulator_bytes},
    {"accumulator_load", accumulator_load},
    {"accumulator_causes", accumulator_causes},
    {"correct", correct},
    {"objective_loss", objective_loss},
    {"objective_count", objective_count},
    {"objective_evaluate", objective_evaluate},
    {"kl_penalty", kl_penalty},
    {"covariance_select", covariance},
    {"scaler_replay", scaler_replay},
    {"gradients_measure", gradients_measure},
    {"adamw_step", adamw},
};
enum { SCENARIOS = sizeof scenarios / sizeof *scenarios };

static void each_allocation_fails(void) {
    make_inputs(500);
    for (size_t i = 0; i < SCENARIOS; i++) memory_runs_out(scenarios[i].name, scenarios[i].scenario);
    make_inputs(20);
    for (estimator = 0; estimator <= LOCKSTEP_ADVANTAGE_MULTI_TURN_TOKEN_BASELINE; estimator++) {
        char name[48];
        snprintf(name, sizeof name, "advantages, estimator %d", (int)estimator);
        memory_runs_out(name, advantages);
    }
    printf("    %ld calls ran out of memory\n", memory_failures);
}

/* With 20,000 sequences 8 bytes for each make a large block. */
static void each_limit_is_met(void) {
    make_inputs(MOST);
    for (size_t i = 0; i < SCENARIOS; i++) memory_is_limited(scenarios[i].name, scenarios[i].scenario);
    for (estimator = 0; estimator <= LOCKSTEP_ADVANTAGE_MULTI_TURN_TOKEN_BASELINE; estimator++) {
        char name[48];
        snprintf(name, sizeof name, "advantages, estimator %d", (int)estimator);
        if (memory_tries_all() || estimator % 4 == 0) memory_is_limited(name, advantages);
    }
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    TEST(each_allocation_fails);
    TEST(each_limit_is_met);
    return test_report();
}
