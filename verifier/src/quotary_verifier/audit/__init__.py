# SPDX-License-Identifier: Apache-2.0
"""The audit of a host's whole history: tree, chain, boots, clocks, logs, policy by period, witnesses and records."""
