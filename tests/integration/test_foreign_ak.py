# SPDX-License-Identifier: Apache-2.0
"""Origins on keys that a cloud put into its vTPM, on a real swtpm: made, run, rebooted, and refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from agents import audit, policy_of, running
from tpms import Tpm
from vtpm import ATTRIBUTES, P384, RSA, foreign_state, put_away, put_key

from quotary_attest.doctor import Health, examine_tpm
from quotary_attest.roots import RootError
from quotary_attest.state import read_identity
from quotary_attest.tpm.connection import Connection
from quotary_attest.tpm.errors import TpmAuthError, TpmForeignKey, TpmMissing, TpmUnsupported
from quotary_attest.tpm.foreign import AZURE_AK, make_foreign_identity, read_foreign
from quotary_attest.tpm.keys import load_ak
from quotary_attest.tpm.model import Authorizations
from quotary_attest.tpm.reading import loaded_handles, used_nv_indices
from quotary_attest.tpm.tss import lib
from quotary_verifier.policy.model import Policy
from quotary_verifier.recipe.verify import Question, verify
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.records import Genesis

AT = 1_800_000_000
BODY = b"an answer"
_USER_WITH_AUTH = 0x40


def policy(origin: str) -> Policy:
    return dataclasses.replace(policy_of(origin), unauthenticated_ak=True)


@pytest.mark.parametrize("kind", [RSA, P384])
async def test_an_origin_on_a_persistent_key_attests_over_starts_and_a_reboot(
    tpm: Tpm, tmp_path: Path, kind: str
) -> None:
    public, folder = put_key(tpm, kind), tmp_path / "state"
    foreign_state(tpm, folder)
    for before in (lambda: None, lambda: None, tpm.reset):
        before()
        async with running(tpm, folder) as agent:
            delivered = await agent.attest(BODY)
            verdict = verify(delivered.encoded, Question(BODY, AT), policy(agent.origin))
            assert "AK without auth: any process with the TPM can quote" in verdict.report.notices
    genesis = Genesis.decode(Attestation.decode(delivered.encoded).genesis)
    assert genesis.tpm is not None
    assert (genesis.tpm.ak, genesis.tpm.ak_parent) == (public.raw, bytes.fromhex("4000000b"))
    found = audit(folder)
    assert (len(set(found.boots)), found.gaps) == (2, [])
    with Connection(tpm.tcti) as connection:
        assert loaded_handles(connection) == []
        assert read_foreign(connection, AZURE_AK).public == public


async def test_a_key_with_an_authorisation_is_used_with_it(tpm: Tpm, tmp_path: Path) -> None:
    put_key(tpm, auth=b"known to the agent")
    foreign_state(tpm, tmp_path / "good", auth=b"known to the agent")
    async with running(tpm, tmp_path / "good") as agent:
        assert (await agent.attest(BODY)).encoded
    tpm.reset()
    put_key(tpm, auth=b"given anew")
    with pytest.raises(RootError, match="authoris"):
        async with running(tpm, tmp_path / "good"):
            pass


@pytest.mark.parametrize(
    "options", [{"auth": b"of somebody else"}, {"attributes": ATTRIBUTES & ~_USER_WITH_AUTH}]
)
def test_no_origin_is_made_on_a_key_that_does_not_sign_for_us(
    tpm: Tpm, tmp_path: Path, options: dict[str, Any]
) -> None:
    put_key(tpm, **options)
    with Connection(tpm.tcti) as connection:
        before = used_nv_indices(connection)
        with pytest.raises(TpmAuthError) as caught:
            make_foreign_identity(connection, AZURE_AK, chain_pcr=15, workload_pcr=13, ak_auth=b"a guess")
        assert used_nv_indices(connection) == before
        assert loaded_handles(connection) == []
    assert caught.value.hint


async def test_a_key_that_is_gone_or_another_one_stops_the_agent(tpm: Tpm, tmp_path: Path) -> None:
    put_key(tpm)
    foreign_state(tpm, tmp_path / "state")
    put_key(tpm, P384)
    with pytest.raises(TpmForeignKey, match="another key is at 0x81000003"):
        async with running(tpm, tmp_path / "state"):
            pass
    with Connection(tpm.tcti) as connection:
        put_away(tpm, connection)
    with pytest.raises(TpmForeignKey, match="is gone"):
        async with running(tpm, tmp_path / "state"):
            pass


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"attributes": 0x40472}, "restricted not set"),
        ({"hierarchy": lib.ESYS_TR.OWNER}, "owner hierarchy, whose quotes do not show the boot counts"),
    ],
    ids=["unrestricted", "owner"],
)
def test_only_a_key_that_a_verifier_would_take_is_one_for_an_origin(
    tpm: Tpm, options: dict[str, Any], why: str
) -> None:
    put_key(tpm, **options)
    with Connection(tpm.tcti) as connection, pytest.raises(TpmUnsupported, match=why) as caught:
        read_foreign(connection, AZURE_AK)
    assert caught.value.hint


def test_a_child_of_another_key_is_refused_with_a_hint(tpm: Tpm) -> None:
    identity = tpm.identity()
    with Connection(tpm.tcti) as connection, connection.scope() as scope:
        child = scope.key(load_ak(connection, identity))
        connection.commands.tr_close(connection.commands.evict_control(lib.ESYS_TR.OWNER, child, AZURE_AK))
        with pytest.raises(TpmUnsupported, match="child of another key") as caught:
            read_foreign(connection, AZURE_AK)
    assert "leave --ak out" in caught.value.hint


def test_a_handle_without_a_key_or_of_another_kind_is_told_with_a_hint(tpm: Tpm) -> None:
    with Connection(tpm.tcti) as connection:
        with pytest.raises(TpmMissing, match="no key at 0x81000009") as missing:
            read_foreign(connection, 0x81000009)
        with pytest.raises(TpmUnsupported, match="not the handle of a persistent key") as other:
            read_foreign(connection, 0x80000000)
    assert missing.value.hint
    assert other.value.hint


def test_the_doctor_says_that_any_process_with_the_tpm_can_quote(tpm: Tpm, tmp_path: Path) -> None:
    put_key(tpm)
    foreign_state(tpm, tmp_path / "state")
    identity = read_identity(tmp_path / "state")
    found = {one.what: one for one in examine_tpm(tmp_path / "state", identity, tpm.tcti, Authorizations())}
    assert found["key"].health is Health.GOOD
    assert "0x81000003: any process with the tpm can quote" in found["key"].text
    assert "unauthenticated_ak" in found["key"].hint
