"""Whether a preference between domains keeps what it prefers, on fresh text.

    python -m benchmarks.preferences --run RUN --json FILE [--kept 0.7 --kept 0.5] [--windows 16]

RUN was trained with one objective per domain. For every size, the policy is asked with each domain alone preferred and
with all alike, and its answers are measured on windows that neither search nor calibration saw.

- ``kl``: held-out KL per domain, beside ``predicted`` with its 90 % interval;
- ``ratio``: KL on a domain that is preferred alone ÷ KL on it when all count alike: below 1, preferring works.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import console, finish, parser, surroundings
from unicuco.evaluator import Evaluator, EvaluatorConfig
from unicuco.heldout import WINDOWS, measure, open_heldout
from unicuco.models.source import find_model
from unicuco.policy import Policy
from unicuco.prune import find_preparation
from unicuco.request import Request


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--run", type=Path, required=True, help="a run folder, or its policy")
    options.add_argument("--kept", type=float, action="append", help="sizes; 0.8, 0.6")
    options.add_argument("--windows", type=int, default=WINDOWS, help="fresh windows per domain")
    given = options.parse_args()
    policy = Policy.load(given.run)
    names = policy.qualities.names
    source = find_model(str(policy.parts.provenance["model"]["spec"]))
    config = EvaluatorConfig(threads=torch.get_num_threads())
    preparation = find_preparation(policy, source, config)
    heldout = open_heldout(Evaluator(source.spec, preparation.folder, config), given.windows)
    results: list[dict[str, Any]] = []
    rows: list[tuple[str, str, str]] = []
    for kept in given.kept or (0.8, 0.6):
        forms = {"all alike": dict.fromkeys(names, 1.0), **{f"{name} alone": {name: 1.0} for name in names}}
        found = {}
        for form, preference in forms.items():
            (answer,) = policy.answer([Request(kept=kept, preference=preference)])
            measured = measure(heldout, np.array(answer.levels))
            found[form] = dict(zip(names, measured.domain_kl, strict=True))
            promised = {name: promise.model_dump() for name, promise in answer.domains.items()}
            results.append(
                {"bound": kept, "kept": answer.kept, "form": form, "kl": found[form], "predicted": promised,
                 "levels": answer.levels, "origin": answer.origin}
            )  # fmt: skip
            shown = ", ".join(
                f"{name} {found[form][name]:.3f} (predicted {p['kl']:.3f}, {p['kl_low']:.3f}-{p['kl_high']:.3f})"
                for name, p in promised.items()
            )
            console.print(f"kept {kept:g} ({answer.kept:.4f}), {form}: {shown}")
        for name in names:
            ratio = found[f"{name} alone"][name] / found["all alike"][name]
            rows.append((f"kept {kept:g}: {name} alone ÷ all alike, KL on {name}", f"{ratio:.3f}", "< 1"))
    figures = {
        "results": results,
        "surroundings": surroundings(
            model=source.spec,
            evaluations=len(policy.parts.evaluations),
            tokens=heldout.num_tokens,
            dtype=config.dtype,
            threads=torch.get_num_threads(),
        ),
    }
    finish("Preferences between domains", rows, figures, given.json)


if __name__ == "__main__":
    main()
