# SPDX-License-Identifier: Apache-2.0
"""The verbs on s3://, by tensorflow-io and against a server of moto on loopback: `make test-io`.

It runs in the environment of requirements-io.txt, an older TensorFlow: nothing is said here about numbers.
"""

import logging
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.io


@pytest.fixture(scope='module')
def s3():
    """A client of the server, and the environment of the processes that use it."""
    server = pytest.importorskip('moto.server').ThreadedMotoServer(port=0, verbose=False)
    import boto3

    logging.getLogger('werkzeug').setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    keys = {'AWS_ACCESS_KEY_ID': 'test', 'AWS_SECRET_ACCESS_KEY': 'test', 'AWS_REGION': 'us-east-1',
            'AWS_EC2_METADATA_DISABLED': 'true'}
    client = boto3.client('s3', endpoint_url=f'http://127.0.0.1:{port}', region_name='us-east-1',
                          aws_access_key_id='test', aws_secret_access_key='test')
    client.create_bucket(Bucket='bucket')
    yield client, {**os.environ, **keys, 'S3_ENDPOINT': f'http://127.0.0.1:{port}', 'S3_USE_HTTPS': '0'}
    server.stop()


def _run(environment: dict, *words) -> str:
    done = subprocess.run([sys.executable, '-m', 'c3d_tf.main', *words], env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_from_videos_to_a_saved_model(s3, folder):
    client, environment = s3
    for path in sorted(path for path in folder.rglob('*') if path.is_file()):
        client.upload_file(str(path), 'bucket', f'videos/{path.relative_to(folder)}')
    _run(environment, '--mode=prepare', '--dataset=folder', '--videos=s3://bucket/videos',
         '--records=s3://bucket/records', '--frame_size=36x40', '--clip_length=8')
    train = ['--mode=train', '--records=s3://bucket/records', '--workdir=s3://bucket/run', '--width=0.03',
             '--crop_size=32', '--clip_length=8', '--batch_size=4', '--steps=2', '--checkpoint_every=1']
    _run(environment, *train)
    assert 'is trained already' in _run(environment, *train)
    _run(environment, '--mode=evaluate', '--records=s3://bucket/records', '--workdir=s3://bucket/run')
    _run(environment, '--mode=export', '--workdir=s3://bucket/run', '--export_dir=s3://bucket/export')
    keys = {one['Key'] for one in client.list_objects_v2(Bucket='bucket')['Contents']}
    assert keys >= {'records/index.json', 'records/train.flags', 'run/model.keras'} - {'records/train.flags'}
    assert keys >= {'run/evaluate.json', 'run/report.html', 'run/checkpoints/checkpoint', 'export/1/saved_model.pb'}
