"""The command itself: what it exits with when it is not a command that decides."""

import signal
import subprocess
import sys

import click
import pytest
from rollouts import SHIPPED

import lockstep.commands
from lockstep import cli


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["lockstep", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0


def test_statuses_of_commands_come_through(monkeypatch, capsys):
    assert run(monkeypatch, "--version") == 0
    assert run(monkeypatch, "certify", SHIPPED["bf16"], "--band", "1%") == 1
    assert run(monkeypatch, "certify", SHIPPED["fp16"]) == 4
    assert run(monkeypatch, "certify", SHIPPED["fp16"], "--require", "k9 < 1") == 2
    assert run(monkeypatch, "certify", "--no-such-option") == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("error, status, says", [
    (RuntimeError("a mistake of ours"), 70, "RuntimeError: a mistake of ours"),
    (MemoryError(), 70, "MemoryError"),
    (ModuleNotFoundError("No module named 'elsewhere'", name="elsewhere"), 70, "elsewhere"),
    (ModuleNotFoundError("No module named 'rich'", name="rich"), 2, "pip install 'lockstep[report]'"),
    (KeyboardInterrupt(), 130, "Aborted"),
])
def test_what_a_command_did_not_foresee_is_never_a_failed_certificate(monkeypatch, capsys, error, status, says):
    @click.command()
    def certify():
        raise error

    monkeypatch.setitem(lockstep.commands.commands.commands, "certify", certify)
    assert run(monkeypatch, "certify") == status
    told = capsys.readouterr().err
    assert says in told and ("Traceback" in told) == (status == 70)


@pytest.mark.parametrize("options", [["--json"], []])
def test_a_closed_pipe_is_no_failure(options):
    command = [sys.executable, "-c", "from lockstep.cli import main; main()", "certify", str(SHIPPED["fp16"]), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 128 + signal.SIGPIPE
