# SPDX-License-Identifier: Apache-2.0
"""Rules over boots of a machine that was really measured (tests/vectors/vm): firmware, loader, kernel, IMA, agent."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

import pytest

from quotary_verifier import (
    NotChecked,
    Policy,
    Question,
    Rejected,
    Verdict,
    load_policy,
    verify,
    verify_fresh,
)
from quotary_verifier.logs.ima_fields import decode
from quotary_verifier.logs.tcg_secureboot import read_secure_boot
from quotary_verifier.logs.tcg_types import IMAGE_TYPES
from quotary_verifier.policy.findings import PlatformEvidence
from quotary_verifier.policy.names import authority_name, entry_name
from quotary_verifier.recipe.evidence import evidence_of

FOLDER = Path(__file__).parents[2] / "vectors" / "vm"
BOOTS = ("first-boot", "second-boot", "secure-boot")
LINE = "console=ttyS0 panic=-1 ima_policy=tcb ima_hash=sha256 quiet"


def about(boot: str) -> dict[str, str | int]:
    found: dict[str, str | int] = json.loads((FOLDER / boot / "about.json").read_text())
    return found


def file(boot: str, name: str) -> bytes:
    return (FOLDER / boot / name).read_bytes()


def logs(boot: str) -> dict[bytes, bytes]:
    return {hashlib.sha256(log).digest(): log for log in (file(boot, "tcg.bin"), file(boot, "ima.bin"))}


def policy(boot: str, rules: str = "", listed: bytes = b"") -> Policy:
    """A policy that pins a boot's origin and has these rules."""
    head = (
        f'schema = "quotary-policy/v1"\n[[pin]]\norigin = "{about(boot)["origin"]}"\n[tpm]\nsoftware = true\n'
    )
    return load_policy((head + rules).encode(), {hashlib.sha256(listed).digest(): listed})


@cache
def evidence(boot: str) -> PlatformEvidence:
    return evidence_of(file(boot, "output.attestation"), int(about(boot)["at"]), policy(boot), logs(boot))


def judged(boot: str, rules: str, listed: bytes = b"") -> Verdict:
    question = Question(file(boot, "output"), int(about(boot)["at"]), logs=logs(boot))
    return verify(file(boot, "output.attestation"), question, policy(boot, rules, listed))


def quoted(*values: str) -> str:
    return json.dumps(list(values))


def images(boot: str) -> list[str]:
    log = evidence(boot).firmware
    assert log is not None
    return [event.digest.hex() for event in log.of(4) if event.untrusted_type in IMAGE_TYPES]


def initrd(boot: str) -> str:
    """What Linux's EFI stub measured last: the initrd."""
    log = evidence(boot).firmware
    assert log is not None
    return log.of(9)[-1].digest.hex()


def ran(boot: str) -> bytes:
    """A list of every file that a boot's kernel measured."""
    log = evidence(boot).ima
    assert log is not None
    fields = [decode(record.template, record.data) for record in log.records()][1:]
    return "".join(
        f"{item.digest.value.hex()}  {item.path.decode()}\n" for item in fields if item.digest and item.path
    ).encode()


def rules(boot: str, lines: str = f"(initrd=\\\\guest\\\\initrd )?{LINE}", **changes: str) -> str:
    """Rules of every kind that a boot keeps; `changes` are other lines of the boot's table."""
    secure = boot == "secure-boot"
    name = hashlib.sha256(ran("first-boot")).hexdigest()
    table = {"applications": quoted(*images(boot)), "files": quoted(initrd(boot)), **changes}
    return (
        f"[platform.secure_boot]\nenabled = {str(secure).lower()}\n[platform.boot]\ncommand_lines = ['{lines}']\n"
        + "".join(f"{key} = {value}\n" for key, value in table.items())
        + f'[[platform.ima.list]]\nfile = "first-boot.sha256sum"\nsha256 = "{name}"\n'
    )


