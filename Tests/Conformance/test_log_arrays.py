"""Lines read by simdjson are those that are read without: values, ids, header and every error."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollouts import SHIPPED, sequence, write
from test_log_damage import GOOD, NAMED, changed
from log_writers import read, same
from test_logs import BAD_LINES

from lockstep.logs import LogError, json_arrays, json_records, open_log

pytest.importorskip("simdjson", reason="pysimdjson is not installed")


def outcome(path, **options):
    """All that reading a log gives, to be compared."""
    log = open_log(path, **options)
    found = []
    try:
        for batch in log:
            found += [(name, value.tobytes(), value.dtype, value.shape) for name, value in vars(batch).items()
                      if isinstance(value, np.ndarray)] + [batch.environments]
    except LogError as error:
        found.append(str(error))
    return found, log.header, log.files, log.sides


def with_and_without(path, **options):
    fast = outcome(path, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_arrays, "new_parser", lambda: None)
        return fast, outcome(path, **options)


def text(**fields):
    """A line of JSON of which some values are given as they are written."""
    record = {key: json.dumps(value) for key, value in GOOD.items()} | fields
    return "{" + ", ".join(f'"{key}": {value}' for key, value in record.items()) + "}\n"


LINES = {
    "a name twice": text()[:-2] + ', "trainer": [-5, -5, -5]}\n',
    "an array in an array": text(trainer="[-1.0, [-2.0], -3.0]"),
    "an array in an array, apart": text(trainer="[-1.0,\t[-2.0], -3.0]"),
    "arrays of one": text(trainer="[[-1.0], [-2.0], [-3.0]]"),
    "a batch": text(trainer="[[-1.0, -2]]", rollout="[[-1.0, -2]]", mask="[[1, 1]]", token_ids="[[1, 2]]", id="[1]"),
    "text like an array": text(prompt='"a [1], [2]"'),
    "text like a name": text(env_name='": [x"'),
    "text that is escaped": text(env_name='"\\u00e9 \\"\\n"'),
    "integers": text(trainer="[-1, -2, -3]"),
    "integers beyond float64": text(trainer="[-9007199254740993, -2, -16777217]"),
    "integers beyond 64 bits": text(trainer="[-18446744073709551617, -2, -3]"),
    "minus zero": text(trainer="[-0.0, -0, 0.0]"),
    "tiny": text(trainer="[-1e-46, -1e-330, -1.1754943e-38]"),
    "between two floats": text(trainer="[-1.00000017881393432617187499, -1.00000017881393432617187501, -0.1]"),
    "beyond float64": text(trainer="[-1e400, -2, -3]"),
    "null where it does not count": text(trainer="[null, -2, -3]"),
    "a mask of booleans": text(mask="[false, true, true]"),
    "a mask without blanks": text(mask="[false,false,true]"),
    "a mask that goes back": text(mask="[false, true, false]"),
    "a mask of one kind": text(mask="[false, false, false]"),
    "a mask that is cut off": text(mask="[false, true, tru]"),
    "a mask with a comma more": text(mask="[false, true, true, ]"),
    "a mask that runs on": text(mask="[false, true, truetrue]"),
    "a mask of both blanks": text(mask="[false, false,true]"),
    "a mask of fractions": text(mask="[0.0, 1.0, 1.0]"),
    "a mask of both": text(mask="[false, 1, true]"),
    "a mask of text": text(mask='["t", "f", "t"]'),
    "a mask that begins well": text(mask='[true, "t", true]'),
    "a mask that ends in null": text(mask="[true, true, null]"),
    "a mask of half": text(mask="[0, 0.5, 1]"),
    "token ids of fractions": text(token_ids="[1.0, 2.0, 3.0]"),
    "token ids of booleans": text(token_ids="[true, 2, 3]"),
    "token ids below": text(token_ids="[-2147483648, -1, 2147483647]"),
    "token ids beyond": text(token_ids="[1, 2147483648, 2]"),
    "token ids far beyond": text(token_ids="[1, 2, 9223372036854775808]"),
    "no tokens": text(trainer="[]", rollout="[]", mask="[]", token_ids="[]"),
    "an object": text(trainer='{"0": [-1.0]}'),
    "another recipe": text(temperature="0.5"),
    "of one engine": text()[:-2].replace('"trainer"', '"other"') + "}\n",
    "without token ids": text(token_ids="null"),
    "without an id": text(id="null"),
    "columns of other lengths": text(rollout="[-1, -2]"),
    "columns of one engine's length": text(mask="[1, 1]", trainer="[-1, -2]"),
    "an array where one value is expected": text(step="[1]"),
    "one value where an array is expected": text(trainer="-1"),
    "a recipe that is an object": text(recipe='{"a": [1]}'),
    "blanks": "  " + text(),
    "a byte order mark": "\ufeff" + text(),
    "more": text()[:-1] + " 1\n",
    "a form feed": "\f" + text(),
    "a carriage return": text()[:-1] + "\r\n",
    "an object in an object": text(meta='{"a": {"b": 1}}'),
    "a column in an object": text(meta='{"trainer": [1, 2, 3]}'),
    "another array": text(advantages="[1, null, 1e300]", words='["a", "]"]', names='["b"]'),
    "another array that is not JSON": text(advantages="[1, 02]"),
    "an array and a name twice": text()[:-2] + ', "trainer": 1}\n',
    "a name twice and an array": '{"rollout": 1, ' + text()[1:],
    "two objects": text()[:-1] + ", " + text(),
    "a surrogate": text(env_name='"\\ud800"'),
}


@pytest.mark.parametrize("options", [{}, {"skip_bad": True}, {"skip_bad": True, "batch_tokens": 1, "mixed": True},
                                     {"token_ids": False}, {"skip_bad": True, "shard": (1, 2)}])
@pytest.mark.parametrize("line", [*LINES.values(), *(line for line, _, _ in NAMED.values())],
                         ids=[*LINES, *NAMED])
def test_a_line_of_named_columns(tmp_path, line, options):
    path = write(tmp_path / "log.jsonl", changed(GOOD, id=100), changed(GOOD, id=101), line, changed(GOOD, id=102))
    fast, slow = with_and_without(path, **options)
    assert fast == slow


TOGETHER = {
    "a text in two arrays": [text(trainer='["]'), text(trainer='["]')],
    "a text in two arrays that are not read": [text(words='["]'), text(words='["]')],
    "an object in two lines": ['{"a": {"b": 1\n', "}}\n"],
    "two objects and an object in two lines": [text()[:-1] + ", " + text(), '{"a": [{}\n', "{}]}\n"],
    "an array in two lines": [text(trainer="[-1, [-2]"), text(trainer="-1], -3]")],
    "an array more, and less": [text(more="[1]"), text()[:-2].replace('"mask": [', '"mask": 0, "x": [') + "}\n"],
    "marks": [text(trainer="[0]", rollout="[1]"), text(prompt='"[0] [1] [2] [3]"'), text(id="[0]")],
}


@pytest.mark.parametrize("lines", TOGETHER.values(), ids=TOGETHER)
def test_lines_that_are_json_only_together(tmp_path, lines):
    for some in (lines, [changed(GOOD, id=100), *lines, changed(GOOD, id=101)]):
        fast, slow = with_and_without(write(tmp_path / "log.jsonl", *some), skip_bad=True)
        assert fast == slow


@given(st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 3),
                          st.text('[]{}",:\\\n 0t', max_size=3)), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage(tmp_path, edits):
    path = tmp_path / "log.jsonl"
    lines = "".join(text(id=str(index), words='["a"]', more="[0]", mask="[true, false, true]") for index in range(4))
    for at, removed, added in edits:
        at %= len(lines)
        lines = lines[:at] + added + lines[at + removed :]
    path.write_text(text(id="9") + lines)
    fast, slow = with_and_without(path, skip_bad=True, mixed=True)
    assert fast == slow


@pytest.mark.parametrize("options", [{"mixed": True}, {}])
def test_a_bad_line_before_another_recipe(tmp_path, options):
    lines = [changed(GOOD, id=index, temperature=1 if index < 4 else 0.5) for index in range(6)]
    path = write(tmp_path / "log.jsonl", *lines[:3], changed(lines[3], mask=[0, 2, 1]), *lines[4:])
    fast, slow = with_and_without(path, skip_bad=True, **options)
    assert fast == slow
    assert fast[1]["temperature"] == ("mixed" if options else 1)


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("line", [line for line, _, _ in BAD_LINES.values()], ids=BAD_LINES)
def test_a_line_of_prime_rl(tmp_path, line, skip_bad):
    path = tmp_path / "log.jsonl"
    lines = [each if isinstance(each, str) else json.dumps(each) + "\n" for each in (sequence(), line, sequence())]
    path.write_bytes("".join(lines).encode("utf-8", "surrogateescape"))
    fast, slow = with_and_without(path, skip_bad=skip_bad)
    assert fast == slow


NUMBERS = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**70), 2**70), st.none(),
                    st.booleans())


@given(st.lists(st.fixed_dictionaries({
    "trainer": st.lists(NUMBERS, min_size=2, max_size=3),
    "rollout": st.lists(st.floats(-9, 0), min_size=2, max_size=3),
    "mask": st.lists(st.one_of(st.booleans(), st.integers(0, 2)), min_size=2, max_size=3),
    "token_ids": st.lists(st.one_of(st.integers(-(2**40), 2**40), st.integers(0, 9)), min_size=2, max_size=3),
}, optional={"env_name": st.text(max_size=4), "temperature": st.sampled_from([1, 0.5])}), min_size=1, max_size=6))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_lines(tmp_path, records):
    path = write(tmp_path / "log.jsonl", *records)
    for options in ({"skip_bad": True, "mixed": True}, {"exclude_non_finite": True}):
        fast, slow = with_and_without(path, columns={"trainer": "trainer", "rollout": "rollout"}, **options)
        assert fast == slow


@pytest.mark.parametrize("path", SHIPPED.values(), ids=SHIPPED)
def test_the_shipped_logs(path):
    fast = read(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_arrays, "new_parser", lambda: None)
        same(fast, read(path))


@pytest.mark.parametrize("records, others", [
    ([sequence(step=step) for step in range(9)], 0),
    ([changed(GOOD, id=i) for i in range(9)], 1),  # the first, which settles the columns
])
def test_what_is_as_expected_is_read_once(tmp_path, monkeypatch, records, others):
    calls = []
    parse = json_records.parse
    monkeypatch.setattr(json_records, "parse", lambda line: calls.append(line) or parse(line))
    assert sum(batch.sequences for batch in open_log(write(tmp_path / "log.jsonl", *records))) == 9
    assert len(calls) == others


def test_what_is_as_expected_becomes_arrays(tmp_path):
    path = write(tmp_path / "log.jsonl", *(sequence(step=step) for step in range(9)))
    roles = {"trainer": "trainer_logprobs", "token_ids": "token_ids", "mask": "loss_mask"}
    source = json_arrays.ArrayReader(roles, lambda some: json_arrays.About(None, [-1] * len(some), [""] * len(some)))
    rows, _ = source.read(path.read_bytes(), range(1, 10))
    assert [len(column) for column in (rows.trainer, rows.mask, rows.token_ids)] == [sum(rows.lengths)] * 3
    assert [rows.trainer.dtype, rows.mask.dtype, rows.token_ids.dtype] == [np.float32, np.bool_, np.int32]
