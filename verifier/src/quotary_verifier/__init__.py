# SPDX-License-Identifier: Apache-2.0
"""Offline verification of Quotary attestations: no input or output, no clock."""
