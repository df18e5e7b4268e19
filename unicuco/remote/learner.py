"""A learner whose run lies at a URI: its evaluations and its policy count once they are there."""

from __future__ import annotations

from pathlib import Path

from unicuco.learner import Learner
from unicuco.remote.documents import put_folder
from unicuco.remote.log import RemoteLog


class RemoteLearner(Learner):
    """``Learner`` on a ``RemoteLog``; its policy is put beside the log as a whole version."""

    def save_policy(self, folder: Path) -> None:
        """Writes the policy of the last training to ``folder`` and to the store.

        Raises:
            RemoteError: the version before still counts there.
        """
        super().save_policy(folder)
        assert isinstance(self.log, RemoteLog)
        put_folder(self.log.store, "policy", folder)
