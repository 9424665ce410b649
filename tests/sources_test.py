# SPDX-License-Identifier: Apache-2.0
import json
import os

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from c3d_tf import prepare
from c3d_tf.common import errors
from c3d_tf.data import datasets
from c3d_tf.data import encode_video
from c3d_tf.data import records
from c3d_tf.data import sources
from c3d_tf.data import video
from tests import conftest

SETTINGS = encode_video.Settings((24, 32), 'png', 16, 304, 0, 0, 1.0, 0)


def _images(folder, names, *, size=(24, 32)):
    """Writes an image a name, of grey 4·t for the t-th; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for t, name in enumerate(names):
        assert cv2.imwrite(str(folder / name), np.full((*size, 3), 4 * t, np.uint8))
    return str(folder)


def _values(frames):
    return [round(float(frame.image.mean()) / 4) for frame in frames]


def test_a_video_file_is_decoded_as_ever(tmp_path):
    path = conftest.counting_video(tmp_path / 'x.avi', 20)
    ours, theirs = list(sources.frames(path, size=(24, 32))), list(video.decode(path, size=(24, 32)))
    assert [frame.time for frame in ours] == [frame.time for frame in theirs]
    np.testing.assert_array_equal([f.image for f in ours], [f.image for f in theirs])


@pytest.mark.parametrize('names', [
    [f'{t + 1:06d}.jpg' for t in range(12)],
    [f'v_g01_c02_frame{t}.PNG' for t in range(12)],  # 10 follows 9, not 1
    [f'img_{5 * t}.jpeg' for t in range(12)],
])
def test_the_images_of_a_folder_follow_their_numbers(tmp_path, names):
    folder = _images(tmp_path / 'x', names)
    (tmp_path / 'x/.DS_Store').write_bytes(b'x')
    frames = list(sources.frames(folder))
    assert _values(frames) == list(range(12))
    assert [frame.time for frame in frames] == [40_000 * t for t in range(12)]


def test_images_are_upright_rgb_of_any_size(tmp_path):
    picture = np.zeros((20, 30, 4), np.uint8)
    picture[:10] = (0, 0, 255, 255)  # BGRA: the upper half red
    (tmp_path / 'x').mkdir()
    cv2.imwrite(str(tmp_path / 'x/1.png'), picture)
    cv2.imwrite(str(tmp_path / 'x/2.png'), np.full((7, 5), 65535, np.uint16))
    first, second = sources.frames(str(tmp_path / 'x'))
    assert first.image.shape == (20, 30, 3) and first.image[0, 0].tolist() == [255, 0, 0]
    assert second.image.shape == (7, 5, 3) and second.image.min() == 255
    assert [f.image.shape for f in sources.frames(str(tmp_path / 'x'), size=(8, 9))] == [(8, 9, 3)] * 2


def _broken(tmp_path, name):
    folder = tmp_path / 'x'
    _images(folder, {'empty': [], 'gone': []}.get(name, ['1.jpg', '2.jpg']))
    if name == 'gone':
        folder.rmdir()
    for file in {'other files': ['clip.avi'], 'two of a number': ['flow_1.jpg'], 'broken': ['0.jpg'],
                 'no number': ['cover.jpg'], 'a folder': ['0.jpg/x']}.get(name, []):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(b'')
    return str(folder)


@pytest.mark.parametrize(('name', 'reason'), [
    ('gone', 'no such file'), ('empty', 'the folder is empty'),
    ('other files', 'the folder holds clip.avi, and not only images'),
    ('two of a number', r'flow_1.jpg has the number of 1.jpg'), ('no number', 'cover.jpg has no number'),
    ('broken', '0.jpg is no image that can be decoded'), ('a folder', r'Is a directory.*0\.jpg')])
def test_what_is_no_video_says_why(tmp_path, name, reason):
    with pytest.raises(video.VideoError, match=reason):
        list(sources.frames(_broken(tmp_path, name)))


def test_a_folder_that_breaks_half_way_yields_what_comes_before(tmp_path):
    folder = _images(tmp_path / 'x', [f'{t}.jpg' for t in range(6)])
    (tmp_path / 'x/4.jpg').write_bytes(b'no image')
    assert _values(sources.frames(folder)) == [0, 1, 2, 3]


def _encoded(path, *, spans=0, **times):
    found = encode_video.encode(path, number=0, labels=(0,), label_texts=['a'], media_id='x',
                                spans=spans, settings=SETTINGS, **times)
    return [records.parse(record) for record, _ in found]


def _seen(record):
    return [round(float(np.mean(records.decode_image(image))) / 4) for image in record[records.IMAGE]]


def test_a_part_of_a_video_is_what_lies_between_its_times(tmp_path):
    path = conftest.counting_video(tmp_path / 'x.avi', 60)
    whole, = _encoded(path)
    assert _seen(whole) == list(range(60))
    part, = _encoded(path, start=0.4, end=1.08)  # 25 frames a second; the end is not in it
    assert _seen(part) == list(range(10, 27))
    assert _seen(_encoded(path, start=2.0)[0]) == list(range(50, 60))
    for span in _encoded(path, start=0.4, end=1.6, spans=3):  # random spans are drawn from the part
        assert len(_seen(span)) == 25 and 10 <= _seen(span)[0] and _seen(span)[-1] < 40
    for times in ({'start': 2.4}, {'start': 0.41, 'end': 0.43}):
        with pytest.raises(video.VideoError, match='no frame from'):
            _encoded(path, **times)


def test_parts_and_folders_of_images_go_through_prepare(tmp_path):
    conftest.counting_video(tmp_path / 'v/a.avi', 60)
    _images(tmp_path / 'v/b', [f'{t}.png' for t in range(20)])
    (tmp_path / 'all.csv').write_text('path,label,start,end,split\na.avi,x,0,1,train\na.avi,y,1,1.8,train\n'
                                      'a.avi,y,5,6,train\nb,x,0.2,,test\n')
    dataset = datasets.load('csv', videos=str(tmp_path / 'v'), train_list=str(tmp_path / 'all.csv'))
    index = prepare.prepare(dataset, str(tmp_path / 'r'), frame_size=(24, 32), num_workers=1, max_failures=1)
    frames = {name: part['shards'][0]['frames'] for name, part in index['splits'].items()}
    assert frames == {'train': [25, 20], 'test': [15]}
    skipped = json.loads((tmp_path / 'r/skipped.jsonl').read_text())
    assert skipped['path'].endswith('v/a.avi#5-6') and 'no frame from 5 s to 6 s' in skipped['reason']


class TinyVideo(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Videos as TFDS keeps them: number i has 3 + i frames of grey 4·i and the label i % 2."""

    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name='one'), tfds.core.BuilderConfig(name='unlabelled')]

    def _info(self):
        features = {'video': tfds.features.Video(shape=(None, 24, 32, 3), encoding_format='png')}
        if self.builder_config.name == 'one':
            features['label'] = tfds.features.ClassLabel(names=['even', 'odd'])
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples(range(5)), 'validation': self._generate_examples([5, 6]),
                'test': self._generate_examples([7, 8]), 'extra': self._generate_examples([0, 1])}

    def _generate_examples(self, numbers):
        for i in numbers:
            example = {'video': np.full((3 + i, 24, 32, 3), 4 * i, np.uint8), 'label': i % 2}
            yield i, {name: example[name] for name in self.info.features}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    """A TFDS folder with tiny_video, its training split in two files; read without the class above."""
    root = tmp_path_factory.mktemp('tfds')
    for config in ('one', 'unlabelled'):
        TinyVideo(data_dir=root, config=config).download_and_prepare(
            download_config=tfds.download.DownloadConfig(num_shards=2))
    return str(root)


