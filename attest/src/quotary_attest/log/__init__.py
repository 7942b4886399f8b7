# SPDX-License-Identifier: Apache-2.0
"""The host's append-only log: durable files, journal, history, tree and records."""
