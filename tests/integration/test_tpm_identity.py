# SPDX-License-Identifier: Apache-2.0
"""An origin's keys in a real software TPM: what they are, and that nobody else can use them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from tpms import Tpm

from quotary_attest.tpm.connection import Connection
from quotary_attest.tpm.errors import TpmAuthError, TpmConflict, TpmError, TpmForeignKey, TpmGone
from quotary_attest.tpm.keys import (
    counter_value,
    load_ak,
    load_keys,
    make_identity,
    open_counter,
    remove_counter,
)
from quotary_attest.tpm.model import Authorizations, TpmIdentity
from quotary_attest.tpm.reading import loaded_handles, read_pcrs, read_properties, used_nv_indices
from quotary_attest.tpm.root import open_root
from quotary_attest.tpm.templates import AK_ATTRIBUTES, COUNTER_RANGE, pcr_selection
from quotary_attest.tpm.tss import lib
from quotary_verifier.evidence.tpm_keys import ak_qualified_name, check_ak
from quotary_verifier.wire.tpm import parse_attest, parse_nv_public, parse_public

NO_SCHEME = lib.TPMT_SIG_SCHEME(scheme=lib.TPM2_ALG.NULL)


@pytest.fixture
def connection(tpm: Tpm) -> Iterator[Connection]:
    with Connection(tpm.tcti) as opened:
        yield opened


@pytest.fixture
def identity(connection: Connection) -> TpmIdentity:
    return make_identity(connection, chain_pcr=15, workload_pcr=13)


def test_the_ak_has_exactly_the_attributes_of_the_specification(identity: TpmIdentity) -> None:
    public = parse_public(identity.ak_public)
    assert public.attributes == AK_ATTRIBUTES == 0x50472
    check_ak(public, strict=True)


def test_the_ak_can_quote_and_its_qualified_name_is_what_the_verifier_computes(
    connection: Connection, identity: TpmIdentity
) -> None:
    with connection.scope() as scope:
        ak = scope.key(load_ak(connection, identity))
        attest, _ = connection.commands.quote(ak, pcr_selection((0,)), bytes(32), NO_SCHEME)
    public = parse_public(identity.ak_public)
    assert parse_attest(bytes(attest)).qualified_signer == ak_qualified_name(identity.parent_name, public)


def test_making_an_identity_touches_no_pcr(connection: Connection) -> None:
    before = read_pcrs(connection)
    make_identity(connection, chain_pcr=15, workload_pcr=13)
    assert read_pcrs(connection) == before


def test_the_counter_is_as_the_genesis_record_will_describe_it(
    connection: Connection, identity: TpmIdentity
) -> None:
    public = parse_nv_public(identity.nv_public)
    counter, written = 0x10, 0x20000000
    assert public.index == identity.nv_index == COUNTER_RANGE.start
    assert public.attributes & 0xF0 == counter
    assert public.attributes & written
    assert public.data_size == 8
    keys = load_keys(connection, identity)
    assert counter_value(connection, keys.counter) >= 1


def test_a_second_identity_takes_the_next_free_index_and_other_secrets(connection: Connection) -> None:
    one = make_identity(connection, chain_pcr=15, workload_pcr=13)
    two = make_identity(connection, chain_pcr=9, workload_pcr=8)
    assert (one.nv_index, two.nv_index) == (COUNTER_RANGE.start, COUNTER_RANGE.start + 1)
    assert one.parent_name == two.parent_name
    assert len({one.ak_public, two.ak_public, one.ak_auth, two.ak_auth, one.nv_auth, two.nv_auth}) == 6
    assert {len(auth) for auth in (one.ak_auth, two.ak_auth, one.nv_auth, two.nv_auth)} == {32}


def test_secrets_do_not_show_where_an_identity_is_printed(identity: TpmIdentity) -> None:
    text = repr(identity) + repr(Authorizations(b"owner password", b"endorsement password"))
    for secret in (identity.ak_auth, identity.nv_auth, identity.ak_private):
        assert repr(secret) not in text
    assert "password" not in text


async def test_a_process_with_the_tpm_but_without_the_auth_cannot_quote_as_the_agent(tpm: Tpm) -> None:
    """The agent's AK is loaded, and on a bare TPM everybody sees its handle; the blobs are known too."""
    identity = tpm.identity()
    root = await open_root(identity, tpm.tcti)
    thief = dataclasses.replace(identity, ak_auth=b"a guess")
    with Connection(tpm.tcti) as other:
        (handle,) = [handle for handle in loaded_handles(other) if handle >> 24 == 0x80]
        loaded = other.commands.tr_from_tpmpublic(handle)
        for attempt in (loaded, load_ak(other, thief)):
            with pytest.raises(TpmAuthError, match="quote: the authorisation is wrong"):
                other.commands.quote(attempt, pcr_selection((0,)), bytes(32), NO_SCHEME)
    assert (await root.quote(bytes(32))).pcrs
    await root.close()


def test_wrong_authorisations_never_lock_the_tpm(connection: Connection, identity: TpmIdentity) -> None:
    """noDA: a thief's guesses, or power cuts, must not keep the agent from its own keys."""
    ak = load_ak(connection, dataclasses.replace(identity, ak_auth=b"wrong"))
    for _ in range(40):
        with pytest.raises(TpmAuthError):
            connection.commands.quote(ak, pcr_selection((0,)), bytes(32), NO_SCHEME)
    connection.authorize(ak, identity.ak_auth)
    connection.commands.quote(ak, pcr_selection((0,)), bytes(32), NO_SCHEME)
    connection.commands.flush_context(ak)


