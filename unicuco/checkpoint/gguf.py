"""A checkpoint as one GGUF file, for llama.cpp and what is built on it.

Its ``llama`` architecture has one width for all layers, so only models that are plain Llama or Mistral by their
configuration go: ``uniform`` and ``padded`` checkpoints of these families, and such models themselves. Tensors are
written one by one, in the dtype that they are stored in (norms in float32, as llama.cpp wants them); to quantise is
llama.cpp's business (``llama-quantize``).

Queries and keys are in another order there: of the two halves of a head that rotary embeddings turn together, GGUF has
one number of each in turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unicuco.checkpoint.files import tensor_files
from unicuco.errors import CheckpointError
from unicuco.storage import atomic_file

FAMILIES = ("llama", "mistral")
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_INNER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


@dataclass(frozen=True)
class _Vocabulary:
    tokens: list[str]
    kinds: list[int]
    merges: list[str]


def write_gguf(folder: Path, target: Path, tokenizer_pre: str, replace: bool = False) -> None:
    """Writes the model in ``folder`` to the file ``target``.

    Args:
        tokenizer_pre: how llama.cpp is to split text before byte pairs are merged, by its own name for it: ``smollm``,
            ``llama-bpe``, ``default``, ... Tokenizers do not say it, and a wrong one cuts text up differently.

    Raises:
        CheckpointError: no model that GGUF's ``llama`` can hold, no tokenizer of the kind, or ``target`` exists.
        DiskFullError: nothing was left behind.
    """
    import gguf

    if target.exists() and not replace:
        raise CheckpointError(f"{target} exists already; choose another file or say --replace.")
    config = _config(folder)
    files = tensor_files(folder)
    names = {name: _gguf_name(name) for name in files if not name.endswith("rotary_emb.inv_freq")}
    if strange := sorted(name for name, found in names.items() if not found):
        raise CheckpointError(f"GGUF's llama has no place for {', '.join(strange[:3])} of {folder}.")
    vocabulary = _vocabulary(folder, config.vocab_size)
    with atomic_file(target) as scratch:
        writer = gguf.GGUFWriter(scratch, "llama")
        _describe(writer, folder, config)
        _add_tokenizer(writer, folder, vocabulary, tokenizer_pre)
        order = sorted(names, key=lambda name: (str(files[name]), name))
        for name in order:
            tensor = _opened(files[name], name)
            data, kind = _encoded(name, tensor, config)
            writer.add_tensor_info(names[name], data.shape, data.dtype, data.nbytes, raw_dtype=kind)
        writer.write_header_to_file(scratch)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in order:
            writer.write_tensor_data(_encoded(name, _opened(files[name], name), config)[0])
        writer.close()


def _config(folder: Path) -> Any:
    """The configuration, where GGUF's ``llama`` means the same."""
    from transformers import AutoConfig

    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no readable config.json: {error}.") from error
    family = about.get("model_type")
    if family not in FAMILIES or about.get("auto_map"):
        raise CheckpointError(
            f"GGUF is written of plain {' and '.join(FAMILIES)} models, and {folder} is a '{family}': write the "
            "checkpoint with --layout uniform, or convert it with llama.cpp's convert_hf_to_gguf.py."
        )
    config = AutoConfig.from_pretrained(folder)
    rope = config.rope_parameters or {}
    if rope.get("rope_type", "default") != "default":
        raise CheckpointError(
            f"{folder} scales its rotary embeddings ({rope['rope_type']}), which is not written here; convert it with "
            "llama.cpp's convert_hf_to_gguf.py."
        )
    return config


def _gguf_name(name: str) -> str:
    """What the tensor is called there; "" where there is no such tensor."""
    module, _, kind = name.rpartition(".")
    if kind != "weight":
        return ""
    if module in _OUTER:
        return f"{_OUTER[module]}.weight"
    parts = module.split(".", 3)
    if parts[:2] == ["model", "layers"] and len(parts) == 4 and parts[3] in _INNER:
        return f"blk.{parts[2]}.{_INNER[parts[3]]}.weight"
    return ""


def _opened(path: Path, name: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.get_tensor(name)


def _encoded(name: str, tensor: Tensor, config: Any) -> tuple[np.ndarray, Any]:
    """The numbers as they go into the file, and their kind where numpy has no dtype for it."""
    import gguf

    if name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        tensor = tensor.view(heads, 2, len(tensor) // heads // 2, -1).transpose(1, 2).reshape(tensor.shape)
    if tensor.dim() == 1:
        return tensor.float().numpy(), None
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint8).numpy(), gguf.GGMLQuantizationType.BF16
    return tensor.contiguous().numpy(), None


def _describe(writer: Any, folder: Path, config: Any) -> None:
    import gguf

    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    writer.add_name(folder.resolve().name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float((config.rope_parameters or {}).get("rope_theta", 10_000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    dtype = str(config.dtype).removeprefix("torch.")
    kinds = {"bfloat16": gguf.LlamaFileType.MOSTLY_BF16, "float16": gguf.LlamaFileType.MOSTLY_F16}
    writer.add_file_type(kinds.get(dtype, gguf.LlamaFileType.ALL_F32))


def _vocabulary(folder: Path, size: int) -> _Vocabulary:
    """Tokens by their ids, filled up to ``size``; merges of byte pairs."""
    from gguf import TokenType

    try:
        about = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        model, added = about["model"], about["added_tokens"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", ())]
        by_bytes = model["type"] == "BPE" and any(part["type"] == "ByteLevel" for part in _parts(about))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} holds no readable tokenizer.json: {error}.") from error
    if not by_bytes:
        raise CheckpointError(
            f"Of tokenizers, only byte-pair ones over bytes are written to GGUF, and that of {folder} is none; convert "
            "it with llama.cpp's convert_hf_to_gguf.py."
        )
    tokens = [f"[PAD{i}]" for i in range(size)]
    kinds = [int(TokenType.UNUSED)] * size
    for token, i in model["vocab"].items():
        tokens[i], kinds[i] = token, int(TokenType.NORMAL)
    for one in added:
        kind = TokenType.CONTROL if one["special"] else TokenType.USER_DEFINED
        tokens[one["id"]], kinds[one["id"]] = one["content"], int(kind)
    return _Vocabulary(tokens, kinds, merges)


def _parts(about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Pre-tokenizers and decoders, those in sequences too."""
    for name, many in (("pre_tokenizer", "pretokenizers"), ("decoder", "decoders")):
        found = about.get(name)
        if found:
            yield found
            yield from found.get(many, ())


def _add_tokenizer(writer: Any, folder: Path, vocabulary: _Vocabulary, pre: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if token is not None:
            add(token)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
    begins = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    writer.add_add_bos_token(bool(begins))
