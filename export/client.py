# SPDX-License-Identifier: Apache-2.0
"""Asks a model server what happens in videos: `python export/client.py --model=quickstart VIDEO…`.

Needs requirements-client.txt, transport.py and serving_pb2.py; neither TensorFlow nor c3d_tf.
A video is decoded, cut into windows of --frames frames, and each window is a request. At most twice
--parallel windows are in memory, however long the video is.
"""

import argparse
import array
import collections
import concurrent.futures
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import av
import av.error
import av.video.reformatter
import cv2
import numpy as np

import transport

QUALITY = 95     # of JPEG; C3D loses accuracy at the usual 75
SHOWN_PARTS = 20  # lines of a video's timeline


class Window(NamedTuple):
    """Frames that are asked about together.

    Attributes:
      start, end: seconds of the first and last frame.
      images: uint8 [H, W, 3] each, RGB.
    """

    start: float
    end: float
    images: list[np.ndarray]


class BrokenVideo(Exception):
    """The file cannot be read as video."""


class Video:
    """What is known of a video so far."""

    def __init__(self, path: str):
        self.path, self.failure = path, ''
        self.windows, self.total, self.names, self.parts = 0, 0.0, {}, []

    def add(self, window: Window, answer: transport.Answer) -> None:
        """Takes in the answer to a window; windows come in order."""
        probabilities, labels = answer.probabilities[0].astype(np.float64), answer.labels[0]
        self.windows += 1
        self.total = self.total + probabilities
        # The server names only its top k; classes get their names as they turn up there.
        self.names.update(zip(np.argsort(-probabilities, kind='stable').tolist(), labels))
        if self.parts and self.parts[-1][2] == labels[0]:
            start, _, label, score, count = self.parts.pop()
        else:
            start, label, score, count = window.start, labels[0], 0.0, 0
        self.parts.append((start, window.end, label, score + float(answer.scores[0, 0]), count + 1))

    def report(self, top: int) -> str:
        """Returns the mean over the windows, and which class led when."""
        mean = self.total / self.windows
        best = np.argsort(-mean, kind='stable')[:top].tolist()
        lines = [f'{self.path}: {_count(self.windows, "request")}', *(
            f'  {mean[i]:.3f}  {self.names.get(i, f"class {i}")}' for i in best)]
        for start, end, label, score, count in self.parts[:SHOWN_PARTS]:
            lines.append(f'  {start:7.2f} – {end:7.2f} s  {label} ({score / count:.3f})')
        if len(self.parts) > SHOWN_PARTS:
            lines.append(f'  … and {len(self.parts) - SHOWN_PARTS} more parts')
        return '\n'.join(lines)


class Client:
    """Keeps requests in flight, and counts.

    Attributes:
      seconds: of each request that was answered, from its first try to its answer.
      frames: in those requests.
      retries: tries beyond the first of each request.
    """

    def __init__(self, server: transport.Grpc | transport.Rest, args: argparse.Namespace):
        self.seconds, self.frames, self.retries = array.array('d'), 0, 0
        self._server, self._args = server, args
        self._stop, self._lock = threading.Event(), threading.Lock()

    def run(self, paths: list[str]) -> list[Video]:
        """Asks about videos; prints the report of each as soon as it is complete."""
        videos, waiting = [], collections.deque()
        with concurrent.futures.ThreadPoolExecutor(self._args.parallel) as pool:
            try:
                for path in paths:
                    video = Video(path)
                    videos.append(video)
                    for window in self._windows(video):
                        waiting.append((video, window, pool.submit(self._ask, video, window)))
                        if len(waiting) >= 2 * self._args.parallel:
                            self._settle(*waiting.popleft())
                    waiting.append((video, None, None))  # its end
                while waiting:
                    self._settle(*waiting.popleft())
            except BaseException:
                self._stop.set()
                self._server.close()  # ends what is in flight
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return videos

    def _windows(self, video: Video) -> Iterator[Window]:
        try:
            for window in windows(video.path, self._args.frames, self._args.size):
                if video.failure:
                    return
                yield window
        except BrokenVideo as error:
            video.failure = video.failure or str(error)

    def _ask(self, video: Video, window: Window) -> transport.Answer | None:
        if video.failure:
            return None
        name, value = encode(window.images, self._args.signature)
        began = time.monotonic()
        answer = transport.persist(
            lambda seconds: self._server.predict(self._args.signature, name, value, seconds),
            timeout=self._args.timeout, patience=self._args.patience, stop=self._stop,
            on_retry=self._retry)
        with self._lock:
            self.seconds.append(time.monotonic() - began)
            self.frames += len(window.images)
        return answer

    def _retry(self, error: transport.Refused) -> None:
        with self._lock:
            self.retries += 1
            if self.retries > 1:
                return
        print(f'client: {error}; trying again for up to {self._args.patience:g} s', file=sys.stderr)

    def _settle(self, video: Video, window: Window | None, future) -> None:
        if future is None:
            if video.failure:
                print(f'client: {video.path}: {video.failure}', file=sys.stderr)
            else:
                print(video.report(self._args.top), flush=True)
            return
        try:
            answer = future.result()
        except transport.Refused as error:
            remedy = '; send less by --frames or --size' if error.code == 'TOO_LARGE' else ''
            video.failure = video.failure or (
                f'{window.start:.2f} – {window.end:.2f} s: {error}{remedy}')
        else:
            if answer is not None:
                video.add(window, answer)


