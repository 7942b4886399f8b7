# SPDX-License-Identifier: Apache-2.0
"""ASGI middleware: the answers of a server that takes one carry their attestations (docs/howto/middleware.md).

`vllm serve … --middleware quotary_attest.serving.asgi.Attest`, or `app.add_middleware(Attest)` in any ASGI application.
It needs no package beyond the verifier's, and never opens the TPM: one agent on the host does.
"""

from __future__ import annotations

from quotary_attest.serving.asgi.middleware import Attest
from quotary_attest.serving.asgi.settings import Settings

__all__ = ["Attest", "Settings"]