def test_tfds_lists_its_splits_and_labels(data_dir):
    dataset = datasets.load('tfds:tiny_video/one', videos=data_dir)
    assert dataset.class_names == ('even', 'odd')
    assert [dataset.media_id(e) for e in dataset.examples] == [
        f'tfds:tiny_video/one/{split}#{i:06d}' 
        for split, count in (('test', 2), ('train', 5), ('validation', 2)) for i in range(count)]
    assert [e.split for e in dataset.examples] == ['test'] * 2 + ['train'] * 5 + ['val'] * 2
    for example in dataset.examples:  # TFDS shuffled them; frames and labels tell which is which
        frames = list(sources.frames(example.path, size=(12, 16)))
        number, = set(_values(frames))
        assert (len(frames), example.labels) == (3 + number, (number % 2,))
        assert frames[2].time == 80_000 and frames[0].image.shape == (12, 16, 3)


def test_tfds_goes_through_prepare(data_dir, tmp_path):
    dataset = datasets.load('tfds:tiny_video/one', videos=data_dir)
    index = prepare.prepare(dataset, str(tmp_path / 'r'), frame_size=(24, 32), frame_format='png',
                            clip_length=3, num_workers=1)
    counts = {name: part['videos'] for name, part in index['splits'].items()}
    assert counts == {'test': 2, 'train': 5, 'val': 2}
    assert sorted(index['splits']['test']['shards'][0]['frames']) == [10, 11]


def test_the_labels_of_ucf101_in_tfds(tmp_path):
    builder = tfds.builder('ucf101/ucf101_1', data_dir=tmp_path)
    files = {'filename_template': tfds.core.ShardedFileTemplate(
        data_dir=builder.data_path, dataset_name='ucf101', filetype_suffix='tfrecord')}
    builder.info.set_splits(tfds.core.SplitDict([
        tfds.core.SplitInfo(name=name, shard_lengths=[3], num_bytes=1, **files)
        for name in ('train', 'test')]))
    os.makedirs(builder.data_dir)
    builder.info.write_to_directory(builder.data_dir)
    sources._tfds_builder.cache_clear()
    with tfds.testing.mock_data(num_examples=3, data_dir=str(tmp_path)):
        dataset = datasets.load('tfds:ucf101/ucf101_1', videos=str(tmp_path))
        frames = list(sources.frames(dataset.examples[0].path))
    sources._tfds_builder.cache_clear()
    assert len(dataset.class_names) == 101 and dataset.class_names[0] == 'ApplyEyeMakeup'
    assert [e.split for e in dataset.examples] == ['test'] * 3 + ['train'] * 3
    assert frames[0].image.dtype == np.uint8 and frames[0].image.shape[2] == 3


def test_a_tfds_example_that_is_gone_is_reported(data_dir):
    with pytest.raises(video.VideoError, match='incompatible with 2 examples'):
        list(sources.frames(f'{data_dir}/tfds:tiny_video/one/test#000002'))


@pytest.mark.parametrize(('name', 'message'), [
    ('ucf101/ucf101_1', r'not prepared in .*: tfds build ucf101/ucf101_1 --data_dir=.* python -c'),
    ('ucf101/ucf101_9', 'BuilderConfig ucf101_9 not found'),
    ('no_such_set', 'Dataset no_such_set not found'),
    ('', 'Parsing builder name'), ('tiny_video/unlabelled', r'label \(ClassLabel\), got video')])
def test_wrong_use_of_tfds(data_dir, name, message):
    with pytest.raises(errors.UsageError, match=message):
        datasets.load(f'tfds:{name}', videos=data_dir)
