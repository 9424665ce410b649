# SPDX-License-Identifier: Apache-2.0
"""The files that a server reads parse as its text protos, and agree with each other and the export."""

import os
import re
import subprocess

import google.protobuf.text_format
import pytest
from tensorflow_serving.config import model_server_config_pb2

from c3d_tf.serving import warmup
from tests import server_configs_pb2
from tests import serving_toy

EXPORT = serving_toy.EXPORT
MESSAGES = {'models.config': model_server_config_pb2.ModelServerConfig,
            'batching.config': server_configs_pb2.BatchingParameters,
            'monitoring.config': server_configs_pb2.MonitoringConfig}


def _read(name, text=None):
    return google.protobuf.text_format.Parse(text or (EXPORT / name).read_text(), MESSAGES[name]())


@pytest.mark.parametrize('name', MESSAGES)
def test_a_config_parses_and_a_slip_does_not(name):
    text = (EXPORT / name).read_text()
    assert _read(name).ListFields()
    word = re.search(r'^ *(\w+)', re.sub('#.*', '', text), re.M)[1]
    with pytest.raises(google.protobuf.text_format.ParseError):
        _read(name, text.replace(word, word + 's'))


def test_models_are_below_the_folder_that_is_mounted():
    for model in _read('models.config').model_config_list.config:
        assert model.base_path == f'/models/{model.name}' and model.model_platform == 'tensorflow'


def test_what_the_batching_comment_shows_parses_too():
    text = (EXPORT / 'models.config').read_text()
    block = re.findall(r'^  #   (.*)$', text, re.M)
    assert len(block) == 2
    shown = '\n'.join(['platform: "tensorflow"', *block])
    config = _read('models.config', text.replace('platform: "tensorflow"', shown))
    (model,) = config.model_config_list.config
    assert list(model.model_version_policy.specific.versions) == [1, 2]
    assert model.version_labels['stable'] == 1


def test_batches_are_never_padded_in_time_and_their_sizes_are_warm():
    config = _read('batching.config')
    assert not config.pad_variable_length_inputs
    assert tuple(config.allowed_batch_sizes) == warmup.BATCH_SIZES
    assert config.allowed_batch_sizes[-1] == config.max_batch_size.value  # the server stops otherwise
    assert config.num_batch_threads.value >= 1 and config.batch_timeout_micros.value < 20_000


def test_prometheus_fetches_the_page_that_the_server_shows():
    text = (EXPORT / 'prometheus.yml').read_text()
    monitoring = _read('monitoring.config').prometheus_config
    assert monitoring.enable and f'metrics_path: {monitoring.path}\n' in text
    (port,) = (flag for flag in serving_toy.server_flags() if flag.startswith('--rest_api_port='))
    assert f"['serving:{port.split('=')[1]}']" in text
    assert './prometheus.yml:/etc/prometheus/prometheus.yml:ro' in (EXPORT / 'compose.yaml').read_text()


def test_the_script_and_the_compose_file_start_the_same_server():
    script = (EXPORT / 'serve.sh').read_text()
    command = script.split('exec docker run')[1].replace('\\\n', ' ').split()
    flags = serving_toy.server_flags()
    assert [word for word in command if word in flags] == flags
    for flag in flags:
        if '/models/' in flag:
            assert (EXPORT / flag.split('/models/')[1]).is_file(), flag
    assert os.access(EXPORT / 'serve.sh', os.X_OK)
    assert command[command.index('--entrypoint') + 1] == 'tensorflow_model_server'
    assert 'entrypoint: tensorflow_model_server\n' in (EXPORT / 'compose.yaml').read_text()


def test_without_docker_the_script_says_so():
    done = subprocess.run(['/bin/sh', EXPORT / 'serve.sh'], env={'PATH': '/usr/nowhere'},
                          capture_output=True, text=True)
    assert done.returncode == 1 and 'needs docker' in done.stderr
