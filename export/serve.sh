#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Serves what models.config lists, in docker: gRPC on port 8500, REST on 8501, of this machine alone.
# SERVING_TAG chooses the image's version. What is added to the command goes to the server.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
command -v docker >/dev/null || { echo 'serve.sh: needs docker; see https://docs.docker.com/engine/install' >&2; exit 1; }
docker info >/dev/null 2>&1 || { echo 'serve.sh: docker does not answer; start its engine, or see "docker info"' >&2; exit 1; }

exec docker run --rm --init --name c3d_tf_serving \
  -p 127.0.0.1:8500:8500 -p 127.0.0.1:8501:8501 -v "$here:/models:ro" \
  --entrypoint tensorflow_model_server "tensorflow/serving:${SERVING_TAG:-latest}" \
  --port=8500 \
  --rest_api_port=8501 \
  --model_config_file=/models/models.config \
  --enable_batching \
  --batching_parameters_file=/models/batching.config \
  --monitoring_config_file=/models/monitoring.config \
  "$@"
