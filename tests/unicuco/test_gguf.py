"""GGUF files are read back by transformers' own reader: the same logits, the same tokens."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerFast

from tests.unicuco.checkpoint_models import logits_of, tiny_model, tiny_tokenizer, write
from unicuco.checkpoint.gguf import write_gguf
from unicuco.errors import CheckpointError, ModelError
from unicuco.models.source import find_model
from unicuco.space import Shape

UNIFORM = Shape((2, 0, 2, 2), (64, 0, 64, 64))
TEXT = "the model that is left computes what the model that was there computed, and a little less of it: ça va, 42 😀"


def byte_pairs(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of ``size`` tokens trained on a sentence, four of them special."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.mark.parametrize(
    ("family", "dtype"), [("llama", torch.float32), ("llama", torch.bfloat16), ("mistral", torch.float32)]
)
def test_what_is_read_back_is_the_checkpoint(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    changes = {"sliding_window": None} if family == "mistral" else {}
    base = tiny_model(family, dtype, vocab_size=320, **changes)
    folder = write(base, UNIFORM, tmp_path / "c", "uniform", tokenizer=byte_pairs(300), max_shard_size="100KB")
    write_gguf(folder, tmp_path / "m.gguf", "default")
    tokens = torch.randint(4, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    back = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    ).eval()
    expected = logits_of(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), tokens)
    torch.testing.assert_close(logits_of(back, tokens), expected, atol=1e-5, rtol=0)
    assert back.config.num_hidden_layers == 3 and back.config.intermediate_size == 64
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert tokenizer(TEXT).input_ids == AutoTokenizer.from_pretrained(folder)(TEXT).input_ids
    assert tokenizer.eos_token_id == 2


def test_a_base_model_may_be_the_file_or_the_folder_that_holds_it(tmp_path: Path) -> None:
    folder = write(tiny_model("llama", vocab_size=320), UNIFORM, tmp_path / "c", "uniform", tokenizer=byte_pairs(300))
    file = tmp_path / "gguf" / "small.gguf"
    file.parent.mkdir()
    write_gguf(folder, file, "default")
    source = find_model(str(file.parent))
    assert source.folder == find_model(str(file)).folder and (source.folder / "model.safetensors").is_file()
    shutil.copy(file, file.with_name("other.gguf"))
    with pytest.raises(ModelError, match=r"several GGUF files \(other.gguf, small.gguf\); name one of them"):
        find_model(str(file.parent))
    shutil.copy(folder / "model.safetensors", file.parent)
    shutil.copy(folder / "config.json", file.parent)
    assert find_model(str(file.parent)).folder == file.parent, "safetensors go first"


def test_what_gguf_cannot_hold_is_refused(tmp_path: Path) -> None:
    base = tiny_model("llama", vocab_size=320)
    folder = write(base, UNIFORM, tmp_path / "h", "hetero", tokenizer=byte_pairs(300))
    with pytest.raises(CheckpointError, match="write the checkpoint with --layout uniform"):
        write_gguf(folder, tmp_path / "m.gguf", "default")
    folder = write(tiny_model("qwen3"), UNIFORM, tmp_path / "q", "uniform", tokenizer=byte_pairs(300))
    with pytest.raises(CheckpointError, match="is a 'qwen3'"):
        write_gguf(folder, tmp_path / "m.gguf", "default")
    folder = write(tiny_model("llama"), UNIFORM, tmp_path / "w", "uniform", tokenizer=tiny_tokenizer())
    with pytest.raises(CheckpointError, match="only byte-pair ones"):
        write_gguf(folder, tmp_path / "m.gguf", "default")
    folder = write(tiny_model("llama", attention_bias=True), UNIFORM, tmp_path / "b", "uniform")
    with pytest.raises(CheckpointError, match=r"no place for model.layers.0.self_attn.k_proj.bias"):
        write_gguf(folder, tmp_path / "m.gguf", "default")
    with pytest.raises(CheckpointError, match="holds no readable config"):
        write_gguf(tmp_path, tmp_path / "m.gguf", "default")
    (tmp_path / "there.gguf").touch()
    with pytest.raises(CheckpointError, match="exists already"):
        write_gguf(folder, tmp_path / "there.gguf", "default")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "h", "q", "there.gguf", "w"]
