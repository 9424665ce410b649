# SPDX-License-Identifier: Apache-2.0
"""Small networks and encoded video for the tests of what is served; the encoders are not the project's."""

import io
import pathlib

import av
import cv2
import keras
import numpy as np
from PIL import Image

from c3d_tf import models
from c3d_tf.data import preprocess
from c3d_tf.weights import artefact

SIZE, CROP, LENGTH = (40, 48), 32, 8
NAMES = ('archery', 'bowling', 'cricket', 'diving', 'fencing')


def network(*, short='loop', stride=1, head='fc') -> artefact.Artefact:
    """A thin C3D whose probabilities lie well between 0 and 1, with a mean volume."""
    keras.utils.set_random_seed(1)
    model = models.build('c3d', num_classes=len(NAMES), clip_length=LENGTH, crop_size=CROP, width=0.03,
                         initializer='he', head=head)
    kernel, bias = model.get_layer('fc8').get_weights()
    model.get_layer('fc8').set_weights([kernel / 100, bias])
    mean = np.random.default_rng(0).random((LENGTH, *SIZE, 3), np.float32) * 200
    spec = preprocess.Preprocessing(SIZE, CROP, LENGTH, stride, mean, short)
    return artefact.Artefact(model, spec, NAMES, {'source_names': {'fc6': 'fc6-1'}})


def saved(path, **options) -> str:
    artefact.save(str(path), network(**options))
    return str(path)


def clip(frames: int, height=60, width=80, seed=0) -> np.ndarray:
    """uint8 [T, H, W, 3], no two frames alike, smooth enough for JPEG."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (frames, 4, 5, 3), np.uint8)
    return np.stack([cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC) for image in coarse])


def jpeg(image, *options) -> bytes:
    return cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95, *options])[1].tobytes()


def png(image) -> bytes:
    return cv2.imencode('.png', image[..., ::-1])[1].tobytes()


def decoded(encoded: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def gif(frames, **options) -> bytes:
    first, *others = (Image.fromarray(frame) for frame in frames)
    file = io.BytesIO()
    first.save(file, 'GIF', save_all=True, append_images=others, **options)
    return file.getvalue()


def gif_frames(encoded: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(encoded))
    return np.stack([np.asarray((image.seek(i), image.convert('RGB'))[1]) for i in range(image.n_frames)])


def avi(frames, *, audio=False, codec='mjpeg', **options) -> bytes:
    file = io.BytesIO()
    with av.open(file, 'w', format='avi', options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = 'yuvj420p' if codec == 'mjpeg' else 'yuv420p'
        sound = container.add_stream('pcm_s16le', rate=8000, layout='mono') if audio else None
        for number, frame in enumerate(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, 'rgb24')))
            if sound:
                block = av.AudioFrame.from_ndarray(np.zeros((1, 321), np.int16), 's16', 'mono')
                block.sample_rate, block.pts = 8000, 321 * number
                container.mux(sound.encode(block))
        container.mux(stream.encode())
    return file.getvalue()


def packets(encoded: bytes) -> list[bytes]:
    """The chunks of the video stream, as FFmpeg splits the file."""
    with av.open(io.BytesIO(encoded)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def size_of(folder) -> int:
    return sum(path.stat().st_size for path in pathlib.Path(folder).rglob('*') if path.is_file())
