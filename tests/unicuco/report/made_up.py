"""Run folders for the report's tests, written through the same classes that training uses.

What a strategy costs in quality is a made-up formula (one damage per site, plus noise): the report draws what it is
given, and no model is needed to see whether it draws it right.
"""

import json
import math
from pathlib import Path

import numpy as np

from unicuco.evaluations import Evaluation, EvaluationLog
from unicuco.models.geometry import BlockGeometry, Geometry
from unicuco.space import SearchSpace, SpaceConfig
from unicuco.storage import write_json

SIZES = (0.9, 0.8, 0.7, 0.6, 0.5)


def geometry(blocks: int) -> Geometry:
    """The shapes of SmolLM2-135M, with ``blocks`` blocks."""
    block = BlockGeometry(
        groups=3, heads_per_group=3, head_dim=64, neurons=1536, attention_fixed=576, params_per_group=294_912,
        macs_per_group=294_912, mlp_fixed=576, params_per_neuron=1728, macs_per_neuron=1728,
    )  # fmt: skip
    head = 49_152 * 576
    return Geometry(
        family="llama",
        hidden_size=576,
        vocab_size=49_152,
        blocks=(block,) * blocks,
        fixed_params=head + 576,
        fixed_macs=head,
    )


class MadeUpRun:
    """Strategies of a search space and a formula for their KL, to fill a run folder with."""

    def __init__(self, blocks: int = 30, seed: int = 0) -> None:
        self.space = SearchSpace(geometry(blocks), SpaceConfig())
        self.rng = np.random.default_rng(seed)
        kinds = np.array([site.kind == "mlp" for site in self.space.sites])
        self.damage = np.exp(self.rng.normal(np.where(kinds, -2.3, -2.7), 0.7))
        self.damage[[0, 1]] *= (12, 3)

    def kl(self, levels: np.ndarray) -> float:
        x = self.space.sparsities(levels)
        return float((self.damage * x**1.6).sum() ** 1.15)

    def at(self, kept: float, wish: np.ndarray) -> np.ndarray:
        budget = kept * self.space.geometry.block_params + self.space.geometry.fixed_params
        return self.space.project(wish, {"params": np.array([budget])})[0]

    def informed(self, kept: float, noise: float) -> np.ndarray:
        """A wish that prunes cheap sites more, as a trained policy would."""
        wish = 1.25 * (1 - kept) + 0.35 * (np.median(np.log(self.damage)) - np.log(self.damage))
        return self.at(kept, np.clip(wish + self.rng.normal(0, noise, len(wish)), 0, 1))

    def uniform(self, kept: float) -> np.ndarray:
        return self.at(kept, np.full(self.space.num_sites, 1 - kept))

    def evaluation(self, number: int, levels: np.ndarray, origin: str, version: int = 0) -> Evaluation:
        kl = self.kl(levels) * math.exp(self.rng.normal(0, 0.03)) if levels.any() else 1e-7
        error = self.rng.normal(0, 0.35 / (1 + version))
        predicted = (
            {"predicted_log_kl": math.log(kl) + error, "predicted_sigma": 0.33 / (1 + version)} if version else {}
        )
        return Evaluation(
            eval_id=f"{number:06d}",
            levels=tuple(int(v) for v in levels),
            origin=origin,
            params=int(self.space.total(levels)),
            kept=float(self.space.kept(levels)),
            kl=kl,
            kl_reverse=kl * 1.3,
            perplexity=19.9 * math.exp(kl * 0.9),
            domains=("sotu",),
            domain_kl=(kl,),
            tokens=2048,
            cost=2048.0,
            seconds=2.4,
            dtype="bfloat16",
            device="cpu",
            threads=1,
            seed=0,
            preparation="a1b2c3d4e5f6",
            windows="0f1e2d3c",
            policy_version=version,
            finished=1_000.0 + 2.5 * number,
            **predicted,
        )

    def evaluations(self, rounds: int = 6) -> list[Evaluation]:
        strategies = [(np.zeros(self.space.num_sites, dtype=int), "uniform", 0)]
        strategies += [(self.uniform(kept), "uniform", 0) for kept in np.linspace(0.95, 0.4, 12)]
        for site in range(0, self.space.num_sites, 3):
            levels = np.zeros(self.space.num_sites, dtype=int)
            levels[site] = self.space.num_levels[site] - 1
            strategies.append((levels, "prior", 0))
        wishes = [(k, self.rng.uniform(0, 1, self.space.num_sites)) for k in self.rng.uniform(0.4, 0.95, 24)]
        strategies += [(self.at(kept, wish), "random", 0) for kept, wish in wishes]
        for version in range(1, rounds + 1):
            sizes = self.rng.uniform(0.45, 0.95, 12)
            strategies += [
                (self.informed(k, 0.4 / version), ("stratnet", "swap", "thompson")[i % 3], version)
                for i, k in enumerate(sizes)
            ]
        return [self.evaluation(n, *strategy) for n, strategy in enumerate(strategies)]

    def heldout(self) -> list[dict]:
        points = []
        for kept in SIZES:
            levels = self.informed(kept, 0.0)
            kl, predicted = self.kl(levels) * 1.03, self.kl(levels) * math.exp(self.rng.normal(0, 0.05))
            points.append(
                {
                    "kept": kept, "levels": [int(v) for v in levels], "kl_search": kl / 1.03, "kl_heldout": kl,
                    "kl_predicted": predicted, "kl_low": predicted / 1.15, "kl_high": predicted * 1.15,
                    "kl_uniform_heldout": self.kl(self.uniform(kept)) * 1.03,
                }
            )  # fmt: skip
        return points

    def write(self, folder: Path, *, finished: bool = True, rounds: int = 6) -> Path:
        evaluations = self.evaluations(rounds)
        log = EvaluationLog(folder / "evaluations")
        for evaluation in evaluations:
            log.append(evaluation)
        write_json(
            folder / "run.json",
            {
                "config": {"model": "smollm2", "learner": {"seed": 0}},
                "model": {"spec": "smollm2", "digest": "d" * 64},
                "seed": 0,
                "tokens": 2048,
                "dtype": "bfloat16",
                "versions": {"unicuco": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "ray": "2.60.0"},
                "command": "unicuco train smollm2 --run 'runs/<demo>'",
            },
        )
        with open(folder / "progress.jsonl", "w", encoding="utf-8") as file:
            for n in range(4, len(evaluations) + 1, 4):
                record = {
                    "time": 1_000 + 2.5 * n,
                    "elapsed": 2.5 * n,
                    "done": n,
                    "failed": 0,
                    "running": 2,
                    "version": n // 20,
                    "hypervolume": 1.2 * (1 - math.exp(-n / 40)),
                    "evaluations_per_second": 0.4,
                }
                file.write(json.dumps(record) + "\n")
        if finished:
            space = {"geometry": self.space.geometry.model_dump(mode="json"), "config": self.space.config.model_dump()}
            write_json(folder / "policy" / "policy.json", {"space": space})
            write_json(folder / "heldout.json", self.heldout())
        return folder
