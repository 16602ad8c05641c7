"""The ctypes declarations are those of include/lockstep.h: every name, value, size, offset, signature."""

from __future__ import annotations

import ctypes
import inspect
import re
import shutil
import subprocess
from dataclasses import fields

import pytest

import lockstep
from conftest import ROOT
from lockstep import _library as c
from lockstep import _accumulator, _corrections, _log_file, _mismatch, _monitor, _objectives, _optimizer

HEADER = re.sub(r"/\*.*?\*/", " ", (ROOT / "include" / "lockstep.h").read_text(), flags=re.S)

STRUCTS = {
    name: re.findall(r"(\w+)(?:\[\d+\])?\s*[;,]", body)
    for body, name in re.findall(r"typedef struct \{([^}]*)\}\s*(\w+)\s*;", HEADER)
}
ENUM_CONSTANTS = re.findall(r"LOCKSTEP_\w+(?=\s*=)", " ".join(re.findall(r"enum \{([^}]*)\}", HEADER)))
MACRO_CONSTANTS = re.findall(r"#define (LOCKSTEP_\w+) +[-\d]", HEADER)
CONSTANTS = ENUM_CONSTANTS + MACRO_CONSTANTS
FUNCTIONS = {
    name: (result.strip(), [each.strip() for each in arguments.split(",") if each.strip() != "void"])
    for result, name, arguments in re.findall(
        r"^((?:const )?\w+ \*?)\s*(lockstep_\w+)\(([^)]*)\)\s*;", HEADER, flags=re.M)
}
HANDLES = re.findall(r"typedef struct (\w+) \1;", HEADER)
# int32_t under other names
NAMES_OF_INT32 = set(re.findall(r"typedef int32_t (\w+);", HEADER))


def struct_class(name: str) -> type[ctypes.Structure]:
    return getattr(c, "".join(word.capitalize() for word in name.removeprefix("lockstep_").split("_")))


@pytest.fixture(scope="module")
def run_c(tmp_path_factory):
    """Compiles the body of a C main against the header, runs it, and gives its output."""
    compiler = shutil.which("cc") or shutil.which("clang") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")

    def run(body: str) -> bytes:
        folder = tmp_path_factory.mktemp("c")
        source, program = folder / "main.c", folder / "main"
        source.write_text(
            f"#include <stdio.h>\n#include <lockstep.h>\nint main(void) {{\n{body}\n    return 0;\n}}\n")
        subprocess.run([compiler, "-std=c99", f"-I{ROOT / 'include'}", source, "-o", program], check=True)
        return subprocess.run([program], check=True, capture_output=True).stdout

    return run


@pytest.fixture(scope="module")
def measured(run_c) -> dict[str, int]:
    """What a C compiler makes of the header: every constant, size and offset."""
    expressions = CONSTANTS + [f"sizeof({name})" for name in STRUCTS] + [
        expression for name, members in STRUCTS.items() for member in members
        for expression in (f"offsetof({name}, {member})", f"sizeof((({name} *)0)->{member})")]
    output = run_c("".join(f'printf("%lld\\n", (long long)({each}));\n' for each in expressions))
    return dict(zip(expressions, map(int, output.split()), strict=True))


def test_the_header_was_understood():
    """The expressions above see all of it: they count what the text plainly has."""
    assert len(STRUCTS) == HEADER.count("typedef struct {") > 10
    assert len(CONSTANTS) > 25 and "LOCKSTEP_VERSION_MINOR" in CONSTANTS
    symbols = (ROOT / "include" / "lockstep.symbols").read_text()
    assert len(FUNCTIONS) > 20
    assert set(FUNCTIONS) == set(re.findall(r"^(lockstep_\w+) ", symbols, flags=re.M))


def test_constants(measured):
    mine = {name: getattr(c, name.removeprefix("LOCKSTEP_"), None) for name in CONSTANTS}
    assert mine == {name: measured[name] for name in CONSTANTS}


def test_structs(measured):
    for name, members in STRUCTS.items():
        struct = struct_class(name)
        assert [field[0] for field in struct._fields_] == members, name
        assert ctypes.sizeof(struct) == measured[f"sizeof({name})"], name
        for member in members:
            field = getattr(struct, member)
            assert field.offset == measured[f"offsetof({name}, {member})"], (name, member)
            assert field.size == measured[f"sizeof((({name} *)0)->{member})"], (name, member)


def test_every_struct_is_in_the_header():
    mine = {each for each in vars(c).values()
            if isinstance(each, type) and issubclass(each, ctypes.Structure) and each is not ctypes.Structure}
    assert mine == {struct_class(name) for name in STRUCTS}


def allowed(declaration: str) -> list:
    """The ctypes that fit one C parameter or result."""
    pointer = "*" in declaration
    kind = declaration.replace("const ", "").replace("*", " ").split()[0]
    if kind in NAMES_OF_INT32:
        kind = "int32_t"
    if not pointer:
        plain = {"int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "size_t": ctypes.c_size_t,
                 "uint64_t": ctypes.c_uint64, "float": ctypes.c_float, "double": ctypes.c_double, "void": None}
        return [plain[kind]] if kind in plain else [struct_class(kind)]
    if kind == "char":
        return [ctypes.c_char_p]
    if kind == "size_t":
        return [ctypes.POINTER(ctypes.c_size_t)]
    if kind in HANDLES:
        return [ctypes.POINTER(ctypes.c_void_p) if declaration.count("*") == 2 else ctypes.c_void_p]
    if kind == "float" and declaration.count("*") == 2:
        return [ctypes.POINTER(ctypes.c_void_p)]
    if kind in ("int32_t", "int64_t"):
        return [ctypes.c_void_p, ctypes.POINTER(getattr(ctypes, f"c_{kind.removesuffix('_t')}"))]
    if kind in ("double", "uint64_t", "void"):
        return [ctypes.c_void_p]
    # An array of structs may be passed as a plain address; a tensor never is.
    return [ctypes.POINTER(struct_class(kind))] + ([ctypes.c_void_p] if kind != "lockstep_tensor" else [])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures(name):
    result, arguments = FUNCTIONS[name]
    mine_result, mine_arguments = c.SIGNATURES[name]
    assert mine_result in allowed(result)
    assert len(mine_arguments) == len(arguments)
    for mine, declaration in zip(mine_arguments, arguments):
        assert mine in allowed(declaration), declaration


