"""Problems whose answers can be checked: of each built-in task a prompt, a solution, a demonstration with errors, and
what they are worth. Then a file of one's own."""

import tempfile

import lockstep


def judge(what, task, response):
    text = task.decode(response).strip("\n\x03")
    print(f"    {what} {text}: {task.reward(task.prompt(0, seed=1), response):.0f}")


for name in lockstep.task_names():
    task = lockstep.Task(name)
    print(f"{name}: {task.decode(task.prompt(0, seed=1))}")
    judge("solution", task, task.demonstration(0, seed=1))
    judge("flawed", task, task.demonstration(0, seed=1, error_rate=0.5))

with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
    print('{"prompt": "What is 6 times 7?", "answer": "6 x 7 is 42, so # 42"}', file=file, flush=True)
    task = lockstep.Task(f"file:{file.name}")
print(f"file: {task.decode(task.prompt(0, seed=1))}")
for answer in ("# 42", "7 times 6 is # 42", "so 42"):
    judge("response", task, [*task.encode(answer), task.stop_id])
