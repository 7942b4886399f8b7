# SPDX-License-Identifier: Apache-2.0
"""`attest inspect` on evidence of confidential-computing hardware: each kind by its name, and nothing as verified."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import cca_tokens
import intel_sgx
import pytest
from amd_pki import BOUND, SHORT, AmdForge
from azure_forge import VM, AzureForge
from click.testing import CliRunner
from corpus import corpus_bytes, entries, needs_corpus
from device_forge import DIGEST, GENESIS, NitroForge
from intel_sgx import TdxForge
from nvidia_forge import FWID, NvidiaForge

from quotary_cli.inspect import inspect
from quotary_cli.kinds import describe
from quotary_verifier.errors import MalformedError, QuotaryError, UnsupportedError
from quotary_verifier.evidence.tee.amd_certs import Generation
from quotary_verifier.evidence.tee.lines import snp_support, tdx_support
from quotary_verifier.tlog.hardware import IDENTIFIER_CCA
from quotary_verifier.wire import cbor
from quotary_verifier.wire.tee_support import TeeSupport

LINES = {
    "sev-snp": snp_support(AmdForge().endorsements(AmdForge().crl())),
    "tdx": tdx_support(intel_sgx.collateral()),
    "cca": TeeSupport(IDENTIFIER_CCA, {}),
}


def shown(data: bytes, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    file = tmp_path / "evidence"
    file.write_bytes(data)
    for_people = CliRunner().invoke(inspect, [str(file)])
    assert for_people.exit_code == 0, for_people.output
    assert "(parsed, not verified)" in for_people.output.splitlines()[0]
    found = json.loads(CliRunner().invoke(inspect, [str(file), "--json"]).stdout)
    assert found["status"] == "parsed, not verified"
    return found["kind"], found["content"]


@pytest.mark.parametrize("generation", Generation)
def test_a_report_of_sev_snp(generation: Generation, tmp_path: Path) -> None:
    kind, content = shown(AmdForge(generation).report(), tmp_path)
    assert (kind, content["generation"], content["debug"]) == ("SEV-SNP report", generation.value, False)
    assert content["report_data"] == BOUND.hex()
    assert content["tcb"]["committed"]["microcode"] == 200


def test_a_report_that_does_not_name_its_processor_keeps_its_tcb_raw(tmp_path: Path) -> None:
    _, content = shown(AmdForge(version=2).report({0x1A0: bytes(64)}), tmp_path)
    assert (content["generation"], content["chip_id"]) == ("not said", "left out")
    assert len(content["tcb"]["reported"]) == 16


def test_a_document_of_nitro(tmp_path: Path) -> None:
    for document in (NitroForge().document(), NitroForge(tag=b"\xd2").document()):
        kind, content = shown(document, tmp_path)
        assert (kind, content["of"], content["debug"]) == ("Nitro document", "Nitro Enclave", False)
        assert (content["user_data"], content["nonce"]) == (DIGEST.hex(), GENESIS.hex())
        assert set(content["pcrs"]) == {"0", "1", "2", "3", "4"}
        assert content["made"] == "2026-03-01T00:00:00.000+00:00"


def test_a_report_of_azure_with_the_hardwares_own_in_it(tmp_path: Path) -> None:
    kind, content = shown(AzureForge().report(), tmp_path)
    assert (kind, content["vm"]["vmUniqueId"]) == ("Azure HCL report", VM)
    assert content["hardware"]["report_data"] == content["expected_report_data"]
    _, content = shown(AzureForge(kind=4).report(), tmp_path)
    assert (content["hardware"], content["report_data"]) == ("a TDREPORT", content["expected_report_data"])


def test_a_report_of_an_nvidia_device(tmp_path: Path) -> None:
    kind, content = shown(NvidiaForge().report(), tmp_path)
    assert (kind, content["driver"], content["vbios"]) == (
        "NVIDIA device report",
        "550.90.07",
        "96.00.9f.00.01",
    )
    assert (content["nonce"], content["firmware_id"]) == (DIGEST.hex(), FWID.hex())


def test_reports_of_several_nvidia_devices_as_a_line_and_the_command_for_reports_have_them(
    tmp_path: Path,
) -> None:
    reports = [NvidiaForge().report(), NvidiaForge(number=30).report()]
    evidence = b"".join(len(report).to_bytes(2) + report for report in reports)
    kind, content = shown(evidence, tmp_path)
    assert kind == "NVIDIA device reports"
    assert [device["nonce"] for device in content["devices"]] == [DIGEST.hex()] * 2
    (tmp_path / "evidence").write_bytes(evidence[:-1])
    assert CliRunner().invoke(inspect, [str(tmp_path / "evidence")]).exit_code == 1


def test_what_a_policy_can_name_of_a_report_is_shown(tmp_path: Path) -> None:
    key, author = b"\x0a" * 48, b"\x0b" * 48
    changes = {
        0x08: (0x30000 | 1 << 18).to_bytes(8, "little"),
        0x40: b"\x21" + bytes(7),
        0xE0: key,
        0x110: author,
    }
    _, content = shown(AmdForge().report(changes), tmp_path)
    assert (content["policy"], content["migration_agent"]) == ("0x70000", True)
    assert (content["smt"], content["alias_check"]) == (True, True)
    assert (content["id_key"], content["author_key"]) == (key.hex(), author.hex())
    _, content = shown(TdxForge().quote(), tmp_path)
    assert (len(content["platform"]), len(content["device"])) == (12, 32)
    assert len(content["mrowner"]) == len(content["mrownerconfig"]) == 96


def test_a_token_of_arm_cca_of_either_profile(tmp_path: Path) -> None:
    for made, realm in (
        (cca_tokens.newer(), "tag:arm.com,2023:realm#1.0.0"),
        (cca_tokens.token(), "none: the older form"),
    ):
        kind, content = shown(made, tmp_path)
        assert (kind, content["realm_profile"]) == ("Arm CCA token", realm)
        assert (content["lifecycle"], content["rim"]) == ("0x3000, secured", "01" * 32)
        assert content["components"][0]["name"] == "RMM"


@pytest.mark.parametrize(
    ("data", "code", "why"),
    [
        (b"\xd9\x03\x8b\xa0", 3, "tag 907"),
        (b"\x03\0\x02\0" + bytes(600), 1, "a quote of an sgx enclave"),
        (b"\x04\0\x02\0" + bytes(600), 1, "a quote of an sgx enclave"),
    ],
)
def test_evidence_of_a_kind_that_says_nothing_here_is_named(
    data: bytes, code: int, why: str, tmp_path: Path
) -> None:
    file = tmp_path / "evidence"
    file.write_bytes(data)
    with pytest.raises(QuotaryError, match=why) as error:
        describe(data)
    assert isinstance(error.value, UnsupportedError if code == 3 else MalformedError)


@pytest.mark.parametrize("kind", LINES)
def test_a_file_of_endorsements_is_shown_with_names_and_dates(kind: str, tmp_path: Path) -> None:
    support = LINES[kind]
    name, content = shown(cbor.encode(support.fields()), tmp_path)
    assert (name, content["identifier"]) == ("TEE endorsements", support.identifier)
    assert content["endorsements"].keys() == support.endorsements.keys()
    if kind == "sev-snp":
        assert content["endorsements"]["leaf"][0]["subject"].startswith("CN=SEV-VCEK")
        assert content["endorsements"]["crls"][0]["revoked"] == 0
    if kind == "tdx":
        assert content["endorsements"]["tcb_info"][0]["nextUpdate"] == "2026-06-30T00:00:00Z"
        assert content["endorsements"]["pck_crl_issuer_chain"][0]["certificates"][0]["subject"]
        assert content["endorsements"]["root_ca_crl"][0]["next_update"] == "2026-06-30T00:00:00+00:00"


@pytest.mark.parametrize(
    "part", [b"{", b'{"id": []}', b"\x30\x03\x02\x01\x00", b"-----BEGIN CERTIFICATE-----", b"x"]
)
def test_an_endorsement_that_cannot_be_read_is_shown_by_its_digest(part: bytes, tmp_path: Path) -> None:
    _, content = shown(cbor.encode(TeeSupport("quotary/tdx/v1", {"tcb_info": (part,)}).fields()), tmp_path)
    assert content["endorsements"] == {
        "tcb_info": [{"sha256": hashlib.sha256(part).hexdigest(), "bytes": len(part)}]
    }


KINDS = {
    "snp-report": "SEV-SNP report",
    "tdx-quote": "TDX quote",
    "nitro-document": "Nitro document",
    "azure-hcl-report": "Azure HCL report",
    "cca-token": "Arm CCA token",
}
EVIDENCE = [one for one in entries("tee/") if one["kind"] in KINDS and one["expect"] != "reject"]


@needs_corpus
@pytest.mark.parametrize("item", EVIDENCE, ids=[one["file"] for one in EVIDENCE])
def test_evidence_of_the_corpus_is_told_by_its_first_bytes(item: dict[str, Any], tmp_path: Path) -> None:
    kind, content = shown(corpus_bytes(item["file"]), tmp_path)
    assert kind == KINDS[item["kind"]]
    assert content.get("report_data", "") == item["expected"].get(
        "report_data", content.get("report_data", "")
    )


def test_evidence_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "evidence"
    for data in (NitroForge().document(), AzureForge().report(), NvidiaForge().report()):
        file.write_bytes(data[: len(data) // 2])
        assert CliRunner().invoke(inspect, [str(file)]).exit_code == 1


def test_the_certificate_of_a_chip_is_shown_without_a_warning_of_its_serial_number(tmp_path: Path) -> None:
    forge = AmdForge()
    for data in (
        forge.leaf(),
        forge.leaf(algorithms=(SHORT, SHORT)),
        pem(forge.leaf()) + pem(forge.issuer()),
    ):
        kind, content = shown(data, tmp_path)
        assert kind == "certificate"
        assert content["certificates"][0]["serial"] == "0"
        assert content["certificates"][0]["subject"].startswith("CN=SEV-VCEK")
    assert content["certificates"][1]["serial"] == "5"


def pem(der: bytes) -> bytes:
    body = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n"


@pytest.mark.parametrize("block", [b"AAA", b"AAAA", b""])
def test_a_block_that_holds_no_certificate_is_malformed(block: bytes, tmp_path: Path) -> None:
    file = tmp_path / "certificate"
    file.write_bytes(b"-----BEGIN CERTIFICATE-----\n" + block + b"\n-----END CERTIFICATE-----\n")
    with pytest.raises(MalformedError, match="not a certificate that can be read"):
        describe(file.read_bytes())
