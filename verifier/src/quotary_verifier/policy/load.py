# SPDX-License-Identifier: Apache-2.0
"""Reads a policy from TOML, strictly: an unknown key is an error, never a rule that is silently not applied."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from quotary_verifier.errors import MalformedError, PolicyError
from quotary_verifier.pki.chain import TrustAnchors
from quotary_verifier.pki.revocation import read_crl_pem
from quotary_verifier.policy.model import (
    AllowedModel,
    Authority,
    Freshness,
    PlatformRules,
    Policy,
    ReferenceSet,
    Witnesses,
)
from quotary_verifier.policy.table import Table, pcr_values, sha256_digest
from quotary_verifier.tlog.note import TYPE_COSIGNATURE, VerifierKey, parse_vkey
from quotary_verifier.wire.limits import MAX_NONCE, MIN_NONCE
from quotary_verifier.wire.names import check_host, check_origin
from quotary_verifier.wire.records import Link, State

if TYPE_CHECKING:
    from quotary_verifier.policy.lists import ListName
    from quotary_verifier.policy.rules import WorkloadRules
    from quotary_verifier.policy.tee import TeeRules

SCHEMA = "quotary-policy/v1"
MAX_POLICY = 1024 * 1024

_LINKS = {"configured": Link.CONFIGURED, "checked": Link.CHECKED, "started": Link.STARTED}
_STATES = {
    "complete": State.COMPLETE,
    "engine-error": State.ENGINE_ERROR,
    "engine-truncated": State.ENGINE_TRUNCATED,
    "client-gone": State.CLIENT_GONE,
}
_MAX_KEY_PARTS = 32
_MAX_DIGESTS = 1 << 20
_LONG_QUOTES = ('"""', "'''")
_QUOTED = re.compile(r"""\"(?:[^"\\\n]|\\.)*+\"?+|'[^'\n]*+'?+""")


def load_policy(data: bytes, lists: Mapping[bytes, bytes] | None = None) -> Policy:
    """Read a policy of the schema `quotary-policy/v1`.

    `lists` has the bytes of the lists that stand beside it by their SHA-256; `policy_lists` tells which it needs.

    Raises:
        PolicyError: it does not parse, has an unknown key, trusts nobody, asks for what cannot be had, or needs a
            list that is not given.
    """
    top = _parse(data)
    tpm, output, workload = top.table("tpm"), top.table("output"), top.table("workload")
    lists = {} if lists is None else lists
    policy = Policy(
        digest=hashlib.sha256(data).digest(),
        description=top.take("description", str, ""),
        authorities=tuple(_authority(item) for item in top.tables("authority")),
        pins=frozenset(_pin(item) for item in top.tables("pin")),
        software_tpm=tpm.take("software", bool, False),
        unauthenticated_ak=tpm.take("unauthenticated_ak", bool, False),
        safe_clock=tpm.take("safe_clock", bool, False),
        platform=_platform(top.table("platform"), lists),
        references=_references(top.tables("reference"), lists),
        warnings=_warnings(top.tables("warn")),
        models=tuple(_model(item) for item in top.tables("model")),
        opaque_events=workload.take("opaque", bool, True),
        workload=_workload(workload),
        states=_states(output),
        freshness=_freshness(top.table("freshness")),
        witnesses=_witnesses(top.table("witnesses")),
        version=_version(top),
        expires=top.moment("expires") if "expires" in top.names() else None,
        tee=_tee(top) if "tee" in top.names() else None,
    )
    for part in (tpm, output, workload, top):
        part.finish()
    return policy


def policy_lists(data: bytes) -> tuple[ListName, ...]:
    """Return the lists that a policy names, which `load_policy` needs.

    Raises:
        PolicyError: the policy does not parse, or names a list in a way that cannot be used.
    """
    from quotary_verifier.policy.load_rules import list_names

    top = _parse(data)
    return list_names([top.table("platform"), *top.tables("reference")])


def _parse(data: bytes) -> Table:
    if len(data) > MAX_POLICY:
        raise PolicyError(f"the policy has {len(data)} bytes, {MAX_POLICY} are allowed")
    try:
        text = data.decode()
        _check_keys(text)
        top = Table(tomllib.loads(text), "")
    except (ValueError, RecursionError) as error:  # the reader lets more than its own error out
        raise PolicyError(f"the policy is not TOML: {error}") from None
    if top.take("schema", str) != SCHEMA:
        raise PolicyError(f'the policy does not say schema = "{SCHEMA}"')
    return top


def _platform(table: Table, lists: Mapping[bytes, bytes]) -> PlatformRules:
    """Read what is asked of every platform; the code that reads rules on logs is loaded where there are any."""
    if {"pcrs"}.issuperset(table.names()):
        return PlatformRules(pcr_values(table.table("pcrs")))
    from quotary_verifier.policy.load_rules import read_platform

    return read_platform(table, lists)


