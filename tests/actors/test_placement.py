from __future__ import annotations

import pytest
from pydantic import ValidationError

from actors.placement import PlacementError, PoolConfig, PoolPlan, plan_pool

LAPTOP = [{"CPU": 2.0, "memory": 8e9}]
SERVER = [{"CPU": 64.0}]
HEAD_ALONE = [{"memory": 8e9}]
GPU_NODES = [{"CPU": 0.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}]


@pytest.mark.parametrize(
    ("config", "device", "nodes", "threads", "plan"),
    [
        (PoolConfig(), "cpu", LAPTOP, None, PoolPlan(2, 1, 0, 1)),
        (PoolConfig(), "cpu", SERVER, None, PoolPlan(16, 4, 0, 4)),
        (PoolConfig(), "cpu", SERVER, 8, PoolPlan(8, 8, 0, 8)),
        (PoolConfig(), "cpu", LAPTOP, 2, PoolPlan(1, 2, 0, 2)),
        (PoolConfig(), "cuda", GPU_NODES, None, PoolPlan(8, 1, 1, 1)),
        (PoolConfig(gpus=0.5), "cuda", GPU_NODES, None, PoolPlan(16, 1, 0.5, 1)),
        (PoolConfig(gpus=0.1), "cuda", [{"CPU": 64.0, "GPU": 1.0}], None, PoolPlan(10, 1, 0.1, 1)),
        (PoolConfig(gpus=2), "cuda", GPU_NODES, None, PoolPlan(4, 1, 2, 1)),
        (PoolConfig(gpus=3), "cuda", GPU_NODES, None, PoolPlan(2, 1, 3, 1)),
        (PoolConfig(evaluators=3), "cpu", LAPTOP, None, PoolPlan(3, 1, 0, 1)),
        (PoolConfig(evaluators=8), "cuda", [{"CPU": 4.0}], None, PoolPlan(8, 1, 1, 1)),  # it may scale up yet
        (PoolConfig(evaluators=4), "cpu", HEAD_ALONE, None, PoolPlan(4, 1, 0, 1)),
        (PoolConfig(evaluators=4), "cpu", HEAD_ALONE, 8, PoolPlan(4, 8, 0, 8)),
        (PoolConfig(cpus=0.5), "cpu", LAPTOP, None, PoolPlan(4, 0.5, 0, 1)),
    ],
)
def test_plan(
    config: PoolConfig, device: str, nodes: list[dict[str, float]], threads: int | None, plan: PoolPlan
) -> None:
    assert plan_pool(config, device, nodes, threads) == plan


def test_two_small_nodes_do_not_make_a_large_one() -> None:
    with pytest.raises(PlacementError, match="No node of the cluster has room for an evaluator with 4 CPUs"):
        plan_pool(PoolConfig(cpus=4), "cpu", [{"CPU": 2.0}, {"CPU": 2.0}], None)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_cluster_at_zero_says_that_evaluators_must_be_counted(device: str) -> None:
    with pytest.raises(PlacementError, match=r"0 CPUs and 0 GPUs on 1 node.*starts machines.*--evaluators N"):
        plan_pool(PoolConfig(), device, HEAD_ALONE, None)


def test_no_gpu_says_what_to_do() -> None:
    with pytest.raises(PlacementError, match="--device cpu"):
        plan_pool(PoolConfig(), "cuda", LAPTOP, None)
    with pytest.raises(PlacementError, match="more than 0 GPUs"):
        plan_pool(PoolConfig(gpus=0), "cuda", GPU_NODES, None)


def test_several_gpus_are_whole_ones_of_one_node() -> None:
    for gpus in (1.5, 2.25, float("inf")):
        with pytest.raises(ValidationError, match=r"a share of one GPU \(up to 1\) or several whole ones"):
            PoolConfig(gpus=gpus)
    with pytest.raises(PlacementError, match=r"No node .* and 5 GPUs; it has 32 CPUs and 8 GPUs"):
        plan_pool(PoolConfig(gpus=5), "cuda", GPU_NODES, None)
    with pytest.raises(PlacementError, match="--evaluator-gpus"):
        plan_pool(PoolConfig(), "cuda:0,cuda:1", GPU_NODES, None)
