# SPDX-License-Identifier: Apache-2.0
"""Other programs that run the networks: ONNX Runtime, OpenVINO, and OpenVINO with int8."""
