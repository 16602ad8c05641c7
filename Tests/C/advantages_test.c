/* Section 7 of the header: advantages and the overlong penalty. */
#include "arguments.h"

#include <math.h>

enum { SEQUENCES = 6, LENGTH = 3, TOKENS = SEQUENCES * LENGTH, KINDS = 2 };

/* Two groups, of four and of two sequences, whose members stand between one another. */
typedef struct {
    argument advantages, returns, rewards, truncated, baselines, values, squared_mass, kind_weights;
    argument trainer_log_probs, mask, weights, groups;
    argument penalties, lengths;
    lockstep_rewards earned;
    lockstep_batch batch;
    lockstep_advantage_options advantage_options;
    int no_rewards, no_batch;
    int64_t max_length, buffer;
    double factor;
    double rewards_data[TOKENS], baselines_data[SEQUENCES], values_data[TOKENS], squared_mass_data[TOKENS];
    double kind_weights_data[KINDS], log_probs_data[TOKENS], weights_data[TOKENS];
    uint8_t mask_data[TOKENS], truncated_data[SEQUENCES];
    int64_t groups_data[SEQUENCES], lengths_data[SEQUENCES];
    struct {
        double advantages[TOKENS], returns[TOKENS], penalties[SEQUENCES];
    } outputs;
} fixture;

static void fixture_init(fixture *f) {
    static const double rewards[SEQUENCES] = {1, 0.5, 0, 0, -0.25, 1};
    static const int64_t groups[SEQUENCES] = {7, -3, 7, 7, -3, 7};
    static const lockstep_rewards earned = LOCKSTEP_REWARDS_INIT;
    static const lockstep_batch batch = LOCKSTEP_BATCH_INIT;
    static const lockstep_advantage_options options = LOCKSTEP_ADVANTAGE_OPTIONS_INIT;
    memset(f, 0, sizeof *f);
    f->earned = earned;
    f->batch = batch;
    f->advantage_options = options;
    memcpy(f->rewards_data, rewards, sizeof rewards);
    memcpy(f->groups_data, groups, sizeof groups);
    memset(f->mask_data, 1, sizeof f->mask_data);
    for (int i = 0; i < TOKENS; i++) {
        f->log_probs_data[i] = -0.125 * (i + 1);
        f->squared_mass_data[i] = 0.9;
        f->weights_data[i] = 1;
    }
    f->kind_weights_data[0] = f->kind_weights_data[1] = 1;
    argument_init(&f->advantages, f->outputs.advantages, LOCKSTEP_FLOAT64, SEQUENCES, 0);
    argument_init(&f->returns, f->outputs.returns, LOCKSTEP_FLOAT64, SEQUENCES, 0);
    argument_init(&f->rewards, f->rewards_data, LOCKSTEP_FLOAT64, SEQUENCES, 0);
    argument_init(&f->truncated, f->truncated_data, LOCKSTEP_BOOL, SEQUENCES, 0);
    argument_init(&f->baselines, f->baselines_data, LOCKSTEP_FLOAT64, SEQUENCES, 0);
    argument_init(&f->values, f->values_data, LOCKSTEP_FLOAT64, SEQUENCES, LENGTH);
    argument_init(&f->squared_mass, f->squared_mass_data, LOCKSTEP_FLOAT64, SEQUENCES, LENGTH);
    argument_init(&f->kind_weights, f->kind_weights_data, LOCKSTEP_FLOAT64, KINDS, 0);
    argument_init(&f->trainer_log_probs, f->log_probs_data, LOCKSTEP_FLOAT64, SEQUENCES, LENGTH);
    argument_init(&f->mask, f->mask_data, LOCKSTEP_UINT8, SEQUENCES, LENGTH);
    argument_init(&f->weights, f->weights_data, LOCKSTEP_FLOAT64, SEQUENCES, LENGTH);
    argument_init(&f->groups, f->groups_data, LOCKSTEP_INT64, SEQUENCES, 0);
    argument_init(&f->penalties, f->outputs.penalties, LOCKSTEP_FLOAT64, SEQUENCES, 0);
    argument_init(&f->lengths, f->lengths_data, LOCKSTEP_INT64, SEQUENCES, 0);
    for (int i = 0; i < SEQUENCES; i++) f->lengths_data[i] = 20 * i;
    f->max_length = 100;
    f->buffer = 40;
    f->factor = 2;
}

