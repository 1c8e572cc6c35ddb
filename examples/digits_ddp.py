"""Handwritten digits with torch DistributedDataParallel over gloo, resumed bit for bit.

    python examples/digits_ddp.py                                      a world of one
    holdfast run -n 2 -- python examples/digits_ddp.py --curve loss    two ranks that share every batch

Kill any of them: the gang goes on from the last committed checkpoint, and the loss curve is the one of a run that
nobody disturbed.
"""

import argparse
import pathlib
from datetime import timedelta

import digits
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import holdfast

TRAIN = 1408  # 22 batches of 64; the other 389 images are for the test


def main():
    options = parse_options()
    images, labels = (torch.from_numpy(array) for array in digits.load_digits())

    run = holdfast.init()
    if run.world_size > 1:  # bounded: a gang whose other half never came is started anew
        dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    data = run.dataset(
        (images[:TRAIN], labels[:TRAIN]), batch_size=64, seed=options.seed, epochs=options.epochs
    )

    torch.manual_seed(options.seed)
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    torch.manual_seed(options.seed + 1 + run.rank)  # every rank draws its own dropout

    def snapshot():
        return {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),
        }

    state = run.restore(default=snapshot())
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])

    parallel = DistributedDataParallel(model) if run.world_size > 1 else model
    curve = open_curve(options.curve, run.resume_step or 0) if options.curve and run.rank == 0 else None
    for x, y in data:
        loss = train(parallel, optimizer, x, y, run.world_size)
        step = run.step(loss=loss)
        if curve:
            print(step, loss, file=curve, flush=True)
        run.checkpoint(snapshot, every=20)
        if run.should_stop:
            break
    run.checkpoint(snapshot, wait=True)
    if curve:
        curve.close()

    if run.rank == 0 and not run.should_stop:
        model.eval()
        accuracy = (model(images[TRAIN:]).argmax(dim=1) == labels[TRAIN:]).float().mean().item()
        print(f"test accuracy {accuracy:.4f}")
    if run.world_size > 1:
        dist.destroy_process_group()


def parse_options():
    parser = argparse.ArgumentParser(description="Train on handwritten digits, data-parallel.")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--curve", type=pathlib.Path, help="write step and loss to this file, a line a step")
    return parser.parse_args()


def make_model():
    return torch.nn.Sequential(
        torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(256, 10)
    )


def train(model, optimizer, x, y, world_size):
    """One step on this rank's part of the batch. Returns the loss over all of it."""
    optimizer.zero_grad()
    loss = cross_entropy(model(x), y)
    loss.backward()  # averages the gradients of all ranks
    optimizer.step()
    total = loss.detach()
    if world_size > 1:
        dist.all_reduce(total)
    return total.item() / world_size


def open_curve(path, step):
    """The curve as it stood at `step`: what a killed attempt wrote after it is about to be written again."""
    curve = path.open("a+")
    curve.seek(0)
    for _ in range(step):
        curve.readline()
    curve.truncate(curve.tell())
    return curve


if __name__ == "__main__":
    main()
