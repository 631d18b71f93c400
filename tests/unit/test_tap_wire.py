# SPDX-License-Identifier: BSD-2-Clause
"""The frames of a wire between two hosts, as they arrive in a byte stream."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from harness.dom0.tap_wire import LENGTH, complete


@given(frames=st.lists(st.binary(max_size=90), max_size=6), cuts=st.lists(st.integers(1, 60), max_size=12))
def test_frames_arrive_whole_wherever_the_stream_is_cut(frames: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(LENGTH.pack(len(frame)) + frame for frame in frames)
    found: list[bytes] = []
    received = bytearray()
    for size in [*cuts, len(stream)]:
        received += stream[:size]
        stream = stream[size:]
        found += complete(received)
    assert (found, received) == (frames, b"")
