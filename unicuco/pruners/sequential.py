"""Pruning block by block, each on what the pruned blocks before it pass on, through the blocks' own forward.

Memory: the hidden states of the calibration windows, and what is gathered for one block. A block runs twice: once
whole, to gather what its matrices read, and once pruned, for the next block.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from unicuco.calibration import Windows
from unicuco.errors import StrategyError
from unicuco.models.sites import Block, decoder, find_blocks
from unicuco.pruners.masks import Pattern
from unicuco.pruners.scores import magnitude, wanda
from unicuco.pruners.sparsegpt import inverse_factor, sparsegpt
from unicuco.pruners.sparsellm import EPOCHS, Trace, check_ffn, ffn_matrices, open_ffn, sparsellm

Method = Literal["magnitude", "wanda", "sparsegpt", "sparsellm"]
METHODS: tuple[Method, ...] = get_args(Method)
Report = Callable[[str, int, int], None]
# Matrices that read the same inputs are pruned together, and their inputs are gathered once.
READERS: tuple[tuple[str, ...], ...] = (
    ("q_proj", "k_proj", "v_proj"),
    ("o_proj",),
    ("gate_proj", "up_proj"),
    ("down_proj",),
)


@dataclass
class BlockInputs:
    """What was gathered of one block.

    Attributes:
        squares: for each entry of ``READERS``, the Gram matrix of its inputs (``n x n``), or for Wanda its diagonal.
        ffn: for SparseLLM, the MLP's inputs and dense outputs (``tokens x hidden`` each).
    """

    squares: list[Tensor] = field(default_factory=list)
    ffn: tuple[Tensor, Tensor] | None = None


@torch.no_grad()
def prune_in_place(
    model: Any,
    windows: Windows,
    method: Method,
    sparsity: Sequence[tuple[float, float]],
    pattern: Pattern | None = None,
    report: Report = lambda what, done, total: None,
    dense_inputs: bool = False,
) -> list[Trace | None]:
    """Prunes the linear matrices of all blocks of ``model``, in place.

    Args:
        windows: calibration; a float32 model, since statistics are sums of many squares.
        sparsity: of each block's attention and MLP matrices (``num_blocks`` pairs).
        pattern: N:M in every matrix, in the place of ``sparsity`` where that is not 0.
        dense_inputs: each block on what the dense blocks before it pass on, as the level database is built.

    Returns:
        SparseLLM's trace of each block; else ``None`` for each.

    Raises:
        ModelError, StrategyError: before anything is changed.
    """
    blocks = find_blocks(model)
    _check(blocks, method, sparsity, pattern)
    if method == "magnitude":
        for block, shares in zip(blocks, sparsity, strict=True):
            _prune(block, method, BlockInputs(), shares, pattern)
        return [None] * len(blocks)
    hidden, calls = enter(model, blocks, windows)
    traces = []
    for b, (block, call, shares) in enumerate(zip(blocks, calls, sparsity, strict=True)):
        report(f"pruning by {method}", b, len(blocks))
        gathered = gather(block, hidden, call, method, keep=dense_inputs)
        traces.append(_prune(block, method, gathered, shares, pattern))
        del gathered
        if b + 1 < len(blocks) and not dense_inputs:
            run(block, hidden, call, keep=True)
    report(f"pruning by {method}", len(blocks), len(blocks))
    return traces


@torch.no_grad()
def run_blocks(model: Any, windows: Windows) -> None:
    """Every block on every window, block after block, as pruning does and without pruning: what its forwards cost."""
    blocks = find_blocks(model)
    hidden, calls = enter(model, blocks, windows)
    for block, call in zip(blocks, calls, strict=True):
        run(block, hidden, call, keep=True)


def matrices(block: Block) -> dict[str, nn.Linear]:
    """The matrices of a block that are pruned, by name."""
    return {
        name: getattr(block.attention if names[0] in ("q_proj", "o_proj") else block.mlp, name)
        for names in READERS
        for name in names
        if name != "gate_proj" or hasattr(block.mlp, name)
    }


def count_zeros(model: Any) -> tuple[int, int]:
    """How many weights of the matrices that are pruned are zero, and how many there are."""
    weights = [matrix.weight for block in find_blocks(model) for matrix in matrices(block).values()]
    return sum(int((weight == 0).sum()) for weight in weights), sum(weight.numel() for weight in weights)


def _check(
    blocks: list[Block], method: Method, sparsity: Sequence[tuple[float, float]], pattern: Pattern | None
) -> None:
    if method not in METHODS:
        raise StrategyError(f"'{method}' is no sparsity pruner; use {', '.join(METHODS)}.")
    if len(sparsity) != len(blocks) or not all(0 <= share < 1 for pair in sparsity for share in pair):
        raise StrategyError(f"Give a sparsity from 0 to below 1 for attention and MLP of each of {len(blocks)} blocks.")
    check_prunable(blocks, method)
    for block in blocks:
        for name, matrix in matrices(block).items():
            if pattern and matrix.in_features % pattern.m:
                raise StrategyError(f"{name} reads {matrix.in_features} inputs, which {pattern} does not divide.")


def check_prunable(blocks: list[Block], method: Method) -> None:
    """Refuses blocks that ``method`` is not built for.

    Raises:
        ModelError: it says why.
    """
    for block in blocks if method == "sparsellm" else ():
        check_ffn(block.mlp)


def enter(model: Any, blocks: list[Block], windows: Windows) -> tuple[Tensor, list[dict[str, Any]]]:
    """Hidden states before the first block (``num_windows x length x hidden``), and what else each block is given.

    Positions and masks are the same for every window, so one forward says what each block is called with.
    """
    calls: list[dict[str, Any]] = [{} for _ in blocks]
    states: list[Tensor] = []
    whole = True

    class EnteredError(Exception):
        """The first block has been reached; the others need not run."""

    def watch(b: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
            state = given.pop("hidden_states")
            if whole:
                calls[b] = given
            if b == 0:
                states.append(state[0].clone())
                if not whole:
                    raise EnteredError

        return hook

    handles = [block.layer.register_forward_pre_hook(watch(b), with_kwargs=True) for b, block in enumerate(blocks)]
    device = next(model.parameters()).device
    try:
        for row in torch.from_numpy(windows.tokens).long().to(device):
            with suppress(EnteredError):
                decoder(model)(input_ids=row[None], use_cache=False)
            whole = False
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(states), calls


def run(block: Block, hidden: Tensor, call: dict[str, Any], keep: bool = False) -> None:
    """The block on every window; with ``keep`` the results take the place of the inputs."""
    for i in range(len(hidden)):
        found = block.layer(hidden[i][None], **call)
        if keep:
            hidden[i] = (found[0] if isinstance(found, tuple) else found)[0]


def gather(block: Block, hidden: Tensor, call: dict[str, Any], method: Method, keep: bool = False) -> BlockInputs:
    """What the matrices of ``block`` read on every window, as ``method`` wants to know it; ``keep`` as for ``run``."""
    found, own = BlockInputs(), matrices(block)
    for names in READERS:
        matrix = own[names[-1]]
        shape = (matrix.in_features,) * (1 if method == "wanda" else 2)
        found.squares.append(torch.zeros(shape, dtype=torch.float32, device=matrix.weight.device))
    seen: list[tuple[Tensor, Tensor]] = []

    def square(place: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor]) -> None:
            rows = inputs[0].flatten(0, -2).float()
            if method == "wanda":
                found.squares[place] += rows.square().sum(0)
            else:
                found.squares[place].addmm_(rows.T, rows)

        return hook

    with _hooks() as hooks:
        for place, names in enumerate(READERS):
            if method != "sparsellm" or place < 2:  # the FFN's are worked out from its inputs
                hooks.append(own[names[-1]].register_forward_pre_hook(square(place)))
        if method == "sparsellm":
            hooks.append(block.mlp.register_forward_hook(lambda m, i, o: seen.append((_rows(i[0]), _rows(o)))))
        run(block, hidden, call, keep)
    if seen:
        found.ffn = torch.cat([x for x, _ in seen]), torch.cat([y for _, y in seen])
    return found


def _rows(states: Tensor) -> Tensor:
    """Of every token, in float32; OPT's layers pass tokens to their MLP without a batch."""
    return states.flatten(0, -2).float()


