# SPDX-License-Identifier: Apache-2.0
"""Reads damaged lists, records or videos in a process of its own, which fuzz_data_test starts and limits.

    python -m tests.fuzz_data KIND COUNT SEED FOLDER [trace]

FOLDER/NAME is always the mutant that is being read: what a crash or hang leaves. The last line of output is
JSON with what was counted.
"""

import collections
import faulthandler
import io
import json
import pathlib
import random
import re
import signal
import sys
import time

from c3d_tf.common import errors
from c3d_tf.data import video
from tests import byte_mutants

SECONDS, PATIENCE = 10, 120  # a mutant may compute, and may take where others compute as well


def _lists(folder):
    """Yields (seed files by name, reader): the reader takes no argument and returns rows to count."""
    from c3d_tf.data import inputs
    from c3d_tf.data import lists
    from c3d_tf.data import pairs
    from c3d_tf.data import samples

    videos = folder / 'videos'
    for name in ('a/v_a_g01_c01.avi', 'b/v_b_g02_c01.avi', 'x y.avi', 'a/One_a_u_nm_np1_fr_med_0.avi', 'idA.mp4'):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).write_bytes(b'x')
    given = {'videos': str(videos), 'lists': str(folder), 'train_list': str(folder / 'train.txt'),
             'val_list': '', 'test_list': str(folder / 'test.txt'), 'fold': 1}
    two = {'train.txt': b'x y.avi 0\na/v_a_g01_c01.avi 1\n', 'test.txt': b'b\\v_b_g02_c01.avi 1\r\n'}

    def lines(*names):
        return sum(len(lists.read_lines(str(folder / name))) for name in names)

    def numbered():
        assert len(lists.pairs(**given)[1]) == lines('train.txt', 'test.txt')

    def table():
        names, rows = lists.table(**{**given, 'test_list': ''})
        assert all(0 <= label < len(names) for row in rows for label in row.labels)

    def ucf101():
        assert len(lists.ucf101(**given)[1]) == lines('trainlist01.txt', 'testlist01.txt')

    def hmdb51():
        assert len(lists.hmdb51(**given)[1]) <= lines('a_test_split1.txt', 'b_test_split1.txt')

    def sports1m():
        assert len(lists.sports1m(**given)[1]) == lines('train_partition.txt', 'test_partition.txt')

    def c3d_lst():
        assert len(lists.c3d_lst(**given)[1]) <= lines('train.txt', 'test.txt')

    def listed():
        assert len(inputs.find(str(folder / 'all.txt'), size=(8, 8))[1]) <= lines('all.txt')

    def drawn():
        return len(pairs.read(str(folder / 'pairs.csv')).a)

    def objects():
        samples._read_objects(str(folder / 'objects.csv'))

    yield two, numbered
    yield {'train.txt': b'x y.avi run\n', 'test.txt': b'a/v_a_g01_c01.avi hop\n',
           'classes.txt': b'0 run\n1 hop\n'}, numbered
    yield {'train.txt': b'path,label,start,end,split,group\nx y.avi,run,,,train,g\n"a/v_a_g01_c01.avi",hop;run,'
                        b'1.5,2,test,h\n'}, table
    yield {'classInd.txt': b'1 a\n2 b\n', 'trainlist01.txt': b'a/v_a_g01_c01.avi 1\n',
           'testlist01.txt': b'b/v_b_g02_c01.avi\n'}, ucf101
    yield {'a_test_split1.txt': b'One_a_u_nm_np1_fr_med_0.avi 1\nx y.avi 0\n',
           'b_test_split1.txt': b'Two_b_u_nm_np1_fr_med_0.avi 2 \n'}, hmdb51
    yield {'train_partition.txt': b'http://www.youtube.com/watch?v=idA 0,1\n', 'labels.txt': b'a\nb\n',
           'test_partition.txt': b'https://youtu.be/watch?v=idB&t=1 1\n'}, sports1m
    yield {'train.txt': b'/old/a/v_a_g01_c01.avi/ 1 0\n/old/a/v_a_g01_c01.avi/ 17 0\n',
           'test.txt': b'x y.avi 1\n'}, c3d_lst
    yield {'groups.tsv': b'video\tgroup\na/v_a_g01_c01.avi\tfilm\n'}, lambda: lists.read_groups(
        str(folder / 'groups.tsv'))
    yield {'all.txt': b'videos/x y.avi\nvideos/none.avi\n'}, listed
    yield {'pairs.csv': b'a,b,same,fold\nq,r,1,1\nq,s,0,1\nt,u,1,2\nt,v,0,2\n'}, drawn
    yield {'objects.csv': b'video,frame,object\nv,0,cup\nv,1,cup\n'}, objects


def lists(folder):
    return list(_lists(folder)), errors.UsageError, ['lists', 'inputs', 'pairs', 'samples']


def matrices(folder):
    import numpy as np
    import scipy.io

    from c3d_tf.data import pairs

    targets = []
    for compressed in (False, True):
        file = io.BytesIO()
        scipy.io.savemat(file, {'action_splits_pairs': np.ones((4, 5, 2))}, do_compression=compressed)
        targets.append(({'View2.mat': file.getvalue()}, lambda: len(pairs.read(str(folder / 'View2.mat')).a)))
    return targets, errors.UsageError, ['pairs']


