# SPDX-License-Identifier: Apache-2.0
"""`attest inspect` on evidence of confidential-computing hardware: each kind by its name, and nothing as verified."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from amd_pki import BOUND, SHORT, AmdForge
from azure_forge import VM, AzureForge
from click.testing import CliRunner
from corpus import corpus_bytes, entries, needs_corpus
from device_forge import DIGEST, GENESIS, NitroForge
from nvidia_forge import FWID, NvidiaForge

from quotary_cli.inspect import inspect
from quotary_cli.kinds import describe
from quotary_verifier.errors import MalformedError
from quotary_verifier.evidence.tee.amd_certs import Generation


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