static lockstep_status advantages(fixture *f) {
    f->earned.rewards = given(&f->rewards);
    f->earned.truncated = given(&f->truncated);
    f->earned.baselines = given(&f->baselines);
    f->earned.values = given(&f->values);
    f->earned.squared_mass = given(&f->squared_mass);
    f->earned.kind_weights = given(&f->kind_weights);
    f->batch.trainer_log_probs = given(&f->trainer_log_probs);
    f->batch.mask = given(&f->mask);
    f->batch.weights = given(&f->weights);
    f->batch.groups = given(&f->groups);
    return lockstep_advantages(given(&f->advantages), given(&f->returns), f->no_rewards ? NULL : &f->earned,
                               f->no_batch ? NULL : &f->batch, &f->advantage_options);
}

static lockstep_status penalty(fixture *f) {
    return lockstep_overlong_penalty(given(&f->penalties), given(&f->lengths), f->max_length, f->buffer, f->factor);
}

/* One value for each token, as `estimator` wants it. */
static void per_token(fixture *f, lockstep_advantage_estimator estimator) {
    f->advantage_options.estimator = estimator;
    argument_init(&f->advantages, f->outputs.advantages, LOCKSTEP_FLOAT64, SEQUENCES, LENGTH);
    argument_init(&f->returns, f->outputs.returns, LOCKSTEP_FLOAT64, SEQUENCES, LENGTH);
    if (estimator == LOCKSTEP_ADVANTAGE_GDPO)
        argument_init(&f->rewards, f->rewards_data, LOCKSTEP_FLOAT64, SEQUENCES, KINDS);
}

static void advantages_refuse_bad_arguments(void) {
    static const argument_place places[] = {
        PLACE(advantages, REQUIRED | OUTPUT), PLACE(returns, OUTPUT), PLACE(rewards, REQUIRED), PLACE(truncated, 0),
        PLACE(baselines, 0), PLACE(values, 0), PLACE(squared_mass, 0), PLACE(kind_weights, 0),
        PLACE(trainer_log_probs, 0), PLACE(mask, 0), PLACE(weights, 0), PLACE(groups, 0),
    };
    REFUSES_SPOILED_ARGUMENTS(advantages, places);
    REFUSED(advantages, INVALID_ARGUMENT, "rewards is NULL", f.no_rewards = 1);
    REFUSED(advantages, INVALID_ARGUMENT, "groups: missing", f.no_batch = 1,
            f.values.absent = f.squared_mass.absent = 1);
    REFUSED(advantages, INVALID_ARGUMENT, "groups: missing", f.groups.absent = 1);
    REFUSED(advantages, INVALID_ARGUMENT, "struct_size", f.earned.struct_size = 8);
    REFUSED(advantages, INVALID_ARGUMENT, "struct_size", f.batch.struct_size = 8);
    REFUSED(advantages, INVALID_ARGUMENT, "struct_size", f.advantage_options.struct_size = 8);
    REFUSED(advantages, INVALID_ARGUMENT, "reserved", f.earned.reserved = 1);
    REFUSED(advantages, INVALID_ARGUMENT, "rewards: has 5", f.rewards.shape[0] = 5);
    REFUSED(advantages, INVALID_ARGUMENT, "groups: has 5", f.groups.shape[0] = 5);
    REFUSED(advantages, INVALID_ARGUMENT, "truncated: has 5", f.truncated.shape[0] = 5);
    REFUSED(advantages, INVALID_ARGUMENT, "baselines: has 5", f.baselines.shape[0] = 5);
    REFUSED(advantages, INVALID_ARGUMENT, "values", f.values.shape[1] = LENGTH - 1);
    REFUSED(advantages, INVALID_ARGUMENT, "advantages: shape", f.advantages.shape[0] = 5);
    REFUSED(advantages, INVALID_ARGUMENT, "returns: shape", f.returns.shape[0] = 5);
    REFUSED(advantages, INVALID_ARGUMENT, "kind_weights: has 3", per_token(&f, LOCKSTEP_ADVANTAGE_GDPO),
            f.kind_weights.shape[0] = 3);
    /* 16 bits cannot hold what advantages are made of. */
    REFUSED(advantages, INVALID_ARGUMENT, "rewards: format is bf16, whose rounding is as large",
            argument_init(&f.rewards, f.rewards_data, LOCKSTEP_BFLOAT16, SEQUENCES, 0));
    REFUSED(advantages, INVALID_ARGUMENT, "rewards: format is fp16",
            argument_init(&f.rewards, f.rewards_data, LOCKSTEP_FLOAT16, SEQUENCES, 0));
    /* More sequences than memory has room for, though all share one element. */
    REFUSED(advantages, OUT_OF_MEMORY, "bytes", f.no_batch = 1, f.advantage_options.estimator = LOCKSTEP_ADVANTAGE_REMAX,
            f.rewards.shape[0] = f.baselines.shape[0] = f.truncated.shape[0] = f.advantages.shape[0] = (int64_t)1 << 46,
            f.rewards.strides[0] = f.baselines.strides[0] = f.truncated.strides[0] = 0, f.advantages.strides[0] = 1,
            f.rewards.tensor.strides = f.rewards.strides, f.baselines.tensor.strides = f.baselines.strides,
            f.truncated.tensor.strides = f.truncated.strides, f.returns.absent = f.values.absent = 1,
            f.squared_mass.absent = f.kind_weights.absent = 1);
}

