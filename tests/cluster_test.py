# SPDX-License-Identifier: Apache-2.0
"""Training with several workers: real processes over loopback, and over two network namespaces."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import tensorflow as tf

from c3d_tf import prepare
from c3d_tf import train
from c3d_tf.common import errors
from c3d_tf.data import datasets
from c3d_tf.data import moving_shapes
from c3d_tf.data import pipeline
from c3d_tf.data import preprocess
from c3d_tf.data import records
from c3d_tf.training import cluster as clusters
from c3d_tf.training import history
from c3d_tf.weights import artefact
from tests import conftest

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCH = ROOT / 'experiments/cluster/launch.py'
VIDEOS = 11  # batches of 3, 3, 3 and 2
# Everything that the workers must agree on: statistics of batches, averages, statistics for them, validation.
RECIPE = {'model': 'depth_3', 'width': 0.03, 'crop_size': 20, 'clip_length': 8, 'mean': 'channel',
          'initializer': 'he', 'batch_norm': True, 'dropout': 0.0, 'ema': 0.9, 'batch_size': 3, 'steps': 10,
          'learning_rate': 0.001}


@pytest.fixture(scope='module')
def records_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp('cluster')
    for i in range(VIDEOS + 4):
        label = moving_shapes.CLASSES[i % 2]
        frames = moving_shapes.render(label, np.random.default_rng(i), height=48, width=64, num_frames=18)
        conftest.write_video(root / f'v/{"train" if i < VIDEOS else "val"}/{label}/{i}.avi', frames)
    prepare.prepare(datasets.load('folder', videos=str(root / 'v')), str(root / 'r'), frame_size=(24, 32))
    return str(root / 'r')


def _flags(records_dir, workdir, **changes):
    values = {**RECIPE, 'records': records_dir, 'workdir': workdir, 'log_every': 1, 'checkpoint_every': 4, **changes}
    return ['--mode=train', *(f'--{name}={value}' for name, value in values.items())]


def _worker(index, addresses, flags, prefix=()):
    config = {'cluster': {'worker': addresses}, 'task': {'type': 'worker', 'index': index}}
    return subprocess.Popen(
        [*prefix, sys.executable, '-m', 'c3d_tf.main', *flags, '--strategy=multi_worker'], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'TF_CONFIG': json.dumps(config)})


def _addresses(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(('127.0.0.1', 0))) for _ in range(count)]
        return [f'127.0.0.1:{each.getsockname()[1]}' for each in sockets]


def _same(one, other, rtol=1e-4):
    (steps, losses), (theirs, others) = (history.read(str(run), 'loss') for run in (one, other))
    assert steps == theirs
    np.testing.assert_allclose(others, losses, rtol=rtol, atol=1e-5)
    one, other = (artefact.load(f'{run}/model.keras').model.get_weights() for run in (one, other))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(b, a, rtol=rtol, atol=1e-5)


@pytest.fixture(scope='module')
def alone(records_dir, tmp_path_factory):
    """The run of one process that those of several must equal."""
    workdir = tmp_path_factory.mktemp('alone')
    train.fit(records_dir, str(workdir), train.Recipe(**RECIPE), log_every=1)
    return workdir


def test_sigterm_to_one_worker_stops_all_at_the_same_step(records_dir, tmp_path):
    workdir = tmp_path / 'run'
    addresses = _addresses(2)
    workers = [_worker(i, addresses, _flags(records_dir, workdir, steps=100_000)) for i in range(2)]
    while not (workdir / 'checkpoints/ckpt-4.index').exists():
        assert all(each.poll() is None for each in workers), [each.communicate()[0] for each in workers]
        time.sleep(0.05)
    workers[1].send_signal(signal.SIGTERM)
    said = [each.communicate()[0] for each in workers]
    assert [each.returncode for each in workers] == [75, 75], said
    step, = {line.split('at step ')[1].split()[0] for text in said for line in text.splitlines() if 'stopped' in line}
    assert (workdir / f'checkpoints/ckpt-{step}.index').exists()
    assert '2 device(s) of 2 workers' in said[0]


def test_a_killed_worker_makes_the_other_save_and_the_launcher_start_all_again(records_dir, alone, tmp_path):
    workdir = tmp_path / 'run'
    # Two epochs behind the last checkpoint: only what the survivor saves can be gone on from.
    launcher = subprocess.Popen(
        [sys.executable, LAUNCH, '2', *_flags(records_dir, workdir, checkpoint_every=1000)], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    chief = int(launcher.stdout.readline().split('processes ')[1].split(',')[0])
    # After the first epoch, while the chief writes the best network; where that is missed, just behind it.
    while not list(workdir.glob('best.keras*')):
        assert launcher.poll() is None
        time.sleep(0.001)
    os.kill(chief, signal.SIGKILL)
    said, _ = launcher.communicate()
    logs = [(workdir / f'worker-{i}.log').read_text() for i in range(2)]
    assert launcher.returncode == 0, (said, logs)
    assert 'ended with -9, 75' in said and 'starts all again in 2 s (1 of 10)' in said
    assert 'c3d_tf: worker 0 (127.0.0.1:' in logs[1] and 'was lost: saved at step ' in logs[1]
    step = logs[1].split('saved at step ')[1].split(';')[0]
    assert int(step) >= 4 and f'continues at step {step} of 10' in logs[0]
    assert not (workdir / 'checkpoints/worker-1').exists()
    assert 'wrote' in logs[0] and 'wrote' not in logs[1]
    assert len(list((workdir / 'tensorboard/train').iterdir())) == 3  # the chief's of two runs, and of the survivor
    _same(alone, workdir)
    one, other = (json.loads((run / 'train.json').read_text()) for run in (alone, workdir))
    assert (one['best_val_accuracy'], one['best_step']) == (other['best_val_accuracy'], other['best_step'])


@pytest.fixture
def namespaces():
    """Two network namespaces with a cable between them: (prefixes of commands, addresses)."""
    if os.geteuid() or not shutil.which('ip'):
        pytest.skip('network namespaces need root and `ip`')
    names = [f'c3d-{os.getpid()}-{i}' for i in range(2)]

    def ip(*words):
        subprocess.run(['ip', *words], check=True)

    try:
        for name in names:
            ip('netns', 'add', name)
        ip('link', 'add', 'cable', 'netns', names[0], 'type', 'veth', 'peer', 'name', 'cable', 'netns', names[1])
        for i, name in enumerate(names):
            ip('-n', name, 'address', 'add', f'10.77.0.{i + 1}/24', 'dev', 'cable')
            for device in ('lo', 'cable'):
                ip('-n', name, 'link', 'set', device, 'up')
        yield ([['ip', 'netns', 'exec', name] for name in names], [f'10.77.0.{i + 1}:2222' for i in range(2)],
               lambda state: ip('-n', names[1], 'link', 'set', 'cable', state))
    finally:
        for name in names:
            subprocess.run(['ip', 'netns', 'delete', name])


@pytest.mark.soak
def test_a_worker_that_is_cut_off_for_a_minute(namespaces, records_dir, alone, tmp_path):
    prefixes, addresses, cable = namespaces
    workdir = tmp_path / 'run'

    def start():
        return [_worker(i, addresses, _flags(records_dir, workdir, checkpoint_every=1000), prefix)
                for i, prefix in enumerate(prefixes)]

    workers = start()
    while not (workdir / 'best.keras').exists():
        assert all(each.poll() is None for each in workers), [each.communicate()[0] for each in workers]
        time.sleep(0.02)
    cable('down')
    cut = time.monotonic()
    said = [each.communicate()[0] for each in workers]
    noticed = time.monotonic() - cut
    assert [each.returncode for each in workers] == [75, 75], said
    assert noticed < 60
    assert all(f'worker {1 - i} ({addresses[1 - i]}) was lost: saved at step' in text for i, text in enumerate(said))
    workers = start()  # as a launcher does; they wait for each other
    time.sleep(max(60 - (time.monotonic() - cut), 5))
    cable('up')
    said = [each.communicate()[0] for each in workers]
    assert [each.returncode for each in workers] == [0, 0], said
    assert f'waits for worker 1 ({addresses[1]})' in said[0] and 'continues at step' in said[0]
    _same(alone, workdir)
    print(f'noticed after {noticed:.0f} s')


@pytest.mark.soak
def test_kills_at_random_under_the_launcher(records_dir, tmp_path):
    rng = np.random.default_rng()
    workdir, steps = tmp_path / 'run', 300
    train.fit(records_dir, str(tmp_path / 'alone'), train.Recipe(**{**RECIPE, 'steps': steps}), log_every=1)
    launcher = subprocess.Popen(
        [sys.executable, LAUNCH, '2', *_flags(records_dir, workdir, steps=steps, checkpoint_every=50)], cwd=tmp_path,
        text=True, stdout=subprocess.PIPE, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    kills = 0
    for line in launcher.stdout:
        if 'processes' in line and kills < 3:
            time.sleep(rng.uniform(5, 30))
            os.kill(int(rng.choice(line.split('processes ')[1].split(';')[0].split(','))), signal.SIGKILL)
            kills += 1
    assert launcher.wait() == 0 and kills == 3
    _same(tmp_path / 'alone', workdir)


def test_every_clip_is_one_workers_and_every_worker_has_one_of_every_batch(records_dir):
    index = records.read_index(records_dir)
    spec = preprocess.Preprocessing((24, 32), 20, 8, 1, np.zeros((), np.float32))

    def batches(worker, size, skip=0):
        found = pipeline.for_training(index.split('train'), spec, batch_size=size, epoch=2, seed=1, worker=worker,
                                      skip=skip)
        return [[(int(r), float(np.sum(c))) for c, r in zip(clips, rows)] for clips, _, rows in found]

    for size, count in ((3, 2), (4, 5)):  # more rows than workers, and fewer
        whole = batches((0, 1), size)
        parts = [batches((number, count), size) for number in range(count)]
        assert {len(part) for part in parts} == {len(whole)}
        for step, rows in enumerate(whole):
            shares = [pipeline.share(len(rows), (number, count)) for number in range(count)]
            own = [part[step] for part, share in zip(parts, shares) if share]
            assert sorted(sum(own, [])) == sorted(rows)
            assert max(map(len, own)) - min(map(len, own)) <= 1
            assert sum(share * len(part[step]) for part, share in zip(parts, shares)) == pytest.approx(1)
            assert all(len(part[step]) >= 1 for part in parts)  # Conv3D does not survive none
        assert batches((1, count), size, skip=1) == parts[1][1:]


CONFIG = '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}'


@pytest.mark.parametrize('text', ['', '{', '[]', CONFIG.replace('1}', '2}'), CONFIG.replace('1}', '"1"}'),
                                  CONFIG.replace('b:2', 'b'), CONFIG.replace('"worker", "i', '"chief", "i'),
                                  CONFIG.replace('["a:1", "b:2"]', '[]'), '{"cluster": {}, "task": {}}'])
def test_what_is_no_cluster_is_refused_with_an_example(text, records_dir, tmp_path, monkeypatch):
    monkeypatch.setenv('TF_CONFIG', text)
    with pytest.raises(errors.UsageError, match='expected {"cluster": {"worker":') as error:
        train.fit(records_dir, str(tmp_path), train.Recipe(**RECIPE, strategy='multi_worker'))
    assert text in str(error.value)
    monkeypatch.setenv('TF_CONFIG', CONFIG)
    assert clusters.read() == clusters.Cluster(('a:1', 'b:2'), 1)


def test_workers_that_do_not_come_are_named(monkeypatch, capsys):
    addresses = _addresses(3)
    with socket.create_server(('127.0.0.1', int(addresses[2].split(':')[1]))):
        cluster = clusters.Cluster(tuple(addresses), 1)
        with pytest.raises(errors.Interrupted, match=rf'^worker 0 \({addresses[0]}\) did not come within 1 s'):
            clusters.join(cluster, 1)
        assert capsys.readouterr().out == f'train: waits for worker 0 ({addresses[0]})\n'
        with pytest.raises(errors.UsageError, match='port .* cannot be listened on'):
            clusters.join(clusters.Cluster(tuple(addresses), 2), 1)


def test_an_error_is_a_loss_or_another_one():
    unreachable = '127.0.0.1:1'
    cluster = clusters.Cluster(('a:1', unreachable), 0)

    def lost(kind, text, cluster=cluster):
        return cluster.lost(kind(None, None, text))

    aborted = 'Collective ops is aborted by: remote target /job:worker/replica:0/task:1 while calling'
    assert lost(tf.errors.UnavailableError, aborted) == [1]
    assert lost(tf.errors.UnavailableError, aborted, clusters.Cluster()) is None
    assert lost(tf.errors.InvalidArgumentError, 'Shape mismatch in the collective; Collective ops is aborted') is None
    assert lost(tf.errors.ResourceExhaustedError, 'OOM when allocating tensor') is None
    with socket.create_server(('127.0.0.1', 0)) as server:  # it answers: only TensorFlow's word is there
        alive = clusters.Cluster(('a:1', f'127.0.0.1:{server.getsockname()[1]}'), 0)
        assert lost(tf.errors.UnavailableError, aborted, alive) == [1]
        assert lost(tf.errors.UnavailableError, 'Collective ops is aborted', alive) == []


@pytest.mark.parametrize('mode', ['prepare,train', 'train,evaluate', 'study'])
def test_workers_train_and_do_nothing_else(mode):
    done = subprocess.run([sys.executable, '-m', 'c3d_tf.main', f'--mode={mode}', '--strategy=multi_worker'],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and 'expected --mode=train, since every worker' in done.stderr


# The fields of jobset.x-k8s.io/v1alpha2, batch/v1 and v1 that a key of the file may be, by where it stands.
FIELDS = {
    '': {'apiVersion', 'kind', 'metadata', 'spec'},
    'metadata': {'name'},
    'spec': {'network', 'failurePolicy', 'replicatedJobs', 'successPolicy', 'startupPolicy', 'suspend', 'coordinator',
             'managedBy', 'ttlSecondsAfterFinished', 'volumeClaimPolicies'},
    'spec.network': {'enableDNSHostnames', 'subdomain', 'publishNotReadyAddresses'},
    'spec.failurePolicy': {'maxRestarts', 'restartStrategy', 'rules'},
    'spec.replicatedJobs': {'name', 'groupName', 'replicas', 'template', 'dependsOn'},
    'spec.replicatedJobs.template': {'metadata', 'spec'},
    'spec.replicatedJobs.template.spec': {'parallelism', 'completions', 'completionMode', 'backoffLimit', 'template'},
    'spec.replicatedJobs.template.spec.template': {'metadata', 'spec'},
}


def test_the_jobset_has_the_fields_of_the_api_and_its_pods_find_each_other():
    text = (ROOT / 'experiments/cluster/jobset.yaml').read_text()
    path, found = [], {}
    for line in text.splitlines():
        match = re.match(r'( *(?:- )?)(\w+):(?: (.*))?$', line)
        if match:
            path = [(depth, name) for depth, name in path if depth < len(match[1])]
            where = '.'.join(name for _, name in path)
            assert match[2] in FIELDS.get(where, {match[2]}), (where, match[2])
            path.append((len(match[1]), match[2]))
            found[f'{where}.{match[2]}'.lstrip('.')] = match[3]
    job = 'spec.replicatedJobs.template.spec'
    assert found.keys() >= FIELDS[''] | {f'{job}.template.spec.containers.command', 'spec.replicatedJobs.replicas'}
    assert (found['apiVersion'], found['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
    assert found[f'{job}.completions'] == found[f'{job}.parallelism'] == '2' and found[f'{job}.completionMode'] == 'Indexed'
    assert 'name: WORKERS\n                      value: "2"' in text
    # JobSet names pods NAME-JOB-REPLICA-INDEX.SUBDOMAIN.
    name, replicated = found['metadata.name'], found['spec.replicatedJobs.name']
    script = textwrap.dedent(text.split('- |\n')[1].split('resources:')[0])
    cluster = _made(script, WORKERS='3', JOB_COMPLETION_INDEX='2')
    assert cluster.index == 2 and cluster.addresses == tuple(
        f'{name}-{replicated}-0-{i}.{found["spec.network.subdomain"]}:2222' for i in range(3))


def test_slurms_workers_find_each_other():
    text = (ROOT / 'experiments/cluster/slurm.sbatch').read_text()
    subprocess.run(['bash', '-n'], input=text, text=True, check=True)
    line, = re.findall('^port=.*\nexport ADDRESSES=.*$', text, re.M)
    hosts = line.replace('$(scontrol show hostnames "$SLURM_JOB_NODELIST"', '$(printf "node1\\nnode2\\n"')
    inner = text.split("bash -c '")[1].split("' worker")[0]
    assert _made(f'{hosts}\n{inner}', SLURM_JOB_ID='7', SLURM_PROCID='1') == clusters.Cluster(
        ('node1:20007', 'node2:20007'), 1)


def _made(script, **environment):
    """Returns the workers of the TF_CONFIG that a launcher's script sets before it starts Python."""
    script = re.sub(r'exec python .*', 'printenv TF_CONFIG', script)
    out = subprocess.run(['bash', '-euc', script], env={**os.environ, **environment}, capture_output=True, text=True,
                         check=True).stdout
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TF_CONFIG', out.strip())
        return clusters.read()
