"""A load generator in a process of its own: connections that each send the next call when the last one is answered.

    python -m benchmarks.load URL CONNECTIONS SECONDS REQUESTS [RATE]

Calls are POSTs to ``/v1/answers`` with REQUESTS requests each, all of them different. With RATE, calls begin at that
many per second whatever becomes of the ones before (an open load, as far as connections are free). Prints one JSON
object: calls by status, and latencies of the accepted ones.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter

import aiohttp
import numpy as np


async def run(url: str, connections: int, seconds: float, requests: int, rate: float | None) -> dict[str, object]:
    """Loads ``url`` and returns what came back."""
    statuses: Counter[str] = Counter()
    latencies: list[float] = []
    retry_after = 0
    began = time.perf_counter()
    rng = random.Random(0)

    async def worker(session: aiohttp.ClientSession, number: int) -> None:
        nonlocal retry_after
        turn = number
        while (now := time.perf_counter()) - began < seconds:
            if rate:  # this worker's calls begin every connections ÷ rate seconds
                due = began + turn / rate
                turn += connections
                if due > now:
                    await asyncio.sleep(due - now)
            asked = [{"kept": round(rng.uniform(0.45, 0.99), 6)} for _ in range(requests)]
            start = time.perf_counter()
            try:
                async with session.post(f"{url}/v1/answers", json={"requests": asked}) as reply:
                    await reply.read()
                    statuses[str(reply.status)] += 1
                    if reply.status == 200:
                        latencies.append(time.perf_counter() - start)
                    elif "retry-after" in reply.headers:
                        retry_after += 1
            except (aiohttp.ClientError, OSError) as error:
                statuses[type(error).__name__] += 1

    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections), timeout=timeout) as session:
        await asyncio.gather(*(worker(session, number) for number in range(connections)))
    took = time.perf_counter() - began
    percentiles = {f"p{p}_ms": 1000 * float(np.percentile(latencies, p)) for p in (50, 99)} if latencies else {}
    return {
        "calls_per_second": len(latencies) / took,
        **percentiles,
        "max_ms": 1000 * max(latencies, default=0.0),
        "statuses": dict(statuses),
        "with_retry_after": retry_after,
    }


if __name__ == "__main__":
    url, connections, seconds, requests, *rate = sys.argv[1:]
    found = run(url, int(connections), float(seconds), int(requests), float(rate[0]) if rate else None)
    print(json.dumps(asyncio.run(found)))
