"""Getting back what pruning lost: low-rank updates trained towards the dense model, merged into the checkpoint."""

from unicuco.recovery.config import RecoveryConfig, recovery_config
from unicuco.recovery.run import RecoveryReport, TextFigures, recover

__all__ = ["RecoveryConfig", "RecoveryReport", "TextFigures", "recover", "recovery_config"]
