# SPDX-License-Identifier: Apache-2.0
import pytest

from c3d_tf.training import schedules


@pytest.mark.parametrize(('options', 'expected'), [
    ({'name': 'constant'}, [1, 1, 1, 1, 1, 1]),
    ({'name': 'step', 'decay_steps': 2, 'decay_rate': 0.5}, [1, 1, 0.5, 0.5, 0.25, 0.25]),
    ({'name': 'cosine'}, [1, 0.933, 0.75, 0.5, 0.25, 0.067]),
    ({'name': 'constant', 'warmup_steps': 4}, [0.25, 0.5, 0.75, 1, 1, 1]),
])
def test_schedules(options, expected):
    rate = schedules.make(learning_rate=1.0, total=6, **options)
    assert [round(rate(step), 3) for step in range(6)] == expected
