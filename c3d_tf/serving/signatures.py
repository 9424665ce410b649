# SPDX-License-Identifier: Apache-2.0
"""The graph that a server runs: from pixels or encoded video to labels, each signature a function.

The network sees a few clips at a time, and frames are decoded for these alone: the memory of a request
does not grow with its clips. Core operations only, no XLA.
"""

import keras
import tensorflow as tf

from c3d_tf.common import errors
from c3d_tf.data import clips
from c3d_tf.data import preprocess
from c3d_tf.serving import containers
from c3d_tf.serving import images
from c3d_tf.weights import artefact

CLIPS_AT_ONCE = 8  # full-width C3D takes some 100 MB of activations for each
PROBABILITIES = 'probabilities'


class Serving(tf.Module):
    """The signatures of one network.

    Args:
      net: the network with its preprocessing and labels.
      top_k: how many labels are named; at most the number of classes.
      max_clips: clips of one example that are scored.
      layers: whose values every signature gives; see `choose_layers`.
    """

    def __init__(self, net: artefact.Artefact, *, top_k: int, max_clips: int, layers: tuple[str, ...]):
        super().__init__()
        self._net, self._top_k, self._max_clips, self._layers = net, top_k, max_clips, layers
        self._described = layers or (_descriptor(net.model),)
        # Whatever is not fetched is not computed: `features` without --layers stops at fc6.
        self._model = keras.Model(net.model.input, {
            PROBABILITIES: net.model.output,
            **{name: net.model.get_layer(name).output for name in self._described}})
        self._labels = tf.constant(net.class_names)
        # The variables alone: Keras' own objects would bring functions that nobody calls.
        self.weights = [variable.value for variable in net.model.weights]  # no seeds: they differ each time

    def signatures(self) -> dict:
        """Returns the concrete functions by name; the inputs' shapes and types are in the spec of each."""
        spec = self._net.preprocessing
        video = tf.TensorSpec([None, None, None, None, 3], tf.uint8, name='clips')
        crops = tf.TensorSpec([None, spec.clip_length, spec.crop_size, spec.crop_size, 3], tf.float32,
                              name='clips')
        return {name: tf.function(function, autograph=False).get_concrete_function(given)
                for name, function, given in (
                    ('serving_default', self._serving_default, video),
                    ('frames', self._frames, tf.TensorSpec([None, None], tf.string, name='frames')),
                    ('gif', self._gif, tf.TensorSpec([None], tf.string, name='gifs')),
                    ('mjpeg', self._mjpeg, tf.TensorSpec([None], tf.string, name='videos')),
                    ('float_clips', self._float_clips, crops),
                    ('features', self._features, video))}

    def _serving_default(self, clips):
        return self._outputs(self._of_uint8(clips, (PROBABILITIES, *self._layers)))

    def _features(self, clips):
        values = self._of_uint8(clips, self._described)
        return {name: tf.math.l2_normalize(value, axis=-1) for name, value in values.items()}

    def _frames(self, frames):
        frames = _shaped(frames, 'frames', 'N', 'T')
        count, length = tf.unstack(tf.shape(frames))
        return self._outputs(self._of_encoded(tf.reshape(frames, [-1]), tf.fill([count], length)))

    def _mjpeg(self, videos):
        frames, lengths = _each(_shaped(videos, 'videos', 'N'), tf.TensorSpec([None], tf.string), lambda video, name:
                                containers.avi_frames(video, name, self._wanted))
        return self._outputs(self._of_encoded(frames, lengths))

    def _gif(self, gifs):
        size = self._net.preprocessing.frame_size
        frames, lengths = _each(_shaped(gifs, 'gifs', 'N'), tf.TensorSpec([None, *size, 3], tf.uint8), lambda gif, name:
                                containers.gif_frames(gif, name, self._wanted, size))
        return self._outputs(self._of_frames(frames, lengths, (PROBABILITIES, *self._layers)))

    def _float_clips(self, clips):
        clips = _shaped(clips, 'clips', 'N', *self._model.input_shape[1:])
        examples = tf.range(tf.shape(clips)[0])
        return self._outputs(self._means(lambda chunk: tf.gather(clips, chunk), examples, examples,
                                         (PROBABILITIES, *self._layers)))

    @property
    def _wanted(self) -> int:
        """The most frames of an example that are looked at."""
        spec = self._net.preprocessing
        return self._max_clips * clips.extent(spec.clip_length, spec.stride)

    def _of_uint8(self, clips, outputs):
        clips = _shaped(clips, 'clips', 'N', 'T', 'H', 'W', 3)
        count, length, height, width, _ = tf.unstack(tf.shape(clips))
        return self._of_frames(tf.reshape(clips, [-1, height, width, 3]), tf.fill([count], length), outputs)

    def _of_frames(self, frames, lengths, outputs):
        """Returns the means over each example's clips; its frames stand one behind another."""
        table, examples = clip_table(lengths, self._net.preprocessing, self._max_clips)
        return self._means(lambda rows: self._prepared(tf.gather(frames, rows)), table, examples, outputs)

    def _of_encoded(self, frames, lengths):
        spec = self._net.preprocessing
        table, examples = clip_table(lengths, spec, self._max_clips)
        table = _bounded(frames, lengths, table)

        def decoded(rows):
            used, place = tf.unique(tf.reshape(rows, [-1]))  # a short clip has its frames several times
            few = images.decode(tf.gather(frames, used), spec.frame_size)
            return self._prepared(tf.gather(few, tf.reshape(place, tf.shape(rows))))

        return self._means(decoded, table, examples, (PROBABILITIES, *self._layers))

    def _prepared(self, frames):
        return preprocess.for_inference(frames, self._net.preprocessing)

    def _means(self, inputs, table, examples, outputs):
        """Runs the network on all clips, a few at a time; returns {output: float32 [N, D]}.

        Args:
          inputs: from rows of the table to what the network sees.
          table: [M, …], a row for each clip.
          examples: int32 [M], rising; the example of each clip.
          outputs: names of layers, and PROBABILITIES.
        """
        total = tf.shape(table)[0]
        widths = {name: _width(self._model.output[name]) for name in outputs}
        arrays = {name: tf.TensorArray(tf.float32, size=0, dynamic_size=True, infer_shape=False,
                                       element_shape=[None, width]) for name, width in widths.items()}

        def step(chunk, arrays):
            first = chunk * CLIPS_AT_ONCE
            values = self._network(inputs(table[first:first + CLIPS_AT_ONCE]), outputs)
            return chunk + 1, {name: arrays[name].write(chunk, values[name]) for name in outputs}

        _, arrays = tf.while_loop(lambda chunk, _: chunk * CLIPS_AT_ONCE < total, step,
                                  (tf.constant(0), arrays), parallel_iterations=1)
        return {name: tf.math.segment_mean(tf.ensure_shape(array.concat(), [None, widths[name]]), examples)
                for name, array in arrays.items()}

    def _network(self, batch, outputs):
        values = self._model(batch, training=False)
        found = {}
        for name in outputs:
            value = tf.cast(values[name], tf.float32)
            if value.shape.rank == 5:  # channels first, as in the original's files and our features
                value = tf.transpose(value, (0, 4, 1, 2, 3))
            found[name] = tf.reshape(value, [-1, _width(self._model.output[name])])
        if PROBABILITIES in found:
            found[PROBABILITIES] = tf.nn.softmax(found[PROBABILITIES])
        return found

    def _outputs(self, values):
        scores, indices = tf.math.top_k(values[PROBABILITIES], self._top_k)
        return {**values, 'top_k_labels': tf.gather(self._labels, indices), 'top_k_scores': scores}


