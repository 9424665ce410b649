# SPDX-License-Identifier: Apache-2.0
"""What learns from descriptors."""
