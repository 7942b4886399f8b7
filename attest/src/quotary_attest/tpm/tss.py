# SPDX-License-Identifier: Apache-2.0
"""The door to tpm2_pytss: every module of this package takes the library from here.

The C library writes its own log lines to stderr, where they would spoil the command line's output; they are
switched off before the import unless the operator has set TSS2_LOG. A host without the library gets an error
that names the packages, not a traceback.
"""

from __future__ import annotations

import os
from typing import Any

from quotary_attest.tpm.errors import TpmUnsupported

os.environ.setdefault("TSS2_LOG", "all+none")

try:
    import tpm2_pytss as lib
    from tpm2_pytss.TSS2_Exception import TSS2_Exception
    from tpm2_pytss.utils import NoSuchIndex, create_ek_template
except (ImportError, RuntimeError) as error:  # RuntimeError: headers and libraries of different versions
    raise TpmUnsupported(
        f"the tpm library cannot be loaded: {error}",
        hint="apt install libtss2-dev gcc python3-dev pkg-config, then pip install 'quotary-attest[tpm]'",
    ) from error

__all__ = ["NoSuchIndex", "TSS2_Exception", "create_ek_template", "key_files", "lib"]


def key_files() -> Any:
    """Return the library's reader and writer of files "TSS2 PRIVATE KEY"; only the signing of policies needs it."""
    from tpm2_pytss.tsskey import TSSPrivKey

    return TSSPrivKey
