"""Tasks: rewards against implementations of their own, demonstrations and their share of errors, hostile files."""

from __future__ import annotations

import json
import math
import re
from fractions import Fraction

import numpy as np
import pytest

import lockstep
from lockstep import Task

GENERATED = lockstep.task_names()
FONTS = {character: place % 7 for place, character in enumerate("0123456abcdefg")}


def right_chain(prompt: str, response: str) -> bool:
    a, b, y = (FONTS[each] for each in prompt)
    if len(response) != 32:
        return False
    for _ in range(32):
        y = (a * y + b) % 7
    return FONTS[response[-1]] == y


def right_arithmetic(prompt: str, response: str) -> bool:
    return "#" in response and response.endswith("\n") and response[:-1].rpartition("#")[2] == str(eval(prompt[:-1]))


def right_sort(prompt: str, response: str) -> bool:
    return response == "".join(sorted(prompt[:-1])) + "\n"


def right_reverse(prompt: str, response: str) -> bool:
    return response == prompt[-2::-1] + "\n"


def right_countdown(prompt: str, response: str) -> bool:
    numbers, _, target = prompt[:-1].partition(":")
    if not response.endswith("\n") or not re.fullmatch(r"[0-9+*/()-]+", response[:-1]):
        return False
    used = re.findall(r"[0-9]+", response)
    if sorted(used) != sorted(numbers.split(",")):
        return False
    try:  # exact: a quotient with a rest shows as a fraction somewhere
        parts: list[Fraction] = []

        class Number(Fraction):
            def __truediv__(self, other):
                parts.append(Fraction(self) / other)
                return Number(parts[-1])

            def __add__(self, other):
                return Number(Fraction(self) + other)

            def __sub__(self, other):
                return Number(Fraction(self) - other)

            def __mul__(self, other):
                return Number(Fraction(self) * other)

        value = eval(re.sub(r"([0-9]+)", r"N(\1)", response[:-1]), {"N": Number})
    except (SyntaxError, ZeroDivisionError, TypeError):
        return False
    # Signs before numbers are no operators of this task.
    if re.search(r"(^|[(+*/-])[+-]|\*\*|//", response[:-1]):
        return False
    return all(each.denominator == 1 for each in parts) and value == int(target)


RIGHT = {"chain": right_chain, "arithmetic": right_arithmetic, "sort": right_sort, "reverse": right_reverse,
         "countdown": right_countdown}


@pytest.mark.parametrize("name", GENERATED)
def test_rewards_are_those_of_an_independent_implementation(name):
    task, rng = Task(name), np.random.default_rng(1)
    seen = {0.0: 0, 1.0: 0}
    for index in range(3000):
        prompt = task.prompt(index, seed=7)
        # Right ones, wrong ones, and right ones with a character changed, dropped or added.
        response = task.demonstration(index, seed=7, error_rate=(0, 0, 0.1)[index % 3])
        if index % 3 == 1:
            place = rng.integers(len(response))
            response = [*response[:place], *rng.integers(task.vocab, size=rng.integers(3)), *response[place + 1:]]
        reward = task.reward(prompt, response)
        assert reward == RIGHT[name](task.decode(prompt), task.decode(response)), (index, task.decode(response))
        seen[reward] += 1
        assert len(prompt) <= task.longest_prompt and len(task.demonstration(index, seed=7)) <= task.longest_response
    assert min(seen.values()) > 300


@pytest.mark.parametrize("name, steps", [
    ("chain", lambda prompt: 32), ("sort", lambda prompt: 8), ("reverse", lambda prompt: 8),
    ("countdown", lambda prompt: 4),
    ("arithmetic", lambda prompt: max(map(len, re.split("[+*]", prompt[:-1])))),
])
def test_demonstrations_are_right_as_often_as_is_said(name, steps):
    task, count = Task(name), 6000
    for rate in (0.0, 0.018, 0.2):
        rewards, expected, variance = 0.0, 0.0, 0.0
        for index in range(count):
            prompt = task.prompt(index, seed=3)
            rewards += task.reward(prompt, task.demonstration(index, seed=3, error_rate=rate))
            n = steps(task.decode(prompt))
            share = 1 / 7 + 6 / 7 * (1 - 7 / 6 * rate)**n if name == "chain" else (1 - rate)**n
            expected, variance = expected + share, variance + share * (1 - share)
        assert abs(rewards - expected) <= 4 * math.sqrt(variance), (rate, rewards, expected)


