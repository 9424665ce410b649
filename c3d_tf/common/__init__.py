# SPDX-License-Identifier: Apache-2.0
"""What every verb and room may use: errors, console output, files that are complete or absent."""
