# SPDX-License-Identifier: Apache-2.0
"""Rules over logs of real machines: what a machine measured is accepted, and whatever is taken off a list is named."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from appraising import appraised, digest, evidence
from corpus import corpus_bytes, needs_corpus

from quotary_verifier.logs.ima import parse_ima_ascii, parse_ima_binary
from quotary_verifier.logs.ima_fields import decode
from quotary_verifier.logs.tcg import parse_tcg_log
from quotary_verifier.logs.tcg_secureboot import read_secure_boot
from quotary_verifier.logs.tcg_types import IMAGE_TYPES
from quotary_verifier.policy.findings import PlatformEvidence, Severity
from quotary_verifier.policy.names import authority_name, entry_name, is_authority
from quotary_verifier.wire.tpm_algorithms import ALG_SHA256

pytestmark = needs_corpus

NEITHER = ("no-calling-action", "no-exit-boot-services")
MACHINES: dict[str, tuple[bool, tuple[str, ...]]] = {
    "tcg2-gce-cos101-sev.bin": (True, ()),
    "tcg2-gce-cos85-sev.bin": (True, ()),
    "tcg2-gce-coreos36-mok.bin": (False, ()),
    "tcg2-gce-rhel8-secureboot.bin": (True, ()),
    "tcg2-gce-sp800155-noaction.bin": (True, ()),
    "tcg2-gce-ubuntu1804-sev.bin": (False, ()),
    "tcg2-gce-ubuntu2104-no-secureboot.bin": (False, ()),
    "tcg2-gce-ubuntu2404-sevsnp.bin": (False, ()),
    "tcg2-ibm-debian-desktop.bin": (True, ()),
    "tcg2-tools-bootorder.bin": (False, ()),
    "tcg2-tools-moklisttrusted.bin": (True, ()),
    "tcg2-ibm-hp-laptop.bin": (True, NEITHER),
    "tcg2-keylime-fedora-locality3.bin": (False, NEITHER),
}
"""Whether Secure Boot was on, and the tolerances that the firmware needs."""


def machine(name: str) -> PlatformEvidence:
    log = parse_tcg_log(corpus_bytes(f"tpm/eventlog/{name}"))
    values = log.unverified_values_do_not_trust(ALG_SHA256)
    pcrs = {pcr: values.get(pcr, bytes(32)) for pcr in range(16)}
    return replace(evidence(), pcrs=pcrs, moving=frozenset(), firmware=log.replay(pcrs))


def quoted(values: set[str]) -> str:
    return json.dumps(sorted(values))


def started(of: PlatformEvidence) -> set[str]:
    assert of.firmware is not None
    return {event.digest.hex() for event in of.firmware.of(4) if event.untrusted_type in IMAGE_TYPES}


def read(of: PlatformEvidence) -> set[str]:
    assert of.firmware is not None
    return {event.digest.hex() for event in of.firmware.events if event.register in {8, 9, 12}}


def rules(
    name: str, images: set[str], files: set[str], tolerate: tuple[str, ...], **databases: set[str]
) -> str:
    lists = "".join(f"{key} = {quoted(values)}\n" for key, values in databases.items())
    return (
        f"[platform]\ntolerate = {json.dumps(tolerate)}\n"
        f"[platform.secure_boot]\nenabled = {str(MACHINES[name][0]).lower()}\n{lists}"
        f"[platform.boot]\napplications = {quoted(images)}\nfiles = {quoted(files)}\npcrs = [8, 9, 12]\n"
    )


def databases(of: PlatformEvidence) -> dict[str, set[str]]:
    assert of.firmware is not None
    state = read_secure_boot(of.firmware)
    lists = {key: set(map(entry_name, getattr(state, key))) for key in ("pk", "kek", "db", "dbx")}
    every = (*state.authorities, *state.late_authorities)
    return lists | {"authorities": {authority_name(item) for item in every if is_authority(item)}}


@pytest.mark.parametrize("name", MACHINES)
def test_what_a_machine_measured_is_accepted_and_its_tolerances_are_listed(name: str) -> None:
    of, tolerate = machine(name), MACHINES[name][1]
    found = appraised(rules(name, started(of), read(of), tolerate, **databases(of)), of)
    assert found.findings == ()
    assert found.tolerances == tuple(f"firmware log: {name}" for name in tolerate)


@pytest.mark.parametrize("name", MACHINES)
def test_every_image_that_is_taken_off_the_list_is_named(name: str) -> None:
    of, tolerate = machine(name), MACHINES[name][1]
    images = started(of)
    for image in images:
        found = appraised(rules(name, images - {image}, read(of), tolerate), of).findings
        assert {item.found for item in found} == {image}


@pytest.mark.parametrize("name", MACHINES)
def test_every_file_text_and_entry_that_is_taken_off_the_list_is_named(name: str) -> None:
    of, tolerate = machine(name), MACHINES[name][1]
    files, lists = read(of), databases(of)
    if files:
        found = appraised(rules(name, started(of), set(), tolerate), of).findings
        assert {item.rule for item in found} == {"platform.boot.loader"}
    for key in ("pk", "kek", "db", "authorities"):
        found = appraised(
            rules(name, started(of), files, tolerate, **{key: {entry_name_of_nothing()}}), of
        ).findings
        assert {item.found for item in found} == lists[key]


def entry_name_of_nothing() -> str:
    return f"x509:{digest(b'nothing').hex()}"


def test_a_switched_off_secure_boot_is_named_on_a_real_machine() -> None:
    found = appraised("[platform.secure_boot]\n", machine("tcg2-gce-ubuntu2404-sevsnp.bin")).findings
    assert [item.rule for item in found] == ["platform.secure_boot.state"]


def test_grubs_commands_and_lines_fit_patterns_on_a_real_machine() -> None:
    of = machine("tcg2-gce-ubuntu2404-sevsnp.bin")
    assert not appraised("[platform.boot]\ncommand_lines = ['(.|\\n)*']\n", of).findings
    found = appraised("[platform.boot]\ncommand_lines = ['(?:\\[|search|set|if|load)[^\\n]*']\n", of).findings
    assert any("BOOT_IMAGE" in str(item.found) or "vmlinuz" in str(item.found) for item in found)


def test_a_real_ima_log_is_accepted_with_its_own_files_and_one_of_them_is_missed() -> None:
    log = parse_ima_binary(corpus_bytes("tpm/ima/ima-ibm-binary-sig-sha256.bin"))
    fields = [decode(record.template, record.data) for record in log.unverified_records_do_not_trust()]
    of = replace(evidence(), ima=log.replay({10: bytes.fromhex(PCR10)}))
    lines = [
        f"{field.digest.value.hex()}  {field.path.decode()}"
        for field in fields
        if field.digest is not None and field.path is not None and field.digest.algorithm == "sha256"
    ]
    text = '[platform.ima]\nboot_aggregate = false\n[[platform.ima.list]]\nfile = "x"\nsha256 = "{}"\n'
    data = ("\n".join(line for line in lines if line[66] == "/") + "\n").encode()
    found = appraised(text.format(digest(data).hex()), of, lists={digest(data): data})
    assert found.findings == ()
    left_out = data.splitlines()[100]
    less = data.replace(left_out + b"\n", b"")
    missed = appraised(text.format(digest(less).hex()), of, lists={digest(less): less}).findings
    assert {item.path for item in missed} == {left_out[66:].decode()}


PCR10 = "7fac48c81837d6d29046008aef0cdad8c2745cc98c3340cbba9bfdf39b4124b8"


def test_a_real_signature_by_a_key_that_is_not_of_the_policy_is_named() -> None:
    log = parse_ima_ascii(corpus_bytes("tpm/ima/ima-keylime-signed.txt"))
    records = list(log.unverified_records_do_not_trust())
    assert len(records) == 2
    pem = corpus_bytes("tpm/ima/ima-keylime-key-rsa2048.pem").decode()
    values: dict[int, bytes] = {}
    for record in records:
        values[record.pcr] = digest(values.get(record.pcr, bytes(32)) + digest(record.data))
    of = replace(evidence(), ima=log.replay(values))
    found = appraised(f'[platform.ima]\nboot_aggregate = false\nkeys = ["""\n{pem}"""]\n', of).findings
    assert [item.event for item in found] == [0, 1], (
        "record 0 is no boot aggregate, record 1 is by another key"
    )
    assert {item.severity for item in found} == {Severity.FAIL}
