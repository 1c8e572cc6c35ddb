import pytest
from google.protobuf.internal.encoder import _VarintBytes
from hypothesis import given
from hypothesis import strategies as st

from holdfast import framing

MESSAGES = st.lists(st.binary(max_size=400), max_size=8)


@given(MESSAGES, st.lists(st.integers(1, 200), max_size=40))
def test_messages_survive_any_chopping(messages, cuts):
    stream = b"".join(framing.encode(message) for message in messages)
    decoder = framing.Decoder()
    heard = []
    for cut in cuts:
        heard += decoder.feed(stream[:cut])
        stream = stream[cut:]
    heard += decoder.feed(stream)
    assert heard == messages


@given(st.binary(max_size=1000))
def test_a_frame_is_what_protobuf_calls_delimited(message):
    assert framing.encode(message) == _VarintBytes(len(message)) + message


def test_one_byte_at_a_time_gives_a_message_only_when_it_is_whole():
    frame = framing.encode(b"x" * 300)
    decoder = framing.Decoder()
    assert [decoder.feed(frame[at : at + 1]) for at in range(len(frame) - 1)] == [[]] * (len(frame) - 1)
    assert decoder.feed(frame[-1:]) == [b"x" * 300]


def test_a_length_above_the_bound_is_refused_before_the_message_comes():
    with pytest.raises(framing.FramingError, match="longer than the 100 allowed"):
        framing.Decoder(max_frame_bytes=100).feed(_VarintBytes(101))


def test_a_length_without_an_end_is_refused():
    with pytest.raises(framing.FramingError):
        framing.Decoder().feed(b"\x80" * 5)


def test_what_is_too_long_cannot_be_sent():
    with pytest.raises(framing.FramingError):
        framing.encode(bytes(framing.MAX_FRAME_BYTES + 1))
