# SPDX-License-Identifier: Apache-2.0
"""The middleware without a server: its settings, what it leaves alone, and what it needs to be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quotary_attest.serving.asgi import Attest, Settings
from quotary_attest.serving.asgi.settings import DEFAULT_SOCKET, settings_of
from quotary_attest.serving.asgi.types import route_of
from quotary_attest.serving.paths import Api


def test_without_a_word_it_is_set_up_to_refuse_and_to_claim_nothing() -> None:
    found = settings_of({"PATH": "/bin", "QUOTARY_DEMO_MODEL": "not ours"})
    assert (found.socket, found.model, found.when_unavailable) == (DEFAULT_SOCKET, None, "refuse")
    assert found.paths.api_of("POST", "/v1/chat/completions") is Api.CHAT


def test_variables_stand_above_the_file_that_one_of_them_names(tmp_path: Path) -> None:
    file = tmp_path / "middleware.toml"
    file.write_text(
        'socket = "/run/a.sock"\nmodel = "of the file"\nmax_held = 5\n[paths]\n"/invocations" = "chat"\n'
    )
    found = settings_of(
        {
            "QUOTARY_CONFIG": str(file),
            "QUOTARY_MODEL": "of the environment",
            "QUOTARY_WHEN_UNAVAILABLE": "pass",
            "QUOTARY_MAX_INBAND": "7",
            "QUOTARY_FETCH_SECONDS": "1.5",
        }
    )
    assert found.socket == Path("/run/a.sock")
    assert (found.model, found.when_unavailable) == ("of the environment", "pass")
    assert (found.max_held, found.max_inband, found.fetch_seconds) == (5, 7, 1.5)
    assert found.paths.api_of("POST", "/invocations") is Api.CHAT
    listed = settings_of({"QUOTARY_PATHS": "/a=opaque, /b/*=none"}).paths
    assert (listed.api_of("POST", "/a"), listed.api_of("POST", "/b/c")) == (Api.OPAQUE, Api.NONE)


def test_every_error_is_told_at_once_and_stops_the_server_as_it_starts(tmp_path: Path) -> None:
    file = tmp_path / "middleware.toml"
    file.write_text('unheard_of = 1\nmodel = 5\n[paths]\n"/x" = "speech"\n')
    with pytest.raises(ValueError, match="middleware") as caught:
        settings_of(
            {
                "QUOTARY_CONFIG": str(file),
                "QUOTARY_SOCKET": "",
                "QUOTARY_MAX_HELD": "-1",
                "QUOTARY_FETCH_SECONDS": "for ever",
                "QUOTARY_WHEN_UNAVAILABLE": "perhaps",
            }
        )
    told = str(caught.value)
    for name in ("unheard_of", "model", "paths", "socket", "max_held", "fetch_seconds", "when_unavailable"):
        assert f"{name}: " in told
    for content in ("no toml [", None):
        broken = tmp_path / "broken.toml"
        if content is not None:
            broken.write_text(content)
        else:
            broken.unlink()
        with pytest.raises(ValueError, match=r"broken\.toml"):
            settings_of({"QUOTARY_CONFIG": str(broken)})


def test_a_server_that_makes_it_with_the_application_alone_has_it_set_up_by_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def app(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setenv("QUOTARY_MODEL", "m")
    assert Attest(app)._settings.model == "m"


@pytest.mark.parametrize(
    ("path", "raw", "root", "expected"),
    [
        ("/v1/x", b"/v1/x", "", "/v1/x"),
        ("/v1/x", b"/v1/%78", "", "/v1/%78"),
        ("/v1/x", None, "", "/v1/x"),
        ("/api/v1/x", b"/api/v1/x?q=1", "/api", "/v1/x"),
        ("/apiary/v1", b"/apiary/v1", "/api", "/apiary/v1"),
    ],
)
def test_paths_are_compared_as_they_were_sent_below_the_applications_own_prefix(
    path: str, raw: bytes | None, root: str, expected: str
) -> None:
    scope = {"path": path, "root_path": root} | ({} if raw is None else {"raw_path": raw})
    assert route_of(scope) == expected


async def test_a_websocket_is_left_alone(tmp_path: Path) -> None:
    seen: list[Any] = []

    async def app(*given: Any) -> None:
        seen.extend(given)

    async def receive() -> Any:
        raise AssertionError

    async def send(_: Any) -> None:
        raise AssertionError

    scope = {"type": "websocket", "path": "/v1/chat/completions"}
    await Attest(app, Settings(tmp_path / "no.sock"))(scope, receive, send)
    assert seen == [scope, receive, send]


async def test_the_link_is_closed_before_the_server_hears_that_the_application_has_stopped(
    tmp_path: Path,
) -> None:
    told: list[str] = []
    asked = iter(({"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}))

    async def app(_: Any, receive: Any, send: Any) -> None:
        for _ in range(2):
            await send({"type": (await receive())["type"] + ".complete"})

    async def receive() -> Any:
        return next(asked)

    async def send(message: Any) -> None:
        told.append(message["type"])
        assert (attest._link is None) is message["type"].startswith("lifespan.shutdown")

    attest = Attest(app, Settings(tmp_path / "no.sock"))
    await attest({"type": "lifespan"}, receive, send)
    assert told == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_it_loads_neither_an_http_library_nor_one_for_the_tpm() -> None:
    program = (
        "import sys, quotary_attest.serving.asgi\n"
        "heavy = ('aiohttp', 'multidict', 'yarl', 'tpm2_pytss', 'httpx2', 'starlette', 'sqlite3')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
