# SPDX-License-Identifier: Apache-2.0
"""A model is exchanged while clients stream: no request is lost, and every verdict names the model that answered."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from agents import audit, judge, running
from memory_attester import MemoryAttester
from small_engine import PYTHON, Running, small_engine
from tpms import Tpm

from quotary_attest.agent import Agent
from quotary_attest.engine.errors import Unavailable
from quotary_attest.enginelink import CONFIGURED_LINK
from quotary_attest.inventory import EngineFile, Inventory, measure_inventory
from quotary_attest.linking.checked import CheckedLink
from quotary_attest.linking.started import EngineFailed
from quotary_attest.measure import Measurement, ModelFile
from quotary_attest.serving.local import LocalConfig, LocalInterface
from quotary_attest.serving.proxy import Proxy, ProxyConfig
from quotary_attest.serving.refusals import Refusal
from quotary_attest.serving.swap import Standing, SwapOrder, Swapper, order_of
from quotary_attest.workload import ServedModel, Workload
from quotary_verifier.wire.inband import strip

CHAT = "/v1/chat/completions"
PLAIN = b'{"messages":[]}'
STREAM = b'{"messages":[],"stream":true}'


class Weights:
    """Two sets of weights of one name."""

    def __init__(self, folder: Path) -> None:
        self.old, self.new = folder / "old.gguf", folder / "new.gguf"
        self.old.write_bytes(b"old weights     " + bytes(4096))
        self.new.write_bytes(b"new weights     " + bytes(4096))
        self.inventory: Inventory = measure_inventory(
            [ModelFile("m", (self.old,))], EngineFile("small", PYTHON)
        )

    def digest(self, path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Serving:
    """An agent with a proxy and a swapper, and a client."""

    agent: Agent
    proxy: Proxy
    swapper: Swapper
    client: aiohttp.ClientSession
    url: str
    weights: Weights

    def post(self, body: bytes) -> Any:
        """Ask through the proxy."""
        return self.client.post(self.url + CHAT, data=body)

    def judged(self, received: bytes, request: bytes) -> dict[str, Any]:
        """The claims of the verdict about an answer."""
        plain, attestation = strip(received)
        assert attestation is not None
        verdict = judge(attestation, plain, self.agent.origin, request=request)
        return {claim.name: claim.value for claim in verdict.claims} | {"plain": plain}

    async def until(self, *states: str) -> dict[str, Any]:
        """Wait until the swap is in one of these states."""
        async with asyncio.timeout(20):
            while (state := self.swapper.state())["state"] not in states:
                assert state["state"] != "failed", state
                await asyncio.sleep(0.005)
        return state


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    return Weights(tmp_path)


@asynccontextmanager
async def serving(
    tpm: Tpm, folder: Path, weights: Weights, upstream: str, starter: Any = None
) -> AsyncIterator[Serving]:
    """Serve the old weights."""
    inventory = weights.inventory
    assert inventory.engine is not None
    link = CheckedLink(inventory.engine, inventory.files, recheck_seconds=0.0)

    async def standing(_model: ServedModel, _measured: Measurement, at: str | None) -> Standing:
        return Standing(at, link, nothing)

    async with running(tpm, folder, workload=inventory.workload) as agent:
        swapper = Swapper(agent, inventory, starter or standing)
        config = ProxyConfig(upstream, model=agent.workload.models[0].key)
        async with Proxy(agent, config, link=link) as proxy, aiohttp.ClientSession() as client:
            swapper.serve(proxy, "m")
            url = f"http://127.0.0.1:{await proxy.listen('127.0.0.1', 0)}"
            yield Serving(agent, proxy, swapper, client, url, weights)
        await swapper.close()


async def nothing() -> None:
    """Stop nothing."""


async def release(client: aiohttp.ClientSession, engine: Running) -> None:
    """Let an engine end its streams."""
    async with client.post(engine.url + "/release"):
        pass


async def test_a_stream_across_the_swap_ends_as_it_began_and_every_verdict_names_the_right_weights(
    tpm: Tpm, tmp_path: Path, weights: Weights
) -> None:
    state = tmp_path / "state"
    with small_engine(weights.old) as old, small_engine(weights.new) as new:
        async with serving(tpm, state, weights, old.url) as served:
            async with served.post(STREAM) as streaming:
                begun = await streaming.content.readuntil(b"\n\n")
                asking = asyncio.Event()
                answers: list[bytes] = []

                async def keep_asking() -> None:
                    while not asking.is_set():
                        async with served.post(PLAIN) as answer:
                            assert answer.status == 200
                            answers.append(await answer.read())

                others = [asyncio.create_task(keep_asking()) for _ in range(4)]
                served.swapper.begin(SwapOrder("m", (weights.new,), new.url))
                state_of = await served.until("draining")
                assert state_of["digest"] == weights.digest(weights.new)
                assert [model.name for model in served.agent.workload.models] == ["m", "m"]
                async with served.post(PLAIN) as answer:
                    claims = served.judged(await answer.read(), PLAIN)
                assert b"new weights" in claims["plain"]
                assert claims["model_weights"] == weights.digest(weights.new)
                assert claims["model_link"] == "checked"
                assert served.swapper.state()["waiting"] >= 1
                await release(served.client, old)
                ended = begun + await streaming.content.read()
            asking.set()
            await asyncio.gather(*others)
            await served.until("done")
            claims = served.judged(ended, STREAM)
            assert b"old weights" in claims["plain"]
            assert claims["model_weights"] == weights.digest(weights.old)
            assert claims["model_link"] == "checked"
            for received in answers:
                claims = served.judged(received, PLAIN)
                which = weights.new if b"new weights" in claims["plain"] else weights.old
                assert claims["model_weights"] == weights.digest(which)
            assert answers
            assert [model.weights.hex() for model in served.agent.workload.models] == [
                weights.digest(weights.new)
            ]
            assert served.agent.models == ("m",)
            assert set(weights.inventory.files) == {"m", served.agent.workload.models[0].key}
            async with served.post(PLAIN) as answer:
                assert served.judged(await answer.read(), PLAIN)["model_weights"] == weights.digest(
                    weights.new
                )
    audit(state)


async def test_a_swap_that_fails_leaves_everything_as_it_was(
    tpm: Tpm, tmp_path: Path, weights: Weights
) -> None:
    async def failing(_model: ServedModel, _measured: Measurement, _at: str | None) -> Standing:
        raise EngineFailed("the engine was not ready", hint="look at it")

    with small_engine(weights.old) as old:
        async with serving(tpm, tmp_path / "state", weights, old.url, failing) as served:
            served.swapper.begin(SwapOrder("m", (weights.new,)))
            async with asyncio.timeout(20):
                while (state := served.swapper.state())["state"] != "failed":  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            assert (state["error"], state["hint"]) == ("the engine was not ready", "look at it")
            assert len(served.agent.workload.models) == 1
            assert (
                weights.inventory.files["m"] is weights.inventory.files[served.agent.workload.models[0].key]
            )
            async with served.post(PLAIN) as answer:
                claims = served.judged(await answer.read(), PLAIN)
            assert (claims["model_weights"], claims["model_link"]) == (weights.digest(weights.old), "checked")
            served.swapper.begin(
                SwapOrder("m", (tmp_path,), None)
            )  # a folder that holds the state: a socket, …
            assert served.swapper.state()["state"] == "measuring"


async def test_a_model_of_another_name_can_take_the_place_and_the_old_name_is_gone(
    tpm: Tpm, tmp_path: Path, weights: Weights
) -> None:
    with small_engine(weights.old) as old, small_engine(weights.new) as new:
        async with serving(tpm, tmp_path / "state", weights, old.url) as served:
            served.swapper.begin(SwapOrder("m-2", (weights.new,), new.url, replaces="m"))
            await served.until("done")
            async with served.post(PLAIN) as answer:
                claims = served.judged(await answer.read(), PLAIN)
            assert (claims["model"], claims["model_weights"]) == ("m-2", weights.digest(weights.new))
            assert served.agent.models == ("m-2",)
            assert "m" not in weights.inventory.files
            with pytest.raises(Refusal) as refused:
                served.swapper.begin(SwapOrder("m", (weights.old,), old.url))
            assert refused.value.code == "model_not_served"
            served.swapper.begin(
                SwapOrder("m-2", (weights.new,), old.url)
            )  # the same weights, served elsewhere
            await served.until("done")
            assert served.proxy.route.upstream.base == old.url
            assert len(served.agent.workload.models) == 1


async def test_files_that_were_touched_are_taken_up_again_by_a_swap_to_themselves(
    tpm: Tpm, tmp_path: Path, weights: Weights
) -> None:
    with small_engine(weights.old) as old:
        async with serving(tpm, tmp_path / "state", weights, old.url) as served:
            links = []
            for step in ("measured", "touched", "measured again"):
                if step == "touched":
                    weights.old.touch()
                if step == "measured again":
                    served.swapper.begin(SwapOrder("m", (weights.old,)))
                    await served.until("done")
                async with served.post(PLAIN) as answer:
                    links.append(served.judged(await answer.read(), PLAIN)["model_link"])
            assert links == ["checked", "configured", "checked"]
            assert len(served.agent.workload.models) == 1


async def test_one_swap_at_a_time_and_only_of_files_that_are_there(
    tpm: Tpm, tmp_path: Path, weights: Weights
) -> None:
    with small_engine(weights.old) as old:
        async with serving(tpm, tmp_path / "state", weights, old.url) as served:
            for path in (Path("relative"), tmp_path / "absent"):
                with pytest.raises(Refusal) as refused:
                    served.swapper.begin(SwapOrder("m", (path,)))
                assert refused.value.code == "no_such_file"
            for order in (
                SwapOrder("n" * 501, (weights.new,), replaces="m"),
                SwapOrder("m", (weights.new,), "ftp://elsewhere"),
            ):
                with pytest.raises(Refusal) as refused:
                    served.swapper.begin(order)
                assert refused.value.code == "malformed_request"
            async with served.post(STREAM) as streaming:
                await streaming.content.readuntil(b"\n\n")
                served.swapper.begin(SwapOrder("m", (weights.new,)))
                await served.until("draining")
                with pytest.raises(Refusal) as refused:
                    served.swapper.begin(SwapOrder("m", (weights.new,)))
                assert refused.value.code == "swap_running"
                await release(served.client, old)
                await streaming.read()
            await served.until("done")
            async with served.post(
                PLAIN
            ) as answer:  # the old engine, where it was: the new weights are not its own
                claims = served.judged(await answer.read(), PLAIN)
            assert (claims["model_weights"], claims["model_link"]) == (
                weights.digest(weights.new),
                "configured",
            )


async def test_the_last_epoch_of_a_swap_is_begun_again_until_the_agent_can(
    tmp_path: Path, weights: Weights
) -> None:
    class Shaky:
        """An agent that is away when the old model is to be left out."""

        def __init__(self) -> None:
            self.workload = weights.inventory.workload
            self.begun: list[int] = []

        async def begin_epoch(self, workload: Workload) -> None:
            self.begun.append(len(workload.models))
            if len(self.begun) in (2, 3):
                raise Unavailable("the tpm is gone")
            self.workload = workload

    naps: list[float] = []

    async def sleep(seconds: float) -> None:
        naps.append(seconds)

    async def standing(_model: ServedModel, _measured: Measurement, at: str | None) -> Standing:
        return Standing(at, CONFIGURED_LINK, nothing)

    agent = Shaky()
    swapper = Swapper(agent, weights.inventory, standing, sleep=sleep)
    old = agent.workload.models[0].key
    here, there = (ProxyConfig(f"http://127.0.0.1:{port}", model=old) for port in (1, 3))
    other = replace(here, model="another")
    async with (
        Proxy(MemoryAttester(), here) as first,
        Proxy(MemoryAttester(), there) as second,
        Proxy(MemoryAttester(), other) as beside,
    ):
        for proxy, name in ((first, "m"), (second, "m"), (beside, "another")):
            swapper.serve(proxy, name)
        swapper.begin(SwapOrder("m", (weights.new,), "http://127.0.0.1:2"))
        async with asyncio.timeout(20):
            while swapper.state()["state"] != "done":  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        (new,) = agent.workload.models
        for proxy in (first, second):  # all that served the model are switched, and no other
            assert (proxy.route.model, proxy.route.upstream.base) == (new.key, "http://127.0.0.1:2")
        assert (beside.route.model, beside.route.upstream.base) == ("another", "http://127.0.0.1:1")
    assert agent.begun == [2, 1, 1, 1]
    assert naps == [5.0, 5.0]
    assert [model.weights.hex() for model in agent.workload.models] == [weights.digest(weights.new)]


async def test_the_local_interface_takes_the_order_of_root_and_the_agents_user_only(
    tpm: Tpm, tmp_path: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "agent.sock"
    with small_engine(weights.old) as old, small_engine(weights.new) as new:
        async with (
            serving(tpm, tmp_path / "state", weights, old.url) as served,
            LocalInterface(served.agent, LocalConfig(path), served.swapper),
            aiohttp.ClientSession(base_url="http://a", connector=aiohttp.UnixConnector(str(path))) as client,
        ):
            for wrong in (
                {"paths": ["/x"]},
                {"model": "m"},
                {"model": "m", "paths": []},
                {"model": "m", "paths": [1]},
                {"model": "m", "paths": ["/x\0"]},
                {"model": "", "paths": ["/x"]},
                {"model": "m", "paths": ["/x"], "upstream": 1},
                {"model": "m", "paths": ["/x"], "link": 2},
            ):
                async with client.post("/v1/swap", data=json.dumps(wrong)) as refused:
                    assert refused.status == 400
            order = {"model": "m", "paths": [str(weights.new)], "upstream": new.url}
            monkeypatch.setattr("quotary_attest.serving.local.may_swap", lambda uid: uid == 12345)
            for method in (client.get("/v1/swap"), client.post("/v1/swap", data=json.dumps(order))):
                async with method as refused:
                    assert refused.status == 403
            monkeypatch.undo()
            async with client.post("/v1/swap", data=json.dumps(order)) as taken:
                assert (await taken.json())["state"] == "measuring"
            await served.until("done")
            async with client.get("/v1/swap") as told:
                assert (await told.json())["digest"] == weights.digest(weights.new)
    with pytest.raises(Refusal):
        order_of({"model": "m", "paths": "x"})
