# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import tensorflow as tf

from c3d_tf import prepare
from c3d_tf.common import errors
from c3d_tf.data import datasets
from c3d_tf.data import pipeline
from c3d_tf.data import preprocess
from c3d_tf.data import records
from tests import conftest


@pytest.fixture(scope='module')
def index(tmp_path_factory):
    """Eleven training videos in three shards; video v has 20 + v frames, frame t is grey 4·t."""
    root = tmp_path_factory.mktemp('pipeline')
    for v in range(11):
        conftest.counting_video(root / f'v/train/{"ab"[v % 2]}/{v:02d}.avi', 20 + v)
    conftest.counting_video(root / 'v/test/a/long.avi', 60)
    conftest.counting_video(root / 'v/test/b/short.avi', 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, 'VIDEOS_PER_SHARD', 4)
        prepare.prepare(datasets.load('folder', videos=str(root / 'v')), str(root / 'r'),
                        frame_size=(24, 32), max_frames=32, frame_format='png')
    return records.read_index(str(root / 'r'))


def _spec(mean=0.0, **options):
    return preprocess.Preprocessing(**{'frame_size': (24, 32), 'crop_size': 20, 'clip_length': 16,
                                       'stride': 1, 'mean': np.asarray(mean, np.float32), **options})


def _frames(clip):
    """Reads the frame numbers back from the pixels."""
    return np.round(clip.mean(axis=(1, 2, 3)) / 4).astype(int).tolist()


def test_an_epoch_has_every_record_once_and_the_last_batch_is_smaller(index):
    split = index.split('train')
    batches = list(pipeline.for_training(split, _spec(), batch_size=4, epoch=0).as_numpy_iterator())
    assert [len(batch[1]) for batch in batches] == [4, 4, 3]
    assert sorted(np.concatenate([batch[2] for batch in batches])) == list(range(11))
    for clips, labels, record in batches:
        for clip, label, number in zip(clips, labels, record):
            shown = _frames(clip)
            assert shown == list(range(shown[0], shown[0] + 16)) and shown[-1] < split.frames[number]
            assert label == index.split('train').frames[number] % 2  # 20 + v frames, class v mod 2


def test_epochs_differ_and_one_can_be_entered_in_the_middle(index):
    def epoch(number, skip=0):
        return list(pipeline.for_training(index.split('train'), _spec(), batch_size=4, epoch=number,
                                          skip=skip, seed=7).as_numpy_iterator())

    first, again, other = epoch(1), epoch(1), epoch(2)
    assert all(np.array_equal(x, y) for a, b in zip(first, again) for x, y in zip(a, b))
    assert not all(np.array_equal(a[2], b[2]) for a, b in zip(first, other))
    rest = epoch(1, skip=2)
    assert len(rest) == 1 and all(np.array_equal(x, y) for x, y in zip(first[2], rest[0]))


def test_evaluation_gives_the_chosen_clips_in_order(index):
    split = index.split('test')  # the long video is 32 + 36 frames, the short one 5
    batches = pipeline.for_evaluation(split, _spec(), batch_size=3, choice='all', count=0)
    rows = [(int(r), _frames(c)[0]) for clips, rs in batches.as_numpy_iterator() for c, r in zip(clips, rs)]
    assert rows == [(0, 0), (0, 16), (1, 24), (1, 40), (2, 0)]
    short = list(batches.as_numpy_iterator())[-1][0][-1]
    assert _frames(short) == [0, 1, 2, 3, 4] * 3 + [0]
    assert pipeline.read_labels(split) == (['test/a/long.avi', 'test/b/short.avi'], [[0], [1]])


@pytest.mark.parametrize('flip', [False, True])
def test_the_mean_is_taken_at_the_crops_own_place_and_never_mirrored(flip):
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (16, 24, 32, 3), np.uint8)
    mean = rng.normal(100, 20, (16, 24, 32, 3)).astype(np.float32)
    out = preprocess.crop(clip, 3, 7, 20, np.bool_(flip), tf.ones(3), _spec(mean)).numpy()
    expected = (clip.astype(np.float32) - mean)[:, 3:23, 7:27]
    np.testing.assert_array_equal(out, expected[:, :, ::-1] if flip else expected)


def test_a_larger_square_is_resized_after_its_mean_is_gone():
    mean = np.broadcast_to(np.arange(32, dtype=np.float32)[:, None], (16, 24, 32, 3))
    clip = np.full((16, 24, 32, 3), 100, np.uint8)
    out = preprocess.crop(clip, 0, 4, 10, np.bool_(False), tf.ones(3), _spec(mean)).numpy()
    assert out.shape == (16, 20, 20, 3)
    # Columns 4 … 13 stretched to 20: 100 - 4 at the left edge, 100 - 13 at the right.
    assert out[..., 0, :].max() == 96 and out[..., -1, :].min() == 87


def test_what_moves_is_left_at_one_strength():
    rng = np.random.default_rng(0)
    still = np.repeat(rng.integers(0, 200, (1, 24, 32, 3)), 16, axis=0)
    moving = still.copy()
    moving[:, 4:16, 10:20] += rng.integers(0, 50, (16, 12, 10, 3))
    spec, seen = _spec(rng.normal(100, 20, (1, 1, 1, 3)) + np.zeros((16, 24, 32, 3)), motion=True), []
    for clip in (still, moving, moving + 5):  # a light that is lit all the time is none of it
        cut = clip[:, 2:22, 6:26].astype(float)
        expected = cut - cut.mean(axis=0)
        expected *= 50 / (1 + expected.std())
        seen.append(preprocess.crop(clip.astype(np.uint8), 2, 6, 20, np.bool_(False), tf.ones(3), spec).numpy())
        np.testing.assert_allclose(seen[-1], expected, atol=2e-4)
        whole = preprocess.for_inference(tf.constant(clip[None].astype(np.uint8)), spec)
        np.testing.assert_allclose(whole[0], expected, atol=2e-4)
    assert np.abs(seen[0]).max() < 0.01 and seen[1].std() > 40
    assert (spec.shown(seen[0]) == 128).all()


