"""The gloo program under Ray Train: four of Ray's own workers, restarted by its failure policy.

Usage: python benchmarks/ray_train.py WORLD, with what `make peers` installs.
"""

import os
import sys
from pathlib import Path

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchConfig, TorchTrainer

ROOT = str(Path(__file__).parent.parent)


def train(config: dict[str, str]) -> None:
    """Be a worker. Ray has joined the gang."""
    os.environ |= {"BENCH_DIR": config["board"], "RANK": str(get_context().get_world_rank())}
    sys.path.insert(0, config["root"])
    sys.argv[1:] = ["gloo"]
    from benchmarks import program

    program.main()


def main() -> None:
    board, world = os.environ["BENCH_DIR"], int(sys.argv[1])
    ray.init(num_cpus=2 * world, include_dashboard=False, _node_ip_address="127.0.0.1")
    TorchTrainer(
        train,
        train_loop_config={"board": board, "root": ROOT},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=world),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=-1), storage_path=board),
    ).fit()


if __name__ == "__main__":
    main()
