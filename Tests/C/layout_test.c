/* Sizes, offsets and constants that callers have compiled into their programs. A change here is a change
 * of the ABI: a new soname, or, for a struct that may grow, an addition at its end. */
#include "test.h"

/* C99 has no _Static_assert: an array of negative size says it too, in a declaration that may come again. */
#define STATIC_CHECK(condition) extern void static_check(char (*)[(condition) ? 1 : -1])

/* abi/layout.h has a line for every struct, field and constant of the header. */
#define LAYOUT_SIZE(type, size) STATIC_CHECK(sizeof(type) == (size));
#define LAYOUT_GROWS(type, size) STATIC_CHECK(sizeof(type) >= (size));
#define LAYOUT_FIELD(type, member, offset, size) \
    STATIC_CHECK(offsetof(type, member) == (offset) && sizeof(((type *)0)->member) == (size));
#define LAYOUT_CONSTANT(name, value) STATIC_CHECK((name) == (value));
#include "abi/layout.h"

STATIC_CHECK(sizeof(lockstep_status) == 4);
/* DLPack's DLDataType, DLDevice and DLTensor. */
STATIC_CHECK(sizeof(lockstep_dtype) == 4 && sizeof(lockstep_device) == 8 && sizeof(lockstep_tensor) == 48);

/* The code of a dtype is the bytes of DLPack's struct: code, bits, lanes. */
static void dtype_codes_are_dlpacks(void) {
    static const struct { int32_t code; uint8_t kind, bits; } known[] = {
        {LOCKSTEP_FLOAT32, 2, 32},      {LOCKSTEP_FLOAT64, 2, 64},    {LOCKSTEP_FLOAT16, 2, 16},
        {LOCKSTEP_BFLOAT16, 4, 16},     {LOCKSTEP_INT32, 0, 32},      {LOCKSTEP_INT64, 0, 64},
        {LOCKSTEP_UINT8, 1, 8},         {LOCKSTEP_UINT64, 1, 64},     {LOCKSTEP_BOOL, 6, 8},
        {LOCKSTEP_FLOAT8_E4M3FN, 10, 8}, {LOCKSTEP_FLOAT8_E5M2, 12, 8},
        {LOCKSTEP_E8M + 23, 215, 32},   {LOCKSTEP_E5M + 10, 234, 32},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        lockstep_dtype dtype = lockstep_dtype_of(known[i].code);
        CHECK(dtype.code == known[i].kind && dtype.bits == known[i].bits && dtype.lanes == 1);
        CHECK(memcmp(&dtype, &known[i].code, 4) == 0);
    }
}

static void tensor_of_describes_the_buffer(void) {
    float data[6];
    int64_t shape[2] = {2, 3};
    lockstep_tensor tensor = lockstep_tensor_of(data, LOCKSTEP_FLOAT32, 2, shape);
    CHECK(tensor.data == data && tensor.ndim == 2 && tensor.shape == shape);
    CHECK(tensor.device.device_type == 1 && tensor.device.device_id == 0);
    CHECK(tensor.strides == NULL && tensor.byte_offset == 0 && tensor.dtype.bits == 32);
}

static void init_macros_hold_the_defaults(void) {
    lockstep_log_probs_options log_probs = LOCKSTEP_LOG_PROBS_OPTIONS_INIT;
    CHECK(log_probs.struct_size == sizeof log_probs && log_probs.temperature == 1 && log_probs.soft_cap == 0);
    CHECK(log_probs.ignore_index == -100 && log_probs.top_k == 0 && log_probs.top_p == 1);
    CHECK(log_probs.min_p == 0 && log_probs.logits_dtype == 0 && log_probs.threads == 0 && log_probs.instruction_set == 0);
    lockstep_convert_options convert = LOCKSTEP_CONVERT_OPTIONS_INIT;
    CHECK(convert.struct_size == sizeof convert && convert.rounding == LOCKSTEP_ROUND_NEAREST_EVEN);
    lockstep_mismatch_options mismatch = LOCKSTEP_MISMATCH_OPTIONS_INIT;
    CHECK(mismatch.struct_size == sizeof mismatch && mismatch.non_finite == LOCKSTEP_NON_FINITE_STRICT);
    lockstep_log_header header = LOCKSTEP_LOG_HEADER_INIT;
    CHECK(header.struct_size == sizeof header && header.temperature == -1 && header.top_p == -1);
    CHECK(header.min_p == -1 && header.top_k == -1 && header.created == 0 && header.model == NULL);
    CHECK(header.rollout_logits == NULL && header.pairs == 0 && header.keys == NULL && header.values == NULL);
    lockstep_log_sequence sequence = LOCKSTEP_LOG_SEQUENCE_INIT;
    CHECK(sequence.struct_size == sizeof sequence && sequence.id == 0 && sequence.step == -1);
    CHECK(sequence.prompt_tokens == -1 && sequence.reward == NULL && sequence.mask == NULL);
    lockstep_log_writer_options writer = LOCKSTEP_LOG_WRITER_OPTIONS_INIT;
    CHECK(writer.struct_size == sizeof writer && writer.mode == LOCKSTEP_LOG_CREATE && writer.sync_every == 0);
    lockstep_log_reader_options reader = LOCKSTEP_LOG_READER_OPTIONS_INIT;
    CHECK(reader.struct_size == sizeof reader && reader.damage == LOCKSTEP_LOG_DAMAGE_STRICT);
    lockstep_rewards rewards = LOCKSTEP_REWARDS_INIT;
    CHECK(rewards.struct_size == sizeof rewards && rewards.rewards == NULL && rewards.kind_weights == NULL);
    lockstep_advantage_options advantages = LOCKSTEP_ADVANTAGE_OPTIONS_INIT;
    CHECK(advantages.struct_size == sizeof advantages && advantages.estimator == LOCKSTEP_ADVANTAGE_GRPO);
    CHECK(advantages.epsilon == -1 && advantages.gamma == 1 && advantages.lambda == 1);
    lockstep_monitor_options monitor = LOCKSTEP_MONITOR_OPTIONS_INIT;
    CHECK(monitor.struct_size == sizeof monitor && monitor.learning_steps == 40 &&
          monitor.false_alarms_per_1000 == 1);
}