def test_chain_is_that_of_the_sanity_test():
    task = Task("chain")
    assert (task.vocab, task.stop_id, task.longest_prompt, task.longest_response) == (14, None, 3, 32)
    prompt = task.encode("1b0")  # y + 1, from 0: 32 steps reach 4
    filler = "0" * 31
    assert task.reward(prompt, task.encode(filler + "4")) == task.reward(prompt, task.encode(filler + "e")) == 1
    assert task.reward(prompt, task.encode(filler + "3")) == task.reward(prompt, task.encode("4")) == 0
    fonts = np.concatenate([task.demonstration(index) for index in range(200)]) >= 7
    assert 0.47 < fonts.mean() < 0.53
    prompts = {task.decode(task.prompt(index)) for index in range(20_000)}
    assert len({tuple(FONTS[each] for each in prompt) for prompt in prompts}) == 6 * 7 * 7


def test_a_problem_depends_on_seed_and_index_alone():
    for name in GENERATED:
        task, again = Task(name), Task(name)
        first = [task.decode(task.prompt(index, seed=5)) for index in range(50)]
        assert first == [again.decode(again.prompt(index, seed=5)) for index in reversed(range(50))][::-1]
        assert first != [task.decode(task.prompt(index, seed=6)) for index in range(50)]
        assert len(set(first)) > 25


def test_countdown_by_hand():
    task = Task("countdown")
    prompt = task.encode("3,7,25,2:46=")
    for text, reward in {
            "(25-7)*2+10": 0, "25*2-7+3": 1, "3+25*2-7": 1, "(25*2)-(7-3)": 1, "((25*2)-7)+3": 1, "25+7*3": 0,
            "25*2-7+3+0": 0, "": 0, "(": 0, "25*2-(7-3": 0, "25*2-7+3)": 0, "25/0": 0, "-7+3+25*2": 0, "7/2": 0,
            "46": 0, "25*2--7+3": 0, "(" * 500: 0, "9" * 400: 0, "25*02-7+3": 0, "25*2-7+3=46": 0}.items():
        assert task.reward(prompt, task.encode(text + "\n")) == reward, text
        assert task.reward(prompt, task.encode(text)) == 0
    assert task.reward(task.encode("8,3:2="), task.encode("8/3\n")) == 0
    assert task.reward(task.encode("8,4:2="), task.encode("8/4\n")) == 1
    for bad in ("", "=", "3,7=", "3,7:=", "3,,7:10=", "3,7:10", "a"):
        with pytest.raises(lockstep.InvalidArgumentError, match="prompt" if bad != "a" else "character 0"):
            task.reward(task.encode(bad), task.encode("3+7\n"))


def test_padded_ids_and_bad_input():
    task = Task("sort")
    prompt = task.prompt(0)
    answer = task.demonstration(0)
    assert task.reward(prompt, answer) == 1
    for bad in (12, 15, -1, 2**40):
        assert task.reward(prompt, [bad, *answer[1:]]) == 0
        assert task.reward(prompt, [*answer, bad]) == 0
    assert task.reward(prompt, []) == 0
    with pytest.raises(lockstep.InvalidArgumentError, match="prompt"):
        task.reward([99], answer)
    with pytest.raises(lockstep.InvalidArgumentError, match="character 2, U\\+78"):
        task.encode("12x")
    with pytest.raises(lockstep.InvalidArgumentError, match="element 1 is 12"):
        task.decode([0, 12])
    assert task.decode([]) == "" and task.encode("").size == 0
    for arguments, word in ((("sort", {"size": -1}), "size"), (("sort", {"size": 5000}), "size"), (("sum", {}), "sum"),
                            (("arithmetic", {"size": 18}), "size"), ((7, {}), "name")):
        with pytest.raises(lockstep.InvalidArgumentError, match=word):
            Task(arguments[0], **arguments[1])
    for call in (lambda: task.prompt(-1), lambda: task.prompt(2**60), lambda: task.demonstration(0, error_rate=1.5),
                 lambda: task.demonstration(0, error_rate=math.nan), lambda: task.prompt(0, seed=-1)):
        with pytest.raises(lockstep.InvalidArgumentError):
            call()


