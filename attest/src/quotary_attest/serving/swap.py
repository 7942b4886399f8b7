# SPDX-License-Identifier: Apache-2.0
"""Exchanging a model while the agent serves, such that no request is lost (design section 3, "Workload log").

The new files are measured, and, where the agent runs the engine, a second one is started from them. Then an epoch
that lists both is put in force, and requests go to the new engine; answers that are on their way end as they began.
When the last has ended, an epoch that lists the new model alone is put in force. Until requests go elsewhere, a
failure leaves everything as it was.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from quotary_attest.engine.errors import AgentError, Busy
from quotary_attest.enginelink import EngineLink
from quotary_attest.inventory import Inventory
from quotary_attest.measure import KnownDigests, Measurement, ModelFile, Progress
from quotary_attest.measuring.errors import MeasureError
from quotary_attest.measuring.signers import Signers
from quotary_attest.serving.refusals import Refusal
from quotary_attest.serving.route import Route
from quotary_attest.serving.upstream import Upstream
from quotary_attest.workload import ServedModel, Workload, check_name, measure_model

_RETRY_SECONDS: Final = 5.0
_LOG = logging.getLogger("quotary.swap")


class EpochKeeper(Protocol):
    """What a swap asks of the agent."""

    @property
    def workload(self) -> Workload:
        """What the epoch in force lists."""
        ...

    async def begin_epoch(self, workload: Workload) -> None:
        """Put a full list of what may serve in force."""
        ...


class SwapDoor(Protocol):
    """What a swap asks of a proxy."""

    @property
    def route(self) -> Route:
        """Where requests go that come now."""
        ...

    async def switch(self, upstream: str, model: str | None, link: EngineLink) -> Route:
        """Send the requests that come from now on elsewhere; return where they went."""
        ...

    async def leave(self, before: Route) -> None:
        """Wait until nothing is on its way there."""
        ...


@dataclass(frozen=True, slots=True)
class SwapOrder:
    """What is to be served: weights under a name, by the engine at `upstream` (None: by one that the agent starts, or
    where the old one is), in place of the model `replaces` (None: the one of that name)."""

    name: str
    paths: tuple[Path, ...]
    upstream: str | None = None
    replaces: str | None = None
    signature: Path | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """An engine that is ready to serve a model: where (None: where the old one is), what ties it, and how it is
    stopped once nothing goes to it. Stopping twice does nothing."""

    upstream: str | None
    link: EngineLink
    stop: Callable[[], Awaitable[None]]


Starter = Callable[[ServedModel, Measurement, str | None], Awaitable[Standing]]
"""Makes an engine ready for a measured model, at an upstream that the operator named or (None) one of its own choice.
Raises EngineFailed or ValueError."""


class Swapper:
    """Does one swap at a time, and says how it goes."""

    def __init__(
        self,
        agent: EpochKeeper,
        inventory: Inventory,
        starter: Starter,
        *,
        signers: Signers = Signers(),  # noqa: B008 - frozen, and nobody is trusted
        known: KnownDigests | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`starter` makes engines ready. Proxies are made known with `serve`."""
        self._agent, self._inventory, self._starter = agent, inventory, starter
        self._doors: dict[SwapDoor, str] = {}
        self._standing: dict[SwapDoor, Standing] = {}
        self._engines: set[Standing] = set()
        self._signers, self._known, self._sleep = signers, known, sleep
        self._task: asyncio.Task[None] | None = None
        self._state: dict[str, Any] = {"state": "idle"}
        self._leaving: list[Route] = []

    def keep(self, standing: Standing) -> None:
        """Stop an engine in the end, or when no proxy needs it any more."""
        self._engines.add(standing)

    def serve(self, door: SwapDoor, model: str, standing: Standing | None = None) -> None:
        """Know a proxy, the name of the model that its answers claim, and the engine that stands behind it."""
        self._doors[door] = model
        if standing is not None:
            self._standing[door] = standing
            self._engines.add(standing)

    def state(self) -> dict[str, Any]:
        """Return how the last swap goes, as JSON can hold it: `state` is idle, measuring, starting, switching,
        draining, done or failed."""
        return {**self._state, "waiting": sum(route.busy for route in self._leaving)}

    def begin(self, order: SwapOrder) -> None:
        """Begin a swap; `state` tells how it goes.

        Raises:
            Refusal: another is not over, no proxy serves the model to be replaced, or a path, name or URL is not one.
        """
        if self._task is not None and not self._task.done():
            raise Refusal(409, "swap_running", "another swap is not over")
        doors = self._doors_of(order)
        try:
            check_name(order.name)
            if order.upstream is not None:
                Upstream(order.upstream)
        except ValueError as error:
            raise Refusal(400, "malformed_request", str(error)) from None
        for path in order.paths:
            if not path.is_absolute() or not path.exists():
                raise Refusal(400, "no_such_file", "a path is not absolute, or there is nothing")
        self._state = {"state": "measuring", "model": order.name, "bytes": 0}
        self._task = asyncio.create_task(self._run(order, doors), name="quotary-swap")

    async def give_up(self) -> None:
        """Give up a swap that is not over."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def close(self) -> None:
        """Give up a swap that is not over, and stop all engines."""
        await self.give_up()
        for standing in self._engines:
            await standing.stop()
        self._engines.clear()

    def _doors_of(self, order: SwapOrder) -> list[SwapDoor]:
        wanted = order.replaces or order.name
        doors = [door for door, name in self._doors.items() if name == wanted]
        if not doors:
            raise Refusal(404, "model_not_served", "no proxy of this agent serves the model to be replaced")
        return doors

    async def _run(self, order: SwapOrder, doors: list[SwapDoor]) -> None:
        try:
            await self._swap(order, doors)
        except asyncio.CancelledError:
            self._fail("the agent is stopping")
            raise
        except Exception as error:
            known = isinstance(error, (AgentError, MeasureError, OSError, ValueError)) or hasattr(
                error, "hint"
            )
            if not known:
                _LOG.exception("the swap failed")
            self._fail(str(error) if known else "an internal error", str(getattr(error, "hint", "")))

    def _fail(self, message: str, hint: str = "") -> None:
        _LOG.error("the swap failed: %s", message)
        self._state = {**self._state, "state": "failed", "error": message, "hint": hint}

    async def _swap(self, order: SwapOrder, doors: list[SwapDoor]) -> None:
        new, measured = await self._measure(order)
        self._enter("starting", digest=new.weights.hex())
        old = self._agent.workload.model(order.replaces or new.name)
        self._inventory.add(new, measured)
        standing: Standing | None = None
        try:
            standing = await self._starter(new, measured, order.upstream)
            both = self._agent.workload
            await self._agent.begin_epoch(replace(both, models=(*_without(both, new), new)))
        except BaseException:
            if old is None or old.key != new.key:
                self._inventory.forget(new)
            if standing is not None:
                await standing.stop()
            raise
        await self._switch(doors, new, standing)
        await self._finish(old, new)

    async def _measure(self, order: SwapOrder) -> tuple[ServedModel, Measurement]:
        file = ModelFile(order.name, order.paths, signature=order.signature)
        found = await asyncio.to_thread(
            measure_model, file, self._count(), signers=self._signers, known=self._known
        )
        if self._known is not None:
            await asyncio.to_thread(self._known.save)
        return found

    def _count(self) -> Progress:
        state = self._state

        def count(hashed: int) -> None:
            state["bytes"] += hashed

        return count

    def _enter(self, state: str, **more: Any) -> None:
        self._state = {**self._state, "state": state, **more}
        _LOG.info("swap of %s: %s", self._state["model"], state)

    async def _switch(self, doors: list[SwapDoor], new: ServedModel, standing: Standing) -> None:
        """Let requests go to the new engine, wait for the answers of the old one, and stop it."""
        self._enter("switching")
        self._engines.add(standing)
        left = []
        for door in doors:
            before = await door.switch(standing.upstream or door.route.upstream.base, new.key, standing.link)
            left.append((door, before))
            self._doors[door] = new.name
            self._standing[door] = standing
        self._leaving = [before for _, before in left]
        self._enter("draining")
        for door, before in left:
            await door.leave(before)
        self._leaving = []
        for idle in self._engines - set(self._standing.values()):
            await idle.stop()
            self._engines.discard(idle)

    async def _finish(self, old: ServedModel | None, new: ServedModel) -> None:
        """Put the list without the old model in force, as soon as the agent can."""
        if old is not None and old.key != new.key and not self._served(old):
            self._enter("closing")
            while True:
                present = self._agent.workload
                rest = tuple(model for model in present.models if model.key != old.key)
                try:
                    await self._agent.begin_epoch(replace(present, models=rest))
                    break
                except (AgentError, Busy) as error:
                    _LOG.warning("the old model is still listed: %s", error)
                    await self._sleep(_RETRY_SECONDS)
            self._inventory.forget(old)
        self._enter("done")

    def _served(self, model: ServedModel) -> bool:
        return any(door.route.model in (model.key, model.name) for door in self._doors)


def _without(workload: Workload, model: ServedModel) -> tuple[ServedModel, ...]:
    return tuple(each for each in workload.models if each.key != model.key)


def order_of(value: dict[str, Any]) -> SwapOrder:
    """Read a swap's order from a request to the local interface. Raises Refusal."""
    texts = {name: value.get(name) for name in ("model", "upstream", "replaces", "signature")}
    paths = value.get("paths")
    for name, text in texts.items():
        if not (text is None and name != "model") and not (isinstance(text, str) and 0 < len(text) <= 4096):
            raise Refusal(400, "malformed_request", f"{name} is not a text")
    if type(paths) is not list or not 0 < len(paths) <= 65536 or not all(type(path) is str for path in paths):
        raise Refusal(400, "malformed_request", "paths is not a list of texts")
    if any("\0" in text for text in (*paths, *filter(None, texts.values()))):
        raise Refusal(400, "malformed_request", "a text holds a zero byte")
    signature = texts["signature"]
    return SwapOrder(
        str(texts["model"]),
        tuple(map(Path, paths)),
        texts["upstream"],
        texts["replaces"],
        None if signature is None else Path(signature),
    )


def may_swap(uid: int) -> bool:
    """Tell whether a local user may exchange models: root and the agent's own user."""
    return uid in (0, os.geteuid())
