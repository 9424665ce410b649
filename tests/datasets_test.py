# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from c3d_tf.common import errors
from c3d_tf.data import datasets


def _touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b'x')


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
    _touch(tmp_path, *(f'{c}/film{f:02d}_part{p}.x' for c in 'ab' for f in range(40) for p in range(3)))
    dataset = datasets.load('folder', videos=str(tmp_path), group_regex=r'film\d+', test_fraction=0.25,
                            val_fraction=0.25)
    sides = {}
    for example in dataset.examples:
        sides.setdefault(example.group, set()).add(example.split)
    assert len(sides) == 40 and all(len(splits) == 1 for splits in sides.values())
    counts = [sum(e.split == s for e in dataset.examples) / 240 for s in ('test', 'val')]
    assert all(0.1 < share < 0.4 for share in counts)
    # A video that comes later moves no other one.
    _touch(tmp_path, 'a/film99_part0.x')
    later = datasets.load('folder', videos=str(tmp_path), group_regex=r'film\d+', test_fraction=0.25,
                          val_fraction=0.25)
    assert set(dataset.examples) < set(later.examples)


def test_every_file_of_a_class_is_tried(tmp_path):
    _touch(tmp_path, 'a/x.avi', 'a/notes.txt', 'a/.hidden', 'b/no_ending')
    os.mkfifo(tmp_path / 'b' / 'pipe.mp4')
    dataset = datasets.load('folder', videos=str(tmp_path))
    assert sorted(dataset.media_id(e) for e in dataset.examples) == [
        'a/.hidden', 'a/notes.txt', 'a/x.avi', 'b/no_ending', 'b/pipe.mp4']


@pytest.mark.parametrize(('lines', 'classes', 'labels'), [
    ('x.avi 0\ny z.avi 1\n', ('0', '1'), [(0,), (1,)]),
    ('x.avi run\ny z.avi jump\n', ('jump', 'run'), [(1,), (0,)]),
])
def test_list(tmp_path, lines, classes, labels):
    _touch(tmp_path, 'x.avi', 'y z.avi')
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
    _touch(tmp_path, 'videos/aaa.mp4', 'videos/bbb.webm', 'videos/ccc.mp4', 'videos/other.mp4')
    dataset = datasets.load('sports1m', videos=str(tmp_path / 'videos'),
                            lists=sports1m_lists(tmp_path / 'lists'))
    assert len(dataset.class_names) == 487
    assert _rows(dataset) == [('aaa.mp4', (3,), 'train'), ('bbb.webm', (3, 40, 486), 'train'),
                              ('ccc.mp4', (40,), 'test'), ('ddd.mp4', (7, 3), 'test')]


def _case(tmp_path, name):
    """Builds one wrong data set; returns `load`'s arguments."""
    _touch(tmp_path, 'v/a/x.avi', 'v/b/y.avi')
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
    'both sides', 'no Sports-1M'])
def test_wrong_use_names_the_file_and_the_remedy(tmp_path, name):
    arguments, message = _case(tmp_path, name)
    with pytest.raises(errors.UsageError, match=message):
        datasets.load(**{'videos': '', **arguments})
