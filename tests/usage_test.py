# SPDX-License-Identifier: Apache-2.0
"""The help text's examples are commands, and completion completes, in real shells."""

import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest

from c3d_tf import flags
from c3d_tf import main
from c3d_tf import usage


def _known():
    return flags.Flags()


def test_every_verb_has_an_example_that_parses():
    assert usage.EXAMPLES.keys() == main.MODES.keys()
    for verb, text in usage.EXAMPLES.items():
        known = _known()
        assert known.values(['c3d_tf', f'--mode={verb}', *shlex.split(text)])[1:] == []
        used = {word.split('=')[0][2:] for word in shlex.split(text)}
        assert used <= set(known.of(verb)), verb


def test_the_help_shows_each_flag_once_and_each_verb_its_own():
    text = usage.help_text(_known(), [])
    for name in _known().verbs:
        assert len(re.findall(rf'^  --{name} ', text, re.M)) == 1, name
    for verb in main.MODES:
        part = usage.help_text(_known(), [verb])
        shown = set(re.findall(r'^  --(\w+) ', part, re.M))
        assert shown == set(_known().of(verb)), verb
        assert max(map(len, part.splitlines())) <= 110


def test_the_examples_can_be_pasted(tmp_path):
    """A shell reads the wrapped example as the one command."""
    text = usage.help_text(_known(), ['svm'])
    example = re.search(r'^svm:\n((?:.*\\\n)*.*)', text, re.M)[1]
    said = subprocess.run(['bash', '-c', f'python() {{ printf "%s\\n" "$@"; }}\n{example}'], check=True,
                          capture_output=True, text=True).stdout.split('\n')[:-1]
    assert said == ['-m', 'c3d_tf.main', '--mode=svm', *shlex.split(usage.EXAMPLES['svm'])]


CASES = {
    '--mode=prepare,tr': '--mode=prepare,train',
    '--class_w': '--class_weights=',
    '--class_weights=bal': '--class_weights=balanced',
    '--weights=a_mod': '--weights=a_model.keras',
}


@pytest.mark.parametrize('shell', ['bash', 'zsh'])
def test_completion(shell, tmp_path):
    """A real shell on a real terminal, a real Tab."""
    if not shutil.which(shell) or not shutil.which('tmux'):
        pytest.skip(f'needs {shell} and tmux')
    (tmp_path / 'a_model.keras').touch()
    script = tmp_path / 'completion'
    with open(script, 'w') as file:
        subprocess.run([sys.executable, '-m', 'c3d_tf.main', f'--completion={shell}'], check=True, stdout=file)
    start = {'bash': 'bash --norc -i', 'zsh': 'zsh -f -i'}[shell]
    tmux = ['tmux', '-L', f'c3d_tf_{shell}_{tmp_path.name}']
    try:
        subprocess.run([*tmux, 'new-session', '-d', '-x', '200', '-y', '50', '-c', str(tmp_path), start], check=True)
        init = 'autoload -U compinit && compinit -u -D; ' if shell == 'zsh' else ''
        subprocess.run([*tmux, 'send-keys', f"PS1='> '; {init}source {script}; clear", 'Enter'], check=True)
        time.sleep(1)
        for typed, expected in CASES.items():
            subprocess.run([*tmux, 'send-keys', f'c3d_tf {typed}', 'Tab'], check=True)
            for _ in range(50):
                time.sleep(0.1)
                screen = subprocess.run([*tmux, 'capture-pane', '-p'], check=True, capture_output=True, text=True)
                line = screen.stdout.rstrip().splitlines()[-1] if screen.stdout.strip() else ''
                line = line.rstrip(' ,')  # zsh offers the comma of a list
                if line == f'> c3d_tf {expected}':
                    break
            assert line == f'> c3d_tf {expected}'
            subprocess.run([*tmux, 'send-keys', 'C-c'], check=True)
            time.sleep(0.2)
    finally:
        subprocess.run([*tmux, 'kill-server'], check=False)
