"""The training loop of a recovery: seeded, resumable, and of a length that is known before it starts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from unicuco.errors import RecoveryError
from unicuco.models.attention_gradient import fast_gradients
from unicuco.models.head import Head
from unicuco.models.hetero.attention_unicuco import use_fast_attention
from unicuco.recovery.config import TrainingConfig
from unicuco.recovery.loss import Losses, distil
from unicuco.storage import atomic_file

CLIP = 1.0
"""Largest norm of a step's gradient."""
LOWEST = 0.1
"""Share of the peak learning rate that the cosine ends at."""
TIMED_STEPS = 3
SMOOTHING = 0.9
"""Of the loss that is shown."""

TrainProgress = Callable[[int, int, float], None]
"""Steps done, steps in all, recent loss per token (of pure distillation, that is KL)."""


@dataclass
class Trained:
    """How training went.

    Attributes:
        steps: in all, those of an earlier session included; resumed_at: how many those were.
        seconds: of training in all sessions.
        first, last: mean losses of the first and last tenth of this session's steps.
    """

    steps: int
    resumed_at: int
    seconds: float
    first: Losses | None
    last: Losses | None


class Update(Protocol):
    """A low-rank update beside one matrix."""

    down: nn.Parameter
    up: nn.Parameter


class Teacher(Protocol):
    """What is distilled from."""

    head: Head

    def hidden(self, tokens: Tensor) -> Tensor:
        """Last hidden states (``tokens x hidden``) of ``tokens`` (``batch x length``)."""
        ...


class DenseModel:
    """A model of its own as the teacher."""

    def __init__(self, model: Any) -> None:
        use_fast_attention(model)
        self._decoder, self.head = model.get_decoder(), Head(model)

    @torch.inference_mode()
    def hidden(self, tokens: Tensor) -> Tensor:
        found: Tensor = self._decoder(input_ids=tokens, use_cache=False).last_hidden_state
        return found.flatten(0, 1)


def as_it_is(step: int) -> Iterator[float]:
    """The student as it stands, alone."""
    yield 1.0


