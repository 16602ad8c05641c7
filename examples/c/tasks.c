/* Problems whose answers can be checked: of each built-in task a prompt, a solution, a demonstration with errors, and
 * what they are worth. Then a file of one's own. */
#define _POSIX_C_SOURCE 200809L
#include <lockstep.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ROOM = 256 };
typedef struct {
    int32_t ids[ROOM];
    size_t count;
} text;

static void must(lockstep_status status) {
    if (status == LOCKSTEP_OK) return;
    fprintf(stderr, "%s: %s\n", lockstep_status_name(status), lockstep_last_error());
    exit(1);
}

static lockstep_tensor tensor(text *of, int64_t *shape) {
    *shape = (int64_t)of->count;
    return lockstep_tensor_of(of->ids, LOCKSTEP_INT32, 1, shape);
}

/* Prints a response without its stop, and its reward. */
static void judge(const char *what, const lockstep_task *task, text *prompt, text *response) {
    char characters[4 * ROOM];
    size_t size = sizeof characters;
    int64_t shapes[2];
    double reward;
    lockstep_tensor asked = tensor(prompt, &shapes[0]), answered = tensor(response, &shapes[1]);
    must(lockstep_task_decode(characters, &size, task, &answered));
    characters[strcspn(characters, "\n\003")] = 0;
    must(lockstep_task_reward(&reward, task, &asked, &answered));
    printf("    %s %s: %.0f\n", what, characters, reward);
}

static text problem(const lockstep_task *task, const char *name) {
    text prompt = {.count = ROOM};
    char characters[4 * ROOM];
    size_t size = sizeof characters;
    int64_t shape;
    must(lockstep_task_prompt(prompt.ids, &prompt.count, task, 0, 1));
    lockstep_tensor asked = tensor(&prompt, &shape);
    must(lockstep_task_decode(characters, &size, task, &asked));
    printf("%s: %s\n", name, characters);
    return prompt;
}

int main(void) {
    static const char *const names[5] = {"chain", "arithmetic", "sort", "reverse", "countdown"};
    lockstep_task *task;
    for (int i = 0; i < 5; i++) {
        must(lockstep_task_create(&task, names[i], NULL));
        text prompt = problem(task, names[i]), solution = {.count = ROOM}, flawed = {.count = ROOM};
        must(lockstep_task_demonstration(solution.ids, &solution.count, task, 0, 1, 0.0));
        must(lockstep_task_demonstration(flawed.ids, &flawed.count, task, 0, 1, 0.5));
        judge("solution", task, &prompt, &solution);
        judge("flawed", task, &prompt, &flawed);
        lockstep_task_destroy(task);
    }

    char name[] = "file:/tmp/lockstep-task-XXXXXX";
    FILE *file = fdopen(mkstemp(name + 5), "w");
    if (file == NULL) return 1;
    fputs("{\"prompt\": \"What is 6 times 7?\", \"answer\": \"6 x 7 is 42, so # 42\"}\n", file);
    if (fclose(file) != 0) return 1;
    must(lockstep_task_create(&task, name, NULL));
    unlink(name + 5);
    text prompt = problem(task, "file");
    static const char *const answers[3] = {"# 42", "7 times 6 is # 42", "so 42"};
    for (int i = 0; i < 3; i++) {
        lockstep_task_info info = {.struct_size = sizeof info};
        text response = {.count = ROOM};
        must(lockstep_task_get_info(&info, task));
        must(lockstep_task_encode(response.ids, &response.count, task, answers[i]));
        response.ids[response.count++] = info.stop_id;
        judge("response", task, &prompt, &response);
    }
    lockstep_task_destroy(task);
    return 0;
}