static void advantages_refuse_bad_options(void) {
    REFUSED(advantages, INVALID_ARGUMENT, "estimator is 14", f.advantage_options.estimator = 14);
    REFUSED(advantages, INVALID_ARGUMENT, "estimator is -1", f.advantage_options.estimator = -1);
    REFUSED(advantages, INVALID_ARGUMENT, "scale is 7", f.advantage_options.scale = 7);
    REFUSED(advantages, INVALID_ARGUMENT, "whiten is 3", f.advantage_options.whiten = 3);
    REFUSED(advantages, INVALID_ARGUMENT, "singles is 2", f.advantage_options.singles = 2);
    REFUSED(advantages, INVALID_ARGUMENT, "truncated is 3", f.advantage_options.truncated = 3);
    REFUSED(advantages, INVALID_ARGUMENT, "population_std is 2", f.advantage_options.population_std = 2);
    REFUSED(advantages, INVALID_ARGUMENT, "tail_baseline is -1", f.advantage_options.tail_baseline = -1);
    REFUSED(advantages, INVALID_ARGUMENT, "epsilon is -0.5", f.advantage_options.epsilon = -0.5);
    REFUSED(advantages, INVALID_ARGUMENT, "epsilon is nan", f.advantage_options.epsilon = NAN);
    REFUSED(advantages, INVALID_ARGUMENT, "epsilon is inf", f.advantage_options.epsilon = INFINITY);
    REFUSED(advantages, INVALID_ARGUMENT, "gamma is 1.5", f.advantage_options.gamma = 1.5);
    REFUSED(advantages, INVALID_ARGUMENT, "gamma is nan", f.advantage_options.gamma = NAN);
    REFUSED(advantages, INVALID_ARGUMENT, "lambda is -0.25", f.advantage_options.lambda = -0.25);
    REFUSED(advantages, UNSUPPORTED, "scale is set", per_token(&f, LOCKSTEP_ADVANTAGE_GAE),
            f.advantage_options.scale = LOCKSTEP_SCALE_GROUP_STD);
    REFUSED(advantages, UNSUPPORTED, "scale is set", per_token(&f, LOCKSTEP_ADVANTAGE_REMAX),
            f.advantage_options.scale = LOCKSTEP_SCALE_BATCH_STD,
            argument_init(&f.rewards, f.rewards_data, LOCKSTEP_FLOAT64, SEQUENCES, LENGTH));
    ACCEPTED(advantages, f.advantage_options.epsilon = 0);
}

static void advantages_refuse_what_is_missing(void) {
    REFUSED(advantages, INVALID_ARGUMENT, "truncated: missing", f.truncated.absent = 1,
            f.advantage_options.truncated = LOCKSTEP_TRUNCATED_DROP);
    REFUSED(advantages, INVALID_ARGUMENT, "baselines: missing", f.baselines.absent = 1,
            f.advantage_options.estimator = LOCKSTEP_ADVANTAGE_REMAX);
    REFUSED(advantages, INVALID_ARGUMENT, "values: missing", per_token(&f, LOCKSTEP_ADVANTAGE_GAE),
            f.values.absent = 1);
    REFUSED(advantages, INVALID_ARGUMENT, "squared_mass: missing",
            per_token(&f, LOCKSTEP_ADVANTAGE_OPTIMAL_TOKEN_BASELINE), f.squared_mass.absent = 1);
    REFUSED(advantages, INVALID_ARGUMENT, "trainer_log_probs: missing",
            per_token(&f, LOCKSTEP_ADVANTAGE_MULTI_TURN_TOKEN_BASELINE), f.trainer_log_probs.absent = 1);
    REFUSED(advantages, INVALID_ARGUMENT, "batch: ", f.advantage_options.estimator = LOCKSTEP_ADVANTAGE_OPO,
            f.trainer_log_probs.absent = f.mask.absent = f.weights.absent = 1,
            f.values.absent = f.squared_mass.absent = 1);
    REFUSED(advantages, INVALID_ARGUMENT, "one for each token",
            f.advantage_options.estimator = LOCKSTEP_ADVANTAGE_REINFORCE_PLUS_PLUS);
    REFUSED(advantages, INVALID_ARGUMENT, "sequences x kinds", f.advantage_options.estimator = LOCKSTEP_ADVANTAGE_GDPO);
    REFUSED(advantages, INVALID_ARGUMENT, "sequence 4 is alone in group 9",
            f.advantage_options.estimator = LOCKSTEP_ADVANTAGE_PASS_AT_K, f.groups_data[4] = 9,
            f.groups_data[1] = 7);
    REFUSED(advantages, INVALID_ARGUMENT, "rewards: -0.25 for sequence 4",
            f.advantage_options.estimator = LOCKSTEP_ADVANTAGE_MAX_RL);
}