def _references(tables: list[Table], lists: Mapping[bytes, bytes]) -> tuple[ReferenceSet, ...]:
    found: list[ReferenceSet] = []
    digests = 0
    for table in tables:
        name = table.take("name", str)
        rules = _platform(table, lists)
        table.finish()
        digests += 0 if rules.ima is None else len(rules.ima.files)
        if digests > _MAX_DIGESTS:
            table.fail(
                "ima", "has more digests than all reference sets may have; common ones go to [platform.ima]"
            )
        if rules.empty:
            table.fail("", "fits every host: it needs PCR values, or rules on logs")
        found.append(ReferenceSet(name, rules))
    if len({item.name for item in found}) != len(found):
        raise PolicyError("policy: two reference sets have one name")
    return tuple(found)


def _warnings(tables: list[Table]) -> dict[str, int]:
    if not tables:
        return {}
    from quotary_verifier.policy.load_rules import read_warnings

    return read_warnings(tables)


def _workload(table: Table) -> WorkloadRules | None:
    if not table.names():
        return None
    from quotary_verifier.policy.load_rules import read_workload

    return read_workload(table)


def _tee(top: Table) -> TeeRules:
    """Read what is asked of TEE lines; the code for them is loaded only where a policy has such rules."""
    from quotary_verifier.policy.load_tee import read_tee

    return read_tee(top.table("tee"))


def _version(table: Table) -> int | None:
    version = table.maybe("version", int)
    if version is not None and version < 1:
        table.fail("version", "must be a positive number")
    return version


def _check_keys(text: str) -> None:
    """Refuse keys of very many parts, for which the reader takes time and memory by the square of their number.

    Where a line opens or closes a string of several lines, what is a string in it is not known here, so that every dot
    counts. Any other line is in such a string as a whole, where nothing is a key, or not at all.
    """
    for line in text.split("\n"):
        if line.count(".") <= _MAX_KEY_PARTS:
            continue
        long = any(quotes in line for quotes in _LONG_QUOTES)
        keys = line if long else _QUOTED.sub("", line).partition("#")[0]
        if keys.count(".") > _MAX_KEY_PARTS:
            raise PolicyError(
                f"the policy has a line with more than {_MAX_KEY_PARTS} dots outside of strings"
            )


def _authority(table: Table) -> Authority:
    name = table.take("name", str)
    pem = table.take("certificates", str)
    hosts = table.texts("hosts") or []
    for host in hosts:
        table.convert("hosts", host.removeprefix("*."), check_host)
    crls = tuple(table.convert("crls", text, read_crl_pem) for text in table.texts("crls") or [])
    required = table.take("revocation_required", bool, False)
    table.finish()
    anchors = table.convert("certificates", pem, TrustAnchors.from_pem)
    return Authority(name, anchors, tuple(hosts), crls, required)


def _pin(table: Table) -> str:
    origin = table.convert("origin", table.take("origin", str), check_origin)
    table.finish()
    return origin


def _model(table: Table) -> AllowedModel:
    weights = table.maybe("weights", str)
    link = table.take("link", str, "configured")
    if link not in _LINKS:
        table.fail("link", f"must be one of {', '.join(_LINKS)}")
    model = AllowedModel(
        name=table.maybe("name", str),
        weights=None if weights is None else table.convert("weights", weights, sha256_digest),
        link=_LINKS[link],
    )
    if model.name is None and model.weights is None:
        table.fail("", "names neither a model nor weights")
    table.finish()
    return model


def _states(table: Table) -> frozenset[State]:
    names = table.texts("states")
    if names is None:
        return frozenset({State.COMPLETE})
    for name in names:
        if name not in _STATES:
            table.fail("states", f"must be among {', '.join(_STATES)}")
    if not names:
        table.fail("states", "allows no state")
    return frozenset(_STATES[name] for name in names)


def _freshness(table: Table) -> Freshness:
    expected = table.maybe("expected_nonce", str)
    freshness = Freshness(
        nonce=table.take("nonce", bool, expected is not None),
        expected_nonce=None if expected is None else table.convert("expected_nonce", expected, _nonce),
        max_age=table.maybe("max_age", int),
        trust_host_clock=table.take("trust_host_clock", bool, False),
    )
    if freshness.max_age is not None and freshness.max_age <= 0:
        table.fail("max_age", "must be a positive number of seconds")
    table.finish()
    return freshness


def _nonce(text: str) -> bytes:
    nonce = bytes.fromhex(text)
    if nonce.hex() != text or not MIN_NONCE <= len(nonce) <= MAX_NONCE:
        raise MalformedError(f"a nonce is {MIN_NONCE} to {MAX_NONCE} bytes in lower-case hexadecimal")
    return nonce


def _witnesses(table: Table) -> Witnesses:
    keys = tuple(table.convert("keys", text, _witness_key) for text in table.texts("keys") or [])
    threshold = table.take("threshold", int, len(keys))
    if len({key.key for key in keys}) != len(keys):
        table.fail("keys", "names one key twice")
    if not 0 <= threshold <= len(keys) or (keys and not threshold):
        table.fail("threshold", "must be between 1 and the number of keys")
    table.finish()
    return Witnesses(keys, threshold)


def _witness_key(text: str) -> VerifierKey:
    key = parse_vkey(text)
    if key.signature_type != TYPE_COSIGNATURE:
        raise MalformedError("a witness key is of type 0x04, cosignature/v1")
    return key
