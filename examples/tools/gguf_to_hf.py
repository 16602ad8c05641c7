"""Writes a Llama model in a GGUF file as a Hugging Face folder: gguf_to_hf.py MODEL.gguf FOLDER

Needs the packages gguf and numpy. Quantised weights are dequantised and stored as fp16: the folder is the model that
the GGUF file is, not the one that it was made from. Of tokenizers, SmolLM's is written too, as tokenizer.json.
"""

import json
import pathlib
import struct
import sys

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
PARTS = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def configuration(reader, tensors):
    """config.json, of the file's metadata."""

    def setting(name, default=None):
        field = reader.get_field(name)
        if field is None and default is None:
            sys.exit(f"{name} is missing")
        return default if field is None else field.contents()

    architecture = setting("general.architecture")
    if architecture != "llama":
        sys.exit(f"general.architecture is '{architecture}'; known is llama")
    if "rope_freqs.weight" in tensors or reader.get_field("llama.rope.scaling.type") is not None:
        sys.exit("the rotary embedding is scaled; known are plain ones")
    heads, hidden = setting("llama.attention.head_count"), setting("llama.embedding_length")
    vocab = tensors["token_embd.weight"].shape[0]
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float16",
        "vocab_size": vocab, "hidden_size": hidden, "hidden_act": "silu",
        "intermediate_size": setting("llama.feed_forward_length"),
        "num_hidden_layers": setting("llama.block_count"), "num_attention_heads": heads,
        "num_key_value_heads": setting("llama.attention.head_count_kv", heads),
        "head_dim": setting("llama.attention.key_length", hidden // heads),
        # The file has it as a float32: its shortest decimal is what was meant.
        "rms_norm_eps": float(str(np.float32(setting("llama.attention.layer_norm_rms_epsilon")))),
        "rope_theta": setting("llama.rope.freq_base", 10000.0),
        "max_position_embeddings": setting("llama.context_length"),
        "tie_word_embeddings": "output.weight" not in tensors, "attention_bias": False, "mlp_bias": False,
        "bos_token_id": setting("tokenizer.ggml.bos_token_id"), "eos_token_id": setting("tokenizer.ggml.eos_token_id"),
    }


def tokenizer(reader):
    """tokenizer.json, of the file's metadata: byte-level BPE, each digit by itself; None for another kind."""
    kind = [reader.get_field(f"tokenizer.ggml.{name}") for name in ("model", "pre")]
    if [field and field.contents() for field in kind] != ["gpt2", "smollm"]:
        return None
    tokens, types, merges = (reader.get_field(f"tokenizer.ggml.{name}").contents() for name in ("tokens", "token_type", "merges"))
    control = 3
    special = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    bytes_as_text = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": index, "content": text} | special
                         for index, (text, type) in enumerate(zip(tokens, types)) if type == control],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, bytes_as_text]},
        "decoder": bytes_as_text,
        "model": {"type": "BPE", "vocab": {text: index for index, text in enumerate(tokens)}, "merges": merges,
                  "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False},
    }


def rows_as_transformers(weight, heads):
    """GGUF has the two halves of a rotated head as pairs; transformers one after the other."""
    pairs = weight.reshape(heads, -1, 2, weight.shape[-1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def main(source, folder):
    reader = GGUFReader(source)
    stored = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    config = configuration(reader, stored)
    header, arrays, end = {"__metadata__": {"format": "pt"}}, [], 0
    for name, weight in stored.items():
        stem = name.removesuffix(".weight")
        if stem in NAMES:
            known = NAMES[stem]
        else:
            _, layer, part = stem.split(".")
            known = f"model.layers.{layer}.{PARTS[part]}"
            if part in ("attn_q", "attn_k"):
                kind = "num_attention_heads" if part == "attn_q" else "num_key_value_heads"
                weight = rows_as_transformers(weight, config[kind])
        weight = np.ascontiguousarray(weight, "<f2")
        header[f"{known}.weight"] = {
            "dtype": "F16", "shape": list(weight.shape), "data_offsets": [end, end + weight.nbytes]}
        arrays.append(weight)
        end += weight.nbytes
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    if words := tokenizer(reader):
        (folder / "tokenizer.json").write_text(json.dumps(words, ensure_ascii=False) + "\n", encoding="utf-8")
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for weight in arrays:
            file.write(weight.data)
    print(f"{folder}: {len(arrays)} tensors, {sum(weight.size for weight in arrays):,} weights")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
