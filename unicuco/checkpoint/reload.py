"""Run as a script by ``verify.py``, in a fresh process: loads a checkpoint as any user would and compares its logits.

    python -P reload.py FOLDER PROBE.safetensors [--remote]

Imports nothing of ours: that the checkpoint loads without this package is what it is here to find out.
"""

import json
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def cast_while_running(layer: torch.nn.Module) -> None:
    """Makes ``layer`` compute in float32 and keep its weights in their dtype between calls."""
    dtype = next(layer.parameters()).dtype

    def widen(module: torch.nn.Module, args: object) -> None:
        module.float()

    def narrow(module: torch.nn.Module, args: object, output: object) -> None:
        module.to(dtype)

    layer.register_forward_pre_hook(widen)
    layer.register_forward_hook(narrow)


def main(folder: str, probe: str, remote: bool) -> None:
    stored = load_file(probe)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=remote).eval()
    inner = model.get_decoder()
    layers = inner.h if hasattr(inner, "h") else inner.layers
    for layer in layers:
        cast_while_running(layer)
    inside = {id(parameter) for parameter in layers.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in inside:
            parameter.data = parameter.data.float()
    with torch.no_grad():
        logits = model(input_ids=stored["tokens"], use_cache=False).logits.float()
    if "unicuco" in sys.modules:
        raise RuntimeError("the checkpoint's code imports unicuco; it must load without it")
    if logits.shape != stored["logits"].shape:
        raise RuntimeError(f"its logits have shape {tuple(logits.shape)}, not {tuple(stored['logits'].shape)}")
    print(json.dumps({"max_abs_diff": (logits - stored["logits"]).abs().max().item()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], "--remote" in sys.argv[3:])
