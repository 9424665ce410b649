# SPDX-License-Identifier: Apache-2.0
import collections
import math
import os

import pytest

from c3d_tf.common import errors
from c3d_tf.data import datasets
from tests import datasets_test


def _write(root, **texts):
    """Writes lists, named as keyword `trainlist01` for trainlist01.txt; returns their folder."""
    root.mkdir(exist_ok=True)
    for name, text in texts.items():
        (root / f'{name}.txt').write_text(text)
    return str(root)


def _splits(dataset):
    return collections.Counter(example.split for example in dataset.examples)


@pytest.mark.parametrize(('fold', 'train', 'test'), [(1, 9537, 3783), (2, 9586, 3734), (3, 9624, 3696)])
def test_ucf101_has_the_published_counts(shared, fold, train, test):
    dataset = datasets.load('ucf101', videos=str(shared / 'data/ucf101_mini'),
                            lists=str(shared / 'data/lists/ucf101'), fold=fold)
    assert _splits(dataset) == {'train': train, 'test': test}
    assert len(dataset.class_names) == 101 and dataset.class_names[36] == 'HandstandPushups'
    assert len({example.group for example in dataset.examples}) == 101 * 25
    here = [example for example in dataset.examples if os.path.exists(example.path)]
    assert len(here) == 23  # the absent ones stay: prepare reports them
    for example in here:
        assert dataset.class_names[example.labels[0]] == example.path.split('/')[-2]


UCF101 = {
    'classInd': '1 Archery\r\n2 HandstandPushups\r\n',  # as the real lists end their lines
    'trainlist01': 'HandstandPushups/v_HandStandPushups_g08_c01.avi 2\r\n'
                   'Archery/v_Archery_g08_c01.avi 1\r\n',
    'testlist01': 'HandstandPushups/v_HandStandPushups_g01_c02.avi\r\n'
                  'Archery/v_Archery_g01_c01.avi\r\n',
}


@pytest.mark.parametrize('names', [
    ['HandstandPushups/v_HandStandPushups_g08_c01.avi', 'HandstandPushups/v_HandStandPushups_g01_c02.avi',
     'Archery/v_Archery_g08_c01.avi'],
    ['HandStandPushups/v_HandstandPushups_g08_c01.avi', 'HandStandPushups/v_HandstandPushups_g01_c02.avi',
     'Archery/v_Archery_g08_c01.avi'],
    ['v_HandstandPushups_g08_c01.avi', 'v_HandStandPushups_g01_c02.avi', 'v_Archery_g08_c01.avi'],
    ['HandstandPushups/v_HandStandPushups_g08_c01/1.jpg',
     'HandstandPushups/v_HandStandPushups_g01_c02/1.jpg', 'Archery/v_Archery_g08_c01/1.jpg'],
], ids=['as listed', 'the other spelling', 'flat', 'frame folders'])
def test_ucf101_finds_the_handstand_pushups(tmp_path, names):
    videos = datasets_test.touch(tmp_path / 'v', *names)
    dataset = datasets.load('ucf101', videos=videos, lists=_write(tmp_path / 'lists', **UCF101))
    there = [dataset.media_id(example) for example in dataset.examples if os.path.exists(example.path)]
    assert sorted(there) == sorted(name.removesuffix('/1.jpg') for name in names)
    assert {(e.labels, e.group, e.split) for e in dataset.examples} == {
        ((1,), 'HandstandPushups_g08', 'train'), ((1,), 'HandstandPushups_g01', 'test'),
        ((0,), 'Archery_g08', 'train'), ((0,), 'Archery_g01', 'test')}


