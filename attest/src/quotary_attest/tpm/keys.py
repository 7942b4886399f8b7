# SPDX-License-Identifier: Apache-2.0
"""Making, loading and removing an origin's keys: storage primary, AK and start counter.

Nothing here touches a PCR: `agent init` may run on a host that serves already (design section 3).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quotary_attest.tpm.connection import Connection, Scope
from quotary_attest.tpm.errors import TpmConflict, TpmError, TpmForeignKey, TpmMissing
from quotary_attest.tpm.model import Authorizations, TpmIdentity
from quotary_attest.tpm.reading import read_properties, used_nv_indices
from quotary_attest.tpm.templates import (
    COUNTER_RANGE,
    COUNTER_SIZE,
    attestation_key,
    start_counter,
    storage_primary,
)
from quotary_attest.tpm.tss import lib

AUTH_BYTES = 32
_NV_DEFINED = 0x14C


def make_identity(
    connection: Connection,
    *,
    chain_pcr: int,
    workload_pcr: int,
    authorizations: Authorizations | None = None,
    random: Callable[[int], bytes] = secrets.token_bytes,
) -> TpmIdentity:
    """Make an AK and a start counter, and return all that the agent must store (mode 0600).

    The PCR numbers come from `pcr_choice.choose_pcrs`. The counter is incremented once, so that its public
    area is final. When anything fails, the counter is removed again.

    Raises TpmAuthError when a hierarchy has an authorisation that was not given, TpmExhausted when there
    is no NV space, another TpmError otherwise.
    """
    auths = authorizations or Authorizations()
    ak_auth, nv_auth = random(AUTH_BYTES), random(AUTH_BYTES)
    with connection.scope() as scope:
        primary, parent_name = _primary(connection, scope, auths)
        sensitive = lib.TPM2B_SENSITIVE_CREATE(lib.TPMS_SENSITIVE_CREATE(userAuth=ak_auth))
        private, public, *_ = connection.commands.create(primary, sensitive, attestation_key())
    properties = read_properties(connection)
    nv_public = make_counter(connection, nv_auth, auths)
    return TpmIdentity(
        ak_public=public.publicArea.marshal(),
        ak_private=bytes(private),
        ak_auth=ak_auth,
        parent_name=parent_name,
        nv_public=nv_public,
        nv_auth=nv_auth,
        chain_pcr=chain_pcr,
        workload_pcr=workload_pcr,
        properties=properties,
    )


def _primary(connection: Connection, scope: Scope, auths: Authorizations) -> tuple[Any, bytes]:
    """Create the storage primary in the endorsement hierarchy: (handle, 34-byte Name)."""
    connection.authorize(lib.ESYS_TR.ENDORSEMENT, auths.endorsement)
    handle, public, *_ = connection.commands.create_primary(
        lib.TPM2B_SENSITIVE_CREATE(), storage_primary(), lib.ESYS_TR.ENDORSEMENT
    )
    return scope.key(handle), bytes(public.get_name())


def make_counter(connection: Connection, auth: bytes, auths: Authorizations) -> bytes:
    """Define a counter at the first free index, increment it once, return its TPMS_NV_PUBLIC.

    Raises as `make_identity`.
    """
    connection.authorize(lib.ESYS_TR.OWNER, auths.owner)
    handle = _define_counter(connection, auth)
    try:
        connection.authorize(handle, auth)
        connection.commands.nv_increment(handle)
        public, _ = connection.commands.nv_read_public(handle)
    except TpmError:
        connection.commands.nv_undefine_space(handle)
        raise
    connection.commands.tr_close(handle)
    return bytes(public.nvPublic.marshal())


def _define_counter(connection: Connection, auth: bytes) -> Any:
    """NV_DefineSpace at the first free index of COUNTER_RANGE; another program may take one meanwhile."""
    used = used_nv_indices(connection)
    for index in (index for index in COUNTER_RANGE if index not in used):
        try:
            return connection.commands.nv_define_space(auth, start_counter(index))
        except TpmConflict as error:
            if error.rc != _NV_DEFINED:
                raise
    raise TpmConflict(
        f"no free nv index is left in 0x{COUNTER_RANGE.start:08x}-0x{COUNTER_RANGE.stop - 1:08x}",
        hint="remove start counters of origins that are given up (tpm2_nvundefine)",
    )


def remove_counter(
    connection: Connection, identity: TpmIdentity, *, authorizations: Authorizations | None = None
) -> None:
    """Undefine an identity's start counter: its origin can never start again. Absent is fine.

    The AK leaves nothing in the TPM. Raises TpmAuthError when the owner authorisation is wrong.
    """
    connection.authorize(lib.ESYS_TR.OWNER, (authorizations or Authorizations()).owner)
    with connection.scope() as scope:
        try:
            handle = scope.known(connection.commands.tr_from_tpmpublic(identity.nv_index))
        except TpmMissing:
            return
        connection.commands.nv_undefine_space(handle)


@dataclass(frozen=True, slots=True)
class LoadedKeys:
    """ESAPI handles of a loaded AK and of the start counter, both with their authorisation set."""

    ak: Any
    counter: Any


def load_ak(
    connection: Connection, identity: TpmIdentity, *, authorizations: Authorizations | None = None
) -> Any:
    """Load the AK under the storage primary and set its authorisation; the primary does not stay loaded. A persistent
    key that the agent did not make is opened where it is. `held` gives either back.

    Raises TpmForeignKey when this TPM makes another primary than the one the key was made under, or has no such key.
    """
    if identity.is_foreign:
        return _open_foreign(connection, identity)
    with connection.scope() as scope:
        primary, name = _primary(connection, scope, authorizations or Authorizations())
        if name != identity.parent_name:
            raise TpmForeignKey(
                "the attestation key does not belong to this tpm: its parent key is another one",
                hint="the tpm was cleared or replaced, or the state folder is another host's; "
                "this host needs `attest agent init` and a new origin",
            )
        area, _ = lib.TPMT_PUBLIC.unmarshal(identity.ak_public)
        public = lib.TPM2B_PUBLIC(publicArea=area)
        handle = connection.commands.load(primary, lib.TPM2B_PRIVATE(identity.ak_private), public)
    connection.authorize(handle, identity.ak_auth)
    return handle


def _open_foreign(connection: Connection, identity: TpmIdentity) -> Any:
    """Open an identity's persistent key, if it is still the one."""
    hint = "the vtpm was replaced, or its key removed; this host needs `attest agent init` and a new origin"
    try:
        handle = connection.commands.tr_from_tpmpublic(identity.ak_handle)
    except TpmMissing:
        raise TpmForeignKey(f"the attestation key at 0x{identity.ak_handle:08x} is gone", hint=hint) from None
    public, *_ = connection.commands.read_public(handle)
    if bytes(public.publicArea.marshal()) != identity.ak_public:
        connection.commands.tr_close(handle)
        raise TpmForeignKey(f"another key is at 0x{identity.ak_handle:08x} now", hint=hint)
    connection.authorize(handle, identity.ak_auth)
    return handle


