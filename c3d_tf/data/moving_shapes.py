# SPDX-License-Identifier: Apache-2.0
"""Generates a small labelled set of encoded videos whose classes differ in the order of frames.

The eight classes are four motions and their time reverses. A video of a reverse class is a video
of its forward class played backwards, background and noise included, so within a pair no single
frame, and no set of frames without its order, carries the label.
"""

import collections
import concurrent.futures
import fractions
import json
import math
import multiprocessing
import os

import av
import cv2
import numpy as np

# Each odd one is the time reverse of the even one before it.
CLASSES = ('left', 'right', 'up', 'down', 'clockwise', 'counter_clockwise', 'grow', 'shrink')
SPLITS = ('train', 'test')
VERSION = 1  # Of the generator: raise it with any change to the frames or the files.
DONE = '.moving_shapes.json'  # The last file: what the set was made with.
MIN_FRAMES, MAX_FRAMES = 24, 32  # In a video.

Format = collections.namedtuple(
    'Format', ['codec', 'container', 'width', 'height', 'frame_rate', 'options'])
# A video's is drawn without regard to its class; the encoders' options ask for high quality.
FORMATS = (
    Format('mpeg4', 'avi', 160, 120, 25, {'b': '4000000', 'qmin': '2', 'qmax': '4'}),
    Format('libx264', 'mp4', 128, 96, 30, {'crf': '18', 'preset': 'superfast'}),
    Format('libx264', 'mp4', 176, 144, 30, {'crf': '18', 'preset': 'superfast'}),
)


def _trajectory(motion, rng, height, width, num_frames):
    """Returns the shape's centre (x, y) and radius in pixels under a forward motion, each [T]."""
    t = np.arange(num_frames)
    radius = height * rng.uniform(0.13, 0.19)
    speed = height * rng.uniform(0.04, 0.07)  # 2.5 to 4.5 pixels a frame at a height of 64.
    # Motions across the frame wrap around it, so that each of its positions is as likely at any
    # time; otherwise the shape stays clear of the borders.
    if motion == 'left':
        x = rng.uniform(0, width) - speed * t
        y = rng.uniform(radius, height - radius)
    elif motion == 'up':
        x = rng.uniform(radius, width - radius)
        y = rng.uniform(0, height) - speed * t
    elif motion == 'clockwise':
        orbit = height * rng.uniform(0.2, 0.3)
        angle = rng.uniform(0, 2 * math.pi) + speed / orbit * t
        margin = orbit + radius
        x = rng.uniform(margin, width - margin) + orbit * np.cos(angle)
        y = rng.uniform(margin, height - margin) + orbit * np.sin(angle)  # y points down.
    else:  # 'grow'
        # The period is at least twice a clip of 16 frames, so that most clips see no jump.
        phase = (rng.uniform() + t / rng.uniform(32, 44)) % 1
        smallest, largest = height * rng.uniform(0.05, 0.08), height * rng.uniform(0.36, 0.42)
        radius = smallest + (largest - smallest) * phase
        x = rng.uniform(largest, width - largest)
        y = rng.uniform(largest, height - largest)
    return [np.broadcast_to(values, num_frames) for values in (x, y, radius)]


def _coverage(num_sides, turn, x, y, radius, height, width):
    """Returns the share of each pixel of a torus under a disc or polygon, float32 [H, W]."""
    dx = (np.arange(width) + 0.5 - x + width / 2) % width - width / 2
    dy = (np.arange(height) + 0.5 - y + height / 2) % height - height / 2
    dx, dy = dx.astype(np.float32), dy.astype(np.float32)[:, None]
    if num_sides == 0:  # A disc.
        return np.clip(np.float32(radius + 0.5) - np.sqrt(dx * dx + dy * dy), 0, 1)
    distance = np.full((height, width), -np.inf, np.float32)
    for angle in turn + 2 * math.pi * np.arange(num_sides) / num_sides:
        np.maximum(distance, dx * np.float32(np.cos(angle)) + dy * np.float32(np.sin(angle)),
                   out=distance)
    return np.clip(np.float32(radius * math.cos(math.pi / num_sides) + 0.5) - distance, 0, 1)


