"""What ``unicuco serve`` finds out before it starts anything."""

from __future__ import annotations

import socket

import pytest

from cluster.service.config import ServiceError
from cluster.serving import refuse_taken, service_values


def test_a_taken_port_is_told_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ServiceError, match=f"Port {port} of 127.0.0.1 is taken .* --port"):
            refuse_taken("127.0.0.1", port)
    refuse_taken("127.0.0.1", port)


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid"])
def test_an_address_of_another_machine_is_told(host: str) -> None:
    with pytest.raises(ServiceError, match=f"Cannot listen on {host}"):
        refuse_taken(host, 8000)


def test_policies_are_named_by_the_last_part_of_their_place() -> None:
    given = ["runs/First run", "s3://bucket/runs/second", "mine=gs://bucket/a=b/third/", "yours=/x"]
    offered = service_values(given, None, {}, None)["policies"]
    assert list(offered) == ["first-run", "second", "mine", "yours"]
    assert [offered[name]["path"] for name in ("second", "mine", "yours")] == [
        "s3://bucket/runs/second",
        "gs://bucket/a=b/third/",
        "/x",
    ]
