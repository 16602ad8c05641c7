"""docs/guides: every block runs, every command prints what is shown, and what is said of other systems is still so."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from conftest import ROOT
from lockstep import _library as c
from lockstep.commands import commands

GUIDES = ROOT / "docs" / "guides"
HARMFUL, FP16, EMBEDDING = ((GUIDES / f"{name}.md").read_text() for name in ("IsItHarmful", "Fp16InATrainer", "Embedding"))


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.S | re.M)


def python(page: str) -> list[str]:
    return [each for each in blocks(page, "python") if "trl" not in each]


@pytest.mark.parametrize(("block", "says"), [
    *zip(python(HARMFUL), ("k3 4.", "the mismatch grows"), strict=True),
    *zip(python(FP16), ("rows; the largest value", "loss falls: True"), strict=True)])
def test_python(block, says, monkeypatch, capsys):
    monkeypatch.chdir(ROOT / "Tests" / "Vectors" / "models")
    exec(compile(block, "guide", "exec"), {})  # noqa: S102
    assert says in capsys.readouterr().out


@pytest.mark.parametrize("block", blocks(HARMFUL, "console") + blocks(FP16, "console"))
def test_commands_print_what_is_shown(block, monkeypatch):
    """Every line shown is printed, in this order; … stands for what is left out."""
    monkeypatch.chdir(ROOT)
    command, *shown = block.rstrip().splitlines()
    arguments = [each.strip('"') for each in re.findall(r'"[^"]*"|\S+', command.removeprefix("$ lockstep "))]
    printed = [line.rstrip() for line in CliRunner(env={"COLUMNS": "100"}).invoke(commands, arguments).stdout.splitlines()]
    for line in shown:
        if line == "…":
            continue
        pattern = r".*".join(re.escape(part) for part in re.split(r"\s*…\s*", line))
        place = next((index for index, each in enumerate(printed) if re.fullmatch(pattern, each)), None)
        assert place is not None, f"not printed, or not in this order: {line}"
        printed = printed[place + 1:]


def test_options_in_text_blocks_exist():
    [audit] = [each for each in blocks(FP16, "text") if each.startswith("lockstep audit")]
    command = commands.get_command(None, "audit")
    known = {option for each in command.params for option in each.opts}
    assert {"--tokens", "--backward"} == set(re.findall(r"--[a-z-]+", audit)) <= known


# Embedding ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """A folder that has the library under the names linker and loader look for."""
    folder = tmp_path_factory.mktemp("library")
    for name in ("liblockstep.so", "liblockstep.so.1"):
        (folder / name).symlink_to(Path(c.library.path).resolve())
    return folder


def printed(program: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    return subprocess.run([program], check=True, capture_output=True, text=True, env=environment, timeout=60).stdout


def expected() -> str:
    [text] = [each for each in blocks(EMBEDDING, "text") if each.startswith("log-probs")]
    return text


def test_cpp(library, tmp_path):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    [text] = blocks(EMBEDDING, "cpp")
    (tmp_path / "program.cpp").write_text(text)
    subprocess.run(
        [compiler, "-std=c++20", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{ROOT / 'include'}",
         tmp_path / "program.cpp", f"-L{library}", "-llockstep", f"-Wl,-rpath,{library}", "-o", tmp_path / "program"],
        check=True)
    assert printed(tmp_path / "program") == expected()


def test_rust(library, tmp_path):
    compiler = shutil.which("rustc")
    if compiler is None:
        pytest.skip("no rustc")
    [text] = blocks(EMBEDDING, "rust")
    (tmp_path / "program.rs").write_text(text)
    subprocess.run(
        [compiler, "-D", "warnings", tmp_path / "program.rs", "-L", library, "-C", f"link-arg=-Wl,-rpath,{library}",
         "-o", tmp_path / "program"], check=True)
    assert printed(tmp_path / "program") == expected().replace("e-05", "e-5")


def test_rust_declares_what_the_header_does():
    """The sizes of structs that Rust cannot ask for: the whole mismatch, and where its fields are."""
    import ctypes

    [text] = blocks(EMBEDDING, "rust")
    fields = re.search(r"pub struct Mismatch \{(.*?)\}", text, re.S)[1]
    sizes = {"u32": 4, "i64": 8, "Estimate": 16}
    place = 0
    for name, kind in re.findall(r"pub (\w+): ([^,]+),", fields):
        if name == "rest":
            place += 8 * int(re.search(r"\[f64; (\d+)\]", kind)[1])
        else:
            assert getattr(c.Mismatch, name).offset == place, name
            place += sizes[kind]
    assert place == ctypes.sizeof(c.Mismatch)


# What is said of other systems: the statements tagged [T], one by one --------------------------------------------------


def source(name: str, package: str) -> str:
    """A file of an installed package, which is not imported: other tests put stand-ins in its place."""
    try:
        found = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed (make test PEERS=1)")
    return Path(found.locate_file(f"{package}/{name}")).read_text()


def test_verl_settings_are_verl_s():
    """The keys of the page are those of the generated configuration; mixed_precision is not in it, and is the engine's."""
    pytest.importorskip("verl", reason="verl is not installed (make test PEERS=1)")
    from omegaconf import OmegaConf
    from verl.utils.torch_dtypes import PrecisionType
    from verl.workers.config import FSDPEngineConfig

    [text] = [each for each in blocks(FP16, "text") if each.startswith("actor_rollout_ref")]
    whole = OmegaConf.create(source("trainer/config/_generated_ppo_trainer.yaml", "verl"))
    given: dict[str, str] = {}
    for line in text.splitlines():
        key, value = line.removeprefix("+").split("=")
        if line.startswith("+"):
            owner, _, name = key.rpartition(".mixed_precision.")
            config = OmegaConf.select(whole, owner)
            assert config is not None and "mixed_precision" not in config, key
            given[name] = value
        else:
            assert OmegaConf.select(whole, key) is not None, key
    assert set(given) == {"param_dtype", "reduce_dtype", "buffer_dtype"}
    config = FSDPEngineConfig(mixed_precision=given)
    assert PrecisionType.is_fp16(config.mixed_precision["param_dtype"])
    assert config.dtype == "bfloat16" and config.model_dtype == "fp32"


