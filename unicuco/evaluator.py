"""Measures strategies on a pinned base model: exact KL from the dense model over the full vocabulary, both ways."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import BaseModel as Config
from pydantic import ConfigDict, Field
from torch import Tensor

from unicuco.calibration import Windows
from unicuco.errors import ModelError
from unicuco.evaluations import Candidate, Evaluation
from unicuco.margins import Margins, measure_margins
from unicuco.models.head import Head
from unicuco.models.hetero.attention_unicuco import use_fast_attention
from unicuco.models.load import BaseModel, load_base_model
from unicuco.models.spread import device_names
from unicuco.models.swap import SwitchableModel
from unicuco.preparation import Preparation
from unicuco.pruners.base import PrunedBlock, pruned_blocks
from unicuco.pruners.build import build_pruner
from unicuco.reference import (
    LOGITS_AT_ONCE,
    Divergence,
    Reference,
    compare,
    compute_log_probs,
    load_or_compute,
    log_probs_fit,
)
from unicuco.space import Shape
from unicuco.teacher import find_teacher, teacher_hidden

Result = TypeVar("Result")


class EvaluatorConfig(Config):
    """How evaluations run; part of every result."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: str = Field(default="bfloat16", pattern="^(bfloat16|float32)$")
    device: str = "cpu"
    """``cpu``, ``cuda``, ``cuda:N``; several with commas between: the base model is spread over them."""
    threads: int | None = Field(default=None, ge=1)
    """Torch threads on a CPU; None leaves torch's own choice."""
    batch_tokens: int = Field(default=4096, ge=1)
    """Tokens per forward; halved when a GPU runs out of memory."""
    reference_bytes: int = Field(default=2 << 30, ge=0)
    """Keep the dense log-probabilities when they fit in this many bytes, else its hidden states."""
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Measurement:
    """Means in nats per token: over all windows of a domain, then over domains.

    Attributes:
        window_kl: KL(dense || pruned) of every window (``num_windows``), to judge the noise.
    """

    kl: float
    kl_reverse: float
    perplexity: float
    domain_kl: tuple[float, ...]
    window_kl: np.ndarray
    tokens: int
    seconds: float


