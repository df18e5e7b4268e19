"""Loading a base model through its own classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from unicuco.errors import ModelError
from unicuco.models.geometry import Geometry
from unicuco.models.separate import separate
from unicuco.models.sites import check_config, decoder_layers, read_geometry
from unicuco.models.source import ModelSource, find_model
from unicuco.models.spread import parse_devices, place

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class BaseModel:
    """A loaded base model.

    Attributes:
        source: where it came from; its ``digest`` names the content.
        model: the transformers model, in eval mode, without gradients.
        geometry: its sizes.
        ordered_by: digest of the preparation whose order its units are in; a model is ordered once.
    """

    source: ModelSource
    model: PreTrainedModel
    geometry: Geometry
    ordered_by: str | None = None


def load_base_model(
    spec: str | ModelSource, dtype: str = "float32", device: str = "cpu", trust_remote_code: bool = False
) -> BaseModel:
    """Loads ``spec`` (see ``find_model``) for inference, with its geometry.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:N``; several with commas between spread the blocks over them.

    Raises:
        ModelError: not found, not a causal language model, a shape that cannot be pruned, or no room for it.
    """
    source = find_model(spec) if isinstance(spec, str) else spec
    _check(source, trust_remote_code)
    model = load_model(source, dtype, device, trust_remote_code)
    separate(model, decoder_layers(model))
    return BaseModel(source, model, read_geometry(model))


def _check(source: ModelSource, trust_remote_code: bool) -> None:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(f"{source.spec} does not load as a causal language model: {error}") from error
    check_config(config)


def load_model(source: ModelSource, dtype: str, device: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """The transformers model in ``source``, in eval mode, without gradients.

    Raises:
        ModelError: not a causal language model, no such device, or no room on it.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    devices = parse_devices(device)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.folder, dtype=DTYPES[dtype], trust_remote_code=trust_remote_code, use_safetensors=True
        )
    except (ValueError, OSError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"{source.spec} does not load as a causal language model: {error}") from error
    model.eval().requires_grad_(False)
    place(model, devices, source.spec)
    return model


def load_tokenizer(source: ModelSource, trust_remote_code: bool = False) -> Any:
    """The tokenizer that lies beside the weights."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(f"{source.spec} has no tokenizer that loads: {error}") from error