@contextmanager
def _hooks() -> Iterator[list[Any]]:
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def _prune(
    block: Block, method: Method, gathered: BlockInputs, shares: tuple[float, float], pattern: Pattern | None
) -> Trace | None:
    own, trace = matrices(block), None
    for place, names in enumerate(READERS):
        share = shares[place // 2]
        group = pattern if share else None
        weights = [own[name].weight.data for name in names if name in own]
        if not share or (method == "sparsellm" and place >= 2):
            continue
        if method == "magnitude":
            pruned = [magnitude(weight, share, group) for weight in weights]
        elif method == "wanda":
            pruned = [wanda(weight, gathered.squares[place], share, group) for weight in weights]
        else:
            pruned = sparsegpt(weights, *inverse_factor(gathered.squares[place]), share, group)
        for weight, new in zip(weights, pruned, strict=True):
            weight.copy_(new)
    if method == "sparsellm" and shares[1]:
        assert gathered.ffn is not None
        inputs, targets = gathered.ffn
        chosen = [own[name].weight.data for name in ffn_matrices(block.mlp)]
        pruned, trace = sparsellm(open_ffn(block.mlp, inputs, targets), targets, shares[1], pattern, EPOCHS)
        for weight, new in zip(chosen, pruned, strict=True):
            weight.copy_(new)
    return trace