class Evaluator:
    """A pinned base model, its pruner, and the dense reference on one set of windows.

    Deterministic: the same strategy gives the same numbers on the same device, dtype and number of threads.
    """

    def __init__(
        self,
        model_spec: str,
        preparation_folder: Path,
        config: EvaluatorConfig | None = None,
        windows: Windows | None = None,
        base: BaseModel | None = None,
    ) -> None:
        """Loads and pins the base model.

        Args:
            windows: measure on these instead of the preparation's search windows.
            base: a loaded model to pin instead of loading ``model_spec``; its weights get permuted.

        Raises:
            ModelError, PreparationError: what is wrong with either.
        """
        self.config = config or EvaluatorConfig()
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        self.preparation = Preparation.open(preparation_folder)
        if base is None:
            c = self.config
            base = load_base_model(model_spec, c.dtype, c.device, c.trust_remote_code)
        self.base, self._teacher = base, find_teacher(base.source)
        use_fast_attention(base.model)
        self._logits = Head(base.model)
        self.pruner = build_pruner(base, self.preparation)
        self.space = self.preparation.space
        self._switch = SwitchableModel(base.model)
        embeddings: Any = base.model.get_input_embeddings()
        self._device: torch.device = embeddings.weight.device  # tokens go there; logits come from the head's
        self._batch_tokens = self.config.batch_tokens
        self._chunk = LOGITS_AT_ONCE
        self._margin_windows: dict[int, tuple[Tensor, Tensor]] = {}
        self._set_windows(windows or self.preparation.search_windows)
        self._check_head()
        self._reference = self._load_reference(on_disk=windows is None)

    def on(self, windows: Windows) -> Evaluator:
        """The same pinned model measured on other windows; shares everything but tokens and reference."""
        other = copy.copy(self)
        other._set_windows(windows)
        other._reference = other._load_reference(on_disk=False)
        return other

    def _set_windows(self, windows: Windows) -> None:
        self.windows, self.windows_digest = windows, windows.digest
        self._tokens = torch.from_numpy(windows.tokens).long().to(self._device)
        ends = torch.full((len(self._tokens), 1), -1, dtype=torch.long, device=self._device)
        self._targets = torch.cat([self._tokens[:, 1:], ends], dim=1).flatten().to(self._logits.device)

    @property
    def num_tokens(self) -> int:
        """The standard tokens: what one evaluation runs on."""
        return self._tokens.numel()

    def evaluate(self, candidate: Candidate) -> Evaluation:
        """Measures one candidate on the windows.

        Raises:
            StrategyError: levels that the search space does not have.
        """
        levels = self.space.check_levels(np.asarray(candidate.levels))
        began = time.perf_counter()
        measured = self.measure(self.space.shape(levels))
        margins = self.margins(levels, candidate.margin_group) if candidate.margin_group >= 0 else None
        return Evaluation(
            eval_id=candidate.eval_id,
            levels=tuple(int(level) for level in levels),
            origin=candidate.origin,
            params=int(self.space.total(levels)),
            kept=float(self.space.kept(levels)),
            kl=measured.kl,
            kl_reverse=measured.kl_reverse,
            perplexity=measured.perplexity,
            domains=self.windows.domains,
            domain_kl=measured.domain_kl,
            tokens=measured.tokens,
            cost=candidate.cost * measured.tokens,
            seconds=time.perf_counter() - began,
            dtype=self.config.dtype,
            device=device_names(self.base.model),
            threads=torch.get_num_threads(),
            seed=self.preparation.config.calibration.seed,
            preparation=self.preparation.digest,
            windows=self.windows_digest,
            window_kl=tuple(float(value) for value in measured.window_kl),
            predicted_log_kl=candidate.predicted_log_kl,
            predicted_sigma=candidate.predicted_sigma,
            policy_version=candidate.policy_version,
            margin_group=candidate.margin_group,
            margins_kl=math.nan if margins is None else margins.kl,
            margins=() if margins is None else tuple(float(value) for value in margins.change.flatten()),
        )

    def margins(self, levels: np.ndarray, group: int) -> Margins:
        """Margins of one strategy (``num_sites`` level indices) on one group of the preparation's margin windows."""
        if group not in self._margin_windows:
            windows = torch.from_numpy(self.preparation.margin_windows(group).tokens).long().to(self._device)
            with torch.no_grad():  # out of inference mode: autograd reads it
                self._margin_windows[group] = (windows, self._dense_hidden(windows).clone())
        tokens, dense = self._margin_windows[group]
        return measure_margins(
            self.base.model, self._switch, self.pruner, self.space, levels, tokens, dense, self._logits
        )

    def measure(self, shape: Shape) -> Measurement:
        """Measures the model at ``shape``."""
        return self.measure_blocks(pruned_blocks(self.pruner, shape))

    def measure_blocks(self, blocks: list[PrunedBlock]) -> Measurement:
        """Measures the base model with its blocks set to ``blocks``."""
        began = time.perf_counter()
        self._switch.apply(blocks)
        try:
            found = self._shrinking_on_oom(self._divergence)
        finally:
            self._switch.restore()
        return self._summarise(found, began)

    def _summarise(self, found: Divergence, began: float) -> Measurement:
        length = self._tokens.shape[1]
        forward, reverse = (v.view(-1, length).mean(1).cpu().numpy() for v in (found.forward, found.reverse))
        domain = self.windows.domain
        groups = [domain == d for d in range(len(self.windows.domains))]
        loss = found.loss[self._targets >= 0].mean()
        return Measurement(
            kl=float(np.mean([forward[g].mean() for g in groups])),
            kl_reverse=float(np.mean([reverse[g].mean() for g in groups])),
            perplexity=float(loss.exp()),
            domain_kl=tuple(float(forward[g].mean()) for g in groups),
            window_kl=forward,
            tokens=self.num_tokens,
            seconds=time.perf_counter() - began,
        )

    @torch.inference_mode()
    def _hidden(self, tokens: Tensor | None = None) -> Tensor:
        """Last hidden states of the model as it is now set (``tokens x hidden``), on its own windows or on others."""
        tokens = self._tokens if tokens is None else tokens
        decoder = self.base.model.get_decoder()
        rows = max(1, self._batch_tokens // tokens.shape[1])
        parts = [decoder(input_ids=batch, use_cache=False).last_hidden_state for batch in tokens.split(rows)]
        return torch.cat(parts).flatten(0, 1)

    def _dense_hidden(self, tokens: Tensor | None = None) -> Tensor:
        """What strategies are compared with: the base model, or what a super-network was trained from."""
        if self._teacher is None:
            return self._hidden(tokens)
        tokens = self._tokens if tokens is None else tokens
        head: Any = self.base.model.get_output_embeddings()
        rows = max(1, self._batch_tokens // tokens.shape[1])
        return teacher_hidden(
            self._teacher, head.weight, tokens, self.config.dtype, rows, self.config.trust_remote_code
        )

    @torch.inference_mode()
    def _divergence(self) -> Divergence:
        return compare(self._hidden(), self._reference, self._targets, self._logits, self._chunk)

    @torch.inference_mode()
    def _check_head(self) -> None:
        """The head that runs in chunks must be the model's own: some families scale or cap their logits."""
        ids = self._tokens[:1, :8]
        own = self.base.model(input_ids=ids, use_cache=False).logits.float()
        ours = self._logits(self.base.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state).float()
        if not torch.allclose(own, ours, rtol=1e-2, atol=1e-2 * float(own.abs().max())):
            raise ModelError(f"{type(self.base.model).__name__} does more to its logits than a head and a soft cap.")

    def _load_reference(self, on_disk: bool) -> Reference:
        if not on_disk:
            return self._beside_head(self._compute_reference())
        kind = "cpu" if self._device.type == "cpu" else "gpu"
        path = self.preparation.folder / "reference" / f"{self.config.dtype}-{kind}.safetensors"
        return self._beside_head(load_or_compute(path, self._compute_reference))

    @torch.inference_mode()
    def _compute_reference(self) -> Reference:
        hidden = self._shrinking_on_oom(self._dense_hidden)
        if log_probs_fit(len(hidden), self.base.geometry.vocab_size, self.config.reference_bytes):
            return Reference(log_probs=compute_log_probs(hidden, self._logits).contiguous())
        return Reference(hidden=hidden.contiguous())

    def _beside_head(self, reference: Reference) -> Reference:
        return Reference(**{k: None if v is None else v.to(self._logits.device) for k, v in vars(reference).items()})

    def _shrinking_on_oom(self, run: Callable[[], Result]) -> Result:
        """Runs ``run``; each time a GPU is out of memory, halves what runs at once and tries again."""
        while True:
            try:
                return run()
            except torch.cuda.OutOfMemoryError:
                if self._batch_tokens <= self._tokens.shape[1] and self._chunk <= 1:
                    raise
                torch.cuda.empty_cache()
                self._batch_tokens = max(self._batch_tokens // 2, self._tokens.shape[1])
                self._chunk = max(self._chunk // 2, 1)