@pytest.mark.parametrize('fold', [1, 2, 3])
def test_hmdb51_has_seventy_and_thirty_of_each_class(shared, fold):
    dataset = datasets.load('hmdb51', videos=str(shared / 'data/jhmdb12/videos'),
                            lists=str(shared / 'data/lists/hmdb51'), fold=fold)
    assert _splits(dataset) == {'train': 3570, 'test': 1530}
    assert set(collections.Counter((e.labels, e.split) for e in dataset.examples).values()) == {70, 30}
    assert dataset.class_names[0] == 'brush_hair' and len(dataset.class_names) == 51
    # The official splits keep the clips of a source together, and `load` has checked it.
    assert 1990 < len({example.group for example in dataset.examples}) < 2030


def test_hmdb51_takes_names_as_they_are(tmp_path):
    names = ['#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi', '#20_Rhythm_clap_u_nm_np1_fr_goo_1.avi',
             'boom!_[x];&(y)_clap_f_cm_np10_ba_med_2.avi']
    videos = datasets_test.touch(tmp_path / 'v', *(f'clap/{name}' for name in names[:2]),
                    'clap/@20_Rhythm_clap_u_nm_np1_fr_goo_2.avi')  # of another distribution: no guess
    names.append('#20_Rhythm_clap_u_nm_np1_fr_goo_2.avi')
    lists = _write(tmp_path / 'lists', clap_test_split1='unused 0\n',
                   clap_test_split2=''.join(f'{name} {flag} \n' for name, flag in zip(names, '1120')),
                   hit_test_split2='a_hit_f_nm_np1_fr_bad_0.avi 1\n')
    dataset = datasets.load('hmdb51', videos=videos, lists=lists, fold=2)
    assert dataset.class_names == ('clap', 'hit')
    assert [(dataset.media_id(e), e.labels, e.group, e.split) for e in dataset.examples] == [
        (f'clap/{names[0]}', (0,), 'clap/#20_Rhythm', 'train'),
        (f'clap/{names[1]}', (0,), 'clap/#20_Rhythm', 'train'),
        (f'clap/{names[2]}', (0,), 'clap/boom!_[x];&(y)', 'test'),
        ('hit/a_hit_f_nm_np1_fr_bad_0.avi', (1,), 'hit/a', 'train')]


def test_the_original_list_names_each_video_once(shared, tmp_path):
    name = 'ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01'
    dataset = datasets.load('c3d_lst', videos=datasets_test.touch(tmp_path, f'{name}/000001.jpg'),
                            lists=str(shared / 'data/lists/ucf101'),
                            test_list=str(shared / 'data/lists/c3d/test_01_head2000.lst'))
    assert len(dataset.examples) == 201 and _splits(dataset) == {'test': 201}
    assert [dataset.media_id(e) for e in dataset.examples if os.path.exists(e.path)] == [name]
    assert all(dataset.class_names[e.labels[0]] == e.path.split('/')[-2] for e in dataset.examples)


def test_the_original_list_joins_the_clips_of_a_video(tmp_path):
    datasets_test.touch(tmp_path / 'v', 'Archery/v_Archery_g01_c01/000001.jpg',
                        'v_Archery_g01_c02/000001.jpg', 'own.avi')
    (tmp_path / 'test.lst').write_text(
        '/data/x/frm/Archery/v_Archery_g01_c01/ 1 0\n/data/x/frm/Archery/v_Archery_g01_c01/ 17 0\n'
        '/data/x/frm/Archery/v_Archery_g01_c02/ 1 0\n/data/x/frm/Archery/v_gone_g01_c03/ 1 0\n')
    own = f'{tmp_path}/v/own.avi'
    (tmp_path / 'train.lst').write_text(f'{own} 0 1\n{own} 16 1\nmy own.avi 1\n')
    lists = _write(tmp_path / 'lists', classInd='1 Archery\n2 Biking\n')
    dataset = datasets.load('c3d_lst', videos=str(tmp_path / 'v'), lists=lists,
                            train_list=str(tmp_path / 'train.lst'), test_list=str(tmp_path / 'test.lst'))
    assert dataset.class_names == ('Archery', 'Biking')
    assert {(dataset.media_id(e), e.labels, e.split) for e in dataset.examples} == {
        ('Archery/v_Archery_g01_c01', (0,), 'test'), ('v_Archery_g01_c02', (0,), 'test'),
        ('/data/x/frm/Archery/v_gone_g01_c03', (0,), 'test'),  # prepare reports it by that name
        ('own.avi', (1,), 'train'), ('my own.avi', (1,), 'train')}


