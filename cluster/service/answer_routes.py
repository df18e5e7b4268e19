"""``/v1/answers`` and ``/v1/policies``."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Response

from cluster.service.callers import GatewayHere, Owner
from cluster.service.problems import ProblemError, documented
from unicuco.wire import NAME, AnswersCall, AnswersReply, Front, PolicyList

router = APIRouter(prefix="/v1", tags=["answers"])


@router.post("/answers", response_model=AnswersReply, responses=documented(400, 401, 404, 413, 415, 422, 429, 500, 503))
async def answers(call: AnswersCall, gateway: GatewayHere, owner: Owner) -> Response:
    """Answers one or many requests: strategy, exact size, predicted quality with its 90 % interval."""
    limits = gateway.config.limits
    if len(call.requests) > limits.requests_per_call:
        detail = f"{len(call.requests)} requests in one call; at most {limits.requests_per_call}."
        raise ProblemError(422, "too_many_requests", detail)
    offered = gateway.policies.get(call.policy)
    offered.check({f"body.requests.{i}": request for i, request in enumerate(call.requests)})
    try:
        found = await asyncio.wait_for(gateway.answer(offered, call.requests), limits.timeout_seconds)
    except TimeoutError:
        raise ProblemError(503, "overloaded", "The answer took too long; come back soon.", 5) from None
    reply = AnswersReply(policy=offered.name, version=offered.version, digest=offered.digest, answers=found)
    return Response(reply.model_dump_json(), media_type="application/json")  # checked once is enough


@router.get("/policies", responses=documented(401, 422, 429, 500))
async def policies(gateway: GatewayHere, owner: Owner) -> PolicyList:
    """The policies on offer."""
    return PolicyList(policies=gateway.policies.describe())


@router.get("/policies/{name}/front", responses=documented(401, 404, 422, 429, 500))
async def front(name: Annotated[str, Path(pattern=f"^{NAME.pattern}$")], gateway: GatewayHere, owner: Owner) -> Front:
    """What a policy promises over its sizes, and the measured front of its run."""
    offered = gateway.policies.get(name)
    return await asyncio.to_thread(lambda: offered.front)
