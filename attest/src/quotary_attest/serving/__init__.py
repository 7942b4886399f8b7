# SPDX-License-Identifier: Apache-2.0
"""Serving: the attesting proxy and the local HTTP interface."""