def test_csv_with_times_labels_groups_and_a_split_column(tmp_path):
    videos = datasets_test.touch(tmp_path / 'v', 'a.mp4', 'b, c.mp4')
    (tmp_path / 'all.csv').write_text(
        '\ufeffpath,label,start,end,split,group,note\na.mp4,run,,2.5,train,film1,x\n'
        'a.mp4,jump;run,2.5,,train,film1,\n"b, c.mp4",jump,1,2,val,film2,\nd.mp4,jump,,,test,,\n')
    dataset = datasets.load('csv', videos=videos, train_list=str(tmp_path / 'all.csv'))
    assert dataset.class_names == ('jump', 'run')
    assert [(dataset.media_id(e), e.labels, e.group, e.split, e.start, e.end)
            for e in dataset.examples] == [
        ('a.mp4#0-2.5', (1,), 'film1', 'train', 0, 2.5),
        ('a.mp4#2.5-inf', (0, 1), 'film1', 'train', 2.5, math.inf),
        ('b, c.mp4#1-2', (0,), 'film2', 'val', 1, 2),
        ('d.mp4', (0,), 'd.mp4', 'test', 0, math.inf)]


def test_csv_takes_a_list_a_split_and_numbers_as_labels(tmp_path):
    videos = datasets_test.touch(tmp_path / 'v', 'a.mp4')
    for name, text in (('train', 'label,path\n1,a.mp4\n'), ('val', 'label,path\n0,b.mp4\n'),
                       ('test', 'label,path\n2,c.mp4\n')):
        (tmp_path / f'{name}.csv').write_text(text)
    # There is a val list: none is drawn.
    dataset = datasets.load('csv', videos=videos, val_fraction=0.7,
                            **{f'{name}_list': str(tmp_path / f'{name}.csv')
                               for name in ('train', 'val', 'test')})
    assert dataset.class_names == ('0', '1', '2')
    assert [(e.labels, e.split) for e in dataset.examples] == [
        ((1,), 'train'), ((0,), 'val'), ((2,), 'test')]