@dataclass
class Trainer:
    """One student beside its teacher.

    Attributes:
        windows: ``num_windows x window_length`` token ids to train on; gone through in a new order each time.
        added: the student's updates.
        state: file that training goes on from; ``key`` names what it belongs to.
        networks: sets the student to each network that a step trains, in turn, and gives its weight in the loss.
    """

    student: Any
    teacher: Teacher
    windows: np.ndarray
    added: Mapping[str, Update]
    config: TrainingConfig
    state: Path
    key: str
    networks: Callable[[int], Iterator[float]] = as_it_is
    parameters: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = [p for update in self.added.values() for p in (update.down, update.up)]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=self.config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        self.head = Head(self.student)
        if self.head.vocab_size != self.teacher.head.vocab_size:
            raise RecoveryError("The checkpoint and its base model have different vocabularies.")
        if self.config.gradient_checkpointing:
            _checkpoint_gradients(self.student)
        use_fast_attention(self.student)

    def total(self) -> int:
        """Steps in all: what the state says, where there is one, or what was asked for, or what fits the time."""
        _, total, _ = self._about() or (0, 0, 0.0)
        return total or self.config.steps or self._steps_in(60 * (self.config.minutes or 0.0))

    def run(self, total: int, progress: TrainProgress | None = None) -> Trained:
        """Trains to step ``total``, from the state's step on where there is one.

        Raises:
            RecoveryError: the loss is no longer a number, or the state is broken.
        """
        report = progress or (lambda done, total, loss: None)
        done, before = self._load()
        resumed_at = done
        began = time.perf_counter()
        losses: list[Losses] = []
        shown = math.nan
        while done < total:
            losses.append(self.step(done, total))
            done += 1
            loss = losses[-1].total
            shown = loss if math.isnan(shown) else SMOOTHING * shown + (1 - SMOOTHING) * loss
            report(done, total, shown)
            if done % self.config.save_every == 0 and done < total:
                self._save(done, total, before + time.perf_counter() - began)
        seconds = before + time.perf_counter() - began
        part = max(len(losses) // 10, 1)
        return Trained(total, resumed_at, seconds, _mean(losses[:part]), _mean(losses[-part:]))

    def step(self, index: int, total: int) -> Losses:
        """One step of ``total``; ``index`` alone decides its windows and its learning rate."""
        losses = self._gradients(index)
        if not math.isfinite(losses.total):
            raise RecoveryError(
                f"The loss is no number after {index} steps; take a smaller learning rate than "
                f"{self.config.learning_rate:g}."
            )
        self._move(self.config.learning_rate * schedule(index, total, self.config.warmup))
        return losses

    def _move(self, learning_rate: float) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def _gradients(self, index: int) -> Losses:
        tokens = torch.from_numpy(self.windows[self._rows(index)]).long().to(self.head.device)
        targets = tokens.roll(-1, dims=1)
        targets[:, -1] = -1
        # Where the text alone is trained on, the teacher has nothing to say: a third of the work less.
        dense = self.teacher.hidden(tokens) if self.config.text_weight < 1 else None
        total = Losses(0.0, 0.0, 0.0)
        for weight in self.networks(index):
            with fast_gradients(self.student):
                hidden = self.student.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state.flatten(0, 1)
                loss, losses = distil(
                    hidden, dense, targets.flatten(), self.head, self.teacher.head, self.config.text_weight
                )
                (weight * loss).backward()
            total = Losses(
                total.total + weight * losses.total, total.kl + weight * losses.kl, total.text + weight * losses.text
            )
        return total

    def _rows(self, index: int) -> np.ndarray:
        """Windows of step ``index``: every window once before any comes again."""
        count, batch = len(self.windows), self.config.batch
        places = np.arange(index * batch, (index + 1) * batch)
        orders = {
            epoch: np.random.default_rng([self.config.seed, epoch]).permutation(count)
            for epoch in {int(place) // count for place in places}
        }
        return np.array([orders[int(place) // count][place % count] for place in places])

    def _steps_in(self, seconds: float) -> int:
        """Steps that fit: a few are made that move nothing and are forgotten, so that the budget changes no weight."""
        times = []
        for index in range(TIMED_STEPS + 1):
            began = time.perf_counter()
            self._gradients(index)
            self._move(0.0)
            times.append(time.perf_counter() - began)
        self.optimiser.state.clear()
        return max(int((seconds - sum(times)) / float(np.median(times[1:]))), 1)

    def _save(self, done: int, total: int, seconds: float) -> None:
        tensors: dict[str, Tensor] = {}
        for i, parameter in enumerate(self.parameters):
            moments = self.optimiser.state[parameter]
            tensors |= {f"{i}.weight": parameter.detach(), f"{i}.mean": moments["exp_avg"]}
            tensors[f"{i}.square"] = moments["exp_avg_sq"]
        about = {"key": self.key, "done": str(done), "total": str(total), "seconds": str(seconds)}
        with atomic_file(self.state) as scratch:
            save_file(tensors, scratch, metadata=about)

    def _about(self) -> tuple[int, int, float] | None:
        """Steps done, in all, and seconds spent, as the state says; ``None``: there is none."""
        if not self.state.is_file():
            return None
        with _readable(self.state), safe_open(self.state, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("key") != self.key:
                raise RecoveryError(f"{self.state} belongs to another recovery; delete it to start anew.")
            return int(about["done"]), int(about["total"]), float(about["seconds"])

    def _load(self) -> tuple[int, float]:
        """Puts weights and optimiser where the state left them; returns steps done and seconds spent."""
        about = self._about()
        if about is None:
            return 0, 0.0
        with _readable(self.state), safe_open(self.state, framework="pt") as file:
            for i, parameter in enumerate(self.parameters):
                parameter.data.copy_(file.get_tensor(f"{i}.weight"))
                self.optimiser.state[parameter] = {
                    "step": torch.tensor(float(about[0]), device=parameter.device),
                    "exp_avg": file.get_tensor(f"{i}.mean").to(parameter.device),
                    "exp_avg_sq": file.get_tensor(f"{i}.square").to(parameter.device),
                }
        return about[0], about[2]


@contextmanager
def _readable(state: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise RecoveryError(f"The state at {state} is broken; delete it to start anew: {error}") from error


def schedule(index: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate at step ``index``: linear warm-up, then a cosine down to ``LOWEST``."""
    rising = warmup * total
    if index < rising:
        return (index + 1) / (rising + 1)
    along = (index - rising) / max(total - rising, 1)
    return LOWEST + (1 - LOWEST) * 0.5 * (1 + math.cos(math.pi * along))


def _checkpoint_gradients(model: Any) -> None:
    """Blocks are computed again in the backward pass; without dropout, which ``train`` would switch on."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    model.activation_checkpointing_enable({"use_reentrant": False})


def _mean(losses: list[Losses]) -> Losses | None:
    if not losses:
        return None
    return Losses(*(float(np.mean([getattr(loss, name) for loss in losses])) for name in ("total", "kl", "text")))
