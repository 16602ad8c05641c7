"""The main job, from a log on disk to the table, the verdict, the JSON document and the exit status."""

import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from rollouts import SHIPPED, sequence, write

import lockstep
from lockstep.commands import commands
from lockstep.commands.shared import default_labels
from lockstep.logs import open_log
from lockstep.report.diagnosis import Diagnosis, SequenceWeight
from lockstep.report.rows import ROWS, Cell, cell, number, percent, quotient
from lockstep.report.verdict import compare, judge
from lockstep.survey import survey


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Each test in a folder of its own, as the report goes to the current one."""
    monkeypatch.chdir(tmp_path)


def run(*arguments, status=0):
    result = CliRunner().invoke(commands, ["diagnose", *map(str, arguments)])
    assert result.exit_code == status, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def document(*arguments):
    return json.loads(run(*arguments, "--json").stdout)


def noisy(path, scale, *, sequences=40, length=50, seed=1, shift=0.0, offset=0.5, grid=None):
    """A log whose log ratio is Laplace-like noise of mean |d| `scale`, plus `shift`."""
    random = np.random.default_rng(seed)
    records = []
    for _ in range(sequences):
        rollout = np.float32(-random.exponential(2.0, length) - offset)
        trainer = np.float32(rollout + random.laplace(shift, scale, length))
        if grid is not None:
            rollout = rollout.astype(grid).astype(np.float32)
        records.append(
            sequence(
                loss_mask=[True] * length,
                token_ids=list(range(length)),
                inference_logprobs=rollout.tolist(),
                trainer_logprobs=trainer.tolist(),
            )
        )
    return write(path, *records)


def measured(path, **options):
    return Diagnosis(survey(open_log(path, **options)))


# The figures

GOLDEN = {  # the table in examples/data/README.md: tokens, mean |d|, max |d|, k1, k3, S mean and std
    "bf16": (11709, 0.03624, 0.458, 1.07e-3, 1.371e-3, -0.130, 0.691),
    "fp16": (12013, 0.00467, 0.130, 5.3e-5, 2.295e-5, -0.007, 0.074),
    "bf16-rollout.fp32-trainer": (11709, 0.01019, 0.287, -6.3e-5, 1.239e-4, 0.008, 0.190),
    "fp16-rollout.fp32-trainer": (12013, 0.00153, 0.033, 1.2e-5, 2.737e-6, -0.002, 0.026),
}


def rounded(value, like):
    """`value` to as many significant digits as are printed of `like`."""
    digits = len(f"{like!r}".split("e")[0].replace("-", "").replace(".", "").lstrip("0"))
    return float(f"{value:.{digits - 1}e}")


@pytest.mark.parametrize("name", GOLDEN)
def test_the_figures_of_the_shipped_logs(name):
    log = document(SHIPPED[name])["logs"][0]
    tokens, mean_abs, largest, k1, k3, mean, deviation = GOLDEN[name]
    statistics = log["mismatch"]
    assert statistics["tokens"] == tokens and statistics["sequences"] == 96
    for key, expected in (("mean_abs_log_ratio", mean_abs), ("k1", k1), ("k3", k3)):
        assert rounded(statistics[key]["value"], expected) == expected, key
    for key, expected in (("max_abs_log_ratio", largest), ("sequence_log_ratio_std", deviation)):
        assert round(statistics[key], 3) == expected, key
    assert round(statistics["sequence_log_ratio"]["value"], 3) == mean


def test_bf16_against_fp16_is_the_law():
    comparison = document(SHIPPED["bf16"], SHIPPED["fp16"])["comparison"]
    assert (comparison["first"], comparison["second"]) == ("bf16", "fp16")
    assert round(comparison["mean_abs_log_ratio_ratio"], 1) == 7.8
    assert round(comparison["k3_ratio"]) == 60
    assert comparison["text"] == (
        "bf16 has 7.8 times the mean |d| of fp16 and 60 times its KL (k3). Both fit one law, |d| ~ 2⁻ᵐ and"
        " KL ~ 2⁻²ᵐ, with 3.0 mantissa bits between them; 3 bits, factors of 8 and 64, lie between BF16 and"
        " FP16, and that is what it looks like."
    )
    backwards = document(SHIPPED["fp16"], SHIPPED["bf16"])["comparison"]
    assert backwards["text"] == comparison["text"] and backwards["k3_ratio"] < 1


# The document


def test_the_document_has_every_field_of_the_header():
    out = document(SHIPPED["bf16"], "--label", "run 7")
    assert out["schema"] == "lockstep-diagnose/1" and out["lockstep_version"] == lockstep.__version__
    assert out["comparison"] is None
    (log,) = out["logs"]
    assert log["label"] == "run 7" and log["skipped_lines"] == 0
    fields = set(vars(measured(SHIPPED["bf16"]).statistics))
    assert set(log["mismatch"]) == fields
    # A standard error with a field of its own stands in the row of its value.
    assert {name for name in fields if not name.endswith("_standard_error")} == {row.key for row in ROWS}
    assert len(log["mismatch"]["log_ratio_quantiles"]) == len(log["log_ratio_quantile_levels"]) == 9
    assert set(log["mismatch"]["k3"]) == {"value", "standard_error"}
    assert log["verdict"]["level"] == "raised"
    assert log["files"][0]["path"] == str(SHIPPED["bf16"]) and re.fullmatch(
        "[0-9a-f]{64}", log["files"][0]["sha256"]
    )


def test_json_alone_is_all_of_stdout_and_writes_no_report(tmp_path):
    json.loads(run(SHIPPED["fp16"], "--json").stdout)
    assert list(tmp_path.iterdir()) == []


def test_nan_is_null_in_the_document(tmp_path):
    statistics = document(write(tmp_path / "one.jsonl", sequence()))["logs"][0]["mismatch"]
    assert statistics["k3"]["value"] > 0 and statistics["k3"]["standard_error"] is None
    assert statistics["sequence_log_ratio_std"] is None


def test_threads_change_nothing():
    assert (
        run(SHIPPED["bf16"], "--json", "--threads", 1).stdout
        == run(SHIPPED["bf16"], "--json", "--threads", 3).stdout
    )


# The table


def test_the_table_shows_values_errors_and_ratio():
    lines = run(SHIPPED["bf16"], SHIPPED["fp16"], "--no-html").stdout.splitlines()
    assert lines[0].split() == ["bf16", "fp16", "first", "/", "second"]
    row = {name: re.split(r" {2,}", line.strip()) for line in lines for name in [line.strip().split("  ")[0]]}
    assert row["tokens"] == ["tokens", "11,709", "12,013"]
    assert re.fullmatch(r"0\.0362 ± 0\.000\d", row["mean |d|"][1])
    assert row["mean |d|"][3].startswith("7.77 ± 0.") and row["mean |d|"][3].endswith("×")
    assert (
        row["k3"][1].startswith("(1.37 ± 0.0")
        and row["k3"][1].endswith("e-3")
        and row["k3"][3].startswith("60 ± ")
    )
    assert len(row["k1"]) == 3, "a ratio of signed noise would say nothing"
    table = [line for line in lines[2:] if line.startswith("  ") and "·" not in line and "→" not in line]
    assert 14 <= len(table[: next(i for i, line in enumerate(table) if "ESS, sequences" in line) + 1]) <= 18


def test_all_shows_every_statistic():
    out = run(SHIPPED["bf16"], "--no-html", "--all").stdout
    for row in ROWS:
        assert f"  {row.name} " in out, row.key


def test_one_log_has_no_ratio_and_three_have_none():
    assert "first / second" not in run(SHIPPED["bf16"], "--no-html").stdout
    assert "first / second" not in run(*list(SHIPPED.values())[:3], "--no-html").stdout


@pytest.mark.parametrize(
    "value, digits, text",
    [
        (0.0362412, 3, "0.0362"),
        (0.00137, 3, "1.37e-3"),
        (0.0099999, 3, "0.0100"),
        (1.371e-3, 2, "1.4e-3"),
        (9.996, 3, "10.0"),
        (12345.6, 3, "12,300"),
        (-2.5, 3, "−2.50"),
        (0.0, 3, "0"),
        (math.nan, 3, "–"),
        (math.inf, 3, "∞"),
        (-math.inf, 3, "−∞"),
        (-4.2e-7, 3, "−4.20e-7"),
        (1.5e9, 3, "1.50e9"),
        (5e-324, 2, "4.9e-324"),
    ],
)
def test_numbers(value, digits, text):
    assert number(value, digits) == text


@pytest.mark.parametrize(
    "value, error, text",
    [
        (0.0362412, 6.2e-4, "0.0362 ± 0.0006"),
        (1.3715e-3, 4.3e-5, "(1.37 ± 0.04)e-3"),
        (2.2954e-5, 1.04e-6, "(2.30 ± 0.10)e-5"),
        (-1.07e-3, 5.7e-4, "(−1.1 ± 0.6)e-3"),
        (1e-5, 2e-3, "(0 ± 2)e-3"),
        (1.0377, 6.6e-4, "1.0377 ± 0.0007"),
        (0.5, math.nan, "0.500"),
        (0.5, 0.0, "0.500"),
        (math.nan, math.nan, "–"),
        (12345.0, 1500.0, "12,345 ± 1,500"),
    ],
)
def test_values_with_errors(value, error, text):
    assert str(cell(lockstep.Estimate(value, error), "number")) == text


def test_shares_are_percent_and_counts_have_separators():
    assert str(cell(lockstep.Estimate(0.0677, 0.0028), "share")) == "6.8 ± 0.3 %"
    assert str(cell(lockstep.Estimate(1.0, 0.0), "share")) == "100 %"
    assert str(cell(1234567, "count")) == "1,234,567"
    assert [percent(share) for share in (1.0, 0.022, 0.001, 9e-4, 0.0)] == [
        "100 %",
        "2.2 %",
        "0.10 %",
        "< 0.1 %",
        "0 %",
    ]


def test_a_quotient_carries_both_errors():
    assert str(quotient(lockstep.Estimate(8.0, 0.4), lockstep.Estimate(2.0, 0.0))) == "4.0 ± 0.2×"
    assert str(quotient(lockstep.Estimate(8.0, 0.4), lockstep.Estimate(0.0, 0.0))) == "–"
    assert quotient(0.5, 0.25) == Cell("2.00", unit="×")


# The verdict


def test_the_verdicts_on_the_shipped_logs():
    bf16, fp16 = (judge(measured(SHIPPED[name])) for name in ("bf16", "fp16"))
    assert bf16.level == "raised" and fp16.level == "small"
    assert [finding.source for finding in bf16.findings[:2]] == ["NeMo RL, grpo.md", "verl, faq.rst"]
    assert fp16.headline == "Small mismatch: below every published limit."
    assert bf16.noise_bits == pytest.approx(7, abs=0.1) and fp16.noise_bits == pytest.approx(10, abs=0.1)
    assert [suspect.name for suspect in bf16.causes] == [suspect.name for suspect in fp16.causes] == ["rounding"]
    coarse, fine = bf16.causes[0].explanation, fp16.causes[0].explanation
    assert "BF16 has 7" in coarse.why and "FP16 has 10" in fine.why
    assert coarse.advice[0].startswith("FP16 on both sides") and not fine.advice[0].startswith("FP16")


def test_equal_bits_are_exact(tmp_path):
    records = [sequence(trainer_logprobs=[0, -1, -2.5, -0.125]) for _ in range(20)]
    exact = measured(write(tmp_path / "exact.jsonl", *records))
    assert judge(exact).level == "exact"
    assert exact.worst_tokens == []
    assert "Nothing needs correcting" in run(tmp_path / "exact.jsonl").stdout


def test_few_tokens_give_no_verdict(tmp_path):
    few = noisy(tmp_path / "few.jsonl", 3.0, sequences=5)
    verdict = judge(measured(few))
    assert verdict.level == "unknown" and "250 tokens in 5 sequences" in verdict.headline
    assert any(finding.level == "severe" for finding in verdict.findings), "what was measured is still told"
    assert compare(measured(few), measured(SHIPPED["fp16"])).startswith("Not enough to compare")


def test_a_log_that_counts_no_token_says_so(tmp_path):
    path = write(tmp_path / "log.jsonl", sequence(loss_mask=[False] * 4))
    assert "No token counts" in run(path).stdout
    assert document(path)["logs"][0]["verdict"]["level"] == "unknown"


def test_large_noise_is_severe_and_sends_to_look_for_a_defect(tmp_path):
    verdict = judge(measured(noisy(tmp_path / "wild.jsonl", 0.6)))
    assert verdict.level == "severe"
    assert any(finding.source == "verl, faq.rst" for finding in verdict.findings)
    assert any("IcePop" in finding.source for finding in verdict.findings)
    assert verdict.causes[0].name in ("other_weights", "misalignment"), "noise so large is no rounding"
    assert any(advice.startswith("First mend what made it") for advice in verdict.advice)


def test_truncated_sampling_shows_as_a_mean_ratio_off_one(tmp_path):
    verdict = judge(measured(noisy(tmp_path / "top_p.jsonl", 0.004, shift=math.log(0.896))))
    truncation = next(suspect for suspect in verdict.causes if suspect.name == "truncation")
    assert "0.89" in truncation.explanation.why and verdict.level in ("raised", "severe")


@pytest.mark.parametrize("grid, name", [("bfloat16", "bf16"), ("float16", "fp16")])
def test_log_probs_stored_in_16_bits_are_found(tmp_path, grid, name):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = ml_dtypes.bfloat16 if grid == "bfloat16" else np.float16
    diagnosis = measured(noisy(tmp_path / "log.jsonl", 0.003, grid=dtype))
    verdict = judge(diagnosis)
    assert verdict.level == "raised"
    (stored,) = [suspect for suspect in verdict.causes if suspect.name == "stored_in_16_bits"]
    assert f"100 % of the rollout log-probs are values of {name.upper()}" in stored.explanation.why, stored.explanation.why


def test_the_shipped_logs_lie_on_no_16_bit_grid():
    for path in SHIPPED.values():
        assert [suspect.name for suspect in judge(measured(path)).causes] == ["rounding"]


def test_log_probs_above_zero_and_the_floor_of_vllm(tmp_path):
    good = noisy(tmp_path / "log.jsonl", 0.003).read_text()
    bad = json.dumps(
        sequence(trainer_logprobs=[0, 0.03125, -2, -0.1], inference_logprobs=[0, -1, -9999.0, -0.1])
    )
    (tmp_path / "log.jsonl").write_text(good + bad + "\n")
    diagnosis = measured(tmp_path / "log.jsonl")
    assert (diagnosis.evidence.trainer_above_zero, diagnosis.evidence.rollout_above_zero) == (1, 0)
    assert diagnosis.evidence.rollout_marks == 1
    ends = next(suspect for suspect in judge(diagnosis).causes if suspect.name == "ends")
    assert "-9999" in " ".join(ends.explanation.advice)


def test_a_limit_within_two_standard_errors_is_not_called(tmp_path):
    verdict = judge(measured(noisy(tmp_path / "log.jsonl", math.sqrt(1e-3), sequences=20, offset=3.0)))
    close = [finding for finding in verdict.findings if "too close to call" in finding.text]
    assert (
        close and verdict.level == "small" and verdict.headline == "Small mismatch: above no published limit."
    )


def test_heavy_tails_are_no_rounding(tmp_path):
    path = noisy(tmp_path / "log.jsonl", 0.004)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records[::4]:
        record["trainer_logprobs"][7] += 1.0
    verdict = judge(measured(write(path, *records)))
    assert verdict.level == "raised" and "rounding" not in [suspect.name for suspect in verdict.causes[:1]]
    outliers = next(suspect for suspect in verdict.causes if suspect.name == "outliers")
    assert outliers.explanation.advice[0].startswith("Look at the worst tokens")


def test_logs_that_cannot_be_told_apart(tmp_path):
    a, b = (measured(noisy(tmp_path / f"{seed}.jsonl", 0.01, seed=seed)) for seed in (1, 2))
    assert "cannot be told apart" in compare(a, b)


def test_the_weight_of_a_sequence_fades_with_its_length():
    weight = measured(SHIPPED["bf16"]).sequence_weight
    statistics = measured(SHIPPED["bf16"]).statistics
    assert weight.ess(weight.half_life) == pytest.approx(0.5)
    assert weight.ess(statistics.mean_sequence_length) == pytest.approx(statistics.sequence_ess, abs=0.1)
    assert SequenceWeight(0.0).half_life == math.inf and math.isnan(SequenceWeight(math.nan).half_life)


def test_the_worst_are_the_worst(tmp_path):
    diagnosis = measured(SHIPPED["bf16"])
    (log,) = open_log(SHIPPED["bf16"])
    distance = np.where(log.mask, np.abs(log.trainer.astype(np.float64) - log.rollout), -1)
    worst = diagnosis.worst_tokens
    assert [abs(token.log_ratio) for token in worst[:12]] == sorted(distance.tolist(), reverse=True)[:12]
    at = int(np.argmax(distance))
    index = int(np.searchsorted(log.offsets, at, side="right")) - 1
    assert worst[0].position == diagnosis.statistics.max_abs_position == at - log.offsets[index]
    assert worst[0].place.line == log.lines[index] and worst[0].token_id == log.token_ids[at]
    sums = [abs((log.trainer.astype(np.float64) - log.rollout)[a:b][log.mask[a:b]].sum())
            for a, b in zip(log.offsets, log.offsets[1:])]
    assert diagnosis.worst_sequences[0].place.line == log.lines[int(np.argmax(sums))]


# Input and usage


def test_bad_input_is_one_line_and_status_2(tmp_path):
    path = write(tmp_path / "log.jsonl", sequence(), "{oops}\n")
    result = run(path, "--json", status=2)
    assert result.stdout == ""
    assert result.stderr.startswith(f"Error: {path}, line 2: is not JSON") and "--skip-bad" in result.stderr
    assert "Traceback" not in result.output


def test_skip_bad_counts_and_goes_on(tmp_path):
    path = write(tmp_path / "log.jsonl", sequence(), "{oops}\n", sequence(loss_mask=None), sequence())
    result = run(path, "--skip-bad", "--json")
    log = json.loads(result.stdout)["logs"][0]
    assert log["skipped_lines"] == 2 and log["mismatch"]["sequences"] == 2
    assert "left out 2 of 4 lines; the first:" in result.stderr and "line 2: is not JSON" in result.stderr


def test_only_bad_lines_are_an_error_even_when_skipped(tmp_path):
    result = run(write(tmp_path / "log.jsonl", "{oops}\n"), "--skip-bad", status=2)
    assert "holds no sequence; no line could be read, the first:" in result.stderr


def test_non_finite_is_an_error_or_excluded(tmp_path):
    path = write(tmp_path / "log.jsonl", sequence(), sequence(inference_logprobs=[0, -1, None, -1]))
    assert "inference_logprobs: token 2 counts but is null" in run(path, status=2).stderr
    statistics = document(path, "--exclude-non-finite")["logs"][0]["mismatch"]
    assert statistics["excluded_tokens"] == 1 and statistics["tokens"] == 5
    assert "excluded tokens" in run(path, "--exclude-non-finite", "--no-html").stdout, (
        "it is in the short table then"
    )


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_an_error(tmp_path, content):
    path = tmp_path / "log.jsonl"
    path.write_text(content)
    assert "holds no sequence" in run(path, status=2).stderr


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((), "Missing argument 'FILE...'"),
        (("nowhere.jsonl",), "'nowhere.jsonl' does not exist"),
        ((SHIPPED["bf16"], "--label", "a", "--label", "b"), "--label was given 2 times for 1 files"),
        ((SHIPPED["bf16"], "--html", "a.html", "--no-html"), "contradict each other"),
        ((SHIPPED["bf16"], "--threads", "-1"), "Invalid value for '--threads'"),
        ((SHIPPED["bf16"], "--html", "no/such/folder/a.html"), "the folder no/such/folder does not exist"),
        ((".",), "the folder holds no log (.jsonl,"),
    ],
)
def test_usage_errors(arguments, words):
    assert words in run(*arguments, status=2).stderr


def test_the_terminal_is_safe_from_names(tmp_path):
    path = write(tmp_path / "log.jsonl", sequence())
    out = run(path, "--no-html", "--label", "\x1b[31m[red]x").stdout
    assert "\x1b" not in out and "\\x1b[31m[red]x" in out
    bad = write(tmp_path / "bad.jsonl", {"\x1b]0;title\x07": 1})
    assert "\x1b" not in run(bad, status=2).stderr


@pytest.mark.parametrize(
    "paths, labels",
    [
        (["a/run.bf16.jsonl", "a/run.fp16.jsonl.gz"], ["bf16", "fp16"]),
        (["x/step_1/rank_0.jsonl", "x/step_2/rank_0.jsonl"], ["step_1/rank_0", "step_2/rank_0"]),
        (["token_exports/step_7"], ["step_7"]),
        (["a.jsonl", "b.txt"], ["a", "b.txt"]),
        (["same.jsonl", "same.jsonl"], None),
    ],
)
def test_default_labels(tmp_path, paths, labels):
    found = default_labels(tuple(tmp_path / path for path in paths))
    assert len(found) == 2 if labels is None else found == labels


def test_help_teaches_with_an_example():
    out = CliRunner().invoke(commands, ["diagnose", "--help"]).output
    assert "lockstep diagnose bf16.jsonl fp16.jsonl --label BF16 --label FP16 --html mismatch.html" in out


def test_the_console_command_from_outside():
    command = [sys.executable, "-m", "lockstep.cli"]
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
    assert version.strip() == f"lockstep, version {lockstep.__version__} ({lockstep.binding})"
    status = subprocess.run([*command, "diagnose", "nowhere"], capture_output=True, text=True).returncode
    assert status == 2


@pytest.mark.parametrize("package", ["click", "rich", "jinja2", "matplotlib"])
def test_without_its_packages_the_command_says_how_to_get_them(tmp_path, package):
    write(tmp_path / "log.jsonl", "no log, which the command must not have come to\n")
    code = (
        "import sys\n"
        f"sys.modules[{package!r}] = None\n"
        "from lockstep.cli import main\n"
        "sys.argv = ['lockstep', 'diagnose', 'log.jsonl']\n"
        "main()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == f"lockstep: the command line needs {package}: pip install 'lockstep[report]'\n"


# Diagnoses a log and prints the peak of its memory in kilobytes; sees that matplotlib comes after reading.
MEASURE = """
import re, sys
from lockstep.cli import main
from lockstep.survey import Survey
add_batch, loaded = Survey.add_batch, []
def watched(self, batch, **options):
    loaded.append("matplotlib" in sys.modules)
    add_batch(self, batch, **options)
Survey.add_batch = watched
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
assert loaded and not any(loaded) and "matplotlib" in sys.modules, "matplotlib takes memory while a log is read"
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], file=sys.stderr)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_long_log_takes_no_more_memory_than_a_short_one(tmp_path):
    rng = np.random.default_rng(0)
    rollout = np.log(rng.beta(3, 0.6, 2_000)).astype(np.float32)
    trainer = rollout + np.float32(0.01) * rng.standard_normal(2_000, np.float32)
    peaks = []
    for sequences in (500, 4_000):
        with lockstep.LogWriter(tmp_path / f"{sequences}.lockstep") as writer:
            for index in range(sequences):
                writer.append(id=index, step=0, rollout=rollout, trainer=trainer, mask=rollout < 0,
                              token_ids=np.arange(2_000, dtype=np.int32))
        result = subprocess.run(
            [sys.executable, "-c", MEASURE, "diagnose", f"{sequences}.lockstep", "--json", "--html", "report.html"],
            capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        peaks.append(int(result.stderr.split()[-1]) / 1024)
    # 7 million tokens more, of 13 bytes each.
    assert peaks[1] - peaks[0] < 30, f"peaks of {peaks} MB"
