/* A file of tasks: refused, or a task whose problems have prompts and demonstrations that earn their reward, and whose
 * texts come back. */
#include "fuzz.h"

size_t fuzz_repair(uint8_t *data, size_t size) {
    (void)data;
    return size;
}

static void check_problem(const lockstep_task *task, const lockstep_task_info *info, int64_t index, uint64_t seed) {
    static int32_t prompt[1 << 16], answer[1 << 16];
    size_t prompt_count = 1 << 16, answer_count = 1 << 16, size = 0;
    double reward = -1;
    FUZZ_CHECK(lockstep_task_prompt(prompt, &prompt_count, task, index, seed) == LOCKSTEP_OK);
    FUZZ_CHECK((int64_t)prompt_count <= info->longest_prompt && prompt_count > 0);
    FUZZ_CHECK(lockstep_task_demonstration(answer, &answer_count, task, index, seed, 0) == LOCKSTEP_OK);
    FUZZ_CHECK((int64_t)answer_count <= info->longest_response && answer_count > 0);
    for (size_t i = 0; i < answer_count; i++) FUZZ_CHECK(answer[i] >= 0 && answer[i] < info->vocab);
    int64_t prompt_shape = (int64_t)prompt_count, answer_shape = (int64_t)answer_count;
    lockstep_tensor p = lockstep_tensor_of(prompt, LOCKSTEP_INT32, 1, &prompt_shape);
    lockstep_tensor a = lockstep_tensor_of(answer, LOCKSTEP_INT32, 1, &answer_shape);
    FUZZ_CHECK(lockstep_task_reward(&reward, task, &p, &a) == LOCKSTEP_OK && reward == 1);
    /* The prompt as a text, and as ids again. */
    FUZZ_CHECK(lockstep_task_decode(NULL, &size, task, &p) == LOCKSTEP_OK);
    char *text = malloc(size);
    FUZZ_CHECK(text != NULL && lockstep_task_decode(text, &size, task, &p) == LOCKSTEP_OK);
    if (strlen(text) + 1 == size) { /* U+0000 may be in a prompt, and no C text can give it back */
        size_t count = 1 << 16;
        FUZZ_CHECK(lockstep_task_encode(answer, &count, task, text) == LOCKSTEP_OK);
        FUZZ_CHECK(count == prompt_count && memcmp(prompt, answer, 4 * count) == 0);
    }
    free(text);
    answer[0] = info->vocab;
    FUZZ_CHECK(lockstep_task_reward(&reward, task, &p, &a) == LOCKSTEP_OK && reward == 0);
}

void fuzz_one(const uint8_t *data, size_t size) {
    char name[300];
    lockstep_task *task = (void *)&task;
    lockstep_task_info info;
    snprintf(name, sizeof name, "file:%s", fuzz_write("task.jsonl", data, size));
    lockstep_status status = FUZZ_STATUS(lockstep_task_create(&task, name, NULL), "task.jsonl");
    if (status != LOCKSTEP_OK) {
        FUZZ_CHECK(task == (void *)&task && status == LOCKSTEP_ERROR_BAD_DATA);
        return;
    }
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    FUZZ_CHECK(lockstep_task_get_info(&info, task) == LOCKSTEP_OK && info.problems > 0);
    FUZZ_CHECK(info.stop_id >= 0 && info.stop_id < info.vocab);
    for (int64_t i = 0; i < 3; i++) check_problem(task, &info, i, 0);
    check_problem(task, &info, ((int64_t)1 << 48) - 1, UINT64_MAX);
    lockstep_task_destroy(task);
}
