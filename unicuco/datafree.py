"""From a base model to a smaller checkpoint without data: as many neurons from every MLP, chosen by the weights alone.

Text is read only where the result is to be measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from unicuco.assess import hidden_states
from unicuco.beforeafter import before_and_after
from unicuco.calibration import CalibrationConfig, Windows, draw_windows
from unicuco.checkpoint import CheckpointCard, CheckpointReport, write_checkpoint
from unicuco.errors import PolicyError
from unicuco.heldout import WINDOWS
from unicuco.models.load import BaseModel as Base
from unicuco.models.load import load_base_model, load_tokenizer
from unicuco.models.sites import find_blocks
from unicuco.models.swap import SwitchableModel
from unicuco.pruners.base import pruned_blocks
from unicuco.pruners.folding import fold_blocks
from unicuco.pruners.neurons import (
    NeuronPruner,
    aligned_neurons,
    gate_matrices,
    keep_neurons,
    largest_rows,
    neurons_left,
    random_neurons,
    up_matrices,
)
from unicuco.pruners.policyfile import check_free, is_prunenet, load_prunenet, save_prunenet
from unicuco.pruners.prunenet import Progress, PruneNetConfig, check_gates, choose_neurons, learn_spectrum
from unicuco.pruners.reinforce import learn_to_reproduce
from unicuco.pruners.selfwritten import losses_by_pairs, write_texts

DataFreeMethod = Literal["prunenet", "folding", "alignment", "row-norms", "random"]
DATA_FREE: tuple[DataFreeMethod, ...] = get_args(DataFreeMethod)


class DataFreeConfig(BaseModel):
    """What to remove."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: DataFreeMethod
    sparsity: float = Field(gt=0, lt=1)
    """Share of every MLP's neurons that goes."""
    seed: int = Field(default=0, ge=0)
    prunenet: PruneNetConfig | None = None
    """How the policy learns; ``None``: at ``sparsity`` and by ``seed``."""
    policy: Path | None = None
    """PruneNet's policy: taken from this folder, or learned and saved there where there is none."""
    dtype: str = Field(default="bfloat16", pattern="^(bfloat16|float32)$")
    device: str = "cpu"
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _policies_are_prunenets(self) -> DataFreeConfig:
        if self.method != "prunenet" and (self.policy or self.prunenet):
            raise ValueError("only 'prunenet' has a policy")
        return self


@dataclass(frozen=True)
class DataFree:
    """A checkpoint, and what was measured on fresh text, if anything (nats per token)."""

    checkpoint: CheckpointReport
    measured: dict[str, Any]


def data_free_pruner(
    base: Base, config: DataFreeConfig, report: Progress = lambda what, done, total: None
) -> NeuronPruner:
    """The pruner of ``config`` for ``base``; reads weights, and the policy's folder.

    Raises:
        ModelError, PolicyError, StrategyError
    """
    blocks = find_blocks(base.model)
    if config.method == "folding":
        return NeuronPruner(base, config.method, fold_blocks(blocks, config.sparsity, config.seed))
    gates = gate_matrices(base.model)
    if config.method == "random":
        kept = random_neurons(gates, config.sparsity, config.seed)
    elif config.method == "alignment":
        kept = aligned_neurons(gates, up_matrices(base.model), config.sparsity)
    elif config.method == "row-norms":
        kept = largest_rows(gates, config.sparsity)
    else:
        kept = choose_neurons(_policy(base, gates, config, report), gates, config.sparsity)
    mlps = [keep_neurons(b, rows.to(b.mlp.down_proj.weight.device)) for b, rows in zip(blocks, kept, strict=True)]
    return NeuronPruner(base, config.method, mlps)


def _policy(base: Base, gates: list[torch.Tensor], config: DataFreeConfig, report: Progress) -> Any:
    if config.policy and is_prunenet(config.policy):
        found, learned = load_prunenet(config.policy)
        if config.prunenet and config.prunenet.reward != learned.reward:
            raise PolicyError(
                f"The policy in {config.policy} learned by the reward '{learned.reward}', "
                f"not '{config.prunenet.reward}'; choose another folder, or no reward."
            )
        return found
    learning = config.prunenet or PruneNetConfig(sparsity=config.sparsity, seed=config.seed)
    if config.policy:
        check_free(config.policy)
    if learning.reward == "spectrum":
        network, training = learn_spectrum(gates, learning, report)
    else:
        neurons_left(len(gates[0]), learning.sparsity)  # refuse before the model writes
        check_gates(gates, tuple(gates[0].shape))
        report("writing to itself", 0, 1)
        texts = write_texts(base.model, learning.texts, learning.text_length, learning.seed)
        network, training = learn_to_reproduce(gates, losses_by_pairs(base.model, texts), learning, report)
    if config.policy:
        save_prunenet(config.policy, network, learning, training, base.source.digest)
    return network


def prune_data_free(
    model: str,
    config: DataFreeConfig,
    target: Path,
    measure: CalibrationConfig | None = None,
    replace: bool = False,
    command: str | None = None,
    report: Progress = lambda what, done, total: None,
) -> DataFree:
    """Prunes ``model`` and writes it to ``target``.

    Args:
        measure: fresh windows of this text are read, before and after; ``None`` reads no text.

    Raises:
        UniCuCoError: a model, text or folder that will not do, before any work where possible.
    """
    base = load_base_model(model, config.dtype, config.device, config.trust_remote_code)
    tokenizer = load_tokenizer(base.source, config.trust_remote_code)
    fresh = draw_windows(measure, tokenizer, "heldout", WINDOWS) if measure else None  # too short a text: say so now
    pruner = data_free_pruner(base, config, report)
    measured: dict[str, Any] = {}
    if fresh:
        report("reading fresh text", 0, 1)
        measured = _measured(base, pruner, fresh)
    card = CheckpointCard(
        request=config.model_dump(mode="json", exclude_none=True),
        measured=measured,
        calibration={"calibration": "none: no text was read to prune"},
        command=command,
    )
    report("writing and reloading", 0, 1)
    done = write_checkpoint(base, tokenizer, pruner, pruner.shape, Path(target), "hetero", card, replace=replace)
    return DataFree(done, measured)


def _measured(base: Base, pruner: NeuronPruner, fresh: Windows) -> dict[str, float]:
    dense, _ = hidden_states(base.model, fresh)
    switch = SwitchableModel(base.model)
    switch.apply(pruned_blocks(pruner, pruner.shape))
    try:
        pruned, _ = hidden_states(base.model, fresh)
    finally:
        switch.restore()
    return before_and_after(base.model, dense, pruned, fresh)
