# SPDX-License-Identifier: Apache-2.0
"""What an audit keeps so that it can be stopped and go on, and be continued when the log has grown.

The state is written as JSON of the data classes below, by the types of their fields. It names origin and policy,
and carries its own SHA-256: against mix-up and torn files, not against whoever can write it, who could as well forge a
report.
"""

from __future__ import annotations

import hashlib
import json
import types
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from functools import cache
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from quotary_verifier.audit.history import History
from quotary_verifier.audit.report import AuditedBoot, AuditedStatement, Period
from quotary_verifier.audit.sink import Sink
from quotary_verifier.audit.tees import Tees
from quotary_verifier.audit.witnessing import Witnesses
from quotary_verifier.errors import EvidenceError, MalformedError
from quotary_verifier.tlog.merkle import HASH_SIZE, MAX_TREE_SIZE
from quotary_verifier.tlog.tiles import TILE_WIDTH
from quotary_verifier.wire.tpm import parse_attest

SCHEMA: Final = "quotary-audit-state/v1"
MAX_STATE: Final = 256 * 1024 * 1024
"""Bytes of a state file."""


@dataclass(slots=True)
class AuditState:
    """The whole state of an audit between two commits; `at` is the time argument of the audit that began it."""

    origin: str
    policy: str
    at: int
    history: History = field(default_factory=History)
    sink: Sink = field(default_factory=Sink)
    boots: list[AuditedBoot] = field(default_factory=list)
    periods: list[Period] = field(default_factory=list)
    statements: list[AuditedStatement] = field(default_factory=list)
    witnesses: Witnesses = field(default_factory=Witnesses)
    tiles: int = 0
    rows: list[bytes] = field(default_factory=list)
    tees: Tees = field(default_factory=Tees)


def encode_state(state: AuditState) -> bytes:
    """Return the state as it stands in a file."""
    body = json.dumps({"schema": SCHEMA, "state": _pack(state)}, separators=(",", ":"), ensure_ascii=True)
    return json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "body": body}).encode() + b"\n"


def decode_state(data: bytes) -> AuditState:
    """Read a state.

    Raises:
        MalformedError: it is none, of another version, or not whole.
    """
    if len(data) > MAX_STATE:
        raise MalformedError(f"the state of an audit has {len(data)} bytes, {MAX_STATE} are allowed")
    try:
        outer = json.loads(data)
        body = outer["body"]
        if hashlib.sha256(body.encode()).hexdigest() != outer["sha256"]:
            raise MalformedError("the state of the audit is damaged: its digest is another")
        inner = json.loads(body)
        if inner["schema"] != SCHEMA:
            raise MalformedError(f"the state of the audit is not of the schema {SCHEMA}")
        state = _unpack(AuditState, inner["state"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise MalformedError("the file is no state of an audit") from None
    assert isinstance(state, AuditState)
    if not _fits_together(state):
        raise MalformedError("the parts of the state of the audit contradict each other")
    return state


def _fits_together(state: AuditState) -> bool:
    """Tell whether an audit can go on from a state: its tree is of its size, and its periods have quotes."""
    position, history = state.history.position, state.history
    if not (
        0 <= position.commits <= position.size <= MAX_TREE_SIZE and state.tiles == position.size // TILE_WIDTH
    ):
        return False
    left = state.tiles
    for row in state.rows:
        left, hashes = divmod(left, TILE_WIDTH)
        if len(row) != HASH_SIZE * hashes:
            return False
    boots = [*history.asleep, *([] if history.open is None else [history.open])]
    try:
        for boot in boots:
            for period in boot.periods:
                parse_attest(period.attest).require_quote()
    except (MalformedError, EvidenceError):
        return False
    return not left and all(
        log.prefixes.keys() == log.commits.keys() for boot in boots for log in boot.logs.values()
    )


def _pack(value: Any) -> Any:
    if is_dataclass(value):
        return [_pack(getattr(value, item.name)) for item in fields(value)]
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list | tuple):
        return [_pack(item) for item in value]
    if isinstance(value, dict):
        return [[_pack(key), _pack(item)] for key, item in value.items()]
    return value


@cache
def _types(kind: type[Any]) -> tuple[Any, ...]:
    hints = get_type_hints(kind)
    return tuple(hints[item.name] for item in fields(kind))


def _unpack(kind: Any, value: Any) -> Any:
    """Return a value of the type `kind`. Raises MalformedError, ValueError or TypeError for another."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        (inner,) = (item for item in get_args(kind) if item is not type(None))
        return None if value is None else _unpack(inner, value)
    if origin is not None:
        return _unpack_many(origin, get_args(kind), value)
    if is_dataclass(kind):
        assert isinstance(kind, type)
        parts = zip(_types(kind), value, strict=True)
        return kind(*[_unpack(part, item) for part, item in parts])
    if kind is bytes:
        return bytes.fromhex(value)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind(value)
    if type(value) is not kind:
        raise MalformedError("the file is no state of an audit")
    return value


def _unpack_many(origin: Any, arguments: tuple[Any, ...], value: Any) -> Any:
    if type(value) is not list:
        raise MalformedError("the file is no state of an audit")
    if origin is dict:
        return {_unpack(arguments[0], key): _unpack(arguments[1], item) for key, item in value}
    if origin is list:
        return [_unpack(arguments[0], item) for item in value]
    if arguments[-1] is Ellipsis:
        return tuple(_unpack(arguments[0], item) for item in value)
    return tuple(_unpack(part, item) for part, item in zip(arguments, value, strict=True))
