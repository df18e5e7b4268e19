"""A base model trained so that its slices work: low-rank updates shared by sub-networks of all sizes.

After Sukthanker et al. 2024 (arXiv 2410.06479): units in the order of their importance, the sandwich rule,
distillation, sliced adapters, sub-networks drawn from bins of parameter counts. Other than there, widths differ from
block to block, output projections are re-solved for every width, and all networks are distilled from the base model as
it was.
"""

from unicuco.supernet.config import SupernetConfig, supernet_config
from unicuco.supernet.run import SizeFigures, SupernetReport, train_supernet

__all__ = ["SizeFigures", "SupernetConfig", "SupernetReport", "supernet_config", "train_supernet"]
