# SPDX-License-Identifier: Apache-2.0
import os
import random

import pytest

from c3d_tf.common import errors
from c3d_tf.data import datasets


def touch(root, *names) -> str:
    """Writes small files that are no videos; returns their folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b'x')
    return str(root)


def _rows(dataset):
    return [(dataset.media_id(e), e.labels, e.split) for e in dataset.examples]


def test_folder_with_splits(folder):
    dataset = datasets.load('folder', videos=str(folder))
    assert dataset.class_names == ('ball', 'water')
    assert _rows(dataset) == [
        ('test/ball/e.avi', (0,), 'test'), ('test/water/f.mp4', (1,), 'test'),
        ('train/ball/a.avi', (0,), 'train'), ('train/ball/b.mp4', (0,), 'train'),
        ('train/water/c.avi', (1,), 'train'), ('train/water/d.avi', (1,), 'train')]


def test_folder_without_splits_keeps_groups_on_one_side(tmp_path):
    touch(tmp_path, *(f'{c}/film{f:02d}_part{p}.x' for c in 'ab' for f in range(40) for p in range(3)))
    dataset = datasets.load('folder', videos=str(tmp_path), group_regex=r'film\d+', test_fraction=0.25,
                            val_fraction=0.25)
    sides = {}
    for example in dataset.examples:
        sides.setdefault(example.group, set()).add(example.split)
    assert len(sides) == 40 and all(len(splits) == 1 for splits in sides.values())
    counts = [sum(e.split == s for e in dataset.examples) / 240 for s in ('test', 'val')]
    assert all(0.1 < share < 0.4 for share in counts)
    # A video that comes later moves no other one.
    touch(tmp_path, 'a/film99_part0.x')
    later = datasets.load('folder', videos=str(tmp_path), group_regex=r'film\d+', test_fraction=0.25,
                          val_fraction=0.25)
    assert set(dataset.examples) < set(later.examples)


def test_the_draw_is_by_name_and_not_by_place(tmp_path, monkeypatch):
    for place in ('here', 'there'):
        touch(tmp_path / place, *(f'a/{i}.avi' for i in range(50)), *(f'a/{i}.mp4' for i in range(50)))
    monkeypatch.chdir(tmp_path)
    rows = _rows(datasets.load('folder', videos=str(tmp_path / 'here')))
    assert rows == _rows(datasets.load('folder', videos='there/'))
    side = {name: split for name, _, split in rows}
    assert all(side[f'a/{i}.avi'] == side[f'a/{i}.mp4'] for i in range(50))  # one stem, one group
    assert 5 < sum(split == 'test' for split in side.values()) < 40


def test_a_folder_of_images_is_a_video(tmp_path):
    touch(tmp_path, 'a/x/1.jpg', 'a/x/2.jpg', 'a/y.avi', 'b/z.v2/1.png', 'b/nothing/deeper/1.png',
          'b/.git/x')
    dataset = datasets.load('folder', videos=str(tmp_path))
    # Nothing is lost: prepare reports b/nothing as no video.
    assert [dataset.media_id(e) for e in dataset.examples] == ['a/x', 'a/y.avi', 'b/nothing', 'b/z.v2']


def _jhmdb(shared, name, **options):
    root = shared / 'data/jhmdb12'
    return datasets.load(name, videos=str(root / 'videos'), lists=str(root),
                         groups=str(root / 'groups.tsv'), **options)


def test_groups_keep_the_clips_of_a_source_on_one_side(shared):
    dataset = _jhmdb(shared, 'folder', val_fraction=0.2)
    sides = {}
    for example in dataset.examples:
        sides.setdefault(example.group, set()).add(example.split)
    assert len(dataset.examples) == 456 and 100 < len(sides) < 200
    assert all(len(splits) == 1 for splits in sides.values())


def test_a_random_split_by_clip_is_refused_for_its_groups(shared, tmp_path):
    root = shared / 'data/jhmdb12'
    lines = [line for name in ('train', 'test')
             for line in (root / f'{name}.txt').read_text().splitlines()]
    random.Random(0).shuffle(lines)
    (tmp_path / 'train.txt').write_text('\n'.join(lines[100:]))
    (tmp_path / 'test.txt').write_text('\n'.join(lines[:100]))
    given = {'train_list': str(tmp_path / 'train.txt'), 'test_list': str(tmp_path / 'test.txt')}
    with pytest.raises(errors.UsageError, match=r'more than one split \(\d\d\): .* \(test, train\) …:'):
        _jhmdb(shared, 'list', **given)
    # The lists that come with it are clean but for one film, whose clips are of two classes.
    given = {f'{name}_list': str(root / f'{name}.txt') for name in ('train', 'test')}
    with pytest.raises(errors.UsageError, match=r'split \(1\): TheLastManOnearth \(test, train\)'):
        _jhmdb(shared, 'list', **given)


def test_several_lists_and_a_validation_drawn_from_the_training_groups(tmp_path):
    videos = touch(tmp_path, *(f'{i}.avi' for i in range(50)))
    for name, span in (('train', range(40)), ('val', range(40, 45)), ('test', range(45, 50))):
        (tmp_path / f'{name}.txt').write_text(''.join(f'{i}.avi 0\n' for i in span))
    given = {f'{name}_list': str(tmp_path / f'{name}.txt') for name in ('train', 'val', 'test')}

    def counts(**options):
        rows = _rows(datasets.load('list', videos=videos, **options))
        return [sum(split == name for *_, split in rows) for name in ('train', 'val', 'test')]

    assert counts(**given) == counts(**given, val_fraction=0.5) == [40, 5, 5]
    del given['val_list']
    train, val, test = counts(**given, val_fraction=0.5)
    assert 10 < train < 30 and train + val == 40 and test == 5


def test_every_file_of_a_class_is_tried(tmp_path):
    touch(tmp_path, 'a/x.avi', 'a/notes.txt', 'a/.hidden', 'b/no_ending')
    os.mkfifo(tmp_path / 'b' / 'pipe.mp4')
    dataset = datasets.load('folder', videos=str(tmp_path))
    assert sorted(dataset.media_id(e) for e in dataset.examples) == [
        'a/.hidden', 'a/notes.txt', 'a/x.avi', 'b/no_ending', 'b/pipe.mp4']


@pytest.mark.parametrize(('lines', 'classes', 'labels'), [
    ('x.avi 0\ny z.avi 1\n', ('0', '1'), [(0,), (1,)]),
    ('x.avi run\ny z.avi jump\n', ('jump', 'run'), [(1,), (0,)]),
])
def test_list(tmp_path, lines, classes, labels):
    touch(tmp_path, 'x.avi', 'y z.avi')
    (tmp_path / 'train.txt').write_text(lines)
    dataset = datasets.load('list', videos=str(tmp_path), train_list=str(tmp_path / 'train.txt'))
    assert dataset.class_names == classes
    assert [e.labels for e in dataset.examples] == labels


def test_list_with_class_names(shared):
    root = shared / 'data/jhmdb12'
    dataset = datasets.load('list', videos=str(root / 'videos'), train_list=str(root / 'train.txt'),
                            test_list=str(root / 'test.txt'))
    assert dataset.class_names[0] == 'brush_hair' and len(dataset.class_names) == 12
    splits = [example.split for example in dataset.examples]
    assert (splits.count('train'), splits.count('test')) == (348, 108)
    assert all(os.path.exists(example.path) for example in dataset.examples)


def sports1m_lists(root, ids=('aaa', 'bbb', 'ccc', 'ddd')):
    """Writes the lists' real layout: URLs with one or several labels, 487 names."""
    root.mkdir(exist_ok=True)
    url = 'http://www.youtube.com/watch?v='
    (root / 'labels.txt').write_text(''.join(f'sport {i}\n' for i in range(487)))
    (root / 'train_partition.txt').write_text(f'{url}{ids[0]} 3\n{url}{ids[1]} 3,40,486\n')
    (root / 'test_partition.txt').write_text(f'{url}{ids[2]} 40\n{url}{ids[3]} 7,3\n')
    return str(root)


