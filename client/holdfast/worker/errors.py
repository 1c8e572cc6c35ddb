"""What can be wrong with a checkpoint."""


class CheckpointError(Exception):
    """A checkpoint cannot be taken or used. The message says why."""


class CheckpointCorrupt(CheckpointError):  # noqa: N818  reads as the sentence it is
    """A committed checkpoint is not what was committed: a file is missing, torn or changed.

    `file` is its path, `tensor` the name of the tensor that differs (None when the file as a whole does),
    `expected` and `found` say what differs.
    """

    def __init__(self, file: str, tensor: str | None, expected: str, found: str) -> None:
        where = file if tensor is None else f"{file}, tensor {tensor!r}"
        super().__init__(f"checkpoint is corrupt: {where}: expected {expected}, found {found}")
        self.file = file
        self.tensor = tensor
        self.expected = expected
        self.found = found


class CheckpointMismatch(CheckpointError):  # noqa: N818
    """A valid checkpoint does not fit the program: it holds another structure, shape, dtype or data set."""