def test_the_counter_is_closed_to_others(connection: Connection, identity: TpmIdentity) -> None:
    counter = open_counter(connection, dataclasses.replace(identity, nv_auth=b"wrong"))
    for command in (connection.commands.nv_increment, lambda nv: connection.commands.nv_read(nv, 8, 0)):
        with pytest.raises(TpmAuthError):
            command(counter)


def test_a_counter_that_is_gone_or_another_is_told_apart_from_a_broken_tpm(
    connection: Connection, identity: TpmIdentity
) -> None:
    other = make_identity(connection, chain_pcr=15, workload_pcr=13)
    moved = bytes.fromhex(f"{other.nv_index:08x}") + identity.nv_public[4:-2] + b"\0\1"
    with pytest.raises(TpmConflict, match="is not the start counter of this origin"):
        open_counter(connection, dataclasses.replace(identity, nv_public=moved))
    remove_counter(connection, identity)
    with pytest.raises(TpmConflict, match=f"nv index 0x{identity.nv_index:08x} is gone"):
        open_counter(connection, identity)
    remove_counter(connection, identity)


def test_keys_of_another_tpm_are_refused_in_words(connection: Connection, identity: TpmIdentity) -> None:
    with pytest.raises(TpmForeignKey, match="its parent key is another one") as caught:
        load_ak(connection, dataclasses.replace(identity, parent_name=b"\0\x0b" + bytes(32)))
    assert "new origin" in caught.value.hint
    broken = identity.ak_private[:-1] + bytes([identity.ak_private[-1] ^ 1])
    with pytest.raises(TpmForeignKey, match="does not belong to this tpm"):
        load_ak(connection, dataclasses.replace(identity, ak_private=broken))


def test_random_authorisations_that_end_in_zeros_work_although_a_tpm_drops_trailing_zeros(
    connection: Connection,
) -> None:
    made = make_identity(
        connection, chain_pcr=15, workload_pcr=13, random=lambda size: b"\1" * (size - 2) + b"\0\0"
    )
    keys = load_keys(connection, made)
    assert counter_value(connection, keys.counter) >= 1
    connection.commands.quote(keys.ak, pcr_selection((0,)), bytes(32), NO_SCHEME)


def test_a_host_with_hierarchy_authorisations_needs_them_said(connection: Connection) -> None:
    connection.commands.hierarchy_change_auth(lib.ESYS_TR.OWNER, b"owner")
    connection.commands.hierarchy_change_auth(lib.ESYS_TR.ENDORSEMENT, b"endorsement")
    before = used_nv_indices(connection)
    for wrong in (None, Authorizations(owner=b"owner"), Authorizations(endorsement=b"endorsement")):
        with pytest.raises(TpmAuthError) as caught:
            make_identity(connection, chain_pcr=15, workload_pcr=13, authorizations=wrong)
        assert "owner or endorsement" in caught.value.hint
        assert used_nv_indices(connection) == before
    right = Authorizations(b"owner", b"endorsement")
    identity = make_identity(connection, chain_pcr=15, workload_pcr=13, authorizations=right)
    load_keys(connection, identity, authorizations=right)
    remove_counter(connection, identity, authorizations=right)
    assert used_nv_indices(connection) == before


def test_a_counter_that_cannot_be_incremented_is_removed_again(tpm: Tpm, connection: Connection) -> None:
    nv_increment = 0x134
    before = used_nv_indices(connection)
    tpm.inject(nv_increment, 0x14A)
    with pytest.raises(TpmConflict):
        make_identity(connection, chain_pcr=15, workload_pcr=13)
    assert used_nv_indices(connection) == before


def test_an_index_that_somebody_took_meanwhile_is_passed_over(tpm: Tpm, connection: Connection) -> None:
    nv_define_space, nv_defined = 0x12A, 0x14C
    tpm.inject(nv_define_space, nv_defined)
    made = make_identity(connection, chain_pcr=15, workload_pcr=13)
    assert made.nv_index == COUNTER_RANGE.start + 1


def test_when_every_index_of_the_range_is_taken_the_message_says_so(tpm: Tpm, connection: Connection) -> None:
    tpm.inject(0x12A, 0x14C, times=len(COUNTER_RANGE))
    with pytest.raises(TpmConflict, match="no free nv index"):
        make_identity(connection, chain_pcr=15, workload_pcr=13)


def test_an_identity_says_that_its_tpm_is_software(connection: Connection, identity: TpmIdentity) -> None:
    assert identity.properties == read_properties(connection)
    assert identity.properties.is_software
    assert (identity.properties.manufacturer, identity.properties.vendor) == ("IBM", "SW TPM")
    assert identity.properties.firmware > 0


async def test_an_identity_of_another_tpm_does_not_open(
    tpm: Tpm, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from quotary_attest.tpm.emulator import Emulator

    identity = tpm.identity()
    with Emulator(tmp_path_factory.mktemp("other")) as other:
        with Connection(other.tcti) as connection:
            make_identity(connection, chain_pcr=15, workload_pcr=13)
        with pytest.raises((TpmForeignKey, TpmConflict)):
            await open_root(identity, other.tcti)


def test_errors_of_the_family_have_a_hint(tmp_path: object) -> None:
    with pytest.raises(TpmGone) as caught:
        Connection(f"swtpm:path={tmp_path}/nothing")
    assert isinstance(caught.value, TpmError)
    assert caught.value.hint
