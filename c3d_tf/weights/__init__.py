# SPDX-License-Identifier: Apache-2.0
"""Weight files: our own artefact, and those of others."""