def test_colour_factors():
    clip = np.zeros((16, 24, 32, 3), np.uint8) + np.array([40, 80, 120], np.uint8)
    def colour(*factors):
        return preprocess.crop(clip, 0, 0, 20, np.bool_(False), tf.constant(factors), _spec()).numpy()[0, 0, 0]
    np.testing.assert_allclose(colour(1.5, 1., 1.), [60, 120, 180])
    np.testing.assert_allclose(colour(1., .5, 1.), [60, 80, 100])
    np.testing.assert_allclose(colour(1., 1., 0.), [80, 80, 80], rtol=1e-6)
    np.testing.assert_allclose(colour(3., 1., 1.), [120, 240, 255])


def test_an_epoch_of_all_clips(index):
    spec = _spec(clip_length=8)
    split = index.split('train')  # 20 … 30 frames: two or three clips of 8 each
    batches = list(pipeline.for_training(split, spec, batch_size=4, epoch=0, choice='all').as_numpy_iterator())
    found = sorted((int(r), _frames(c)[0]) for clips, _, rs in batches for c, r in zip(clips, rs))
    assert found == [(r, start) for r, n in enumerate(split.frames) for start in range(0, n - 7, 8)]
    per_record = pipeline.training_clips(split, spec, 'all')
    assert per_record.tolist() == np.bincount([r for r, _ in found]).tolist()


def test_videos_that_are_too_short_can_be_left_out(index):
    spec = _spec(short='drop', clip_length=24, stride=1, mean=np.zeros(3))
    split = index.split('train')  # 20 … 30 frames: seven of eleven are long enough
    batches = list(pipeline.for_training(split, spec, batch_size=4, epoch=0).as_numpy_iterator())
    assert pipeline.training_clips(split, spec, 'random').tolist() == (split.frames >= 24).tolist()
    expected = np.flatnonzero(split.frames >= 24)
    assert sorted(np.concatenate([batch[2] for batch in batches])) == expected.tolist()


def test_no_video_is_left_out_of_an_evaluation(index):
    split = index.split('test')  # 32 + 36 frames, and 5
    batches = pipeline.for_evaluation(split, _spec(short='drop'), batch_size=3, choice='uniform', count=2)
    found = [(int(split.videos[r]), _frames(c)) for clips, rs in batches.as_numpy_iterator()
             for c, r in zip(clips, rs)]
    assert [video for video, _ in found] == [0, 0, 1, 1]
    assert found[-1][1] == [0, 1, 2, 3, 4] * 3 + [0]


def test_randaugment_is_the_same_in_a_pass_again_and_other_in_the_next(index):
    def epoch(number, **options):
        batches = pipeline.for_training(index.split('train'), _spec(100.0), batch_size=11, epoch=number, seed=7,
                                        **options)
        return next(batches.as_numpy_iterator())[0]

    options = {'rand_augment': 2, 'rand_magnitude': 9.0}
    first = epoch(1, **options)
    np.testing.assert_array_equal(first, epoch(1, **options))
    assert first.min() >= -100 and first.max() <= 155  # the mean is subtracted last
    plain = epoch(1)
    changed = [not np.array_equal(a, b) for a, b in zip(first, plain)]
    assert 5 < sum(changed)
    np.testing.assert_allclose(epoch(1, rand_augment=2, rand_magnitude=0.0), plain, atol=1e-3)


@pytest.mark.parametrize('motion', [False, True])
def test_inference_equals_evaluations_centre_crop(index, motion):
    spec = _spec(index.mean(), motion=motion)
    batch, _ = next(pipeline.for_evaluation(index.split('test'), spec, batch_size=2, choice='all',
                                            count=0).as_numpy_iterator())
    stored = np.stack(list(pipeline.read_clips(
        index.split('test'), np.array([0, 0]), np.array([0, 16]), clip_length=16).as_numpy_iterator()))
    ours = preprocess.for_inference(tf.constant(stored), spec).numpy()
    # Sums over a clip and over a batch of them are rounded each in its way.
    np.testing.assert_allclose(ours, batch, rtol=0, atol=1e-4 if motion else 0)


@pytest.mark.parametrize(('name', 'shape'), [
    ('volume', (16, 24, 32, 3)), ('channel', (3,)), ('none', ()), ('128', ())])
def test_means_by_name(index, name, shape):
    mean = preprocess.load_mean(name, index, 16)
    assert mean.shape == shape and mean.dtype == np.float32


@pytest.mark.parametrize(('make', 'message'), [
    (lambda index: preprocess.load_mean('medium', index, 16), 'expected volume, channel'),
    (lambda index: preprocess.load_mean('volume', index, 8), 'has 16 frames, --clip_length=8'),
    (lambda index: _spec(crop_size=25), 'larger than the frames of 24x32'),
    (lambda index: _spec(np.zeros((3, 16, 24, 32))), r'expected \(16, 24, 32, 3\)'),
    (lambda index: index.split('val'), "no videos in split 'val'; it has"),
    (lambda index: records.read_index('/nowhere'), 'run --mode=prepare'),
])
def test_wrong_use(index, make, message):
    with pytest.raises(errors.UsageError, match=message):
        make(index)
