# SPDX-License-Identifier: Apache-2.0
"""A server whose middleware is set up wrongly ends as it starts, and answers nothing if it does not."""

from __future__ import annotations

import logging

import pytest
import uvicorn
from starlette.applications import Starlette

from quotary_attest.serving.asgi import Attest


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUOTARY_MAX_HELD", "much")
    monkeypatch.setenv("QUOTARY_PATHS", "/v1/rerank=nothing")


@pytest.mark.usefixtures("wrong")
async def test_a_server_ends_as_it_starts_and_says_every_error(caplog: pytest.LogCaptureFixture) -> None:
    app = Starlette()
    app.add_middleware(Attest)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, log_level="error"))
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(
        caplog.handler
    )  # another server in this process may have set how its logger passes lines on
    try:
        with pytest.raises(SystemExit):
            await server.serve()
    finally:
        logger.removeHandler(caplog.handler)
    assert not server.started
    assert "max_held" in caplog.text
    assert "nothing" in caplog.text


@pytest.mark.usefixtures("wrong")
async def test_a_server_without_a_lifespan_answers_no_request() -> None:
    async def never(*_: object) -> None:
        raise AssertionError

    with pytest.raises(ValueError, match="max_held"):
        await Attest(never)({"type": "http"}, never, never)
