"""Accuracy on tasks, measured by lm-eval (the extra ``bench``), from files on disk where they are given."""

from unicuco.tasks.definitions import OFFLINE, find_tasks
from unicuco.tasks.run import check_lm_eval, run_tasks
from unicuco.tasks.scores import Score, TaskScore

__all__ = ["OFFLINE", "Score", "TaskScore", "check_lm_eval", "find_tasks", "run_tasks"]
