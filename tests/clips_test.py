# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from c3d_tf.data import clips


def _choose(frames, videos, **options):
    options = {'clip_length': 16, 'rng': np.random.default_rng(0), **options}
    record, start = clips.choose(np.array(frames), np.array(videos), **options)
    return list(zip(record.tolist(), start.tolist()))


@pytest.mark.parametrize(('frames', 'options', 'expected'), [
    ([16], {'choice': 'all'}, [(0, 0)]),
    ([47], {'choice': 'all'}, [(0, 0), (0, 16)]),  # the tail of 15 frames is dropped
    ([48], {'choice': 'all'}, [(0, 0), (0, 16), (0, 32)]),
    ([32], {'choice': 'all', 'step': 8}, [(0, 0), (0, 8), (0, 16)]),
    ([7], {'choice': 'all'}, [(0, 0)]),  # shorter than a clip: one, that starts over
    ([31], {'choice': 'uniform', 'count': 1}, [(0, 8)]),  # 16 possible starts, 0 … 15
    ([31], {'choice': 'uniform', 'count': 2}, [(0, 4), (0, 12)]),
    ([16], {'choice': 'uniform', 'count': 3}, [(0, 0), (0, 0), (0, 0)]),
    ([61], {'choice': 'all', 'stride': 2}, [(0, 0), (0, 16)]),  # 31 frames a clip: starts 0 … 30
], ids=str)
def test_choices_of_one_record(frames, options, expected):
    assert _choose(frames, [0], **options) == expected


def test_a_video_of_two_records_shares_its_clips():
    # 16 + 16 possible starts: the middles of four quarters are 4 and 12 of each record.
    assert _choose([31, 31, 16], [0, 0, 1], choice='uniform', count=4) == [
        (0, 4), (0, 12), (1, 4), (1, 12), (2, 0), (2, 0), (2, 0), (2, 0)]


def test_random_starts_reach_every_place_and_no_other():
    chosen = _choose([20], [0], choice='random', count=1000)
    assert {start for _, start in chosen} == {0, 1, 2, 3, 4}


def test_random_counts_every_video():
    record, _ = clips.choose(np.array([400, 16, 20, 20]), np.array([0, 1, 2, 2]), choice='random',
                             count=10, clip_length=16, rng=np.random.default_rng(3))
    assert np.bincount(np.array([0, 1, 2, 2])[record]).tolist() == [10, 10, 10]
    assert (np.diff(record) >= 0).all()


@pytest.mark.parametrize(('start', 'frames', 'stride', 'expected'), [
    (3, 100, 1, [3, 4, 5, 6]),
    (3, 100, 2, [3, 5, 7, 9]),
    (0, 3, 1, [0, 1, 2, 0]),
    (0, 1, 1, [0, 0, 0, 0]),
])
def test_indices(start, frames, stride, expected):
    assert clips.indices(start, frames, clip_length=4, stride=stride).tolist() == expected


def _plan(**options):
    options = {'choice': 'random', 'clip_length': 16, 'frame_size': (128, 171), 'crop_size': 112,
               **options}
    return clips.plan(np.full(4000, 50), np.arange(4000), **options)


def test_the_test_crop_is_the_originals():
    plan = _plan()
    assert set(plan.top) == {8} and set(plan.left) == {29} and not plan.flip.any()


def test_random_crops_reach_the_last_offset():
    plan = _plan(crops='random', flip=True)
    assert (plan.top.min(), plan.top.max()) == (0, 16)
    assert (plan.left.min(), plan.left.max()) == (0, 59)
    assert 0.45 < plan.flip.mean() < 0.55


def test_a_plan_is_a_function_of_seed_and_epoch():
    first, again = _plan(crops='random', epoch=3), _plan(crops='random', epoch=3)
    other = _plan(crops='random', epoch=4)
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert (first.start != other.start).mean() > 0.9


def test_short_videos_loop_hold_their_last_frame_or_are_dropped():
    assert clips.indices(0, 3, clip_length=5, stride=1, short='loop').tolist() == [0, 1, 2, 0, 1]
    assert clips.indices(0, 3, clip_length=5, stride=1, short='repeat_last').tolist() == [0, 1, 2, 2, 2]
    for choice in clips.CHOICES:
        chosen = _choose([7, 16, 15], [0, 1, 2], choice=choice, count=1, short='drop')
        assert chosen == [(1, 0)], choice


def test_strides_are_drawn_as_far_as_the_video_is_long_enough():
    frames = np.array([16] * 500 + [46] * 500 + [200] * 500)
    plan = clips.plan(frames, np.arange(1500), choice='random', clip_length=16, max_stride=4,
                      frame_size=(24, 32), crop_size=20)
    last = plan.start + 15 * plan.stride
    assert (plan.start >= 0).all() and (last < frames).all()
    assert [set(plan.stride[i:i + 500].tolist()) for i in (0, 500, 1000)] == [{1}, {1, 2, 3}, {1, 2, 3, 4}]


@pytest.mark.parametrize(('crops', 'size', 'expected'), [
    ('three', (128, 171), [(8, 0, False), (8, 29, False), (8, 59, False)]),
    ('three', (171, 128), [(0, 8, False), (29, 8, False), (59, 8, False)]),
    ('ten', (128, 171), [(t, l, m) for m in (False, True)
                         for t, l in ((0, 0), (0, 59), (16, 0), (16, 59), (8, 29))]),
])
def test_views_of_a_clip(crops, size, expected):
    plan = clips.plan(np.array([16, 40]), np.arange(2), choice='all', clip_length=16, frame_size=size,
                      crop_size=112, crops=crops)
    assert plan.splits.tolist() == [0, len(expected), 3 * len(expected)]
    views = list(zip(plan.top.tolist(), plan.left.tolist(), plan.flip.tolist()))
    assert views == expected * 3
    assert plan.start.tolist() == [0] * 2 * len(expected) + [16] * len(expected)


def test_scale_jitter_cuts_squares_inside_the_frame():
    plan = _plan(crops='random', min_scale=0.5)
    assert (plan.side.min(), plan.side.max()) == (64, 128)
    assert (plan.top + plan.side <= 128).all() and (plan.left + plan.side <= 171).all()
    assert plan.left.max() > 90


def test_randaugment_draws_kind_and_sign_and_nothing_else_changes():
    plain = _plan(crops='random', flip=True, colour=0.2, epoch=3)
    assert plain.transforms.shape == plain.strengths.shape == (4000, 0)
    options = {'crops': 'random', 'flip': True, 'colour': 0.2, 'rand_augment': 2, 'rand_magnitude': 7.0}
    plan, again, other = (_plan(**options, epoch=epoch) for epoch in (3, 3, 4))
    for name, column in plain._asdict().items():
        if name not in ('transforms', 'strengths'):
            assert np.array_equal(column, getattr(plan, name)), name
    assert set(np.unique(plan.transforms)) == set(range(len(clips.TRANSFORMS)))
    assert set(np.unique(plan.strengths)) == {np.float32(-0.7), np.float32(0.7)}
    assert np.bincount(plan.transforms.ravel()).min() > 8000 / len(clips.TRANSFORMS) * 0.8
    assert np.array_equal(plan.transforms, again.transforms) and np.array_equal(plan.strengths, again.strengths)
    assert (plan.transforms != other.transforms).mean() > 0.8


def test_colour_is_one_factor_a_clip():
    assert (_plan().colour == 1).all()
    plan = _plan(colour=0.2)
    assert plan.colour.min() >= 0.8 and plan.colour.max() <= 1.2 and plan.colour.std() > 0.1
