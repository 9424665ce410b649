# SPDX-License-Identifier: Apache-2.0
import os
import subprocess

import pytest

from c3d_tf.common import files


def test_only_our_own_leftovers_are_removed(tmp_path):
    dead = subprocess.Popen(['true'])
    dead.wait()
    alive, own = os.getppid(), os.getpid()
    ours = [f'index.json.tmp-{dead.pid}', f'model.keras.tmp-{own}']
    theirs = ['notes.tmp-old', 'x.tmp-1x', 'model.keras', f'evaluate.json.tmp-{alive}']
    for name in ours + theirs:
        (tmp_path / name).write_text('x')
    for name in ('frames_temp', f'folder.tmp-{dead.pid}', f'b.keras.tmp-{alive}.d', f'a.keras.tmp-{dead.pid}.d'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'config.json').touch()
    files.remove_leftovers(str(tmp_path), 'index.json')
    assert not (tmp_path / ours[0]).exists() and (tmp_path / ours[1]).exists()
    files.remove_leftovers(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {
        *theirs, 'frames_temp', f'folder.tmp-{dead.pid}', f'b.keras.tmp-{alive}.d'}


def test_a_file_is_complete_or_absent(tmp_path):
    path = tmp_path / 'deep/x.json'
    files.write_json(str(path), {'a': 'ü'})
    assert files.read_json(str(path)) == {'a': 'ü'}
    try:
        with files.replacing(str(path)) as temporary:
            open(temporary, 'w').write('half')
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert files.read_json(str(path)) == {'a': 'ü'} and len(list(path.parent.iterdir())) == 1


def test_errors_while_writing_have_a_name(tmp_path):
    path = str(tmp_path / 'x')
    with pytest.raises(OSError, match=f'{path} cannot be written: .*No space left'):
        with files.replacing(path), open('/dev/full', 'w') as full:
            full.write('x')
    with pytest.raises(BrokenPipeError), files.replacing(path):
        raise BrokenPipeError
