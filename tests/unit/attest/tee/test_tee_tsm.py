# SPDX-License-Identifier: Apache-2.0
"""SEV-SNP, TDX and Arm CCA by configfs-tsm: what a verifier gets, and every way in which it is spoilt."""

from __future__ import annotations

import base64
import errno
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cca_tokens
import pytest
from amd_pki import NOW, AmdForge
from intel_sgx import collateral, forged_root
from tee_devices import FakeTsm, FolderTsm, cert_table, failure, snp_mint, snp_table, tdx_mint

from quotary_attest.roots import EvidenceRoot, RootError, TeeEvidence
from quotary_attest.tee.archive import store
from quotary_attest.tee.certtable import ASK, VCEK, VLEK, certificates
from quotary_attest.tee.configfs import MAX_BLOB, KernelFiles, TsmFiles, TsmRequest, make_report
from quotary_attest.tee.errors import TeeBusy, TeeError, TeeMissing, TeeRefused, TeeWrong
from quotary_attest.tee.root import DeviceRoot, TeeOptions
from quotary_attest.tee.tsm import CcaDevice, SnpDevice, TdxDevice
from quotary_verifier.evidence.tee.amd_certs import Generation, SigningKey
from quotary_verifier.evidence.tee.cca import PlatformKey
from quotary_verifier.evidence.tee.lines import Bound, TeeRoots, snp_support, tdx_support, verify_tee_line
from quotary_verifier.pki.der import encode
from quotary_verifier.wire.tee_support import TeeSupport

D, GENESIS = b"\xd1" * 32, b"\x9e" * 32


def quiet(_seconds: float) -> None:
    """No waiting."""


def snp_root(files: TsmFiles, forge: AmdForge, **options: object) -> DeviceRoot:
    chosen = TeeOptions(roots=TeeRoots(amd=forge.roots()), now=lambda: NOW, **options)  # type: ignore[arg-type]
    return DeviceRoot(SnpDevice(files, sleep=quiet), chosen)


def accepted(root: EvidenceRoot, found: TeeEvidence, roots: TeeRoots) -> None:
    """A verifier takes the line for this commit, and for no other."""
    support = TeeSupport(root.identifier, found.endorsements)
    assert verify_tee_line(found.evidence, support, Bound(D, GENESIS), NOW, roots)
    with pytest.raises(Exception, match="bind"):
        verify_tee_line(found.evidence, support, Bound(GENESIS, D), NOW, roots)


@pytest.mark.parametrize("generation", Generation)
@pytest.mark.parametrize("key", SigningKey)
async def test_a_report_and_the_hosts_certificates_are_what_a_verifier_takes(
    generation: Generation, key: SigningKey
) -> None:
    forge = AmdForge(generation, key)
    files = FakeTsm(snp_mint(forge), auxblob=snp_table(forge))
    root = snp_root(files, forge)
    assert isinstance(root, EvidenceRoot)
    accepted(root, await root.bind(D + GENESIS), TeeRoots(amd=forge.roots()))
    assert files.asked == [(D + GENESIS, None)]
    assert files.entries == {}


async def test_the_agents_file_access_is_that_of_the_kernels_interface(tmp_path: Path) -> None:
    forge = AmdForge()
    files = FolderTsm(tmp_path, snp_mint(forge), snp_table(forge))
    root = snp_root(files, forge)
    accepted(root, await root.bind(D + GENESIS), TeeRoots(amd=forge.roots()))
    assert not any(tmp_path.iterdir())  # noqa: ASYNC240
    assert root.describe() == f"sev-snp by {tmp_path}"


async def test_a_quote_is_handed_out_without_what_stands_behind_its_end(tmp_path: Path) -> None:
    made: list[bytes] = []

    def mint(data: bytes) -> bytes:
        made.append(tdx_mint(data))
        return made[-1]

    files = FakeTsm(mint, provider="tdx_guest")
    roots = TeeRoots(intel=forged_root())
    root = DeviceRoot(TdxDevice(files, quiet), TeeOptions(roots=roots, now=lambda: NOW))
    found = await root.bind(D + GENESIS)
    assert made == [found.evidence + bytes(70)]
    accepted(root, found, roots)
    assert found.endorsements == {}

    store(tmp_path, found.evidence, tdx_support(collateral()))
    with_collateral = DeviceRoot(
        TdxDevice(files, quiet), TeeOptions(roots=roots, now=lambda: NOW, collateral=tmp_path)
    )
    found = await with_collateral.bind(D + GENESIS)
    assert "tcb_info" in found.endorsements
    accepted(with_collateral, found, roots)


