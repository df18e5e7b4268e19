"""What every route depends on: the gateway behind it, and whose key the call came with."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header, Request

from cluster.service.gateway import Gateway


async def find_gateway(request: Request) -> Gateway:
    return request.app.state.gateway


GatewayHere = Annotated[Gateway, Depends(find_gateway)]


async def find_owner(
    request: Request,
    gateway: GatewayHere,
    authorization: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> str:
    """The name of the caller's key.

    Raises:
        ProblemError: 401 without one, 429 where it asks too often.
    """
    owner = gateway.keys.owner(authorization)
    request.scope["owner"] = owner
    gateway.rate.spend(owner)
    return owner


Owner = Annotated[str, Depends(find_owner)]
