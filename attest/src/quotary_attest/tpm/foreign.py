# SPDX-License-Identifier: Apache-2.0
"""Origins on an attestation key that the agent did not make: persistent keys of cloud vTPMs (docs/spec/tpm.md).

Such a key belongs to the vTPM: any process with access to the TPM can quote with it, unless it has an authorisation of
its own. What it has to be is what a verifier demands of a foreign AK, so that is asked here, by the verifier's code.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from quotary_attest.roots import QUOTED_PCRS
from quotary_attest.tpm.connection import Connection
from quotary_attest.tpm.errors import TpmMissing, TpmUnsupported
from quotary_attest.tpm.keys import AUTH_BYTES, make_counter
from quotary_attest.tpm.model import Authorizations, TpmIdentity
from quotary_attest.tpm.reading import read_properties
from quotary_attest.tpm.templates import pcr_selection
from quotary_attest.tpm.tss import lib
from quotary_verifier.errors import QuotaryError
from quotary_verifier.evidence.tpm_keys import AkProfile, check_ak
from quotary_verifier.evidence.tpm_quote import verify_signature
from quotary_verifier.wire.tpm import parse_signature
from quotary_verifier.wire.tpm_names import (
    RH_ENDORSEMENT,
    RH_PLATFORM,
    hierarchy_qn,
    qualified_name,
)
from quotary_verifier.wire.tpm_public import Public, parse_public

AZURE_AK: Final = 0x81000003
"""Where the vTPM of an Azure VM has its attestation key."""

PERSISTENT: Final = range(0x81000000, 0x82000000)

_OWNER, _NULL = 0x40000001, 0x40000007
_KEYS_THAT_COUNT: Final = (RH_ENDORSEMENT, RH_PLATFORM)
"""Hierarchies whose keys quote the boot counts as they are; for others the TPM blurs them (Part 1, "Obfuscation")."""


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A persistent attestation key: its public area, what it is, and the 4-byte handle of the hierarchy it is in."""

    handle: int
    public: Public
    profile: AkProfile
    parent: bytes


def read_foreign(connection: Connection, handle: int) -> ForeignKey:
    """Read a persistent key and hold it to what a verifier demands of an AK.

    Raises:
        TpmMissing: there is no key at this handle.
        TpmUnsupported: it may not attest, or is not a primary of a hierarchy that is usable for this.
    """
    if handle not in PERSISTENT:
        raise TpmUnsupported(
            f"0x{handle:08x} is not the handle of a persistent key", hint=f"such as 0x{AZURE_AK:08x} on azure"
        )
    with connection.scope() as scope:
        try:
            key = scope.known(connection.commands.tr_from_tpmpublic(handle))
        except TpmMissing:
            raise TpmMissing(
                f"the tpm has no key at 0x{handle:08x}", hint="see `tpm2_getcap handles-persistent`"
            ) from None
        area, _, signer = connection.commands.read_public(key)
    try:
        public = parse_public(bytes(area.publicArea.marshal()))
        profile = check_ak(public)
    except QuotaryError as error:
        raise TpmUnsupported(
            f"the key at 0x{handle:08x} cannot attest: {error}",
            hint="it has to be a restricted signing key that the tpm made and keeps",
        ) from None
    return ForeignKey(handle, public, profile, _hierarchy(handle, public, bytes(signer)))


def _hierarchy(handle: int, public: Public, signer: bytes) -> bytes:
    """Find the hierarchy of which the key is a primary, by the qualified name that the TPM reports."""
    for parent in (*_KEYS_THAT_COUNT, _OWNER, _NULL):
        if qualified_name(hierarchy_qn(parent), public.name) == signer:
            break
    else:
        raise TpmUnsupported(
            f"the key at 0x{handle:08x} is the child of another key",
            hint="an origin can be made on a primary key, or on one of its own (leave --ak out)",
        )
    if parent not in _KEYS_THAT_COUNT:
        where = "owner" if parent == _OWNER else "null"
        raise TpmUnsupported(
            f"the key at 0x{handle:08x} is of the {where} hierarchy, whose quotes do not show the boot counts",
            hint="use a primary key of the endorsement hierarchy, or leave --ak out",
        )
    return hierarchy_qn(parent)


def _try(connection: Connection, key: ForeignKey, auth: bytes) -> None:
    """Have the key sign that nothing is in question, before anything is made that would rely on it.

    Raises:
        TpmError: it does not sign for who has this authorisation, or needs another one.
        TpmUnsupported: what it signs does not verify.
    """
    scheme = lib.TPMT_SIG_SCHEME(scheme=lib.TPM2_ALG.NULL)
    with connection.scope() as scope:
        ak = scope.known(connection.commands.tr_from_tpmpublic(key.handle))
        connection.authorize(ak, auth)
        attest, signature = connection.commands.quote(ak, pcr_selection(QUOTED_PCRS), b"", scheme)
    try:
        verify_signature(key.public, bytes(attest), parse_signature(bytes(signature.marshal())))
    except QuotaryError as error:
        raise TpmUnsupported(
            f"what the key at 0x{key.handle:08x} signs does not verify: {error}", hint="use another key"
        ) from None


def make_foreign_identity(
    connection: Connection,
    handle: int,
    *,
    chain_pcr: int,
    workload_pcr: int,
    ak_auth: bytes = b"",
    authorizations: Authorizations | None = None,
    random: Callable[[int], bytes] = secrets.token_bytes,
) -> TpmIdentity:
    """Make the identity of an origin on a persistent key: its start counter alone is new in the TPM.

    `ak_auth` authorises the key; cloud vTPMs have none. The key stays where it is and what it was. Raises as
    `read_foreign` and `_try`, and as `keys.make_identity` for the counter.
    """
    key = read_foreign(connection, handle)
    _try(connection, key, ak_auth)
    nv_auth = random(AUTH_BYTES)
    return TpmIdentity(
        ak_public=key.public.raw,
        ak_private=b"",
        ak_auth=ak_auth,
        parent_name=key.parent,
        nv_public=make_counter(connection, nv_auth, authorizations or Authorizations()),
        nv_auth=nv_auth,
        chain_pcr=chain_pcr,
        workload_pcr=workload_pcr,
        properties=read_properties(connection),
        ak_handle=handle,
    )
