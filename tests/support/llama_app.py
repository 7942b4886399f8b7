# SPDX-License-Identifier: Apache-2.0
"""llama-cpp-python's server as a program: `llama_app.py MODEL PORT NAME [--attest]`. Runs in its own environment."""

from __future__ import annotations

import sys

import uvicorn
from llama_cpp.server.app import create_app
from llama_cpp.server.settings import ModelSettings, ServerSettings


def main() -> None:
    """Serve until told to stop."""
    model, port, name = sys.argv[1:4]
    settings = ModelSettings(
        model=model, model_alias=name, n_ctx=1024, n_threads=1, chat_format="chatml-function-calling"
    )
    app = create_app(server_settings=ServerSettings(), model_settings=[settings])
    if "--attest" in sys.argv:
        from quotary_attest.serving.asgi import Attest

        app.add_middleware(Attest)
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    main()