static void library_has_the_headers_version(void) {
    char text[32];
    const char *found = lockstep_version_string();
    CHECK(lockstep_version() ==
          LOCKSTEP_VERSION_MAJOR * 10000 + LOCKSTEP_VERSION_MINOR * 100 + LOCKSTEP_VERSION_PATCH);
    snprintf(text, sizeof text, "%d.%d.%d", LOCKSTEP_VERSION_MAJOR, LOCKSTEP_VERSION_MINOR,
             LOCKSTEP_VERSION_PATCH);
    CHECK(strncmp(found, text, strlen(text)) == 0);
    CHECK(found[strlen(text)] == 0 || strncmp(found + strlen(text), "-rc", 3) == 0);
}

static void every_status_has_its_name(void) {
    CHECK(strcmp(lockstep_status_name(LOCKSTEP_OK), "LOCKSTEP_OK") == 0);
    CHECK(strcmp(lockstep_status_name(LOCKSTEP_ERROR_INVALID_ARGUMENT), "LOCKSTEP_ERROR_INVALID_ARGUMENT") == 0);
    CHECK(strcmp(lockstep_status_name(LOCKSTEP_ERROR_UNSUPPORTED), "LOCKSTEP_ERROR_UNSUPPORTED") == 0);
    CHECK(strcmp(lockstep_status_name(LOCKSTEP_ERROR_NON_FINITE), "LOCKSTEP_ERROR_NON_FINITE") == 0);
    CHECK(strcmp(lockstep_status_name(LOCKSTEP_ERROR_OUT_OF_MEMORY), "LOCKSTEP_ERROR_OUT_OF_MEMORY") == 0);
    CHECK(strcmp(lockstep_status_name(LOCKSTEP_ERROR_INTERNAL), "LOCKSTEP_ERROR_INTERNAL") == 0);
    CHECK(strcmp(lockstep_status_name(LOCKSTEP_ERROR_FILE), "LOCKSTEP_ERROR_FILE") == 0);
    CHECK(strcmp(lockstep_status_name(LOCKSTEP_ERROR_BAD_DATA), "LOCKSTEP_ERROR_BAD_DATA") == 0);
    CHECK(strcmp(lockstep_status_name(8), "unknown status") == 0);
    CHECK(strcmp(lockstep_status_name(INT32_MIN), "unknown status") == 0);
}

static void instruction_sets_are_known_or_absent(void) {
    CHECK(lockstep_has_instruction_set(LOCKSTEP_INSTRUCTION_SET_BEST) == 1);
    CHECK(lockstep_has_instruction_set(LOCKSTEP_INSTRUCTION_SET_BASELINE) == 1);
    CHECK(lockstep_has_instruction_set(5) == 0);
    CHECK(lockstep_has_instruction_set(-1) == 0);
    CHECK(lockstep_has_instruction_set(INT32_MAX) == 0);
    /* No machine has both families. */
    CHECK(!(lockstep_has_instruction_set(LOCKSTEP_INSTRUCTION_SET_AVX2) &&
            lockstep_has_instruction_set(LOCKSTEP_INSTRUCTION_SET_NEON)));
}

int main(void) {
    TEST(dtype_codes_are_dlpacks);
    TEST(tensor_of_describes_the_buffer);
    TEST(init_macros_hold_the_defaults);
    TEST(library_has_the_headers_version);
    TEST(every_status_has_its_name);
    TEST(instruction_sets_are_known_or_absent);
    return test_report();
}
