"""Cut a part out of a video: exactly, or quickly from a key frame on."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain

from mrlib.files import shown_path
from mrlib.video.container import av, best_audio, exact, packets, ticks
from mrlib.video.filters import ready
from mrlib.video.frames import Source, frames_from, held, inside, positions
from mrlib.video.probe import Facts, probe
from mrlib.video.write import H264, Aac, writing


@dataclass(frozen=True)
class Cut:
    """What was cut out of a video."""

    start_s: float  # time of the first frame
    end_s: float  # end of the last one
    note: str  # what is not as it was asked for; "" if all is


def cut(path: str | os.PathLike, start_s: float, end_s: float, out: str | os.PathLike, copy: bool = False) -> Cut:
    """Write the frames of a video whose times are in [start_s, end_s), and its sound if it has one.

    The file appears complete or not at all. A moment between two frames shows the frame before it.

    out     ends in .mp4, .mov or .mkv
    copy    False: encode as H.264 and AAC, upright; True: copy the coded data, from the last key frame before the start
    raises  ValueError for times that are no part of the video, and if `out` is the video itself; OSError that names the
            file if it cannot be written
    """
    facts = probe(path)
    start, end = inside(facts, start_s, end_s)
    if os.path.exists(out) and os.path.samefile(path, out):
        raise ValueError(f"{shown_path(facts.path)} cannot be cut into itself; give another name for the cut")
    begins, ends = (_copy if copy else _encode)(facts, start, end, out)
    notes = [f"the video ends at {facts.duration_s:.2f} s"] if exact(end_s) > end else []
    if copy and begins < start:
        notes.append(f"begins with the key frame at {float(begins):.2f} s, {float(start - begins):.2f} s early")
    return Cut(float(begins), float(ends), "; ".join(notes))


def _encode(facts: Facts, start: Fraction, end: Fraction, out: str | os.PathLike) -> tuple[Fraction, Fraction]:
    """Encode a part of a video; returns when its first frame begins and its last one ends."""
    frames = _shown(facts.path, start, end)
    first = next(frames)
    base = first.time_base
    begins = start if first.pts == ticks(start, base) else first.pts * base
    with writing(out) as file:
        rate = Fraction(facts.fps).limit_denominator(1001)
        video = H264(file, rate, (facts.width, facts.height), base, facts.pixel_aspect)
        streams = [((f.pts * base - begins, f, video) for f in held(chain([first], frames), end))]
        if facts.has_audio:
            audio = Aac(file)
            streams.append((f.pts * f.time_base - begins, f, audio) for f in _sound(facts.path, begins, end))
        for time, frame, stream in heapq.merge(*streams, key=lambda item: item[0]):
            frame.pts = ticks(time, frame.time_base)
            stream.write(frame)
        video.end()
        if facts.has_audio:
            audio.end()
    return begins, end


def _shown(path: str, start: Fraction, end: Fraction) -> Iterator[av.VideoFrame]:
    """The frames whose times are in [start, end), or else the one that is shown then, from `start` on."""
    before, is_empty = None, True
    for frame in frames_from(path, start):
        time = frame.pts * frame.time_base
        if time >= end:
            break
        if time >= start:
            is_empty = False
            yield frame
        else:
            before = frame
    if is_empty:
        if before is None:
            raise ValueError(f"{shown_path(path)} shows nothing between {float(start):.2f} and {float(end):.2f} s")
        before.pts = ticks(start, before.time_base)
        yield before


def _sound(path: str, start: Fraction, end: Fraction) -> Iterator[av.AudioFrame]:
    """The sound from one time to another, to the sample."""
    graph = None
    for frame in frames_from(path, start, "audio"):
        if frame.pts * frame.time_base >= end:
            break
        if graph is None:
            graph = av.filter.Graph()
            source = graph.add_abuffer(
                sample_rate=frame.sample_rate, format=frame.format, layout=frame.layout, time_base=frame.time_base
            )
            trim = graph.add("atrim", f"{float(start)}:{float(end)}")
            graph.link_nodes(source, trim, graph.add("abuffersink")).configure()
        graph.push(frame)
        yield from ready(graph)


def _copy(facts: Facts, start: Fraction, end: Fraction, out: str | os.PathLike) -> tuple[Fraction, Fraction]:
    """Copy the packets of a part of a video; returns when its first frame begins and its last one ends."""
    for source, is_beginning in positions(facts.path, start):  # which closes the file when it goes on
        streams = [source.video, *filter(None, [best_audio(source.file, source.video)])]
        begins, timed = _from_key_frame(source, streams, start, is_beginning)
        if begins is not None:
            return begins, _write_packets(source, streams, timed, begins, end, out)
    raise ValueError(f"{shown_path(facts.path)} has no key frame to begin with; use copy=False")


def _write_packets(
    source: Source,
    streams: list[av.stream.Stream],
    timed: Iterator[tuple[av.Packet, Fraction]],
    begins: Fraction,
    end: Fraction,
    out: str | os.PathLike,
) -> Fraction:
    """Write the packets of some streams that are decoded before `end`; returns the end of the last frame."""
    ends = begins
    with writing(out) as file:
        copies = {stream.index: _template(file, stream, os.fspath(out)) for stream in streams}
        for packet, time in timed:
            copy, zero = copies.get(packet.stream_index), source.facts.zero
            if copy is None or time < begins:
                continue
            if packet.dts is not None and packet.dts * packet.time_base - zero >= end:
                del copies[packet.stream_index]  # enough of this stream
                if not copies:
                    break
                continue
            if packet.stream_index == source.video.index:
                ends = max(ends, time + (packet.duration or 0) * packet.time_base)
            moved = ticks(begins + zero, packet.time_base)
            packet.pts = None if packet.pts is None else packet.pts - moved
            packet.dts = None if packet.dts is None else packet.dts - moved
            packet.stream = copy
            file.mux(packet)
    return min(ends, exact(source.facts.duration_s))


def _from_key_frame(
    source: Source, streams: list[av.stream.Stream], start: Fraction, is_beginning: bool
) -> tuple[Fraction | None, Iterator[tuple[av.Packet, Fraction]]]:
    """Time of the last key frame at or before `start`, and the packets from there on with their times.

    The time is None if the file was opened behind that frame; from the beginning, the first key frame does as well.
    """
    timed = ((p, stamp * p.time_base - source.facts.zero) for p, stamp in _stamped(source, streams))
    begins, kept = None, []
    for packet, time in timed:
        is_video = packet.stream_index == source.video.index
        if is_video and packet.is_keyframe and (time <= start or (begins is None and is_beginning)):
            begins, kept = time, [(p, t) for p, t in kept if p.stream_index != source.video.index]
        kept.append((packet, time))
        if is_video and (packet.dts or packet.pts) * packet.time_base - source.facts.zero > start:
            break
    return begins, chain(kept, timed)


def _stamped(source: Source, streams: list[av.stream.Stream]) -> Iterator[tuple[av.Packet, int]]:
    """The packets of some streams with their time stamps; those without one are left out."""
    for packet in packets(source.file, *streams):
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is not None:
            yield packet, stamp


def _template(file: av.container.OutputContainer, stream: av.stream.Stream, out: str) -> av.stream.Stream:
    """A stream of the same coding in a new file."""
    try:
        return file.add_stream_from_template(stream)
    except (ValueError, av.FFmpegError):
        hint = "choose a name that ends in .mkv, or copy=False"
        raise ValueError(f"{shown_path(out)} cannot hold {stream.codec_context.name} as it is; {hint}") from None
