# SPDX-License-Identifier: Apache-2.0
"""What every verb says, in a pipe and on a terminal: no noise, no control characters where none belong."""

import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest

from c3d_tf import main
from c3d_tf import models
from c3d_tf.common import console
from c3d_tf.data import moving_shapes
from tests import weight_files

TINY = ['--frame_size=28x36', '--crop_size=24', '--width=0.03', '--batch_norm', '--batch_size=8', '--steps=4',
        '--mean=channel', '--eval_batch_size=8', '--clips=1']
# In this order, in one folder: each works on what those before it left.
VERBS = {
    'prepare': ['--videos=videos', '--records=records', *TINY],
    'train': ['--records=records', '--workdir=run', *TINY],
    'evaluate': ['--records=records', '--workdir=run', *TINY],
    'study': ['--records=records', '--workdir=study', '--models=depth_1', '--seeds=0', *TINY],
    'predict': ['--workdir=run', '--input=videos/test/left/left_0000.mp4'],
    'features': ['--workdir=run', '--input=videos', '--layers=fc6,prob', '--output=features'],
    'svm': ['--features=features', '--videos=videos', '--workdir=svm', '--embed=0', '--pca='],
    'similarity': ['--features=features', '--videos=videos', '--similarity_layers=fc6,prob', '--pair_folds=2',
                   '--pairs_per_fold=4', '--workdir=similarity'],
    'visualize': ['--workdir=run', '--records=records', '--maps=1', '--top=1'],
    'report': ['--workdir=run'],
    'export': ['--workdir=run', '--export_dir=export'],
    'import_weights': ['--source=thin.caffemodel', '--mean=128', '--dry_run'],
    'benchmark': ['--workdir=benchmark', '--table=runtime', '--input=videos/test/left', '--weights=run/model.keras'],
}

# All verbs in one process, as `--mode=a,b` runs them, since each has flags of its own.
DRIVER = """
import sys
from c3d_tf import main
if __name__ == '__main__':  # workers are spawned
    for words in map(str.split, open('commands')):
        code = main.main(['c3d_tf', *words])
        if code:
            sys.exit(f'{words}: {code}')
"""


@pytest.fixture
def folder(tmp_path):
    moving_shapes.write(str(tmp_path / 'videos'), train_per_class=2, test_per_class=2, num_workers=1)
    weight_files.caffe_v1_0(tmp_path / 'thin.caffemodel', weight_files.thin())
    (tmp_path / 'driver.py').write_text(DRIVER)
    (tmp_path / 'commands').write_text('\n'.join(f'--mode={verb} {" ".join(words)}' for verb, words in VERBS.items()))
    return tmp_path


def test_in_a_pipe(folder):
    assert VERBS.keys() == main.MODES.keys()
    done = subprocess.run([sys.executable, 'driver.py'], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ''  # no warning, no chatter
    assert not re.search(r'[\x00-\x09\x0b-\x1f\x7f]', done.stdout)
    for verb in VERBS:
        assert re.search(rf'^{verb}: ', done.stdout, re.M) or verb == 'predict', verb
    # What is wrong is said on standard error alone, with the name of the program.
    done = subprocess.run([sys.executable, '-m', 'c3d_tf.main', '--mode=train', '--records=nothing', '--workdir=w'],
                          cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, '') and re.match(r'c3d_tf: --records=nothing: .*\n', done.stderr)


def test_on_a_terminal(folder):
    if not shutil.which('tmux'):
        pytest.skip('needs tmux')
    verbs = ('prepare', 'train', 'features')
    (folder / 'commands').write_text('\n'.join(f'--mode={verb} {" ".join(VERBS[verb])}' for verb in verbs))
    tmux = ['tmux', '-L', f'c3d_tf_{folder.name}']
    command = f'{shlex.quote(sys.executable)} driver.py; echo "ended with $?"; sleep 60'
    try:
        subprocess.run([*tmux, 'new-session', '-d', '-x', '60', '-y', '50', '-c', str(folder), command], check=True)
        screen = ''
        for _ in range(1200):
            time.sleep(0.1)
            screen = subprocess.run([*tmux, 'capture-pane', '-p', '-J'], check=True, capture_output=True,
                                    text=True).stdout
            if 'ended with' in screen:
                break
    finally:
        subprocess.run([*tmux, 'kill-server'], check=False)
    lines = [line.rstrip() for line in screen.splitlines() if line.strip()]
    assert lines[-1] == 'ended with 0'
    # A line of progress is one line that ends as the last word on it, even where the terminal is narrow.
    for what in verbs:
        assert len([line for line in lines if re.match(rf'{what}: \d+/\d+ ', line)]) == 1, screen
    assert not any('ETA' in line or 'WARNING' in line for line in lines), screen


def test_columns_of_letters_that_are_wide():
    assert [console.columns(text) for text in ('walk', '打篮球', '골프', 'e\u0301', '')] == [4, 6, 4, 1, 0]
    assert console.aligned(['打篮球', 'walk', 'e\u0301']) == ['打篮球', 'walk  ', 'e\u0301     ']
    assert console.aligned([]) == []