def test_each_request_has_a_folder_of_its_own_and_names_its_privilege_level() -> None:
    forge = AmdForge()
    files = FakeTsm(snp_mint(forge), auxblob=snp_table(forge), floor=2)
    device = SnpDevice(files, privlevel=2, sleep=quiet)
    device.collect(D + GENESIS)
    device.collect(D + GENESIS)
    assert files.asked == [(D + GENESIS, 2)] * 2
    assert len(set(files.made)) == 2
    with pytest.raises(TeeError, match="no report could be made: invalid argument"):
        SnpDevice(files, privlevel=1, sleep=quiet).collect(D + GENESIS)
    assert files.entries == {}


@pytest.mark.parametrize(
    "trouble", [{"lost": 2}, {"busy": 2}, {"intruders": 2}, {"lost": 1, "busy": 1, "intruders": 1}]
)
def test_a_request_that_was_lost_or_disturbed_is_made_again(trouble: dict[str, int]) -> None:
    forge = AmdForge()
    files = FakeTsm(snp_mint(forge), auxblob=snp_table(forge), **trouble)  # type: ignore[arg-type]
    waits: list[float] = []
    found = SnpDevice(files, sleep=waits.append).collect(D + GENESIS)
    assert found.evidence[0x50:0x90] == D + GENESIS
    assert 0 < len(waits) <= sum(trouble.values())
    assert waits == sorted(waits)
    assert files.entries == {}


@pytest.mark.parametrize(
    ("trouble", "kind", "message", "hint"),
    [
        ({"lost": 99}, TeeWrong, "did not take the request", "another program"),
        ({"intruders": 99}, TeeWrong, "did not take the request", "another program"),
        ({"busy": 99}, TeeBusy, "busy with other reports", "end what asks"),
        ({"missing": True}, TeeMissing, "no configfs-tsm", r"linux 6\.7"),
        ({"provider": None}, TeeMissing, "no driver of this kernel", "modprobe"),
        (
            {"provider": "tdx_guest"},
            TeeMissing,
            "made by 'tdx_guest', not by 'sev_guest'",
            "attest tee status",
        ),
        ({"denied": True}, TeeRefused, "this user may not", "only root"),
        ({"failing": {"inblob": errno.EPERM}}, TeeRefused, "this user may not", "only root"),
        ({"failing": {"outblob": errno.EFBIG}}, TeeError, "larger than", "newer kernel"),
        ({"failing": {"outblob": errno.ETIMEDOUT}}, TeeError, "host did not answer", "quote generation"),
        ({"failing": {"outblob": errno.EIO}}, TeeError, "input/output error", "dmesg"),
        ({"failing": {"auxblob": errno.EIO}}, TeeError, "input/output error", "dmesg"),
        ({"stale": AmdForge().report()}, TeeWrong, "over other bytes", "keeps old reports"),
        ({"stale": b"\x05" + bytes(1182)}, TeeWrong, "no sev-snp report that can be used", "dmesg"),
    ],
)
def test_what_the_kernel_refuses_or_spoils_is_told_with_a_hint(
    trouble: dict[str, object], kind: type[TeeError], message: str, hint: str
) -> None:
    forge = AmdForge()
    files = FakeTsm(snp_mint(forge), auxblob=snp_table(forge))
    files = replace(files, **trouble)  # type: ignore[arg-type]
    with pytest.raises(kind, match=message) as caught:
        SnpDevice(files, sleep=quiet).collect(D + GENESIS)
    assert isinstance(caught.value, RootError)
    assert hint.replace("\\", "") in caught.value.hint
    assert files.entries == {}


def test_a_folder_that_cannot_be_removed_does_not_hide_the_report_or_the_error() -> None:
    forge = AmdForge()

    class Stuck(FakeTsm):
        def remove(self, entry: str) -> None:
            super().remove(entry)
            raise failure(errno.EBUSY)

    files = Stuck(snp_mint(forge), auxblob=snp_table(forge))
    assert SnpDevice(files, sleep=quiet).collect(D + GENESIS).evidence
    files.failing["outblob"] = errno.EFBIG
    with pytest.raises(TeeError, match="larger"):
        SnpDevice(files, sleep=quiet).collect(D + GENESIS)


def test_a_count_of_writes_that_is_no_number_is_refused() -> None:
    class Odd(FakeTsm):
        def read(self, entry: str, attribute: str) -> bytes:
            return b"-1\n" if attribute == "generation" else super().read(entry, attribute)

    with pytest.raises(TeeWrong, match="no number"):
        SnpDevice(Odd(snp_mint(AmdForge())), sleep=quiet).collect(D + GENESIS)


