"""What a user may set of the learner."""

from __future__ import annotations

from pydantic import BaseModel as Config
from pydantic import ConfigDict, Field

from unicuco.evaluations import MARGINS_COST
from unicuco.qualities import Form
from unicuco.stratnet import StratNetConfig
from unicuco.surrogate import SurrogateConfig


class LearnerConfig(Config):
    """Budget and habits of the learner."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    evaluations: int = Field(default=150, ge=4)
    """The budget in standard evaluations, failed candidates and margins included."""
    first: int | None = Field(default=None, ge=2)
    """Evaluations before the first training; None: a fifth of the budget, 8 to 60."""
    batch: int = Field(default=8, ge=1)
    """New evaluations between two trainings."""
    kept_low: float = Field(default=0.4, gt=0, lt=0.97)
    """The smallest share of the blocks' parameters that the search covers."""
    margins: float = Field(default=0.75, ge=0, le=0.75)
    """Share of the budget for margins (unicuco/margins.py); of no use to the plain surrogate, depth spaces, domains."""
    objectives: Form = "auto"
    """``mean``: size and the mean KL (the paper). ``domains``: size and the KL of every calibration domain, so that
    requests can prefer one to another. ``auto``: ``domains`` where there are two to four, else ``mean``."""
    optimism: float = Field(default=1.0, ge=0)
    """β of μ − βσ for proposing."""
    seed: int = Field(default=0, ge=0)
    surrogate: SurrogateConfig = SurrogateConfig()
    stratnet: StratNetConfig = StratNetConfig()

    def first_count(self, with_margins: bool) -> int:
        """Evaluations before the first training; margins make some of them dearer, and more telling."""
        price = 1 + MARGINS_COST * self.margins if with_margins else 1.0
        wanted = self.first if self.first is not None else min(max(int(self.evaluations / 5 / price), 8), 60)
        return min(wanted, self.evaluations)