def choose_layers(net: artefact.Artefact, layers: tuple[str, ...]) -> tuple[str, ...]:
    """Returns our names of the layers, each once; `prob` is left out, as it is given anyway.

    Args:
      net: the network.
      layers: names, ours or those of the file that the weights were imported from.

    Raises:
      errors.UsageError: the network has no such layer.
    """
    ours = {theirs: name for name, theirs in net.provenance.get('source_names', {}).items()}
    known = [layer.name for layer in net.model.layers
             if not isinstance(layer, (keras.layers.InputLayer, keras.layers.Dropout))]
    chosen = [ours.get(name, name) for name in layers if name != 'prob']
    for name in chosen:
        if name not in known:
            raise errors.UsageError(f'--layers={name}: no such layer; the network has {", ".join(known)}')
    return tuple(dict.fromkeys(chosen))


def clip_table(lengths: tf.Tensor, spec: preprocess.Preprocessing, max_clips: int
               ) -> tuple[tf.Tensor, tf.Tensor]:
    """Cuts examples, whose frames stand one behind another, into clips.

    Clips follow one another at the extent of a clip, a tail is dropped; an example shorter than a clip
    gives one, by the policy that evaluation has for such videos.

    Args:
      lengths: int32 [N], the frames of each example, 1 or more.
      spec: clip length, stride, and what becomes of short examples.
      max_clips: of an example; what lies behind them is not used.

    Returns:
      (int32 [M, clip_length], the frames of each clip among all frames; int32 [M], its example).
    """
    extent = clips.extent(spec.clip_length, spec.stride)
    counts = tf.clip_by_value(lengths // extent, 1, max_clips)
    examples = tf.repeat(tf.range(tf.size(lengths)), counts)
    number = tf.range(tf.size(examples)) - tf.gather(tf.cumsum(counts, exclusive=True), examples)
    start, length = (tf.cast(value, tf.int64)[:, None]
                     for value in (number * extent, tf.gather(lengths, examples)))
    # 'drop' is for training; evaluation leaves no video out, and so do we.
    chosen = clips.indices(start, length, clip_length=spec.clip_length, stride=spec.stride,
                           short='loop' if spec.short == 'drop' else spec.short, minimum=tf.minimum)
    before = tf.gather(tf.cumsum(lengths, exclusive=True), examples)
    return before[:, None] + tf.cast(chosen, tf.int32), examples


def _shaped(value, name: str, *sides):
    """Returns an input when its shape is known to be right: a server holds no request to its signature's.

    The shape is compared as text, since a graph optimiser takes a declared shape for granted.

    Args:
      value: the input.
      name: of the input.
      sides: a number, or a letter for any: 'N' may be 0, others are at least 1.
    """
    text = tf.strings.reduce_join(tf.strings.as_string(tf.shape(value)), separator=', ')
    pattern = ', '.join({'N': r'\d+'}.get(side, r'[1-9]\d*') if isinstance(side, str) else str(side)
                        for side in sides)
    with images.require(tf.strings.regex_full_match(text, pattern), f'{name} has the shape [', text,
                        f'], expected [{", ".join(map(str, sides))}]'):
        return tf.identity(value)


def _bounded(frames, lengths, table):
    """Returns the table, when the images that it uses are known to be sound and not too large."""
    used, _ = tf.unique(tf.reshape(table, [-1]))
    ends = tf.cumsum(lengths)
    example = tf.searchsorted(ends, used, side='right')
    number = used - tf.gather(ends - lengths, example)
    names = tf.strings.join(['frame ', tf.strings.as_string(number), ' of example ',
                             tf.strings.as_string(example)])
    sizes = images.sizes(tf.gather(frames, used), names)
    pixels = tf.math.segment_sum(tf.reduce_prod(sizes, axis=1), example)
    names = tf.strings.join(['example ', tf.strings.as_string(tf.range(tf.size(pixels)))])
    with images.require(pixels <= images.MAX_EXAMPLE_PIXELS, names, ' is too large: ',
                        tf.strings.as_string(pixels), ' pixels in its frames together, at most '
                        f'{images.MAX_EXAMPLE_PIXELS} are decoded'):
        return tf.identity(table)


def _each(encoded, spec, function):
    """Applies a function to one string after another.

    Args:
      encoded: string [N].
      spec: of what the function returns; its first axis is that of the frames.
      function: (string [], name) → frames.

    Returns:
      (all frames one behind another, int32 [N], how many each gave).
    """
    total = tf.size(encoded)
    frames = tf.TensorArray(spec.dtype, size=total, infer_shape=False, element_shape=spec.shape)
    lengths = tf.TensorArray(tf.int32, size=total, element_shape=[])

    def step(i, frames, lengths):
        found = function(encoded[i], tf.strings.join(['example ', tf.strings.as_string(i)]))
        return i + 1, frames.write(i, found), lengths.write(i, tf.shape(found)[0])

    _, frames, lengths = tf.while_loop(lambda i, *_: i < total, step, (tf.constant(0), frames, lengths),
                                       parallel_iterations=2)
    return tf.ensure_shape(frames.concat(), spec.shape), lengths.stack()


def _descriptor(model: keras.Model) -> str:
    """Returns fc6, or the layer whose values the last layer turns into logits."""
    names = [layer.name for layer in model.layers if not isinstance(layer, keras.layers.Dropout)]
    return 'fc6' if 'fc6' in names else names[-2]


def _width(output) -> int:
    """Returns the values of one clip."""
    width = 1
    for side in output.shape[1:]:
        width *= side
    return width