def videos(folder):
    import numpy as np

    from c3d_tf.data import sources
    from tests import conftest

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 32, 48, 3), np.uint8).repeat(2, axis=0)
    targets = []
    for name, codec in (('a.avi', 'mpeg4'), ('b.mp4', 'libx264'), ('c.mkv', 'ffv1'), ('d.webm', 'libvpx'),
                        ('e.mov', 'mpeg4'), ('f.flv', 'flv1'), ('g.ts', 'mpeg2video'), ('h.avi', 'rawvideo')):
        path = folder / name
        conftest.write_video(path, images, codec=codec)

        def read(path=path):
            found, last = 0, -1
            for frame in sources.frames(str(path), size=(24, 32)):
                assert frame.image.shape == (24, 32, 3) and frame.time > last
                found, last = found + 1, frame.time
            return found
        targets.append(({name: path.read_bytes()}, read))
    return targets, video.VideoError, ['sources', 'video']


def records(folder):
    import cv2
    import numpy as np
    import tensorflow as tf

    from c3d_tf.data import pipeline
    from c3d_tf.data import record_videos
    from c3d_tf.data import records

    rng, shards = np.random.default_rng(0), []
    for split, sizes in (('train', (3, 2, 4)), ('test', (2,))):
        name = records.shard_name(split, 0, 1)
        with tf.io.TFRecordWriter(str(folder / name)) as writer:
            for number, frames in enumerate(sizes):
                images = [cv2.imencode('.jpg', rng.integers(0, 256, (12, 16, 3), np.uint8))[1].tobytes()
                          for _ in range(frames)]
                writer.write(records.encode(
                    images, range(frames), image_format='jpeg', size=(12, 16), labels=[number],
                    label_texts=['x'], media_id=f'{number}.avi', path=f'/v/{number}.avi'))
        shards.append((split, {'file': name, 'bytes': (folder / name).stat().st_size,
                               'records': [1] * len(sizes), 'frames': list(sizes)}))
    index = records.Index(str(folder), {'splits': {
        split: {'videos': len(shard['records']), 'shards': [shard]} for split, shard in shards}})
    part = index.split('train')
    # Made once: its graph takes longer than what it reads.
    rows = pipeline.read_clips(part, np.arange(3), np.zeros(3, np.int64), clip_length=2).enumerate()

    def in_graph():
        index.split('train')  # compares the sizes
        found = list(rows.as_numpy_iterator())
        assert len(found) == 3
        return [clip.tobytes() for _, clip in found]

    def in_python():
        found = record_videos.find(index, 'train')
        assert len(found) == 3
        return [(one.name, [frame.image.tobytes() for frame in one.frames()]) for one in found]

    file, data = part.files[0].rsplit('/', 1)[1], pathlib.Path(part.files[0]).read_bytes()
    return ([({file: data}, in_graph), ({file: data}, in_python)],
            (errors.RunError, video.VideoError, tf.errors.DataLossError), ['records', 'record_videos'])


def _fuzz(targets, expected, count: int, seed: int, folder: pathlib.Path) -> dict:
    """Damages one file of a target at a time; what is read must be refused in `expected`, or be whole."""
    rng, counts, slowest = random.Random(seed), collections.Counter(), 0.0
    # Of every file that any target has: what one target left must not decide another's.
    names = {name for files, _ in targets for name in files}

    def put(files):
        for name in names - files.keys():
            (folder / name).unlink(missing_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)

    whole = []
    for files, read in targets:
        put(files)
        whole.append(read())
    others = [data for files, _ in targets for data in files.values()]
    checked = isinstance(expected, tuple)  # records have sums: what is read of a mutant is the seed's
    for _ in range(count):
        number = rng.randrange(len(targets))
        files, read = targets[number]
        name = rng.choice(sorted(files))
        data = byte_mutants.damaged(rng, files[name], rng.choice(others))
        if checked and rng.random() < 0.8:  # of the same length: others are refused before they are read
            data = (data + files[name][len(data):])[:len(files[name])]
        put({**files, name: data})
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # ends the process
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        began = time.perf_counter()
        try:
            value = read()
            counts['read'] += 1
            assert not checked or value == whole[number], f'{name} reads otherwise, and nobody says so'
        except expected as error:
            counts[f'refused: {type(error).__name__}'] += 1
        slowest = max(slowest, time.perf_counter() - began)
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)
    for (files, read), value in zip(targets, whole, strict=True):
        put(files)
        assert read() == value, 'a seed reads otherwise than before'
    status = pathlib.Path('/proc/self/status').read_text()
    return {'mutants': count, **counts, 'slowest': round(slowest, 3),
            'megabytes': int(re.search(r'VmHWM:\s+(\d+)', status)[1]) // 1024}


def main(kind: str, count: str, seed: str, folder: str, *trace: str) -> None:
    targets, expected, modules = globals()[kind](pathlib.Path(folder))
    if not trace:
        result = _fuzz(targets, expected, int(count), int(seed), pathlib.Path(folder))
    else:
        from tests import line_coverage

        coverage = line_coverage.Coverage(*(sys.modules[f'c3d_tf.data.{name}'] for name in modules))
        with coverage:
            result = _fuzz(targets, expected, int(count), int(seed), pathlib.Path(folder))
        print(coverage.summary())
    print(json.dumps(result))


if __name__ == '__main__':
    main(*sys.argv[1:])