static void advantages_refuse_bad_values(void) {
    REFUSED(advantages, NON_FINITE, "rewards: nan at index 3", f.rewards_data[3] = NAN);
    REFUSED(advantages, NON_FINITE, "rewards: -inf at index 0", f.rewards_data[0] = -INFINITY);
    REFUSED(advantages, INVALID_ARGUMENT, "index 2; scale it below 1e100", f.rewards_data[2] = 1e200);
    REFUSED(advantages, NON_FINITE, "baselines: nan at index 5", f.baselines_data[5] = NAN,
            f.advantage_options.estimator = LOCKSTEP_ADVANTAGE_REMAX);
    REFUSED(advantages, NON_FINITE, "values: inf at sequence 2, position 1", per_token(&f, LOCKSTEP_ADVANTAGE_GAE),
            f.values_data[2 * LENGTH + 1] = INFINITY);
    REFUSED(advantages, NON_FINITE, "rewards: nan at sequence 1, position 2",
            argument_init(&f.rewards, f.rewards_data, LOCKSTEP_FLOAT64, SEQUENCES, LENGTH),
            f.rewards_data[LENGTH + 2] = NAN);
    REFUSED(advantages, NON_FINITE, "trainer_log_probs: -inf at sequence 0, position 0",
            per_token(&f, LOCKSTEP_ADVANTAGE_OPTIMAL_TOKEN_BASELINE), f.log_probs_data[0] = -INFINITY);
    /* fp32 cannot hold what fp64 can. */
    REFUSED(advantages, NON_FINITE, "too large for fp32", f.rewards_data[0] = 1e60,
            f.advantage_options.estimator = LOCKSTEP_ADVANTAGE_DR_GRPO,
            argument_init(&f.advantages, f.outputs.advantages, LOCKSTEP_FLOAT32, SEQUENCES, 0));
}

static void advantages_follow_the_formulas(void) {
    fixture f;
    fixture_init(&f);
    double std = sqrt((4 * 0.25) / 3); /* of 1, 0, 0, 1 */
    CHECK_OK(advantages(&f));
    CHECK(fabs(f.outputs.advantages[0] - 0.5 / (std + 1e-6)) < 1e-15);
    CHECK(f.outputs.advantages[0] == f.outputs.advantages[5] && f.outputs.advantages[2] == -f.outputs.advantages[0]);
    CHECK(f.outputs.returns[4] == -0.25);

    f.advantage_options.estimator = LOCKSTEP_ADVANTAGE_DR_GRPO;
    f.returns.absent = 1;
    CHECK_OK(advantages(&f));
    CHECK(f.outputs.advantages[0] == 0.5 && f.outputs.advantages[1] == 0.375 && f.outputs.advantages[4] == -0.375);

    f.advantage_options.estimator = LOCKSTEP_ADVANTAGE_LEAVE_ONE_OUT;
    CHECK_OK(advantages(&f));
    CHECK(f.outputs.advantages[1] == 0.75 && fabs(f.outputs.advantages[0] - 2.0 / 3) < 1e-15);

    /* Without any array of tokens groups are enough, and rewards alone for ReMax. */
    f.trainer_log_probs.absent = f.mask.absent = f.weights.absent = f.values.absent = f.squared_mass.absent = 1;
    CHECK_OK(advantages(&f));
    CHECK(f.outputs.advantages[1] == 0.75);
    f.no_batch = 1;
    f.advantage_options.estimator = LOCKSTEP_ADVANTAGE_REMAX;
    f.baselines_data[2] = 0.25;
    CHECK_OK(advantages(&f));
    CHECK(f.outputs.advantages[0] == 1 && f.outputs.advantages[2] == -0.25);

    /* The whole batch may be empty. */
    f.rewards.shape[0] = f.baselines.shape[0] = f.truncated.shape[0] = f.advantages.shape[0] = 0;
    CHECK_OK(advantages(&f));
}

