"""Leaves out pictures that nobody looks at and no other picture is made of, where a video is sampled.

Encoders mark pictures that no other one refers to, about half of those of an ordinary H.264 or HEVC video, though the ones that
are decoded fastest. The decoder can be told to skip them, packet by packet. All others come out bit for bit as they would.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterator

import av
from av.video.codeccontext import VideoCodecContext

CODECS = frozenset({"h264", "hevc"})  # whose decoders skip pictures one by one
AHEAD = 32  # packets; these codecs hold back 16 pictures at most to bring them in order of their times

IsSeen = Callable[[int, int | None], bool]


def skip_unseen(
    packets: Iterator[av.Packet], codec: VideoCodecContext, is_seen: Callable[[], IsSeen | None]
) -> Iterator[av.Packet]:
    """The packets in their order; before each one the decoder is told whether it may skip its picture.

    Args:
        packets: of one stream.
        codec: its decoder.
        is_seen: asked before every packet; what tells of a picture, by its time stamp and that of the next one on display
            (None: there is none, or its time is not known), whether somebody looks at it; None: everybody does.

    Raises:
        av.FFmpegError: as `packets` do, after the packets before the fault.
    """
    if codec.name not in CODECS:
        yield from packets
        return
    waiting: deque[av.Packet] = deque()
    behind: deque[int] = deque()
    stamps: list[int] = []  # of packets some way ahead and behind, in order of time
    fault: av.FFmpegError | None = None
    has_ended = False
    last_dts: int | None = None
    num_unsure = 0  # packets that stand among stamps of two clocks
    while True:
        seen = is_seen()
        while not has_ended and len(waiting) <= (0 if seen is None else AHEAD):
            try:
                packet = next(packets)
            except StopIteration:
                has_ended = True
            except av.FFmpegError as error:
                fault, has_ended = error, True
            else:
                waiting.append(packet)
                if packet.dts is not None:
                    if last_dts is not None and packet.dts < last_dts:  # where recordings are glued together
                        num_unsure = 2 * AHEAD + 1
                    last_dts = packet.dts
                if packet.pts is not None:
                    insort(stamps, packet.pts)
        if not waiting:
            break
        packet = waiting.popleft()
        skips = False
        if packet.pts is not None:
            if seen is not None and not packet.is_keyframe and not num_unsure:
                place = bisect_right(stamps, packet.pts)
                skips = not seen(packet.pts, stamps[place] if place < len(stamps) else None)
            behind.append(packet.pts)
            if len(behind) > AHEAD:
                stamps.remove(behind.popleft())
        num_unsure = max(num_unsure - 1, 0)
        codec.skip_frame = "NONREF" if skips else "DEFAULT"
        yield packet
    if fault is not None:
        raise fault
