"""What tests of sharded checkpoints start: ranks that share a state, and save it in several layouts, a step each."""

import json

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import holdfast
import holdfast.torch
from holdfast.worker.errors import CheckpointError

LAYOUTS = {
    1: ((4,), [Shard(0)]),
    2: ((4,), [Shard(1)]),
    3: ((2, 2), [Replicate(), Shard(0)]),
    4: ((2, 2), [Shard(0), Shard(1)]),
    5: ((2, 2), [Shard(0), Shard(0)]),
}
VALUES = {"lr": 0.1, "nan": float("nan"), "names": ["a", 2, None], "deep": {"er": (1, 2.5)}}
FSDP_STEP = 6


def whole():
    """The tensors, as one process would have them."""
    return {
        "even": torch.arange(64.0).reshape(8, 8),
        "uneven": torch.arange(15, dtype=torch.bfloat16).reshape(5, 3),
        "few rows": torch.arange(6, dtype=torch.int64).reshape(2, 3),
        "deep": torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
        "flags": torch.arange(36).reshape(6, 6) % 3 == 0,
    }


def plain():
    """What all ranks have."""
    return {
        "step": torch.tensor(7.0),
        "table": torch.arange(10.0).to(torch.complex64),
        "none": torch.zeros(0, 3),
    }


def make_model(mesh):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 3))
    for layer in (*model, model):
        fully_shard(layer, mesh=mesh)
    return model, torch.optim.AdamW(model.parameters())


class CountingPlanner(DefaultSavePlanner):
    plans = 0

    def create_global_plan(self, all_plans):
        CountingPlanner.plans += 1
        return super().create_global_plan(all_plans)


class BrokenPlanner(DefaultSavePlanner):
    def create_global_plan(self, all_plans):
        raise ValueError("there is no plan")


def main():
    run = holdfast.init()
    dist.init_process_group("gloo")
    planned = []
    for step, (shape, placements) in LAYOUTS.items():
        mesh = init_device_mesh("cpu", shape)
        state = {
            "cut": {name: distribute_tensor(tensor, mesh, placements) for name, tensor in whole().items()},
            "plain": plain(),
            "values": VALUES,
        }
        run.step(step)
        holdfast.torch.checkpoint(run, state, wait=True, planner=CountingPlanner())
        planned.append(CountingPlanner.plans)

    model, optimizer = make_model(init_device_mesh("cpu", (4,)))
    model(torch.ones(2, 7)).sum().backward()
    optimizer.step()

    def snapshot():
        model_state, optimizer_state = get_state_dict(model, optimizer)
        return {"model": model_state, "optimizer": optimizer_state}

    for step in range(FSDP_STEP, FSDP_STEP + 4):
        run.step(step)
        holdfast.torch.checkpoint(run, snapshot, every=2, wait=True, planner=CountingPlanner())
        planned.append(CountingPlanner.plans)
    full = {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}

    failed = ""
    run.step()
    try:
        holdfast.torch.checkpoint(run, {"other": torch.zeros(1)}, planner=BrokenPlanner())
    except CheckpointError as error:
        failed = str(error)
    print(
        json.dumps({"planned": planned, "failed": failed, "model": {k: v.tolist() for k, v in full.items()}})
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