@pytest.mark.parametrize("boot", BOOTS)
def test_rules_made_of_one_boot_hold_for_the_others_of_the_same_system(boot: str) -> None:
    verdict = judged(boot, rules(boot), ran("first-boot"))
    assert verdict.report.tolerances == ()
    epoch = verdict.claim("workload_epoch")
    assert epoch is not None
    assert str(epoch.source) == "measured"


CHANGES = {
    "another kernel": ({"applications": quoted("0" * 64)}, "an image with digest"),
    "another initrd": ({"files": "[]"}, "a file with digest"),
    "another command line": ({"lines": "quiet"}, f"the text '.*{LINE}' fits no command line"),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("boot", BOOTS)
def test_what_the_rules_do_not_know_of_a_boot_is_named(boot: str, name: str) -> None:
    changes, why = CHANGES[name]
    with pytest.raises(Rejected, match=f"^platform: PCR [0-9]+, event [0-9]+: .*{why}"):
        judged(boot, rules(boot, **changes), ran("first-boot"))


def test_a_command_line_in_clear_also_stands_for_what_the_kernels_stub_measured_of_it() -> None:
    log = evidence("first-boot").firmware
    assert log is not None
    clear, again = log.of(12)[0], log.of(9)[0]
    assert clear.covered is not None
    assert (again.covered, again.digest) == (None, clear.digest)


def test_secure_boot_with_keys_of_ones_own_is_accepted_with_them_and_refused_without() -> None:
    log = evidence("secure-boot").firmware
    assert log is not None
    state = read_secure_boot(log)
    (key,) = map(entry_name, state.db)
    (authority,) = map(authority_name, state.late_authorities)
    assert key == authority
    judged("secure-boot", f"[platform.secure_boot]\ndb = {quoted(key)}\nauthorities = {quoted(key)}\n")
    other = quoted("x509:" + "0" * 64)
    with pytest.raises(Rejected, match=f"db has the entry {key}"):
        judged("secure-boot", f"[platform.secure_boot]\ndb = {other}\n")
    with pytest.raises(Rejected, match="an image was accepted for x509:"):
        judged("secure-boot", f"[platform.secure_boot]\nauthorities = {other}\n")
    with pytest.raises(Rejected, match="Secure Boot is off"):
        judged("first-boot", "[platform.secure_boot]\n")


def test_sections_of_a_real_unified_kernel_are_listed_by_their_digests() -> None:
    log = evidence("secure-boot").firmware
    assert log is not None
    sections = [event.digest.hex() for event in log.of(11)[1::2]]
    judged("secure-boot", f"[platform.boot]\npcrs = [11]\nfiles = {quoted(*sections)}\n")
    with pytest.raises(Rejected, match=r"a file with digest .* which the log calls '\.cmdline'"):
        judged("secure-boot", f"[platform.boot]\npcrs = [11]\nfiles = {quoted(*sections[:2], sections[3])}\n")


def test_a_file_that_is_not_listed_is_named_out_of_all_that_ran() -> None:
    lines = ran("first-boot").splitlines(keepends=True)
    less = b"".join(line for line in lines if b"/python3" not in line)
    assert len(less) < len(ran("first-boot"))
    name = hashlib.sha256(less).hexdigest()
    text = f'[[platform.ima.list]]\nfile = "x"\nsha256 = "{name}"\n'
    with pytest.raises(
        Rejected,
        match=r"record [0-9]+ of the IMA log, /usr/[a-z0-9/.]*python3[^:]*: the policy allows neither",
    ):
        judged("second-boot", text, less)


@pytest.mark.parametrize("boot", BOOTS)
def test_a_fresh_quote_of_the_machine_is_judged_by_the_logs_of_its_boot(boot: str) -> None:
    nonce, at = bytes.fromhex(str(about(boot)["nonce"])), int(about(boot)["at"])
    made = policy(boot, f"[platform.boot]\napplications = {quoted(*images(boot))}\n")
    verify_fresh(file(boot, "fresh.quote"), nonce, at, made, {"tcg": file(boot, "tcg.bin")})
    with pytest.raises(NotChecked):
        verify_fresh(file(boot, "fresh.quote"), nonce, at, made)
