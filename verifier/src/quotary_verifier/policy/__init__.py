# SPDX-License-Identifier: Apache-2.0
"""Policies: what a relying party accepts."""
