# SPDX-License-Identifier: Apache-2.0
"""Which layers compute in which number format."""

PRECISIONS = ('float32', 'bfloat16', 'float16')


def policy(precision: str) -> str:
    """Returns the Keras dtype policy: weights are float32 in all of them."""
    return 'float32' if precision == 'float32' else f'mixed_{precision}'


def for_convolution(precision: str, *, time: int, depth: int) -> str:
    """Returns the policy of a convolution whose input has `time` frames and kernel `depth`.

    float32 where 1 < time < depth: there oneDNN's bfloat16 filter gradient is garbage (measured on
    TensorFlow 2.21; NaN, or last layers that never learn). 3.6 % of C3D's arithmetic.
    """
    return 'float32' if 1 < time < depth else policy(precision)
