# SPDX-License-Identifier: Apache-2.0
"""A video drawn with what a network says of it."""