def render(label: str, rng: np.random.Generator, *, height: int, width: int,
           num_frames: int) -> np.ndarray:
    """Renders a video; with equal generators a class and its reverse get each other's reverse.

    Args:
        label: one of `CLASSES`.
        rng: the source of everything random in the video.
        height: of a frame in pixels.
        width: of a frame in pixels, at least `height`.
        num_frames: length T of the video.

    Returns:
        RGB frames, uint8 [T, H, W, 3].
    """
    if label not in CLASSES or width < height:
        raise ValueError(f'label {label!r} not in {CLASSES} or width {width} < height {height}')
    pair, is_reverse = divmod(CLASSES.index(label), 2)
    # The background is a smooth texture of low contrast, in uniform drift.
    colour = rng.uniform(105, 150) + rng.uniform(-10, 10, 3)
    speed, angle = height * rng.uniform(0.005, 0.02), rng.uniform(0, 2 * math.pi)
    margin = math.ceil(speed * num_frames) + 1
    size = height + 2 * margin, width + 2 * margin
    coarse = rng.normal(colour, 12, [math.ceil(8 * n / height) for n in size] + [3])
    texture = cv2.resize(coarse.astype(np.float32), size[::-1], interpolation=cv2.INTER_CUBIC)
    # The shape is brighter as often as darker: averaged over videos it vanishes, so that a linear
    # model of pixels is blind to where it went.
    shape_colour = colour + rng.choice([-1, 1]) * rng.uniform(45, 85, 3)
    shape = np.full((height, width, 3), shape_colour, np.float32)
    num_sides, turn = rng.choice([0, 3, 4]), rng.uniform(0, 2 * math.pi)
    trajectory = _trajectory(CLASSES[2 * pair], rng, height, width, num_frames)
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for t, (x, y, radius) in enumerate(zip(*trajectory)):
        shift = np.array([[1, 0, -margin - speed * t * math.cos(angle)],
                          [0, 1, -margin - speed * t * math.sin(angle)]])
        image = cv2.warpAffine(texture, shift, (width, height))
        coverage = _coverage(num_sides, turn, x, y, radius, height, width)
        noise = 5 * rng.standard_normal((height, width), np.float32)
        # cvtColor repeats a channel far faster than broadcasting along a last axis of three does.
        image += cv2.cvtColor(coverage, cv2.COLOR_GRAY2RGB) * (shape - image)
        image += cv2.cvtColor(noise, cv2.COLOR_GRAY2RGB)
        frames[t] = np.clip(np.rint(image), 0, 255)
    return frames[::-1].copy() if is_reverse else frames


def _write_video(directory, split, label, index, seed):
    """Writes one video unless it is there."""
    rng = np.random.default_rng([seed, SPLITS.index(split), CLASSES.index(label), index])
    fmt = FORMATS[rng.integers(len(FORMATS))]
    num_frames = int(rng.integers(MIN_FRAMES, MAX_FRAMES + 1))
    name = f'{label}_{index:04d}.{fmt.container}'
    path = os.path.join(directory, split, label, name)
    if os.path.exists(path):
        return
    frames = render(label, rng, height=fmt.height, width=fmt.width, num_frames=num_frames)
    # Outside of the class folders, so that what a killed process leaves is never read as a video.
    temporary = os.path.join(directory, f'{split}_{name}.{os.getpid()}.tmp')
    with av.open(temporary, 'w', format=fmt.container) as container:
        # One thread: the videos, not the parts of one, are encoded in parallel.
        stream = container.add_stream(fmt.codec, rate=fmt.frame_rate,
                                      options={'threads': '1', **fmt.options})
        stream.width, stream.height, stream.pix_fmt = fmt.width, fmt.height, 'yuv420p'
        for t, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format='rgb24')
            frame.pts, frame.time_base = t, fractions.Fraction(1, fmt.frame_rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    os.replace(temporary, path)


def write(directory: str, *, train_per_class: int = 60, test_per_class: int = 20, seed: int = 0,
          num_workers: int = 0) -> None:
    """Writes directory/{train,test}/<class>/<class>_<nnnn>.{mp4,avi} and .moving_shapes.json.

    A call that was interrupted is resumed by the next one with the same parameters; one that ended
    is not repeated. The workers import the caller's script, which must hence have its usual
    `if __name__ == '__main__':`, unless `num_workers` is 1.

    Args:
        directory: root of the data set; made if missing.
        train_per_class: number of training videos of each class.
        test_per_class: number of test videos of each class.
        seed: of the whole set, >= 0; training and test videos have disjoint streams under each.
        num_workers: number of processes; 0 for one per core, 1 for this one alone.

    Raises:
        ValueError: other parameters wrote the directory, in part or in whole.
    """
    parameters = {'version': VERSION, 'seed': seed, 'train_per_class': train_per_class,
                  'test_per_class': test_per_class}
    done = os.path.join(directory, DONE)
    begun = done + '.part'  # Until all videos are there, lest a resumed set mix two seeds.
    for path in filter(os.path.exists, (done, begun)):
        with open(path, encoding='utf-8') as file:
            found = json.load(file)
        if found != parameters:
            raise ValueError(f'{path} has the parameters {found}, not {parameters}; '
                             'choose another directory or delete this one')
    if os.path.exists(done):
        return
    for split in SPLITS:
        for label in CLASSES:
            os.makedirs(os.path.join(directory, split, label), exist_ok=True)
    temporary = f'{done}.{os.getpid()}.tmp'
    with open(temporary, 'w', encoding='utf-8') as file:
        json.dump(parameters, file, indent=2)
    os.replace(temporary, begun)
    tasks = [(directory, split, label, index, seed)
             for split, count in zip(SPLITS, (train_per_class, test_per_class))
             for label in CLASSES for index in range(count)]
    num_workers = num_workers or os.cpu_count() or 1
    if num_workers == 1:
        for task in tasks:
            _write_video(*task)
    elif tasks:
        # Spawned, as forking is unsafe once the caller has threads (TensorFlow starts some).
        with concurrent.futures.ProcessPoolExecutor(
                num_workers, multiprocessing.get_context('spawn'),
                cv2.setNumThreads, (1,)) as executor:
            list(executor.map(_write_video, *zip(*tasks), chunksize=8))
    os.replace(begun, done)
