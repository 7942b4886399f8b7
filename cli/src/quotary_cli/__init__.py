# SPDX-License-Identifier: Apache-2.0
"""The command `attest`. Each subcommand is one file, imported when it is asked for."""

__version__ = "0.1.0"