def test_sports1m(tmp_path):
    touch(tmp_path, 'videos/aaa.mp4', 'videos/bbb.webm', 'videos/ccc.mp4', 'videos/other.mp4')
    dataset = datasets.load('sports1m', videos=str(tmp_path / 'videos'),
                            lists=sports1m_lists(tmp_path / 'lists'))
    assert len(dataset.class_names) == 487
    assert _rows(dataset) == [('aaa.mp4', (3,), 'train'), ('bbb.webm', (3, 40, 486), 'train'),
                              ('ccc.mp4', (40,), 'test'), ('ddd.mp4', (7, 3), 'test')]


def _case(tmp_path, name):
    """Builds one wrong data set; returns `load`'s arguments."""
    touch(tmp_path, 'v/a/x.avi', 'v/b/y.avi')
    (tmp_path / 'v/empty').mkdir()
    (tmp_path / 'gone.txt').write_text('nowhere.avi 0\n')
    (tmp_path / 'label.txt').write_text('a/x.avi 0\nb/y.avi -1\n')
    (tmp_path / 'short.txt').write_text('a/x.avi\n')
    (tmp_path / 'good.txt').write_text('a/x.avi 0\n')
    (tmp_path / 'names').mkdir()
    (tmp_path / 'names/classes.txt').write_text('0 one\n1 two\n')
    (tmp_path / 'binary.txt').write_bytes(b'\xff\xfe\x00')
    (tmp_path / 'flat').mkdir()
    videos, lists = str(tmp_path / 'v'), str(tmp_path / 'names')
    return {
        'unknown data set': ({'name': 'kinetics'}, 'expected one of folder, list'),
        'no folder': ({'name': 'folder', 'videos': str(tmp_path / 'none')}, 'none: no such folder'),
        'not set': ({'name': 'folder', 'videos': ''}, 'videos is not set'),
        'images of one video': ({'name': 'folder',
                                 'videos': touch(tmp_path / 'frames', 'v1/1.jpg', 'v1/2.jpg')},
                                'v1: expected the videos of a class, found the images of one'),
        'no classes': ({'name': 'folder', 'videos': str(tmp_path / 'flat')}, 'a folder per class'),
        'empty class': ({'name': 'folder', 'videos': videos}, 'empty: the class has no videos'),
        'bad regex': ({'name': 'folder', 'videos': videos, 'group_regex': '('}, 'group_regex'),
        'fractions': ({'name': 'folder', 'videos': videos, 'test_fraction': 1.5}, 'less than 1'),
        'no list': ({'name': 'list', 'videos': videos}, 'needs --train_list'),
        'list is gone': ({'name': 'list', 'videos': videos, 'train_list': str(tmp_path / 'no.txt')},
                         'no.txt: no such list'),
        'list is binary': ({'name': 'list', 'videos': videos,
                            'train_list': str(tmp_path / 'binary.txt')}, 'not a text file'),
        'no file exists': ({'name': 'list', 'videos': videos, 'train_list': str(tmp_path / 'gone.txt')},
                           'none of the 1 videos .* exists'),
        'no groups': ({'name': 'folder', 'videos': str(tmp_path / 'frames'),
                       'groups': str(tmp_path / 'no.tsv')}, 'no.tsv: no such list'),
        'no ids': ({'name': 'sports1m', 'videos': videos, 'lists': sports1m_lists(tmp_path / 's')},
                   'none of the 4 listed videos; .* e.g. .*aaa.mp4'),
        'label out of range': ({'name': 'list', 'videos': videos, 'lists': lists,
                                'train_list': str(tmp_path / 'label.txt')}, "label '-1'"),
        'no label': ({'name': 'list', 'videos': videos, 'train_list': str(tmp_path / 'short.txt')},
                     'line 1: expected `path label`'),
        'both sides': ({'name': 'list', 'videos': videos, 'train_list': str(tmp_path / 'good.txt'),
                        'test_list': str(tmp_path / 'good.txt')}, 'more than one split'),
        'no Sports-1M': ({'name': 'sports1m', 'videos': videos, 'lists': str(tmp_path)},
                         'missing: train_partition.txt, test_partition.txt, labels.txt'),
    }[name]


@pytest.mark.parametrize('name', [
    'unknown data set', 'no folder', 'not set', 'no classes', 'empty class', 'bad regex', 'fractions',
    'no list', 'list is gone', 'list is binary', 'no file exists', 'label out of range', 'no label',
    'both sides', 'no Sports-1M', 'images of one video', 'no groups', 'no ids'])
def test_wrong_use_names_the_file_and_the_remedy(tmp_path, name):
    arguments, message = _case(tmp_path, name)
    with pytest.raises(errors.UsageError, match=message):
        datasets.load(**{'videos': '', **arguments})
