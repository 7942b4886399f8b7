# SPDX-License-Identifier: Apache-2.0
"""The command line `attest`: one module for each command, imported only when it runs."""