def held(scope: Scope, identity: TpmIdentity, ak: Any) -> Any:
    """Give a loaded AK back at the end of the scope: flush the agent's own, forget a persistent one."""
    return scope.known(ak) if identity.is_foreign else scope.key(ak)


def open_counter(connection: Connection, identity: TpmIdentity) -> Any:
    """The start counter's handle with its authorisation set.

    Raises TpmConflict when the index is gone or is not the one that the genesis record names.
    """
    try:
        handle = connection.commands.tr_from_tpmpublic(identity.nv_index)
    except TpmMissing:
        raise TpmConflict(
            f"the start counter at nv index 0x{identity.nv_index:08x} is gone",
            hint="somebody removed it or cleared the tpm; this host needs a new origin",
        ) from None
    public, _ = connection.commands.nv_read_public(handle)
    if public.nvPublic.marshal() != identity.nv_public:
        connection.commands.tr_close(handle)
        raise TpmConflict(
            f"nv index 0x{identity.nv_index:08x} is not the start counter of this origin",
            hint="somebody defined it anew; this host needs a new origin",
        )
    connection.authorize(handle, identity.nv_auth)
    return handle


def load_keys(
    connection: Connection, identity: TpmIdentity, *, authorizations: Authorizations | None = None
) -> LoadedKeys:
    """Load all that an agent uses. Raises as `load_ak` and `open_counter`."""
    counter = open_counter(connection, identity)
    return LoadedKeys(load_ak(connection, identity, authorizations=authorizations), counter)


def counter_value(connection: Connection, handle: Any) -> int:
    """Read a counter: 8 bytes, big-endian."""
    return int.from_bytes(bytes(connection.commands.nv_read(handle, COUNTER_SIZE, 0)), "big")
