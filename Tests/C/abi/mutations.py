"""The check of the recorded ABI, checked: headers that programs could not bear are refused, additions are not."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from . import recorded

NEW_FUNCTION = "int32_t lockstep_of_tomorrow(double *value);\n\n"
BEFORE_FUNCTION = "int32_t lockstep_version(void);"

# What is done to the header (old text, new text) and to the list of symbols, and what the answer names.
REFUSED = {
    "a frozen struct that grew": (
        "} lockstep_estimate;", "    double more;\n} lockstep_estimate;", None, "lockstep_estimate"),
    "a field put before another": (
        "    uint32_t struct_size;\n    int32_t ignore_index;",
        "    uint32_t struct_size;\n    int32_t new;\n    int32_t ignore_index;\n    int32_t reserved;", None, "ignore_index"),
    "a field that is gone": (
        "    double min_p;\n} lockstep_log_probs_options;", "} lockstep_log_probs_options;", None, "min_p"),
    "a parameter of another type": (
        "const char *lockstep_status_name(lockstep_status status);", "const char *lockstep_status_name(int64_t status);",
        None, "lockstep_status_name"),
    "a parameter more": (
        BEFORE_FUNCTION, "int32_t lockstep_version(int32_t part);", None, "lockstep_version"),
    "another result": (BEFORE_FUNCTION, "int64_t lockstep_version(void);", None, "lockstep_version"),
    "a function that is gone": (
        BEFORE_FUNCTION, "", ("lockstep_version 0.1.0\n", ""), "lockstep_version"),
    "a function under another version": (
        "", "", ("lockstep_version 0.1.0\n", "lockstep_version 0.2.0\n"), "lockstep_version"),
    "a constant of another value": (
        "LOCKSTEP_ERROR_BAD_DATA = 7", "LOCKSTEP_ERROR_BAD_DATA = 8", None, "LOCKSTEP_ERROR_BAD_DATA"),
    "a new field with padding before it": (
        "} lockstep_convert_options;", "    int32_t new;\n    double after;\n} lockstep_convert_options;", None,
        "padding before after"),
    "a struct that may grow, held by value": (
        BEFORE_FUNCTION, BEFORE_FUNCTION + "\ntypedef struct { uint32_t struct_size; int32_t a; } lockstep_inner;\n"
        "typedef struct { uint32_t struct_size; lockstep_inner inner; int32_t reserved; } lockstep_outer;", None,
        "may grow: hold a pointer"),
}
ALLOWED = {
    "a new function": (BEFORE_FUNCTION, NEW_FUNCTION + BEFORE_FUNCTION,
                       ("lockstep_version 0.1.0\n", "lockstep_version 0.1.0\nlockstep_of_tomorrow 0.2.0\n")),
    "a field at the end of a struct that may grow": (
        "} lockstep_log_probs_options;", "    double more;\n} lockstep_log_probs_options;", None),
    "a new constant": ("LOCKSTEP_ERROR_BAD_DATA = 7", "LOCKSTEP_ERROR_BAD_DATA = 7,\n    LOCKSTEP_ERROR_NEW = 8", None),
}


def changed(header, symbols):
    """What recorded.compare says of the header after a change: (problems, whether anything was added)."""
    with tempfile.TemporaryDirectory() as name:
        include = Path(name)
        for file, change in (("lockstep.h", header), ("lockstep.symbols", symbols)):
            shutil.copy(recorded.INCLUDE / file, include)
            old, new = change or ("", "")
            text = (include / file).read_text()
            if old:
                assert text.count(old) == 1, f"{file} has {old!r} {text.count(old)} times: choose another change"
                (include / file).write_text(text.replace(old, new))
        return recorded.compare(include)[:2]


def check_refusals():
    """the check of the recorded ABI refuses what programs could not bear"""
    problems = []
    for what, (old, new, symbols, word) in REFUSED.items():
        found, _ = changed((old, new), symbols)
        if word not in "\n".join(found):
            problems.append(f"{what} is not refused, or not by name: {found[:2]}")
    return problems


def check_additions():
    """the check of the recorded ABI allows additions, and asks for them to be recorded"""
    problems = []
    for what, (old, new, symbols) in ALLOWED.items():
        found, grown = changed((old, new), symbols)
        if found or not grown:
            problems.append(f"{what}: {found[:2] or 'not noticed'}")
    return problems
