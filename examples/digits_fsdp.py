"""Handwritten digits with torch FSDP2 over gloo: every rank holds a part of the model, and any number of ranks resumes.

    holdfast run -n 4 --name four -- python examples/digits_fsdp.py --epochs 3
    holdfast run -n 2 --resume-from four -- python examples/digits_fsdp.py

Both share every batch of 64, so that the second run goes on with the samples that the first left.
"""

import argparse
from datetime import timedelta

import digits
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

import holdfast
import holdfast.torch

TRAIN = 1408  # 22 batches of 64; the other 389 images are for the test


def main():
    parser = argparse.ArgumentParser(description="Train on handwritten digits, with the model in parts.")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    images, labels = (torch.from_numpy(array) for array in digits.load_digits())

    run = holdfast.init()
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    data = run.dataset(
        (images[:TRAIN], labels[:TRAIN]), batch_size=64, seed=options.seed, epochs=options.epochs
    )
    torch.manual_seed(options.seed)
    model = make_model(init_device_mesh("cpu", (run.world_size,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=50, gamma=0.7)

    def snapshot():
        model_state, optimizer_state = get_state_dict(model, optimizer)
        return {"model": model_state, "optimizer": optimizer_state, "schedule": schedule}

    state = snapshot()
    if holdfast.torch.restore(run, state):
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        if run.rank == 0:
            print(f"resumed from step {run.resume_step} on {run.world_size} ranks")
    for x, y in data:
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()  # averages the gradients of all ranks
        optimizer.step()
        schedule.step()
        run.step(loss=loss.item())
        holdfast.torch.checkpoint(run, snapshot, every=20)
        if run.should_stop:
            break
    holdfast.torch.checkpoint(run, snapshot, wait=True)

    with torch.no_grad():
        accuracy = (model(images[TRAIN:]).argmax(dim=1) == labels[TRAIN:]).float().mean().item()
    if run.rank == 0 and not run.should_stop:
        print(f"test accuracy {accuracy:.4f}")
    dist.destroy_process_group()


def make_model(mesh):
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    return model


if __name__ == "__main__":
    main()
