# SPDX-License-Identifier: Apache-2.0
"""Checks of the engine behind a connection: whose socket it is, which program runs there, which files it has open."""
