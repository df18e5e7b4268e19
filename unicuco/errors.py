"""The errors a user can cause or meet, each one clear sentence.

Everything that is a user's mistake or a full disk is a ``UniCuCoError``; the command line prints its message without a
traceback and exits with code 2. A bug is any other exception and keeps its traceback.
"""


class UniCuCoError(Exception):
    """Base of all errors whose message is meant for the person who typed the command."""


class ModelError(UniCuCoError):
    """The base model cannot be found, read, or has a shape that no pruner here understands."""


class CalibrationError(UniCuCoError):
    """The calibration text cannot be found, read, or is too short for the windows asked for."""


class PreparationError(UniCuCoError):
    """A preparation is missing, broken, or belongs to another base model."""


class SpaceError(UniCuCoError):
    """A search space leaves nothing to decide for this base model, or cannot get as small as the search is to go."""


class StrategyError(UniCuCoError):
    """A strategy has the wrong length, values outside [0, 1], or belongs to another search space."""


class RequestError(UniCuCoError):
    """A request asks for nothing, for contradictory things, or for a measure that does not exist."""


class InfeasibleRequestError(RequestError):
    """No strategy satisfies the request; the message names the nearest feasible value."""


class PolicyError(UniCuCoError):
    """A policy folder is missing, broken, or was trained for another base model."""


class EvaluationLogError(UniCuCoError):
    """The log of evaluations on disk cannot be read or belongs to another run."""


class TuningError(UniCuCoError):
    """A sweep varies what it cannot, its log is too short, or the setting that all are compared with fails."""


class TaskError(UniCuCoError):
    """A task to score models on is unknown or lacks its data, or lm-eval is not installed."""


class RecoveryError(UniCuCoError):
    """A checkpoint cannot be recovered as asked: no base model, nothing to train, or settings that do not fit."""


class SupernetError(UniCuCoError):
    """A super-network cannot be trained as asked, or the base model that it was trained from is not there."""


class CheckpointError(UniCuCoError):
    """A checkpoint cannot be written, or did not reload to the same logits."""


class DiskFullError(UniCuCoError):
    """The disk filled up; what was being written has been removed."""


class RemoteError(UniCuCoError):
    """What lies at a URI cannot be reached, read or written."""
