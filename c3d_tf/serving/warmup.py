# SPDX-License-Identifier: Apache-2.0
"""Requests to a signature: those that a server replays before its first client, and those we time.

Source of the format: TensorFlow Serving's "SavedModel Warmup": a TFRecord file of PredictionLog.
"""

import io
import os

import av
import cv2
import numpy as np
from PIL import Image
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import prediction_log_pb2

from c3d_tf.common import errors
from c3d_tf.common import storage
from c3d_tf.data import clips
from c3d_tf.data import preprocess

FILE = os.path.join('assets.extra', 'tf_serving_warmup_requests')
BATCH_SIZES = (1, 2, 4, 8)  # allowed_batch_sizes of export/batching.config
SIZE = (16, 24)             # of the frames: small, since the network sees them resized


def write(directory: str, model: str, signatures: list[str], spec: preprocess.Preprocessing) -> None:
    """Writes a request for each signature and allowed batch size into a SavedModel's folder.

    Args:
      directory: of the SavedModel.
      model: the name that it is served under.
      signatures: their names.
      spec: the clips of the network.
    """
    path = os.path.join(directory, FILE)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tf.io.TFRecordWriter(path) as writer:
        for signature in signatures:
            for count in BATCH_SIZES:
                request = predict_pb2.PredictRequest()
                request.model_spec.name, request.model_spec.signature_name = model, signature
                name, value = sample(signature, count, spec, SIZE)
                request.inputs[name].CopyFrom(_small(value))
                log = prediction_log_pb2.PredictionLog(
                    predict_log=prediction_log_pb2.PredictLog(request=request))
                writer.write(log.SerializeToString())


def read(directory: str) -> list[tuple[str, dict[str, np.ndarray]]]:
    """Returns (signature, inputs) of each warm-up request of a SavedModel; none where there is no file.

    Raises:
      errors.RunError: the file is damaged, or a record is no PredictionLog with a PredictRequest.
    """
    path = os.path.join(directory, FILE)
    found = []
    try:
        for record in tf.data.TFRecordDataset(path).as_numpy_iterator() if storage.exists(path) else ():
            request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
            if not request.inputs:
                raise ValueError(f'record {len(found)} holds no PredictRequest')
            found.append((request.model_spec.signature_name or 'serving_default',
                          {name: tf.make_ndarray(value) for name, value in request.inputs.items()}))
    except Exception as error:  # of TensorFlow, protobuf or numpy
        raise errors.RunError(f'{path}: a server cannot replay this ({error}); export again') from error
    return found


def sample(signature: str, count: int, spec: preprocess.Preprocessing, size: tuple[int, int]
           ) -> tuple[str, np.ndarray]:
    """Returns a request of one clip an example: (input's name, value).

    Args:
      signature: one of `signatures.Serving`.
      count: examples.
      spec: the clips of the network.
      size: height and width of the frames; every clip is alike, blurred noise that changes with each frame.
    """
    if signature == 'float_clips':
        return 'clips', np.zeros((count, spec.clip_length, spec.crop_size, spec.crop_size, 3), np.float32)
    frames = _noise(clips.extent(spec.clip_length, spec.stride), size)
    name, one = {
        'frames': lambda: ('frames', [_jpeg(frame) for frame in frames]),
        'gif': lambda: ('gifs', _gif(frames)),
        'mjpeg': lambda: ('videos', _avi(frames)),
    }.get(signature, lambda: ('clips', frames))()
    return name, np.array([one] * count, np.uint8 if one is frames else object)


def _noise(count: int, size: tuple[int, int]) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (count, size[0] // 8, size[1] // 8, 3), np.uint8)
    return np.stack([cv2.resize(frame, size[::-1], interpolation=cv2.INTER_CUBIC) for frame in coarse])


def _jpeg(frame: np.ndarray) -> bytes:
    return cv2.imencode('.jpg', frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def _gif(frames: np.ndarray) -> bytes:
    first, *others = (Image.fromarray(frame) for frame in frames)
    file = io.BytesIO()
    first.save(file, 'GIF', save_all=True, append_images=others)
    return file.getvalue()


def _avi(frames: np.ndarray) -> bytes:
    file = io.BytesIO()
    with av.open(file, 'w', format='avi') as container:
        stream = container.add_stream('mjpeg', rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = 'yuvj420p'
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, 'rgb24')))
        container.mux(stream.encode())
    return file.getvalue()


def _small(value: np.ndarray):
    """Returns the TensorProto; zeros are stated once, as TensorFlow's format allows."""
    proto = tf.make_tensor_proto(value)
    if value.dtype == np.float32 and not value.any():
        proto.ClearField('tensor_content')
        proto.float_val.append(0.0)
    return proto
