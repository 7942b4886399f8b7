# SPDX-License-Identifier: Apache-2.0
"""Wire formats, encoder and decoder side by side."""
