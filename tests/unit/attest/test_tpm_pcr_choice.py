# SPDX-License-Identifier: Apache-2.0
"""Chain and workload PCR: zero now, and used by nothing else on this host."""

from __future__ import annotations

from pathlib import Path

import pytest
from ima_logs import ima_entry

from quotary_attest.tpm.errors import TpmConflict
from quotary_attest.tpm.pcr_choice import choose_pcrs, known_uses

ZERO = dict.fromkeys(range(16), bytes(32))
STUB = "sys/firmware/efi/efivars/StubPcrKernelImage-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"


def host(root: Path, **files: str | bytes) -> Path:
    """A host's file system with the given files; `__` in a name stands for a slash."""
    for name, content in files.items():
        put(root, name.replace("__", "/"), content)
    return root


def put(root: Path, name: str, content: str | bytes = "") -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def test_an_idle_host_gets_fifteen_and_thirteen() -> None:
    assert choose_pcrs(ZERO, {}) == (15, 13)


def test_a_pcr_that_is_not_zero_is_passed_over() -> None:
    assert choose_pcrs(ZERO | {15: b"\1" * 32}, {}) == (13, 9)


def test_a_pcr_that_a_service_uses_is_passed_over_although_it_is_zero() -> None:
    assert choose_pcrs(ZERO, {15: ["systemd"]}) == (13, 9)


def test_an_operators_choice_is_kept() -> None:
    assert choose_pcrs(ZERO, {}, chain=12) == (12, 15)
    assert choose_pcrs(ZERO, {}, workload=15) == (13, 15)
    assert choose_pcrs(ZERO, {}, chain=14, workload=12) == (14, 12)


@pytest.mark.parametrize("pcr", [*range(8), 10, *range(16, 25), -1])
def test_a_pcr_of_firmware_ima_or_that_can_be_reset_is_refused_even_when_it_is_asked_for(pcr: int) -> None:
    with pytest.raises(TpmConflict, match=f"pcr {pcr} cannot be used"):
        choose_pcrs(dict.fromkeys(range(-1, 25), bytes(32)), {}, chain=pcr)


def test_an_operators_choice_that_is_in_use_is_refused_with_the_reason() -> None:
    with pytest.raises(TpmConflict, match="pcr 15 cannot be used: systemd measures"):
        choose_pcrs(ZERO, {15: ["systemd measures something"]}, workload=15)
    with pytest.raises(TpmConflict, match="not zero"):
        choose_pcrs(ZERO | {12: b"\1" * 32}, {}, chain=12)


def test_one_pcr_cannot_do_both() -> None:
    with pytest.raises(TpmConflict, match="at once"):
        choose_pcrs(ZERO, {}, chain=15, workload=15)


def test_where_no_two_are_free_the_message_names_each_reason() -> None:
    uses = {15: ["systemd measures file systems into it"], 8: ["GRUB"], 9: ["GRUB"]}
    with pytest.raises(TpmConflict) as caught:
        choose_pcrs(ZERO, uses)
    assert "pcr 15: systemd measures file systems into it" in str(caught.value)
    assert "pcr 8: GRUB" in str(caught.value)


def test_a_plain_host_uses_nothing(tmp_path: Path) -> None:
    assert known_uses(tmp_path) == {}


def test_a_unified_kernel_lets_systemd_use_eleven_and_fifteen(tmp_path: Path) -> None:
    put(tmp_path, STUB)
    assert set(known_uses(tmp_path)) == {11, 15}


@pytest.mark.parametrize(
    ("option", "pcrs"),
    [
        ("tpm2-measure-pcr=yes", {15}),
        ("luks,tpm2-measure-pcr=13", {13}),
        ("tpm2-measure-pcr=no", set()),
        ("luks", set()),
    ],
)
def test_measured_volumes_are_found_in_crypttab(tmp_path: Path, option: str, pcrs: set[int]) -> None:
    put(tmp_path, "etc/crypttab", f"# tpm2-measure-pcr=9\nroot UUID=1 none {option}\n")
    assert set(known_uses(tmp_path)) == pcrs


def test_what_systemd_says_it_measured_is_used(tmp_path: Path) -> None:
    put(tmp_path, "run/log/systemd/tpm2-measure.log", '\x1e{"pcr":13,"digests":[]}\n\x1e{"pcr": 12}\n')
    assert set(known_uses(tmp_path)) == {12, 13}


@pytest.mark.parametrize("folder", ["grub", "grub2"])
def test_grub_uses_eight_and_nine_on_efi_only(tmp_path: Path, folder: str) -> None:
    put(tmp_path, f"boot/{folder}/grub.cfg")
    assert known_uses(tmp_path) == {}
    (tmp_path / "sys/firmware/efi").mkdir(parents=True)
    assert set(known_uses(tmp_path)) == {8, 9}


def test_shim_uses_fourteen(tmp_path: Path) -> None:
    put(tmp_path, "boot/efi/EFI/debian/shimx64.efi")
    assert set(known_uses(tmp_path)) == {14}


def test_an_ima_policy_or_log_with_another_pcr_is_seen(tmp_path: Path) -> None:
    put(tmp_path, "etc/ima/ima-policy", "measure func=BPRM_CHECK pcr=12\nmeasure func=FILE_CHECK\n")
    put(
        tmp_path,
        "sys/kernel/security/ima/binary_runtime_measurements",
        ima_entry(b"a") + ima_entry(b"b", pcr=13),
    )
    assert set(known_uses(tmp_path)) == {12, 13}
