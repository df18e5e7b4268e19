"""Additive damage: what each site costs at each sparsity, as gpytorch mean and kernel.

The informed mean is  m(x) = a + b · log(c + Σᵢ wᵢ Dᵢ(xᵢ)^pₖ)  with D the preparation's damage table (a Kronecker-
factored estimate, monotone in xᵢ), one exponent p per kind of site, and one weight wᵢ per site. A plain GP falls back
to its average far from data, which is optimistic for heavy pruning, and StratNet finds that; a monotone sum is not.

The weights are not fitted one by one: log w is a Gaussian process over sites and sizes, and m linearised in log w
gives the kernel τ² κ(s, s') J(x) P J(x')ᵀ with Jᵢ = ∂m/∂log wᵢ, site i's share of the damage. P says that sites of one
kind in neighbouring blocks are misjudged alike; κ, over the kept share s, that a site's weight drifts with the size of
the model: damages of a heavily pruned model are not those of the dense one. So the GP carries the weights' uncertainty
exactly as far as they are unknown. (Ours; measured in docs/decisions.md.)
"""

from __future__ import annotations

import gpytorch
import torch
from gpytorch.priors import NormalPrior
from torch import Tensor

from unicuco.objectives import site_shares
from unicuco.space import SearchSpace

NEIGHBOURS, REACH = 0.6, 3.0
"""Share of a weight's variance that neighbouring blocks have in common, and over how many blocks."""
DRIFT, SPAN = 0.4, 0.2
"""Share of a weight's variance that changes with the kept share, and over how much of it."""


class DamageModel(gpytorch.Module):
    """Interpolated damages and their shares; the parts that mean and kernel have in common.

    Args:
        damage: ``num_sites x max_levels`` damages in nats per token, 0 at level 0.
    """

    def __init__(self, space: SearchSpace, damage: Tensor) -> None:
        super().__init__()
        kinds = sorted({site.kind for site in space.sites})
        levels = torch.as_tensor(space.levels)
        self.register_buffer("levels", torch.where(levels.isinf(), 2.0, levels).contiguous())
        self.register_buffer("damage", torch.as_tensor(damage, dtype=torch.float64).clamp_min(0))
        self.register_buffer("kind", torch.tensor([kinds.index(site.kind) for site in space.sites]))
        self.register_buffer("neighbours", _neighbours(space))
        self.register_buffer("size_shares", torch.as_tensor(site_shares(space)))
        self.register_buffer("log_weight", torch.zeros(space.num_sites, dtype=torch.float64))
        for name, start, count, spread in (
            ("exponent", 1.0, len(kinds), 0.3),
            ("slope", 1.0, 1, 0.3),
            ("offset", 0.0, 1, 2.0),
            ("log_floor", -6.0, 1, 2.0),
        ):
            self.register_parameter(name, torch.nn.Parameter(torch.full((count,), start, dtype=torch.float64)))
            prior = NormalPrior(torch.tensor(start, dtype=torch.float64), torch.tensor(spread, dtype=torch.float64))
            self.register_prior(f"{name}_prior", prior, name)

    @property
    def num_sites(self) -> int:
        return len(self.kind)

    def site_damage(self, x: Tensor) -> Tensor:
        """Dᵢ(xᵢ), linear between levels (``... x num_sites``), differentiable in ``x``."""
        flat = x.clamp(0, 1).reshape(-1, x.shape[-1]).T.contiguous()  # num_sites x n
        upper = torch.searchsorted(self.levels, flat.detach()).clamp(1, self.levels.shape[1] - 1)
        upper = torch.minimum(upper, self._last[:, None]).clamp_min(1)  # a site's only level is 0, and costs 0
        x0, x1 = self.levels.gather(1, upper - 1), self.levels.gather(1, upper)
        d0, d1 = self.damage.gather(1, upper - 1), self.damage.gather(1, upper)
        value = d0 + (d1 - d0) * (flat - x0) / (x1 - x0)
        return value.T.reshape(x.shape)

    @property
    def _last(self) -> Tensor:
        return (self.levels <= 1).sum(1) - 1

    def terms(self, x: Tensor) -> Tensor:
        """wᵢ Dᵢ(xᵢ)^p (``... x num_sites``): an additive damage per site."""
        base = (self.site_damage(x) + 1e-9).log()
        return (self.log_weight + self.exponent[self.kind] * base).exp()

    def log_kl(self, x: Tensor) -> Tensor:
        """m(x) at the current weights (``...``)."""
        return self.offset + self.slope * (self.terms(x).sum(-1) + self.log_floor.exp()).log()

    def linearised(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """m(x) with the weights at their prior value 1, to first order around the current ones, and J(x)."""
        terms = self.terms(x)
        total = terms.sum(-1) + self.log_floor.exp()
        shares = self.slope * terms / total[..., None]
        return self.offset + self.slope * total.log() - shares @ self.log_weight, shares

    def shares(self, x: Tensor) -> Tensor:
        """J(x) = ∂m/∂log w (``... x num_sites``)."""
        terms = self.terms(x)
        return self.slope * terms / (terms.sum(-1, keepdim=True) + self.log_floor.exp())

    def kept(self, x: Tensor) -> Tensor:
        """Kept share of the blocks' parameters (``...``)."""
        return 1 - x @ self.size_shares

    def additive_table(self, log_weight: Tensor) -> Tensor:
        """Additive damage of every level under ``log_weight`` (``... x num_sites``), for ``unicuco.allocation``.

        Returns:
            ``... x num_sites x max_levels``.
        """
        base = self.exponent[self.kind, None] * (self.damage + 1e-9).log()
        return (log_weight[..., None] + base).exp()


class DamageMean(gpytorch.means.Mean):
    """Prior mean with the weights at their prior value 1, to first order around the current weights."""

    def __init__(self, model: DamageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.linearised(x)[0]


def drift(kept1: Tensor, kept2: Tensor) -> Tensor:
    """κ: correlation of a site's log weight between two sizes (``n`` and ``m`` kept shares -> ``n x m``)."""
    gap = (kept1[..., :, None] - kept2[..., None, :]) / SPAN
    return 1 - DRIFT + DRIFT * (-gap.square() / 2).exp()


def _neighbours(space: SearchSpace) -> Tensor:
    """P: correlation of log weights between sites (``num_sites x num_sites``)."""
    block = torch.tensor([float(site.block) for site in space.sites], dtype=torch.float64)
    kinds = sorted({site.kind for site in space.sites})
    kind = torch.tensor([kinds.index(site.kind) for site in space.sites])
    near = (-((block[:, None] - block[None]) / REACH).square() / 2).exp() * (kind[:, None] == kind[None])
    return NEIGHBOURS * near + (1 - NEIGHBOURS) * torch.eye(len(block), dtype=torch.float64)


class ShareKernel(gpytorch.kernels.Kernel):
    """κ(s, s') J(x) P J(x')ᵀ: what not knowing the sites' weights does to log KL."""

    has_lengthscale = False

    def __init__(self, model: DamageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: object) -> Tensor:
        shares = self.model.shares(x1)
        j1 = shares @ self.model.neighbours
        if diag:
            return (j1 * shares).sum(-1)
        j2 = shares if x2 is x1 else self.model.shares(x2)
        return drift(self.model.kept(x1), self.model.kept(x2)) * (j1 @ j2.mT)
