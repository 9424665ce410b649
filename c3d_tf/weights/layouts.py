# SPDX-License-Identifier: Apache-2.0
"""Names, shapes and axes of the weight files in circulation → ours.

A target is our layer and its weight, e.g. 'conv1a.kernel' or 'bn_conv1.moving_mean'.
"""

import dataclasses
import re

import numpy as np

from c3d_tf.common import errors
from c3d_tf.weights import formats

CONVOLUTIONS = ('conv1a', 'conv2a', 'conv3a', 'conv3b', 'conv4a', 'conv4b', 'conv5a', 'conv5b')
C3D_LAYERS = (*CONVOLUTIONS, 'fc6', 'fc7', 'fc8')

_ALIASES = {
    **{name: name for name in C3D_LAYERS},
    'fc6-1': 'fc6', 'fc7-1': 'fc7', 'fc8-1': 'fc8',  # the Sports-1M file of the original
    'conv1': 'conv1a', 'conv2': 'conv2a',  # c3d-pytorch, c3d-keras
    'fc_cls': 'fc8',  # MMAction2
    # 3D-CNN of jfzhang95 and ViP; number 1, 4, 7 … are ReLUs and pools
    **{f'features.{i}': name for i, name in zip((0, 3, 6, 8, 11, 13, 16, 18), CONVOLUTIONS)},
    'classifier.0': 'fc6', 'classifier.3': 'fc7', 'classifier.6': 'fc8',
    # C3D-tensorflow
    **{f'c{name[4:]}': name for name in CONVOLUTIONS}, 'c1': 'conv1a', 'c2': 'conv2a',
    'd1': 'fc6', 'd2': 'fc7', 'out': 'fc8',
}
_WRAPPINGS = {'module', 'backbone', 'cls_head', 'model', 'net', 'conv', 'var_name', 'state_dict', ''}
_LAST = re.compile(r'(?:(.+)_)?(weights?|kernel|W|w|0|bias(?:es)?|b|1)')
_OPTIMISER = re.compile(r'(^|/)(Adam|Momentum|global_step|beta\d_power|learning_rate)|/Adam(_\d+)?$|'
                        r'/Momentum$|num_batches_tracked$|^optimizer')
# The cells of pool5 in the order of the file's flattening, channels first or last.
_POOL5 = 16  # 1 x 4 x 4


@dataclasses.dataclass(frozen=True)
class Known:
    """What a kind of file tells of itself; None where it does not.

    Attributes:
      kind: for a person.
      channel_order, pool5, flip_time: as the flags of import_weights.
      advice: what the authors of such files say, for whoever has to choose.
    """

    kind: str
    channel_order: str | None = None
    pool5: str | None = None
    flip_time: bool | None = None
    advice: str = ''


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which array of a file is which of our weights.

    Attributes:
      model: 'c3d' or 'res3d_18'.
      known: see there.
      names: target → name in the file.
      surplus: names that belong to nothing.
      left_out: names of an optimiser's state, which no network needs.
    """

    model: str
    known: Known
    names: dict[str, str]
    surplus: list[str]
    left_out: list[str]


def recognise(source: formats.Source) -> Layout:
    """Finds out whose layout the file has.

    Raises:
      errors.UsageError: two arrays are the same weight.
    """
    left_out = [name for name in source.arrays if _OPTIMISER.search(name)]
    rest = [name for name in source.arrays if name not in left_out]
    res3d = source.format == 'caffe_v1.1' and any(name.startswith('bn_conv1/') for name in rest)
    target = _res3d_target if res3d else _c3d_target
    names, surplus = {}, []
    for name in rest:
        ours = target(name)
        if ours is None:
            surplus.append(name)
        elif ours in names:
            raise errors.UsageError(f'both {names[ours]} and {name} of the file would be {ours}; '
                                    'remove one of them')
        else:
            names[ours] = name
    return Layout('res3d_18' if res3d else 'c3d', _known(source, rest, res3d), names, surplus, left_out)


def _c3d_target(name: str) -> str | None:
    parts = re.split(r'[/.]', re.sub(r':\d+$', '', name))
    last = parts.pop()
    if match := re.fullmatch(r'([wb])(c\d[ab]?|d\d|out)', last):  # C3D-tensorflow: wc1, bd2
        layer, part = match[2], match[1]
    elif match := _LAST.fullmatch(last):
        if match[1]:
            parts.append(match[1])
        # c3d-keras says a layer's name twice: conv1/conv1/kernel
        layer = '.'.join(dict.fromkeys(part for part in parts if part not in _WRAPPINGS))
        part = match[2]
    else:
        return None
    ours = _ALIASES.get(layer)
    return ours and f'{ours}.{"bias" if part[0] in "b1" else "kernel"}'


def _res3d_target(name: str) -> str | None:
    """Caffe's pair of BatchNorm and Scale is one layer of ours; see `res3d.build`."""
    layer, blob = name.rsplit('/', 1)
    if match := re.fullmatch(r'bn(_conv1|\d[ab]_branch\w+)', layer):
        parts = {'0': 'moving_mean', '1': 'moving_variance', '2': 'factor'}
    elif match := re.fullmatch(r'scale(_conv1|\d[ab]_branch\w+)', layer):
        parts, layer = {'0': 'gamma', '1': 'beta'}, f'bn{match[1]}'
    elif re.fullmatch(r'conv1|res\d[ab]_branch\w+', layer):
        parts, layer = {'0': 'kernel'}, f'{layer}_conv'
    elif re.fullmatch(r'fc8(-\w+)?', layer):
        parts, layer = {'0': 'kernel', '1': 'bias'}, 'fc8'
    else:
        return None
    return f'{layer}.{parts[blob]}' if blob in parts else None


