# SPDX-License-Identifier: Apache-2.0
"""What a server loads: the graph of an export, its warm-up, and the check of any export."""