def test_no_other_function_is_declared():
    assert set(c.SIGNATURES) == set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_library_has(name):
    assert callable(getattr(c.library, name))


def test_option_defaults_are_the_macros(run_c):
    """What Python passes when nothing is said equals what the _INIT macros say."""
    defaults = {
        "lockstep_convert_options": c.ConvertOptions(
            ctypes.sizeof(c.ConvertOptions), c.ROUNDINGS["nearest_even"]),
        "lockstep_log_probs_options": lockstep._log_probs._options(1.0, None, -100, None, 0, "best"),
        "lockstep_mismatch_options": _mismatch._options("strict", 0, "best"),
        "lockstep_log_header": _log_file._header_struct(None, {}),
        "lockstep_mismatch_accumulator_options": c.MismatchAccumulatorOptions(
            ctypes.sizeof(c.MismatchAccumulatorOptions)),
        "lockstep_monitor_options": _monitor._options(
            **{name: each.default for name, each in inspect.signature(lockstep.Monitor).parameters.items()}),
        "lockstep_correction_options": _corrections._options(rules=(), **{
            name: each.default for name, each in inspect.signature(lockstep.correct).parameters.items()
            if name in inspect.signature(_corrections._options).parameters}),
        "lockstep_preset": c.Preset(ctypes.sizeof(c.Preset)),
        "lockstep_batch": c.Batch(ctypes.sizeof(c.Batch)),
        "lockstep_objective_options": _objectives._options(),
        "lockstep_gradient_options": _optimizer._gradient_options(1.0, 0.0, 0, "best"),
        "lockstep_adamw_options": _optimizer._adamw_options(),
        "lockstep_schedule_options": c.ScheduleOptions(ctypes.sizeof(c.ScheduleOptions), 0, 0.001),
        "lockstep_task_options": c.TaskOptions(ctypes.sizeof(c.TaskOptions)),
        "lockstep_covariance_options": c.CovarianceOptions(
            ctypes.sizeof(c.CovarianceOptions), *(
                inspect.signature(lockstep.covariance_select).parameters[name].default if name != "rule" else 0
                for name, _ in c.CovarianceOptions._fields_[1:])),
    }
    for name, options in defaults.items():
        assert bytes(options) == run_c(
            f"{name} options = {name.upper()}_INIT;\nfwrite(&options, sizeof options, 1, stdout);"), name


def test_results_have_the_structs_fields():
    assert [each.name for each in fields(lockstep.Mismatch)] == [
        each for each in STRUCTS["lockstep_mismatch"] if each not in ("struct_size", "reserved")]
    assert list(lockstep.Divergence._fields) == STRUCTS["lockstep_divergence"]
    assert list(lockstep.ConvertCounts._fields) == STRUCTS["lockstep_convert_counts"]
    assert [each.name for each in fields(lockstep.ObjectiveReport)] == [
        each for each in STRUCTS["lockstep_objective_report"] if each != "struct_size"]
    assert list(lockstep.ObjectiveCounts._fields) == STRUCTS["lockstep_objective_counts"]
    assert list(lockstep.Estimate._fields) == STRUCTS["lockstep_estimate"]
    assert {each.name for each in fields(lockstep.Alarm)} == set(STRUCTS["lockstep_monitor_alarm"]) - {"struct_size"}
    assert [each.name for each in fields(lockstep.ScalerReport)] == [
        each for each in STRUCTS["lockstep_scaler_report"] if each not in ("struct_size", "reserved")]
    assert list(lockstep.GradientNorm._fields) == STRUCTS["lockstep_gradient_norm"]
    assert {each.name for each in fields(lockstep.Correction)} - {"weights", "kept", "counts"} == set(
        STRUCTS["lockstep_correction"]) - {"struct_size"}
    assert list(lockstep.WeightStatistics._fields) == STRUCTS["lockstep_weight_statistics"]
    assert list(lockstep.RejectionCount._fields) == STRUCTS["lockstep_rejection_count"]
    assert [each.name for each in fields(lockstep.Reading)] == STRUCTS["lockstep_monitor_reading"]
    for dtype, struct in ((_mismatch._SEQUENCE, c.MismatchSequence), (_mismatch._BUCKET, c.MismatchBucket),
                          (_mismatch._DIVERGENCE, c.Divergence), (_accumulator._BIN, c.MismatchSequenceBin),
                          (_accumulator._SAMPLE, c.MismatchSample), (_accumulator._TOKEN, c.MismatchToken)):
        assert dtype.itemsize == ctypes.sizeof(struct)
        assert {name: dtype.fields[name][1] for name in dtype.names} == {
            name: getattr(struct, name).offset for name, _ in struct._fields_}


def test_version():
    text = (ROOT / "Sources" / "Lockstep" / "Version.swift").read_text()
    version = f"{c.VERSION_MAJOR}.{c.VERSION_MINOR}.{c.VERSION_PATCH}"
    assert re.fullmatch(re.escape(version) + r"(-rc\d+)?", lockstep.__version__)
    assert f'"{lockstep.__version__}"' in text
