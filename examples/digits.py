"""Handwritten digits, numpy only: independent workers, each with its own part of the data, combined at the end.

    python examples/digits.py                                                      a world of one
    holdfast run -n 4 --restart-scope rank -- python examples/digits.py            four workers

Kill workers as often as you like: the same arrays come out, bit for bit.
"""

import argparse
import gzip
import importlib.util
import sys
from pathlib import Path

import numpy as np

import holdfast


def main():
    options = parse_options()
    images, labels = load_digits()
    test = np.arange(len(images)) % 5 == 0

    run = holdfast.init()
    data = run.dataset(
        (images[~test], labels[~test]),
        batch_size=options.batch_size,
        seed=options.seed,
        epochs=options.epochs,
        partition=True,
    )
    state = run.restore(default=make_state(options.seed + run.rank, options.hidden))
    for x, y in data:
        loss = train(state, x, y)
        run.step(loss=loss)
        run.checkpoint(state, every=100)
        if run.should_stop:  # and nothing is lost: the same command goes on from here
            return
    run.checkpoint(state, wait=True)

    if run.rank == 0:
        model = combine([worker["model"] for worker in run.gather()])
        accuracy = np.mean(predict(model, images[test]).argmax(axis=1) == labels[test])
        print(f"test accuracy {accuracy:.4f}")
        if options.out:
            from safetensors.numpy import save_file

            save_file(model, options.out)


def parse_options():
    parser = argparse.ArgumentParser(description="Train on handwritten digits.")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=96, help="of each worker")
    parser.add_argument("--hidden", type=int, default=2048, help="hidden units of each worker's model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="write the combined model to this safetensors file")
    return parser.parse_args()


def load_digits():
    """1,797 images of 64 pixels in 0..1, and what they show: the UCI data set that ships with scikit-learn."""
    path = Path(__file__).with_name("digits.csv.gz")  # in the images, which go without scikit-learn
    if not path.exists():
        sklearn = importlib.util.find_spec("sklearn")  # found, not imported: that would cost a second
        if sklearn is None:
            sys.exit(
                "this example reads the digits that ship with scikit-learn; install it: pip install scikit-learn"
            )
        path = Path(sklearn.origin).parent / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(path) as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    return table[:, :-1] / 16, table[:, -1].astype(np.int64)


def make_state(seed, hidden):
    """A network with one hidden layer, and the momentum of each of its arrays."""
    rng = np.random.default_rng(seed)
    model = {
        "w1": rng.normal(0, 0.1, (64, hidden)).astype(np.float32),
        "b1": np.zeros(hidden, np.float32),
        "w2": rng.normal(0, 0.1, (hidden, 10)).astype(np.float32),
        "b2": np.zeros(10, np.float32),
    }
    return {"model": model, "momentum": {name: np.zeros_like(array) for name, array in model.items()}}


def train(state, x, y, rate=0.02):
    """One step of gradient descent, in place. Returns the loss."""
    model = state["model"]
    hidden = np.maximum(x @ model["w1"] + model["b1"], 0)
    logits = hidden @ model["w2"] + model["b2"]
    logits -= logits.max(axis=1, keepdims=True)
    chance = np.exp(logits)
    chance /= chance.sum(axis=1, keepdims=True)
    rows = np.arange(len(y))
    loss = -np.log(chance[rows, y] + 1e-12).mean()

    error = chance
    error[rows, y] -= 1
    error /= len(y)
    back = (error @ model["w2"].T) * (hidden > 0)
    gradient = {"w1": x.T @ back, "b1": back.sum(axis=0), "w2": hidden.T @ error, "b2": error.sum(axis=0)}
    for name, momentum in state["momentum"].items():
        momentum *= 0.9  # noqa: PLW2901  in place
        momentum -= rate * gradient[name]  # noqa: PLW2901
        model[name] += momentum
    return loss


def predict(model, x):
    return np.maximum(x @ model["w1"] + model["b1"], 0) @ model["w2"] + model["b2"]


def combine(models):
    """One network whose answer is the mean of those of all: their hidden layers side by side."""
    return {
        "w1": np.concatenate([model["w1"] for model in models], axis=1),
        "b1": np.concatenate([model["b1"] for model in models]),
        "w2": np.concatenate([model["w2"] for model in models]) / len(models),
        "b2": np.mean([model["b2"] for model in models], axis=0),
    }


if __name__ == "__main__":
    main()
