"""Dumps what the modules of a Hugging Face model give, for `lockstep locate --dumps`:

    dump_hf.py MODEL TOKENS.json OUT.safetensors [--dtype bfloat16] [--device cpu]

TOKENS.json is a list of lists of token ids. Every module's output, and the inputs of o_proj, down_proj and
post_attention_layernorm, become tensors [tokens, width] under the modules' names, one sequence after another;
docs/Locate.md says which operation each is. Needs torch, transformers and safetensors.
"""

import argparse
import json
import re

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

WANTED = re.compile(
    r"(.*embed_tokens|.*layers\.\d+(\.(input_layernorm|post_attention_layernorm|self_attn\.[qkvo]_proj|"
    r"mlp|block_sparse_moe|mlp\.(gate|up|down)_proj))?|model\.norm|lm_head)")
INPUTS = re.compile(r".*layers\.\d+\.(self_attn\.o_proj|mlp\.down_proj|post_attention_layernorm)")


def dump(model, sequences):
    """The tensors by name."""
    found = {}

    def keep(name, value):
        value = value[0] if isinstance(value, tuple) else value
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            rows = value.detach().reshape(-1, value.shape[-1])
            found.setdefault(name, []).append(rows.to("cpu", copy=True))

    for name, module in model.named_modules():
        if INPUTS.fullmatch(name):
            module.register_forward_pre_hook(lambda _, given, name=name: keep(name + ".input", given))
        if WANTED.fullmatch(name):
            module.register_forward_hook(lambda _, __, given, name=name: keep(name, given))
    with torch.no_grad():
        for sequence in sequences:
            model(torch.tensor([sequence], device=model.device), use_cache=False)
    tensors = {name: torch.cat(parts).contiguous() for name, parts in found.items()}
    ends = torch.cumsum(torch.tensor([len(each) for each in sequences]), 0)
    tensors["tokens"] = torch.tensor([token for sequence in sequences for token in sequence])
    tensors["offsets"] = torch.cat([torch.zeros(1, dtype=torch.int64), ends])
    return tensors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("tokens")
    parser.add_argument("out")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    with open(options.tokens) as file:
        sequences = json.load(file)
    save_file(dump(model.to(options.device).eval(), sequences), options.out)


if __name__ == "__main__":
    main()
