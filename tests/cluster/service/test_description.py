"""The OpenAPI description holds: what Schemathesis makes of it finds nothing that it does not say."""

from __future__ import annotations

from benchmarks.fuzz import fuzz
from cluster.service.app import create_app
from cluster.service.config import ServiceConfig
from cluster.service.gateway import Gateway
from tests.cluster.service.conftest import Bridge, jobs_in_a_loop, listening, threaded


def test_no_generated_call_gets_what_is_not_described(config: ServiceConfig) -> None:
    limits = {"calls_per_second": 1e6, "active_checkpoints": 10_000}
    config = config.model_copy(update={"limits": config.limits.model_copy(update=limits)})
    with jobs_in_a_loop(config, threaded(config)) as (jobs, loop):
        app = create_app(Gateway(config, Bridge(jobs, loop)))
        with listening(app) as url:
            reports = fuzz(url, examples=2, seed=0)
    assert sum(report["test_cases"]["generated"] for report in reports) > 100
    for report in reports:
        assert report["test_cases"]["without_checks"] == 0
        assert (report["failures"], report["errors"]) == ([], [])
    assert reports[0]["operations"]["tested"] == reports[0]["operations"]["total"] == 9
