"""What vLLM calls in each of its processes when UniCuCo is installed beside it: ``hetero`` checkpoints then load
without remote code.

vLLM finds ``register`` by its entry point (group ``vllm.general_plugins``, in ``pyproject.toml``). Nothing is asked of
vLLM but its own Transformers backend, which reads the layers' widths from ``per_layer_config`` since vLLM 0.28.
"""

from __future__ import annotations

from unicuco.models.hetero import FAMILIES, class_name

BACKEND = "vllm.model_executor.models.transformers:TransformersForCausalLM"


def register() -> None:
    """Tells vLLM which of its classes runs our architectures; that transformers knows them is this package's import.

    vLLM may call it several times in one process; importing vLLM is left to this call.
    """
    from vllm import ModelRegistry

    for family in FAMILIES:
        ModelRegistry.register_model(class_name(family, "ForCausalLM"), BACKEND)
