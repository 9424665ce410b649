# SPDX-License-Identifier: Apache-2.0
from c3d_tf.common import files


def test_only_our_own_leftovers_are_removed(tmp_path):
    ours = ['index.json.tmp-123', 'model.keras.tmp-9']
    theirs = ['notes.tmp-old', 'x.tmp-1x', 'model.keras']
    for name in ours + theirs:
        (tmp_path / name).write_text('x')
    (tmp_path / 'frames_temp').mkdir()
    (tmp_path / 'folder.tmp-5').mkdir()
    (tmp_path / 'model.keras.tmp-7.d').mkdir()
    (tmp_path / 'model.keras.tmp-7.d/config.json').touch()
    files.remove_leftovers(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {*theirs, 'frames_temp', 'folder.tmp-5'}


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