def write(path, *lines) -> str:
    path.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines))
    return f"file:{path}"


def test_a_file(tmp_path):
    task = Task(write(tmp_path / "t.jsonl", {"prompt": "6*7?", "answer": "6 times 7\n#### 42", "id": 1}, "",
                      {"prompt": "π?", "answer": " 3.14 "}, {"prompt": "6*7?", "answer": "42"}))
    assert task.problems == 3 and task.stop_id == task.vocab - 1
    for text, reward in {"42": 1, "#42": 1, "7*6\n42": 1, "####  42 \n": 1, "42.": 0, "4 2": 0, "# 42 # 7": 0, "42\n7": 0,
                         "": 0, "#": 0}.items():
        assert task.reward(task.encode("6*7?"), [*task.encode(text.replace("\n", "\n")), task.stop_id]) == reward, text
        assert task.reward(task.encode("6*7?"), task.encode(text)) == 0
    for round in range(20):  # each problem once in a round, in orders that the seed decides
        prompts = [task.decode(task.prompt(3 * round + index, seed=4)) for index in range(3)]
        assert sorted(prompts) == ["6*7?", "6*7?", "π?"]
    orders = {tuple(task.decode(task.prompt(index, seed=seed)) for index in range(3)) for seed in range(20)}
    assert len(orders) == 3
    for index in range(3):
        assert task.reward(task.prompt(index), task.demonstration(index)) == 1
    with pytest.raises(lockstep.InvalidArgumentError, match="error_rate"):
        task.demonstration(0, error_rate=0.1)
    with pytest.raises(lockstep.InvalidArgumentError, match="prompt"):
        task.reward(task.encode("6?"), [task.stop_id])
    many = Task(write(tmp_path / "many.jsonl", *({"prompt": str(n), "answer": "x"} for n in range(1000))))
    assert sorted(int(many.decode(many.prompt(1000 + n, seed=9))) for n in range(1000)) == list(range(1000))


@pytest.mark.parametrize("line, word", [
    ("{", "line 2"), ("[]", "line 2"), ('{"prompt": "a"}', "line 2"), ('{"prompt": 1, "answer": "a"}', "line 2"),
    ('{"prompt": "", "answer": "a"}', "prompt is empty"), ('{"prompt": "a", "answer": " \\n"}', "answer is empty"),
    ('{"prompt": "a", "answer": "b #"}', "answer is empty"), ('{"prompt": "p", "answer": "other"}', "line 1"),
    ('{"prompt": "\\u0003", "answer": "a"}', r"U\+0003"), ('{"prompt": "a", "answer": "a", "answer": "b"}', "line 2"),
    ('{"prompt": "\\ud800", "answer": "a"}', "line 2"), ("[" * 100_000, "line 2"),
])
def test_hostile_files(tmp_path, line, word):
    with pytest.raises(lockstep.BadDataError, match=word):
        Task(write(tmp_path / "t.jsonl", {"prompt": "p", "answer": "1"}, line))


def test_no_file(tmp_path):
    for name in (f"file:{tmp_path}/none", f"file:{tmp_path}"):
        with pytest.raises(lockstep.FileError):
            Task(name)
    (tmp_path / "empty").write_text("\n \n")
    with pytest.raises(lockstep.BadDataError, match="no problems"):
        Task(f"file:{tmp_path}/empty")
    with pytest.raises(lockstep.InvalidArgumentError, match="path"):
        Task("file:")
    rng = np.random.default_rng(0)
    for size in (1, 10, 1000):
        for _ in range(50):
            (tmp_path / "noise").write_bytes(rng.integers(0, 256, size, dtype=np.uint8).tobytes())
            with pytest.raises(lockstep.BadDataError):
                Task(f"file:{tmp_path}/noise")