def _count(number: int, what: str) -> str:
    return f'{number} {what}{"s" * (number != 1)}'


def windows(path: str, frames: int, size: tuple[int, int] | None) -> Iterator[Window]:
    """Yields a video's frames, upright, `frames` at a time; one shorter window where that is all.

    A tail is dropped: an example of another length could not share a batch with the others. A file that
    breaks off yields what can be decoded before the break, and says so on stderr.

    Args:
      path: a video file.
      frames: of a window.
      size: (height, width) that frames are resized to as in training; None leaves them.

    Raises:
      BrokenVideo: not one frame can be decoded.
    """
    images, times, whole, reason = [], [], 0, 'no frame can be decoded'
    try:
        with av.open(f'file:{path}', metadata_errors='replace') as container:
            if not container.streams.video:
                raise BrokenVideo('no video stream in the file')
            # A pool of threads for each file, or tables for each frame, take longer than a small frame.
            container.streams.video[0].codec_context.thread_count = 1
            reformatter = av.video.reformatter.VideoReformatter()
            for frame in container.decode(video=0):
                image = reformatter.reformat(frame, format='rgb24', threads=1).to_ndarray()
                if frame.rotation:
                    image = np.ascontiguousarray(np.rot90(image, frame.rotation // 90))
                if size:
                    image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
                images.append(image)
                times.append(frame.time or 0.0)
                if len(images) == frames:
                    whole += 1
                    yield Window(times[0], times[-1], images)
                    images, times = [], []
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = f'{reason}: {error}'
        if images or whole:
            print(f'client: {path}: breaks off after {whole * frames + len(images)} frames ({error})',
                  file=sys.stderr)
    if images and not whole:
        yield Window(times[0], times[-1], images)
    elif not whole:
        raise BrokenVideo(reason)


def encode(images: list[np.ndarray], signature: str) -> tuple[str, np.ndarray]:
    """Returns the name and value of a signature's input, for one example."""
    if signature == 'serving_default':
        return 'clips', np.stack(images)[None]
    options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    encoded = [cv2.imencode('.jpg', image[..., ::-1], options)[1].tobytes() for image in images]
    return 'frames', np.array([encoded], object)


def parse(words: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""

    def positive(text: str) -> int:
        if int(text) < 1:
            raise ValueError
        return int(text)

    def sides(text: str) -> tuple[int, int] | None:
        if text == 'own':
            return None
        height, width = text.split('x')
        return positive(height), positive(width)

    parser = argparse.ArgumentParser(prog='client.py', description=__doc__.split('\n')[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add('videos', nargs='+', metavar='VIDEO', help='a file that FFmpeg reads')
    add('--model', required=True, help='its name at the server')
    add('--version', type=int, help='of the model; without it, the newest')
    add('--rest', action='store_true', help='HTTP and JSON in place of gRPC')
    add('--server', help='HOST:PORT; without it localhost:8500, and localhost:8501 with --rest')
    add('--signature', choices=['frames', 'serving_default'], default='frames',
        help=f'frames: JPEG of quality {QUALITY}; serving_default: pixels, exact and ten times as large')
    add('--frames', type=positive, default=16,
        help="of a request: the network's clip length times its stride, or several clips; "
        'assets.extra/export.json has them')
    add('--size', type=sides, default='128x171',
        help="HEIGHTxWIDTH that frames are sent in: the network's frame_size, so that nothing is sent "
        'that it would not see; own: as they are')
    add('--parallel', type=positive, default=4, help='requests in flight')
    add('--timeout', type=float, default=20, help='seconds of one try')
    add('--patience', type=float, default=60, help='seconds of a request with all its tries')
    add('--top', type=positive, default=5, help='classes that are shown')
    args = parser.parse_args(words)
    args.server = args.server or ('localhost:8501' if args.rest else 'localhost:8500')
    return args


def main(words: list[str] | None = None) -> int:
    """Returns 0; 1 where a video was not answered; 2 is wrong use; 130 interrupted."""
    args = parse(words)
    server = (transport.Rest if args.rest else transport.Grpc)(args.server, args.model, args.version)
    client, began = Client(server, args), time.monotonic()
    try:
        videos = client.run(args.videos)
    except KeyboardInterrupt:
        return 130
    finally:
        server.close()
    wall, count = time.monotonic() - began, len(client.seconds)
    failed = sum(bool(video.failure) for video in videos)
    if count:
        middle, late, latest = 1000 * np.percentile(client.seconds, [50, 90, 99])
        print(f'{_count(len(videos), "video")}, {failed} failed · {_count(count, "request")}, '
              f'{client.retries} tried again\n'
              f'{count / wall:.1f} requests/s, {client.frames / wall:.0f} frames/s · '
              f'latency p50 {middle:.1f} ms, p90 {late:.1f} ms, p99 {latest:.1f} ms')
    return int(failed > 0)


if __name__ == '__main__':
    sys.exit(main())