@pytest.mark.parametrize("size", [0, 32, 63, 65])
async def test_only_64_bytes_are_bound(size: int) -> None:
    forge = AmdForge()
    files = FakeTsm(snp_mint(forge))
    with pytest.raises(ValueError, match="64"):
        await snp_root(files, forge).bind(bytes(size))
    with pytest.raises(ValueError, match="64"):
        make_report(files, TsmRequest(bytes(size), "sev_guest"))
    assert files.made == []


# --- the certificate table


def test_certificates_in_pem_are_taken_too() -> None:
    issuer = AmdForge().issuer()
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(issuer) + b"-----END CERTIFICATE-----\n"
    assert certificates(cert_table((ASK, pem))) == {ASK: issuer}


@pytest.mark.parametrize("table", [b"", bytes(24), bytes(4096)])
def test_a_table_may_be_empty(table: bytes) -> None:
    assert certificates(table) == {}


@pytest.mark.parametrize(
    "table",
    [
        b"\1",
        cert_table((VCEK, b"x"), end=b""),
        cert_table((VCEK, b"x"))[:-1],
        cert_table((VCEK, b"x"), (VCEK, b"y")),
        VCEK + b"\xff" * 8 + bytes(24),
        cert_table((ASK, b"-----BEGIN nothing")),
    ],
)
def test_a_table_of_another_form_is_refused(table: bytes) -> None:
    with pytest.raises(TeeWrong, match="certificate table"):
        certificates(table)


@pytest.mark.parametrize(
    "table", [None, b"", cert_table((VCEK, b"x")), cert_table((VLEK, b"x"), (ASK, b"y"))]
)
async def test_without_the_hosts_certificates_stored_ones_vouch(table: bytes | None, tmp_path: Path) -> None:
    forge = AmdForge()
    files = FakeTsm(snp_mint(forge), auxblob=table)
    with pytest.raises(TeeWrong, match="endorsements of the tee line are missing") as caught:
        await snp_root(files, forge).bind(D + GENESIS)
    assert "fetch-collateral" in caught.value.hint

    store(tmp_path, b"older evidence", snp_support(forge.endorsements(forge.crl())))
    root = snp_root(files, forge, collateral=tmp_path)
    found = await root.bind(D + GENESIS)
    assert set(found.endorsements) == {"leaf", "issuer", "crls"}
    accepted(root, found, TeeRoots(amd=forge.roots()))


async def test_what_is_stored_for_other_firmware_or_in_another_form_is_passed_over(tmp_path: Path) -> None:
    forge = AmdForge()
    older = AmdForge(tcb=dict(forge.tcb, microcode=1))
    store(tmp_path, b"1", snp_support(older.endorsements()))
    store(tmp_path, b"2", tdx_support(collateral()))
    (tmp_path / "3.support").write_bytes(b"no cbor")
    root = snp_root(FakeTsm(snp_mint(forge)), forge, collateral=tmp_path)
    with pytest.raises(TeeWrong, match="does not verify") as caught:
        await root.bind(D + GENESIS)
    assert "new firmware" in caught.value.hint
    fitting = forge.endorsements()
    store(tmp_path, b"4", snp_support(fitting))
    assert (await root.bind(D + GENESIS)).endorsements["leaf"] == (fitting.leaf,)


async def test_a_folder_of_endorsements_that_is_empty_or_not_there_is_told(tmp_path: Path) -> None:
    forge = AmdForge()
    files = FakeTsm(snp_mint(forge))
    with pytest.raises(TeeWrong, match="nothing stored vouches") as caught:
        await snp_root(files, forge, collateral=tmp_path).bind(D + GENESIS)
    assert "fetch-collateral" in caught.value.hint
    with pytest.raises(TeeMissing, match="there is no folder"):
        await snp_root(files, forge, collateral=tmp_path / "none").bind(D + GENESIS)


async def test_evidence_that_a_verifier_would_not_take_is_never_handed_out() -> None:
    forge = AmdForge()
    stranger = replace(forge, certified={"snp": 26})
    files = FakeTsm(snp_mint(forge), auxblob=snp_table(stranger))
    with pytest.raises(TeeWrong, match="does not verify"):
        await snp_root(files, forge).bind(D + GENESIS)


# --- the agent's own file access


def test_a_machine_without_the_interface_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(TeeMissing, match="no configfs-tsm"):
        SnpDevice(KernelFiles(tmp_path / "tsm" / "report")).collect(D + GENESIS)


def test_an_attribute_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    files = KernelFiles(tmp_path)
    files.make("one")
    (tmp_path / "one" / "outblob").write_bytes(bytes(MAX_BLOB + 1))
    with pytest.raises(OSError, match="too large") as caught:
        files.read("one", "outblob")
    assert caught.value.errno == errno.EFBIG


