"""Additive damage: what each site costs at each sparsity, as gpytorch mean and kernel.

The informed mean is  m(x) = a + b · log(c + Σᵢ wᵢ Dᵢ(xᵢ)^pₖ)  with D the preparation's damage table (a Kronecker-
factored estimate, monotone in xᵢ), one exponent p per kind of site, and one weight wᵢ per site. A plain GP falls back
to its average far from data, which is optimistic for heavy pruning, and StratNet finds that; a monotone sum is not.

The weights are not fitted one by one: log wᵢ ~ N(0, τ²), and m linearised in log w gives the kernel τ² J(x) J(x')ᵀ with
Jᵢ = ∂m/∂log wᵢ, site i's share of the damage. So the GP carries the weights' uncertainty exactly as far as they are
unknown. (Ours; measured in docs/decisions.md.)
"""

from __future__ import annotations

import gpytorch
import torch
from gpytorch.priors import NormalPrior
from torch import Tensor

from unicuco.space import SearchSpace


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

    def site_damage(self, x: Tensor) -> Tensor:
        """Dᵢ(xᵢ), linear between levels (``... x num_sites``), differentiable in ``x``."""
        flat = x.clamp(0, 1).reshape(-1, x.shape[-1]).T.contiguous()  # num_sites x n
        upper = torch.searchsorted(self.levels, flat.detach()).clamp(1, self.levels.shape[1] - 1)
        upper = torch.minimum(upper, self._last[:, None])
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

    def shares(self, x: Tensor) -> Tensor:
        """J(x) = ∂m/∂log w (``... x num_sites``)."""
        terms = self.terms(x)
        return self.slope * terms / (terms.sum(-1, keepdim=True) + self.log_floor.exp())

    def additive_table(self) -> Tensor:
        """Additive damage of every level (``num_sites x max_levels``), for ``unicuco.allocation``."""
        return (self.log_weight[:, None] + self.exponent[self.kind, None] * (self.damage + 1e-9).log()).exp()


class DamageMean(gpytorch.means.Mean):
    """Prior mean with the weights at their prior value 1, to first order around the current weights."""

    def __init__(self, model: DamageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.log_kl(x) - (self.model.shares(x) * self.model.log_weight).sum(-1)


class ShareKernel(gpytorch.kernels.Kernel):
    """J(x) J(x')ᵀ: what not knowing the sites' weights does to log KL."""

    has_lengthscale = False

    def __init__(self, model: DamageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: object) -> Tensor:
        j1, j2 = self.model.shares(x1), self.model.shares(x2)
        return (j1 * j2).sum(-1) if diag else j1 @ j2.mT