static void masked_positions_and_dropped_sequences_are_never_read(void) {
    fixture f;
    fixture_init(&f);
    per_token(&f, LOCKSTEP_ADVANTAGE_GAE);
    argument_init(&f.rewards, f.rewards_data, LOCKSTEP_FLOAT64, SEQUENCES, LENGTH);
    f.mask_data[4] = 0;
    f.rewards_data[4] = f.values_data[4] = NAN;
    memset(f.mask_data + LENGTH * 3, 0, LENGTH); /* sequence 3 is empty */
    for (int i = 0; i < LENGTH; i++) f.rewards_data[3 * LENGTH + i] = NAN;
    f.advantage_options.truncated = LOCKSTEP_TRUNCATED_DROP;
    f.truncated_data[2] = 1;
    f.rewards_data[2 * LENGTH] = NAN;
    CHECK_OK(advantages(&f));
    CHECK(f.outputs.advantages[2 * LENGTH] == 0 && f.outputs.advantages[2 * LENGTH + 1] == 0);
    f.advantage_options.truncated = LOCKSTEP_TRUNCATED_KEEP;
    CHECK(advantages(&f) == LOCKSTEP_ERROR_NON_FINITE);
    f.rewards_data[2 * LENGTH] = 0;
    CHECK_OK(advantages(&f));
    CHECK(f.outputs.advantages[4] == 0 && f.outputs.advantages[3] != 0 && f.outputs.advantages[3 * LENGTH] == 0);

    fixture_init(&f);
    f.advantage_options.truncated = LOCKSTEP_TRUNCATED_DROP;
    f.advantage_options.estimator = LOCKSTEP_ADVANTAGE_DR_GRPO;
    f.truncated_data[5] = 1;
    f.rewards_data[5] = NAN;
    CHECK_OK(advantages(&f));
    CHECK(fabs(f.outputs.advantages[0] - 2.0 / 3) < 1e-15 && f.outputs.advantages[5] == 0);
    f.rewards_data[5] = 1;
    f.advantage_options.truncated = LOCKSTEP_TRUNCATED_ZERO;
    CHECK_OK(advantages(&f));
    CHECK(f.outputs.advantages[0] == 0.5 && f.outputs.advantages[5] == 0);
}

static void penalty_refuses_bad_input(void) {
    static const argument_place places[] = {PLACE(penalties, REQUIRED | OUTPUT), PLACE(lengths, REQUIRED)};
    REFUSES_SPOILED_ARGUMENTS(penalty, places);
    REFUSED(penalty, INVALID_ARGUMENT, "penalties: shape[0] is 5", f.penalties.shape[0] = 5);
    REFUSED(penalty, INVALID_ARGUMENT, "max_length is 0", f.max_length = 0);
    REFUSED(penalty, INVALID_ARGUMENT, "buffer is 0", f.buffer = 0);
    REFUSED(penalty, INVALID_ARGUMENT, "buffer is 101", f.buffer = 101);
    REFUSED(penalty, INVALID_ARGUMENT, "factor is -1", f.factor = -1);
    REFUSED(penalty, INVALID_ARGUMENT, "factor is nan", f.factor = NAN);
    REFUSED(penalty, INVALID_ARGUMENT, "lengths: -1", f.lengths_data[5] = -1);
    REFUSED(penalty, INVALID_ARGUMENT, "lengths: -9223372036854775808", f.lengths_data[2] = INT64_MIN);
    ACCEPTED(penalty, f.lengths_data[2] = INT64_MAX, f.max_length = INT64_MAX, f.buffer = INT64_MAX);
}

static void penalty_falls_evenly(void) {
    static const double expected[SEQUENCES] = {0, 0, 0, 0, -1, -2};
    fixture f;
    fixture_init(&f);
    CHECK_OK(penalty(&f));
    CHECK(memcmp(f.outputs.penalties, expected, sizeof expected) == 0);
    f.lengths_data[0] = 1000; /* beyond the limit it falls no further */
    CHECK_OK(penalty(&f));
    CHECK(f.outputs.penalties[0] == -2);
}

int main(void) {
    TEST(advantages_refuse_bad_arguments);
    TEST(advantages_refuse_bad_options);
    TEST(advantages_refuse_what_is_missing);
    TEST(advantages_refuse_bad_values);
    TEST(advantages_follow_the_formulas);
    TEST(masked_positions_and_dropped_sequences_are_never_read);
    TEST(penalty_refuses_bad_input);
    TEST(penalty_falls_evenly);
    return test_report();
}