def test_a_short_write_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = KernelFiles(tmp_path)
    files.make("one")
    (tmp_path / "one" / "inblob").touch()
    monkeypatch.setattr("os.write", lambda _file, data: len(data) - 1)
    with pytest.raises(OSError, match="63 of 64"):
        files.write("one", "inblob", bytes(64))


def test_guids_of_the_table_are_those_that_amd_publishes_in_the_order_of_their_text() -> None:
    assert [str(uuid.UUID(bytes=guid)) for guid in (VCEK, VLEK, ASK)] == [
        "63da758d-e664-4564-adc5-f4b93be8accd",
        "a8074bc2-a25a-483e-aae6-39c045a0b8a1",
        "4ab7b379-bbac-4fe4-a02f-05aef327c782",
    ]


def test_what_a_host_puts_under_other_guids_is_passed_over() -> None:
    forge = AmdForge()
    leaf, issuer = forge.leaf(), forge.issuer()
    extra, crl = uuid.UUID("ecae0c0f-9502-43b1-afa2-0ae2e0d565b6").bytes, b"\x92" * 16
    table = cert_table((extra, b""), (crl, b"-----BEGIN X509 CRL-----"), (VCEK, leaf), (ASK, issuer))
    found = certificates(table + bytes(4096))
    assert (found[VCEK], found[ASK]) == (leaf, issuer)
    files = FakeTsm(snp_mint(forge), auxblob=table)
    assert SnpDevice(files, sleep=quiet).collect(D + GENESIS).endorsements.keys() == {"leaf", "issuer"}


# --- Arm CCA


def cca_root(files: TsmFiles, *keys: PlatformKey) -> DeviceRoot:
    return DeviceRoot(CcaDevice(files, quiet), TeeOptions(roots=TeeRoots(cca=keys) if keys else None))


async def test_a_realms_token_is_what_a_verifier_with_the_platforms_key_takes() -> None:
    files = FakeTsm(cca_tokens.cca_mint, provider="arm_cca_guest")
    roots = TeeRoots(cca=(cca_tokens.platform_key(),))
    for root in (cca_root(files, *roots.cca), cca_root(files)):
        found = await root.bind(D + GENESIS)
        assert found.endorsements == {}
        accepted(root, found, roots)
    assert files.asked == [(D + GENESIS, None)] * 2
    assert files.entries == {}


async def test_a_token_of_another_platform_binds_nothing_where_the_operator_named_its_key() -> None:
    root = cca_root(
        FakeTsm(cca_tokens.cca_mint, provider="arm_cca_guest"), cca_tokens.platform_key(cca_tokens.RAK)
    )
    with pytest.raises(TeeWrong, match="verifies by no platform key that was given") as error:
        await root.bind(D + GENESIS)
    assert "platform_keys" in error.value.hint


def other_realm(data: bytes) -> bytes:
    claims = {**cca_tokens.realm_claims(), 10: data}
    return cca_tokens.token(tokens={44241: cca_tokens.sign1(claims, cca_tokens.CPAK)})


@pytest.mark.parametrize(
    ("mint", "message"),
    [
        (lambda _: cca_tokens.cca_mint(bytes(64)), "over other bytes than were asked for"),
        (lambda _: encode(0x30, b""), "no cca token that can be used"),
        (lambda data: cca_tokens.token({10: data}, {10: bytes(32)}), "for another realm key"),
        (other_realm, "realm token of arm cca does not verify"),
    ],
    ids=["challenge", "form", "link", "realm signature"],
)
async def test_without_a_platforms_key_a_token_is_held_to_all_that_needs_none(
    mint: Callable[[bytes], bytes], message: str
) -> None:
    with pytest.raises(TeeWrong, match=message):
        await cca_root(FakeTsm(mint, provider="arm_cca_guest")).bind(D + GENESIS)


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        ({"lost": 99}, TeeWrong),
        ({"intruders": 99}, TeeWrong),
        ({"busy": 99}, TeeBusy),
        ({"provider": "sev_guest"}, TeeMissing),
        ({"denied": True}, TeeRefused),
    ],
    ids=str,
)
async def test_a_realm_meets_the_same_traps_of_the_interface(
    trouble: dict[str, object], kind: type[TeeError]
) -> None:
    files = FakeTsm(cca_tokens.cca_mint, **{"provider": "arm_cca_guest", **trouble})  # type: ignore[arg-type]
    with pytest.raises(kind):
        await cca_root(files).bind(D + GENESIS)
    assert files.entries == {}