def test_verl_s_engine_reads_mixed_precision_and_not_dtype():
    text = source("workers/engine/fsdp/transformer_impl.py", "verl")
    assert "engine_config.dtype" not in text and 'mixed_precision_config.get("param_dtype", "bf16")' in text
    assert "param_dtype = torch.bfloat16" in text  # without mixed_precision
    assert "ShardedGradScaler(growth_interval=400)" in text
    step = text[text.index("scaler.unscale_(self.optimizer)"):]
    assert step.index("clip_grad_norm_") < step.index("scaler.step(self.optimizer)") < step.index("scaler.update()")
    quiet = step[step.index("scaler.step(self.optimizer)"):step.index("grad_norm is not finite:")]
    assert "else:" in quiet and "print" not in quiet.split("else:")[0]


def test_trl_settings(tmp_path):
    trl = pytest.importorskip("trl", reason="trl is not installed (make test PEERS=1)")
    [block] = [each for each in blocks(FP16, "python") if "trl" in each]
    defaults = {name: each.default for name, each in inspect.signature(trl.GRPOConfig).parameters.items()}
    names = set(re.findall(r"^    (\w+)=", block, flags=re.M))
    assert names <= set(defaults)
    assert defaults["vllm_importance_sampling_mode"] == "sequence_mask"
    assert defaults["vllm_importance_sampling_clip_max"] == 3.0 and "cast_lm_head_to_fp32" in defaults
    # Here there is no GPU to check for.
    variables: dict = {}
    exec(block.replace('output_dir="out"', f'output_dir="{tmp_path}", use_cpu=True, report_to=[]'), variables)  # noqa: S102
    assert variables["config"].fp16 and not variables["config"].bf16
    assert "self.bf16 = not (self.fp16) if self.bf16 is None else self.bf16" in source("trainer/base_config.py", "trl")


def test_trl_s_colocated_engine_is_given_no_dtype():
    text = source("generation/vllm_generation.py", "trl")
    call = text[text.index("self.llm = LLM("):]
    assert "dtype" not in call[:call.index("\n            )")] and "model=model.name_or_path" in call
    assert '"--dtype"' in source("scripts/vllm_serve.py", "trl")


def test_openrlhf():
    assert '"--ds.param_dtype"' in source("cli/train_ppo_ray.py", "openrlhf")
    assert '"--ds.attn_implementation"' in source("cli/train_ppo_ray.py", "openrlhf")
    assert '"dtype": "bfloat16",' in source("trainer/ray/vllm_engine.py", "openrlhf")
    settings = source("utils/deepspeed/deepspeed_utils.py", "openrlhf")
    assert re.search(r'"fp16": \{\s*"enabled": param_dtype == "fp16",\s*\},', settings)
    assert "BF16 is required for tensor parallel training" in source("utils/deepspeed/deepspeed.py", "openrlhf")
