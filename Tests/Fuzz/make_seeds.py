"""Makes what the fuzz targets begin from, small and valid: Tests/Fuzz/tiny, a model, and files in Tests/Fuzz/corpus.

    .venv/bin/python Tests/Fuzz/make_seeds.py

The targets of functions (fuzz_tensors.c and so on) need none: all bytes mean something there.
"""

import json
import struct
import tempfile
from pathlib import Path

import numpy as np

import lockstep

HERE = Path(__file__).resolve().parent
TINY = HERE / "tiny"
RANDOM = np.random.default_rng(7)


def seed(family, name, data):
    folder = HERE / "corpus" / family
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"seed-{name}").write_bytes(data if isinstance(data, bytes) else data.encode())


def safetensors(tensors, metadata=None, kinds={"<f4": "F32", "<f2": "F16", "<f8": "F64", "<i8": "I64"}):
    header, data = ({"__metadata__": metadata} if metadata else {}), b""
    for name, values in sorted(tensors.items()):
        header[name] = {"dtype": kinds[values.dtype.str], "shape": list(values.shape),
                        "data_offsets": [len(data), len(data) + values.nbytes]}
        data += values.tobytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data


def config(**more):
    return {"model_type": "llama", "vocab_size": 16, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 64, "rope_theta": 10000, "tie_word_embeddings": False} | more