def _case(tmp_path, name):
    """Builds one wrong list; returns `load`'s arguments and the message."""
    videos = datasets_test.touch(tmp_path / 'v', 'a.avi', 'b.avi')

    def csv(text):
        (tmp_path / 'list.csv').write_text(text)
        return {'name': 'csv', 'train_list': str(tmp_path / 'list.csv')}

    def ucf101(**texts):
        return {'name': 'ucf101', 'lists': _write(tmp_path / 'lists', **{**UCF101, **texts})}

    def hmdb51(text):
        return {'name': 'hmdb51', 'lists': _write(tmp_path / 'lists', clap_test_split1=text)}

    def lst(text):
        (tmp_path / 'list.lst').write_text(text)
        return {'name': 'c3d_lst', 'test_list': str(tmp_path / 'list.lst')}

    def groups(text):
        (tmp_path / 'g.tsv').write_text(text)
        return {**csv('path,label\na.avi,0\nb.avi,0\n'), 'groups': str(tmp_path / 'g.tsv')}

    arguments, message = {
        'csv: no header': lambda: (csv('a.avi,0\n'), 'list.csv: expected a header .* path,label'),
        'csv: empty': lambda: (csv(''), "list.csv: expected a header .* got ''"),
        'csv: comma in a path': lambda: (csv('path,label\nb, c.avi,0\n'), 'line 2: expected 2 cells'),
        'csv: times': lambda: (csv('path,label,start,end\na.avi,0,3,2\n'), "line 2: .*got '3' and '2'"),
        'csv: no number': lambda: (csv('path,label,start\na.avi,0,soon\n'), "line 2: expected seconds"),
        'csv: split': lambda: (csv('path,label,split\na.avi,0,dev\n'), "'dev'; expected one of"),
        'csv: no label': lambda: (csv('path,label\na.avi,\nb.avi,x\n'), "line 2 has label ''"),
        'csv: twice': lambda: (csv('path,label\na.avi,0\na.avi,1\n'), r'a\.avi is listed twice'),
        'csv: one video on two sides': lambda: (
            csv('path,label,start,end,split\na.avi,0,0,1,train\na.avi,0,1,2,test\n'),
            r'groups in more than one split \(1\): a\.avi \(test, train\)'),
        'csv: nothing there': lambda: (csv('path,label\nx/a.avi,0\n'), 'none of the 1 videos of'),
        'ucf101: no lists': lambda: ({'name': 'ucf101', 'lists': str(tmp_path)},
                                     'missing classInd.txt, trainlist01.txt, testlist01.txt'),
        'ucf101: fold': lambda: ({**ucf101(), 'fold': 4}, '--fold=4: expected 1, 2 or 3'),
        'ucf101: other number': lambda: (ucf101(classInd='1 HandstandPushups\n2 Archery\n'),
                                         'trainlist01.txt: expected CLASS/v_CLASS'),
        'ucf101: unknown class': lambda: (ucf101(testlist01='Biking/v_Biking_g01_c01.avi'), 'got .Bik'),
        'ucf101: nothing there': lambda: (ucf101(), 'none of the 4 videos .* at .*v_HandStand'),
        'hmdb51: no lists': lambda: ({'name': 'hmdb51', 'lists': str(tmp_path)}, 'CLASS_test_split1.txt'),
        'hmdb51: flag': lambda: (hmdb51('a.avi 3\n'), "clap_test_split1.txt: a.avi has flag '3'"),
        'hmdb51: nothing there': lambda: (hmdb51('a.avi 1\n'), 'looked for at .*v/clap/a.avi'),
        'lst: no list': lambda: ({'name': 'c3d_lst'}, 'needs --train_list, --val_list or --test_list'),
        'lst: format': lambda: (lst('a.avi 0 x\n'), 'line 1: expected `path start label`'),
        'lst: labels': lambda: (lst('a.avi 0 1\na.avi 16 2\n'), 'line 2: a.avi has label 2, and 1'),
        'lst: nothing there': lambda: (lst('/gone/x/ 1 0\n'), 'none of the 1 videos .*/gone/x'),
        'groups: not all': lambda: (groups('clip\tfilm\na.avi\tx\n'), r'g.tsv: no group for b\.avi'),
        'groups: two': lambda: (groups('clip\tfilm\na.avi\tx\na.avi\ty\n'), "'y' and before 'x'"),
        'groups: one column': lambda: (groups('a.avi\nb.avi\n'), 'g.tsv: expected a header'),
    }[name]()
    return {'videos': videos, **arguments}, message


CASES = [
    'csv: no header', 'csv: empty', 'csv: comma in a path', 'csv: times', 'csv: no number', 'csv: split',
    'csv: no label', 'csv: twice', 'csv: one video on two sides', 'csv: nothing there',
    'ucf101: no lists', 'ucf101: fold', 'ucf101: other number', 'ucf101: unknown class', 'ucf101: nothing there',
    'hmdb51: no lists', 'hmdb51: flag', 'hmdb51: nothing there', 'lst: no list', 'lst: format',
    'lst: labels', 'lst: nothing there', 'groups: not all', 'groups: two', 'groups: one column']


@pytest.mark.parametrize('name', CASES)
def test_wrong_use_names_the_file_and_the_remedy(tmp_path, name):
    arguments, message = _case(tmp_path, name)
    with pytest.raises(errors.UsageError, match=message):
        datasets.load(**arguments)
