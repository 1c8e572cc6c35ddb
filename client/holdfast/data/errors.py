"""What can be wrong with a data set."""


class DataError(Exception):
    """A data set cannot be read. The message names the file, what is wrong with it, and the remedy."""


class ShardChanged(DataError):  # noqa: N818  reads as the sentence it is
    """A shard is not what was counted: it is gone, or another size or content. `found` is empty when it is gone."""

    def __init__(self, file: str, expected: str, found: str) -> None:
        what = f"has changed since the data set was counted: expected {expected}, found {found}"
        gone = f"has vanished since the data set was counted: expected {expected}, found nothing"
        super().__init__(
            f"the shard {file} {what if found else gone}; put back what was there, "
            "or start a new job, which counts it anew"
        )
        self.file = file
        self.expected = expected
        self.found = found
