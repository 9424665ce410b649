# SPDX-License-Identifier: Apache-2.0
"""What a network looks at: which clips excite it, and where in them."""
