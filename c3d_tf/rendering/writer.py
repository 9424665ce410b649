# SPDX-License-Identifier: Apache-2.0
"""Writes H.264 in MP4 that browsers play, with the frames' own times and the source's sound."""

import contextlib
import fractions
import heapq
import itertools
from collections.abc import Iterable, Iterator

import av
import av.video.reformatter

from c3d_tf.common import errors
from c3d_tf.data import video

TICK = fractions.Fraction(1, 90_000)  # of a second: the usual frame rates are whole numbers of it
ONE_FRAME = 3_600  # ticks that a single frame stays
FITS = ('aac', 'ac3', 'alac', 'eac3', 'flac', 'mp3', 'opus')  # sounds that an MP4 takes as they are
BT709 = 1  # the number of its matrix, of its primaries and of its curve


def write(path: str, frames: Iterable[video.Frame], *, sound: str = '', comment: str = '') -> str:
    """Writes a video file.

    Args:
      path: the MP4 to write.
      frames: with times from 0; their height and width are even, and the same for all.
      sound: a video file whose first sound is copied as it is; '' for none.
      comment: kept in the file's metadata.

    Returns:
      the codec of a sound that was left out since an MP4 does not take it; else ''.

    Raises:
      errors.RunError: the file could not be written, e.g. since the disk is full.
    """
    frames = iter(frames)
    first = next(frames)
    try:
        with contextlib.ExitStack() as stack:
            # faststart: what says where the pictures lie comes before them, so a browser need not wait.
            out = stack.enter_context(av.open(f'file:{path}', 'w', format='mp4',
                                              options={'movflags': '+faststart'}))
            out.metadata['comment'] = comment
            # Without B-frames (bf) the file's length is right however irregular the times are.
            stream = out.add_stream('libx264', options={'crf': '20', 'preset': 'veryfast', 'bf': '0'})
            stream.height, stream.width = first.image.shape[:2]
            stream.pix_fmt = 'yuv420p'
            context = stream.codec_context
            context.time_base = TICK
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = av.video.reformatter.ColorRange.MPEG
            copied, left_out = _sound(stack, out, sound)
            # What lies near in time lies near in the file.
            for packet in heapq.merge(_encoded(stream, itertools.chain([first], frames)), copied,
                                      key=lambda packet: packet.dts * packet.time_base):
                out.mux(packet)
    except av.error.FFmpegError as error:
        raise errors.RunError(f'{path}: cannot be written ({error})') from error
    return left_out


def _encoded(stream, frames: Iterator[video.Frame]) -> Iterator[av.Packet]:
    reformatter = av.video.reformatter.VideoReformatter()
    lasts = {}  # how long each frame stays, which the encoder forgets

    def timed(packets):
        for packet in packets:
            packet.duration = lasts.pop(packet.pts)
            yield packet

    ticks, gap = -1, ONE_FRAME
    for frame, following in itertools.pairwise(itertools.chain(frames, [None])):
        picture = reformatter.reformat(
            av.VideoFrame.from_ndarray(frame.image, 'rgb24'), format='yuv420p',
            dst_colorspace=av.video.reformatter.Colorspace.ITU709)
        ticks = max(ticks + 1, _ticks(frame.time))
        picture.pts, picture.time_base = ticks, TICK
        if following:
            gap = max(1, _ticks(following.time) - ticks)
        lasts[ticks] = gap  # the last frame stays as long as the one before it
        yield from timed(stream.encode(picture))
    yield from timed(stream.encode())


def _ticks(microseconds: int) -> int:
    return round(microseconds / (1_000_000 * TICK))


def _sound(stack: contextlib.ExitStack, out, path: str) -> tuple[Iterator[av.Packet], str]:
    """Returns the packets of the file's sound, from its first frame on, or the codec that does not fit."""
    if not path:
        return iter(()), ''
    source = stack.enter_context(av.open(video.readable(path), metadata_errors='replace'))
    if not source.streams.audio:
        return iter(()), ''
    sound, pictures = source.streams.audio[0], source.streams.video[0]
    if sound.codec_context.codec.canonical_name not in FITS:
        return iter(()), sound.codec_context.codec.canonical_name
    track = out.add_stream_from_template(sound)
    begin = round((pictures.start_time or 0) * pictures.time_base / sound.time_base)

    def packets():
        with contextlib.suppress(av.error.FFmpegError):  # a file that breaks ends there
            for packet in source.demux(sound):
                if packet.dts is not None and packet.dts >= begin:
                    packet.pts -= begin
                    packet.dts -= begin
                    packet.stream = track
                    yield packet

    return packets(), ''