def _known(source: formats.Source, names: list[str], res3d: bool) -> Known:
    if source.format.startswith('caffe') and res3d:
        return Known('C3D v1.1 of the original (Res3D-18)', 'bgr', 'aligned', False,
                     'It was trained with --mean=128.')
    if source.format.startswith('caffe'):
        return Known('C3D of the original', 'bgr', 'aligned', False,
                     'The Sports-1M network wants --mean=sport1m_train16_128_mean.binaryproto.')
    if any('.conv.weight' in name for name in names):
        return Known('MMAction2', flip_time=False, advice='Its own code has pool5 shifted and the mean '
                     '104,117,128; the weights came from Caffe, which has it aligned, and BGR.')
    if any('features.0.' in name for name in names):
        return Known('pytorch-video-recognition or ViP', advice='Its own code has pool5 shifted, BGR and '
                     'the mean 90,98,102; the weights came through Theano, which may have turned the kernels '
                     'round in time.')
    if any(re.search(r'(^|/)wc1$', name) for name in names):
        return Known('C3D-tensorflow', flip_time=False, advice='Its own code has pool5 aligned and feeds RGB '
                     'minus a BGR mean; sports1m_finetuning_ucf101.model needs --fc6_order=chw as well.')
    if source.format == 'keras_h5':
        return Known('c3d-keras or its kin', advice='The weights of c3d-keras came from Caffe: BGR, aligned. '
                     'Those made with Theano may have the kernels turned round in time.')
    if any(re.search(r'(^|\.)conv1\.weight$', name) for name in names):
        return Known('c3d-pytorch', advice='Its own code has pool5 shifted; the weights want BGR and came '
                     'through Theano, which may have turned the kernels round in time.')
    return Known('C3D by its layer names', flip_time=False,
                 advice='What was made from the original, as MMAction v1, has pool5 aligned and wants BGR.')


def kernel_axes(layout: Layout, arrays: dict[str, np.ndarray]) -> tuple[bool, bool]:
    """Returns whether (convolutions, fully connected layers) have their outputs on the first axis.

    That is (out, in, t, h, w) and (out, in), as Caffe and PyTorch; else (t, h, w, in, out) and
    (in, out), as TensorFlow. Keras with Theano mixed the two.
    """
    first = layout.names.get('conv1a.kernel') or layout.names.get('conv1_conv.kernel')
    shape = arrays[first].shape[-5:] if first else ()
    convolutions = not (shape[:4] in ((3, 3, 3, 3), (3, 7, 7, 3)) and shape[4] != 3)
    dense = convolutions
    if 'fc6.kernel' in layout.names:
        fc6 = arrays[layout.names['fc6.kernel']].shape[-2:]
        if fc6[0] != fc6[-1]:  # twice as many inputs as outputs, 8192 and 4096, at any width
            dense = fc6[0] < fc6[-1]
    return convolutions, dense


def convert(
    target: str,
    array: np.ndarray,
    *,
    conv_out_first: bool,
    dense_out_first: bool,
    fc6_order: str,
    bgr: bool,
    flip_time: bool,
) -> tuple[np.ndarray, str]:
    """Returns (the array with our axes, what was done to it in words). No value changes.

    Args:
      target: what the array is.
      array: as in the file; Caffe's leading axes of length one are dropped.
      conv_out_first, dense_out_first: see `kernel_axes`.
      fc6_order: 'chw' or 'hwc', how the file's network flattens pool5.
      bgr: the network expects BGR images; ours are RGB.
      flip_time: turn the convolutions round in time.
    """
    layer, part = target.rsplit('.', 1)
    done = []
    if part != 'kernel':
        return array.reshape(-1), ''
    if layer.startswith('fc'):
        array = array.reshape(array.shape[-2:])
        if dense_out_first:
            array, done = array.T, ['(1, 0)']
        if layer == 'fc6' and fc6_order == 'chw':
            cells = (-1, _POOL5, array.shape[1])
            array = array.reshape(cells).transpose(1, 0, 2).reshape(array.shape)
            done.append('inputs c,h,w → h,w,c')
        return array, ', '.join(done)
    if conv_out_first:
        array, done = array.transpose(2, 3, 4, 1, 0), ['(2, 3, 4, 1, 0)']
    if layer in ('conv1a', 'conv1_conv') and bgr:
        array = array[:, :, :, ::-1]
        done.append('BGR → RGB')
    if flip_time:
        array = array[::-1]
        done.append('time turned round')
    return array, ', '.join(done)