def weights(config, dtype=np.float32):
    h, v, m = config["hidden_size"], config["vocab_size"], config["intermediate_size"]
    q, k = (config[f"num_{name}_heads"] * config["head_dim"] for name in ("attention", "key_value"))
    shapes = {"model.embed_tokens.weight": (v, h), "model.norm.weight": (h,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (v, h)
    for layer in range(config["num_hidden_layers"]):
        names = {"input_layernorm": (h,), "post_attention_layernorm": (h,), "self_attn.q_proj": (q, h),
                 "self_attn.k_proj": (k, h), "self_attn.v_proj": (k, h), "self_attn.o_proj": (h, q)}
        if config["model_type"] == "qwen3_moe":
            names["mlp.gate"] = (config["num_experts"], h)
            for expert in range(config["num_experts"]):
                names |= {f"mlp.experts.{expert}.{part}_proj": shape
                          for part, shape in (("gate", (m, h)), ("up", (m, h)), ("down", (h, m)))}
        elif config["model_type"] == "mixtral":
            names["block_sparse_moe.gate"] = (config["num_local_experts"], h)
            for expert in range(config["num_local_experts"]):
                names |= {f"block_sparse_moe.experts.{expert}.{part}": (m, h) for part in ("w1", "w2", "w3")}
        else:
            names |= {"mlp.gate_proj": (m, h), "mlp.up_proj": (m, h), "mlp.down_proj": (h, m)}
        if config["model_type"].startswith("qwen3"):
            names |= {"self_attn.q_norm": (config["head_dim"],), "self_attn.k_norm": (config["head_dim"],)}
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in names.items()}
        if config["model_type"] == "qwen2":
            shapes |= {f"model.layers.{layer}.self_attn.{name}_proj.bias": (size,)
                       for name, size in (("q", q), ("k", k), ("v", k))}
    return {name: (np.ones(shape) if len(shape) == 1 else RANDOM.normal(0, 0.3, shape)).astype(dtype)
            for name, shape in shapes.items()}


def models():
    plain = config()
    TINY.mkdir(exist_ok=True)
    (TINY / "config.json").write_text(json.dumps(plain, indent=1) + "\n")
    (TINY / "model.safetensors").write_bytes(safetensors(weights(plain)))
    adapter = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "bias": "none", "target_modules": ["q_proj"]}
    (TINY / "adapter_config.json").write_text(json.dumps(adapter, indent=1) + "\n")
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    lora = {f"{stem}.lora_A.weight": np.ones((1, 4), np.float32), f"{stem}.lora_B.weight": np.ones((4, 1), np.float32)}
    (TINY / "adapter_model.safetensors").write_bytes(safetensors(lora))

    for name, made, dtype in (
            ("llama", plain, np.float32), ("tied", config(tie_word_embeddings=True), np.float16),
            ("qwen2", config(model_type="qwen2"), np.float64), ("qwen3", config(model_type="qwen3"), np.float32),
            ("mixtral", config(model_type="mixtral", num_local_experts=2, num_experts_per_tok=1), np.float16)):
        seed("safetensors", name, b"\x00" + safetensors(weights(made, dtype), {"config": json.dumps(made)}))
    seed("safetensors", "file", b"\x12" + safetensors(weights(plain)))
    seed("safetensors", "more", b"\x22" + safetensors(weights(plain) | {"left.over": np.arange(2)}))
    seed("safetensors", "adapter", b"\x03" + safetensors(lora))
    for name, more in (
            ("llama", {}), ("qwen3", {"model_type": "qwen3", "use_sliding_window": False}),
            ("scaled", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                         "high_freq_factor": 4.0, "original_max_position_embeddings": 16}}),
            ("parameters", {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, "hidden_act": "silu"}),
            ("mistral", {"model_type": "mistral", "sliding_window": None, "attention_bias": False, "mlp_bias": False}),
            ("moe", {"model_type": "qwen3_moe", "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 4,
                     "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True})):
        for flag in (b"\x00", b"\xc0"):
            seed("config", f"{name}-{flag.hex()}", flag + json.dumps(config(**more)).encode())
    seed("config", "index", b"\x01" + json.dumps(
        {"weight_map": {name: "model.safetensors" for name in ("lm_head.weight", "model.norm.weight")}}).encode())
    seed("config", "adapter", b"\x02" + json.dumps(adapter | {"use_rslora": True, "rank_pattern": {}}).encode())


def states():
    def accumulator(sequences, length, noise=0.01, **options):
        made = lockstep.MismatchAccumulator(**options)
        for i in range(sequences):
            rollout = -RANDOM.exponential(1, length).astype(np.float32)
            made.update((rollout + RANDOM.normal(0, noise, length)).astype(np.float32), rollout, ids=[i])
        return made.to_bytes()

    seed("accumulator", "empty", lockstep.MismatchAccumulator().to_bytes())
    seed("accumulator", "summary", accumulator(3, 5, summary=True))
    seed("accumulator", "one", accumulator(1, 1))
    seed("accumulator", "plain", accumulator(4, 6))
    seed("accumulator", "exact", accumulator(2, 3, exact_quantiles=True))
    seed("accumulator", "equal", accumulator(2, 2, noise=0))

    def mismatch(scale):
        rollout = -RANDOM.exponential(1, (8, 20)).astype(np.float32)
        return lockstep.mismatch((rollout + scale * RANDOM.normal(0, 1, (8, 20))).astype(np.float32), rollout)

    for name, steps, zero in (("new", 0, False), ("learning", 7, False), ("watching", 25, False), ("exact", 25, True)):
        monitor = lockstep.Monitor(learning_steps=20)
        for step in range(steps):
            monitor.update(step, mismatch(0 if zero else 0.02))
        steps = struct.pack("<I", 40) + bytes([0, 30]) + 5 * b"\x04"
        seed("monitor", name, monitor.to_bytes())
        seed("monitor", f"{name}-steps", monitor.to_bytes() + steps)
    for name in ("constant", "torch", "deepspeed", "megatron", "paper"):
        scaler = lockstep.LossScaler(name)
        for step in range(30):
            scaler.update(step % 7 == 3)
        seed("scaler", name, scaler.to_bytes() + bytes([1, 0, 255, 254, 1, 1, 1]))


def logs():
    with tempfile.TemporaryDirectory() as folder:
        def log(name, sequences, close=True, cut=0, **header):
            path = Path(folder) / name
            writer = lockstep.LogWriter(path, **header)
            for sequence in sequences:
                writer.append(**sequence)
            data = path.read_bytes()
            writer.close()
            data = path.read_bytes() if close else data
            seed("log", name, data[: len(data) - cut])
            return data

        column = -RANDOM.exponential(1, 9).astype(np.float32)
        plain = {"id": 1, "token_ids": list(range(9)), "rollout": column, "trainer": column * np.float32(1.001),
                 "mask": [False] * 2 + [True] * 6 + [False], "step": 3, "prompt_tokens": 2, "reward": 1.0, "advantage": -0.5}
        log("empty", [])
        log("plain", [plain, plain | {"id": 2}], model="m", temperature=0.7, top_p=0.9, top_k=5, min_p=0.1)
        log("columns", [{"id": 2**64 - 1, "rollout": column}, {"id": 0, "token_ids": [-1, 2**31 - 1]},
                        {"id": 5, "trainer": column[:0]}], trainer_engine="a", rollout_body="bf16")
        log("open", [plain], close=False)
        log("cut", [plain, plain], close=False, cut=11)
        log("long", [{"id": 3, "rollout": -RANDOM.exponential(1, 300).astype(np.float32), "mask": [True, False] * 150}])
        seed("log", "zeros", log("whole", [plain], close=False) + bytes(40))


def texts():
    for name in ("fp32", "bf16-fp8weights-fp8cache-fp32head+eager", "e8m5", "e5m3+split-k", "fp16+fused", "torch", "chain",
                 "arithmetic", "file:/nowhere", *lockstep.presets()[:6]):
        seed("names", name.replace("/", "-").replace(":", "-"), name)
    for name, lines in (
            ("one", [("1+1=", "2")]), ("spaces", [("a\\u00e9\u00e9", " x # 7 "), ("b", "\\n8\\n")]),
            ("again", [("p", "#1"), ("p", "work #1"), ("\\ud83d\\ude00", "\u00df")])):
        seed("task", name, "\n".join(f'{{"prompt": "{p}", "answer": "{a}"}}' for p, a in lines) + "\n\n")


def readers():
    """A log in each of the formats that are written, and some lines of others'."""
    import io

    import readers as target

    record = {"id": 1, "step": 2, "token_ids": [5, 6, 7], "mask": [0, 1, 1], "trainer": [-1.0, -2.0, -3.0],
              "rollout": [-1.5, -2.5, -3.5]}
    lines = "\n".join(json.dumps(record | {"id": i}) for i in range(2)).encode()
    answer = {"choices": [{"token_ids": [1, 2], "logprobs": {
        "content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -0.25}]}}], "model": "m"}
    plain = {"choices": [{"logprobs": {"tokens": ["a"], "token_logprobs": [-0.5]}}]}
    prompts = {"prompt_token_ids": [1, 2], "prompt_logprobs": [None, {"2": {"logprob": -0.5, "rank": 1}}]}
    for kind in (0, 2, target.TABLE, target.RECORDS):
        seed("readers", f"lines-{kind}", bytes([kind, 8]) + lines)
    for name, each in (("chat", answer), ("completion", plain), ("prompt", prompts)):
        seed("readers", f"{name}-line", bytes([0, 8]) + json.dumps(each).encode())
        seed("readers", f"{name}-document", bytes([1, 9]) + json.dumps([each]).encode())
    arrays = b""
    for values in (np.float32([-1, -2, -3]), np.float32([-1, -2, -3.5]), np.uint8([0, 1, 1]), np.int64([0, 1, 3])):
        file = io.BytesIO()
        np.save(file, values)
        arrays += file.getvalue()
    seed("readers", "arrays", bytes([target.ARRAYS, 0]) + arrays)
    for kind, packed in ((3, target.TABLE), (4, target.RECORDS), (6, target.ARRAYS)):
        seed("readers", f"file-{kind}", bytes([kind, 0]) + target.packed(packed, arrays if kind == 6 else lines))
    seed("readers", "own", bytes([9, 0]) + (HERE / "corpus" / "log" / "seed-plain").read_bytes())


def checkpoints():
    task = lockstep.Task("chain", size=3)
    run = lockstep.Run(lockstep.Environment(task), algorithm="paper/grpo", model=str(TINY), prompts=2, samples=2, threads=1)
    run.step()
    with tempfile.TemporaryDirectory() as folder:
        run.save(folder)
        made = next(Path(folder).glob("step-*"))
        for number, name in enumerate(("model.safetensors", "optimizer.safetensors", "run.json", "checksums.txt")):
            text = (made / name).read_bytes()
            for newest in (0, 128):
                seed("checkpoint", f"{name}-{newest}", bytes([number + newest]) + text.replace(str(TINY).encode(), b"TINY"))


def more_models():
    """Of experts in Qwen's way, of bfloat16; a whole index; adapters with all that is known at its default."""
    made = config(model_type="qwen3_moe", num_experts=2, num_experts_per_tok=1, moe_intermediate_size=4)
    seed("safetensors", "experts", b"\x00" + safetensors(weights(made, np.float16), {"config": json.dumps(made)}))
    seed("safetensors", "bf16", b"\x20" + safetensors(weights(config(), np.float16), {"config": json.dumps(config())},
                                                    {"<f2": "BF16"}))
    seed("config", "index-whole", b"\x01" + json.dumps(
        {"metadata": {}, "weight_map": {name: "model.safetensors" for name in weights(config())}}).encode())
    seed("config", "adapter-whole", b"\x02" + json.dumps(
        {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "bias": "none", "target_modules": ["q_proj"], "use_dora": False,
         "rank_pattern": {}, "alpha_pattern": {}, "fan_in_fan_out": False, "use_qalora": False, "layer_replication": None,
         "alora_invocation_tokens": None, "init_lora_weights": "eva", "use_rslora": True}).encode())


if __name__ == "__main__":
    for make in (models, states, logs, texts, checkpoints, readers, more_models):
        make()
