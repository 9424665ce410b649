# SPDX-License-Identifier: Apache-2.0
"""Pictures for people who would rather look than read."""
