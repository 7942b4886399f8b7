# SPDX-License-Identifier: Apache-2.0
"""What goes wrong while files are measured."""

from __future__ import annotations


class MeasureError(Exception):
    """A file could not be measured: it cannot be read, is of the wrong kind, or changed meanwhile. The message names
    it; `hint` says what an operator can do."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class SignatureError(MeasureError):
    """A model's signature is false, or does not cover the files that were measured."""
