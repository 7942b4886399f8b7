# SPDX-License-Identifier: Apache-2.0
"""Where a log is read from: a web server, an agent's socket, a folder, an archive (docs/spec/archive.md)."""
