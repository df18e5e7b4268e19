"""Run as a script, in a fresh process: loads a checkpoint as any user would and compares its logits.

    python -P reload.py FOLDER PROBE.safetensors [--remote] [--measure]

``PROBE`` holds ``tokens`` and the ``logits`` expected for them: of the whole vocabulary, or of the tokens in
``vocabulary``, with the ``logsumexp`` of all. ``--measure`` adds what was loaded and how fast it runs.

Imports nothing of ours: that the checkpoint loads without this package is what it is here to find out.
"""

import inspect
import json
import resource
import sys
import time
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

PREFILL_TOKENS, NEW_TOKENS, ROUNDS = 512, 32, 3


def cast_while_running(layer: torch.nn.Module) -> None:
    """Makes ``layer`` compute in float32 and keep its weights in their dtype between calls."""
    dtype = next(layer.parameters()).dtype

    def widen(module: torch.nn.Module, args: object) -> None:
        module.float()

    def narrow(module: torch.nn.Module, args: object, output: object) -> None:
        module.to(dtype)

    layer.register_forward_pre_hook(widen)
    layer.register_forward_hook(narrow)


def decoder_layers(model: Any) -> Any:
    """The model's layers; GPT-2 calls them ``h``."""
    inner = model.get_decoder()
    return inner.h if hasattr(inner, "h") else inner.layers


def compare(model: Any, stored: dict) -> dict:
    """Largest difference of the logits, computed in float32. Leaves the model changed."""
    layers = decoder_layers(model)
    for layer in layers:
        cast_while_running(layer)
    inside = {id(parameter) for parameter in layers.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in inside:
            parameter.data = parameter.data.float()
    logits = model(input_ids=stored["tokens"], use_cache=False).logits.float()
    expected, differences = stored["logits"], []
    if "vocabulary" in stored:
        differences.append((logits.logsumexp(-1) - stored["logsumexp"]).abs().max())
        logits = logits[..., stored["vocabulary"]]
    if logits.shape != expected.shape:
        raise RuntimeError(f"its logits have shape {tuple(logits.shape)}, not {tuple(expected.shape)}")
    differences.append((logits - expected).abs().max())
    return {"max_abs_diff": torch.stack(differences).max().item()}


def inputs(projection: Any) -> int:
    """How many numbers a projection reads; GPT-2's are stored the other way round."""
    return projection.in_features if hasattr(projection, "in_features") else projection.weight.shape[0]


def describe(model: Any) -> dict:
    """Parameters (tied ones once), and the widths of every layer as loaded."""
    layers = []
    for layer in decoder_layers(model):
        attention = next((m for m in layer.modules() if hasattr(m, "q_proj") and hasattr(m, "head_dim")), None)
        heads = None if attention is None else attention.q_proj.out_features // attention.head_dim
        kv_heads = None if attention is None else attention.k_proj.out_features // attention.head_dim
        mlps = [inputs(m) for name, m in layer.named_modules() if name.endswith(("down_proj", "mlp.c_proj", "fc2"))]
        layers.append({"heads": heads, "kv_heads": kv_heads, "mlps": mlps})
    unique = {id(p): p for p in model.parameters()}.values()
    return {
        "params": sum(p.numel() for p in unique),
        "class": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "layers": layers,
    }


def speed(model: Any) -> dict:
    """Tokens per second, one sequence: reading a prompt, then one token after the other with the cache."""
    longest = getattr(model.config, "max_position_embeddings", PREFILL_TOKENS + NEW_TOKENS)
    length = max(1, min(PREFILL_TOKENS, longest - NEW_TOKENS))
    tokens = torch.randint(0, model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    reading, writing = [], []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        out = model(input_ids=tokens, use_cache=True, **last)
        reading.append(time.perf_counter() - began)
        began = time.perf_counter()
        for _ in range(NEW_TOKENS):
            token = out.logits[:, -1:].argmax(-1)
            out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
        writing.append(time.perf_counter() - began)
    return {
        "prefill_tokens": length,
        "prefill_tokens_per_second": length / min(reading),
        "decode_tokens_per_second": NEW_TOKENS / min(writing),
        "threads": torch.get_num_threads(),
    }


def peak_bytes() -> int:
    """The most memory that this process has had."""
    try:  # what the system counts for getrusage begins with the parent's
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@torch.no_grad()
def main(folder: str, probe: str, remote: bool, measure: bool) -> None:
    stored = load_file(probe)
    began = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=remote).eval()
    found: dict = {"load_seconds": time.perf_counter() - began}
    if measure:
        found |= describe(model) | speed(model)
    if "logits" in stored:
        found |= compare(model, stored)
    if "unicuco" in sys.modules:
        raise RuntimeError("the checkpoint's code imports unicuco; it must load without it")
    found["peak_bytes"] = peak_bytes()
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], "--remote" in sys.argv[3:], "--measure" in sys.argv[3:])
