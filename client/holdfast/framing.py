"""Varint-delimited frames: how messages follow each other on the worker link.

A frame is the length of a message as a protobuf varint, then the message. It is what protobuf libraries of other
languages call "delimited", so that a worker in any of them can speak to its agent.
"""

MAX_FRAME_BYTES = 16 * 1024 * 1024
"""No message is longer. A resume record of 100,000 ranks takes about 12 MB."""

_MAX_VARINT_BYTES = 5


class FramingError(ValueError):
    """What came over the link is no frame, or one that is too long. The link is of no more use."""


def encode(message: bytes) -> bytes:
    """One frame that holds `message`. Raises FramingError when it is longer than MAX_FRAME_BYTES."""
    length = len(message)
    if length > MAX_FRAME_BYTES:
        raise FramingError(
            f"a message of {length} bytes is longer than the {MAX_FRAME_BYTES} that a frame may hold"
        )
    head = bytearray()
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + message


class Decoder:
    """Cuts a stream of bytes, however it was chopped on its way, back into messages."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max = max_frame_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take what arrived and return the messages it completes, oldest first.

        Raises FramingError on a length above the bound, before any of that message is kept.
        """
        self._buffer += data
        messages = []
        at = 0
        while (head := self._head(at)) is not None:
            start, length = head
            if len(self._buffer) < start + length:
                break
            messages.append(bytes(self._buffer[start : start + length]))
            at = start + length
        del self._buffer[:at]
        return messages

    def _head(self, at: int) -> tuple[int, int] | None:
        """Where the message of the frame at `at` starts and how long it is; None until that is known."""
        length = 0
        for index, byte in enumerate(self._buffer[at : at + _MAX_VARINT_BYTES]):
            length |= (byte & 0x7F) << (7 * index)
            if length > self._max:
                raise FramingError(
                    f"a frame of at least {length} bytes is longer than the {self._max} allowed"
                )
            if byte < 0x80:
                return at + index + 1, length
        if len(self._buffer) - at >= _MAX_VARINT_BYTES:
            raise FramingError("the length of a frame has no end")
        return None
