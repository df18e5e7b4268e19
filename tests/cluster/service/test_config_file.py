"""The configuration file for ``serve deploy`` says what Serve and the service understand."""

from __future__ import annotations

from pathlib import Path

import yaml

from cluster.service.config import make_config

FILE = Path(__file__).resolve().parents[3] / "cluster" / "service.yaml"


def test_serve_and_the_service_take_the_file(tiny_run: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    given = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    checked = ServeDeploySchema.model_validate(given)
    (application,) = checked.applications
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(__import__(module, fromlist=[name]), name))
    arguments = dict(application.args)
    arguments["policies"]["small"]["path"] = str(tiny_run)
    assert make_config(arguments).gateways == (1, 4)
    assert checked.http_options.host == "127.0.0.1"
