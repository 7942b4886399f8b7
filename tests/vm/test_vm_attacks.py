# SPDX-License-Identifier: Apache-2.0
"""What a policy learned from two good boots of a measured host refuses, and how it names the culprit."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from vm_boot_disk import COMMAND_LINE, Boot, Keys, switch_secure_boot_off
from vm_cases import Judged, check, keep, learn
from vm_guest import Guest, Machine
from vm_image import Image

pytestmark = [pytest.mark.vm_attacks, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Host:
    """A machine, a policy learned from two boots of it, and what it boots when nobody attacks."""

    machine: Machine
    boot: Boot
    policy: Path
    folder: Path

    def judged(self, guest: Guest, name: str) -> Judged:
        """Ask a guest, and hold what it attests against the policy."""
        return check(keep(guest, self.folder / name), self.policy)


def learned(folder: Path, image: Image, boot: Boot) -> Host:
    machine = Machine(folder / "machine", image, boot)
    kept, origin = [], ""
    for name in ("first", "second"):
        with machine.boot() as guest:
            kept.append(keep(guest, folder / name))
            origin = guest.origin
    learn(kept, folder / "policy.toml", origin)
    return Host(machine, boot, folder / "policy.toml", folder)


@pytest.fixture(scope="module")
def host(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Host:
    return learned(tmp_path_factory.mktemp("plain"), image, Boot.of(image))


@pytest.fixture(scope="module")
def secure_host(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Host:
    folder = tmp_path_factory.mktemp("secure")
    boot = Boot.of(image).changed(unified=True, keys=Keys.make(folder / "keys"))
    return learned(folder, image, boot)


def test_a_third_boot_is_accepted_until_an_unknown_program_ran(host: Host) -> None:
    with host.machine.boot() as guest:
        accepted = host.judged(guest, "third")
        assert accepted.code == 0, accepted.words
        guest.run("cp /bin/busybox /var/lib/quotary/unknown && echo >>/var/lib/quotary/unknown")
        guest.run("/var/lib/quotary/unknown true")
        refused = host.judged(guest, "unknown-program")
    assert refused.code == 1
    assert "/var/lib/quotary/unknown" in refused.words


def test_a_swapped_model_is_refused_by_its_name_and_digest(host: Host) -> None:
    with host.machine.boot() as guest:
        guest.run("stop_agent; stop_engine; cp $MODEL /run/good; echo 'other weights, same name' >$MODEL")
        guest.run("start_engine; start_agent")
        try:
            refused = host.judged(guest, "other-model")
        finally:
            guest.run("cp /run/good $MODEL")
    assert refused.code == 1
    assert "guest" in refused.words


def test_another_kernel_is_refused_by_its_digest_in_pcr_4(host: Host, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(other_build(host.boot.kernel.read_bytes()))
    refused = attacked(host, host.boot.changed(kernel=kernel), "other-kernel")
    assert refused.code == 1
    assert "PCR 4" in refused.words


def test_a_changed_command_line_is_refused_with_its_text(host: Host) -> None:
    changed = COMMAND_LINE.replace("panic=-1", "panic=-1 init_on_alloc=0")
    refused = attacked(host, host.boot.changed(command_line=changed), "other-line")
    assert refused.code == 1
    assert "init_on_alloc=0" in refused.words


def test_secure_boot_switched_off_is_refused_by_name(secure_host: Host) -> None:
    machine = secure_host.machine
    with machine.boot() as guest:
        accepted = secure_host.judged(guest, "third")
        assert accepted.code == 0, accepted.words
    switch_secure_boot_off(machine.variables)
    with machine.boot() as guest:
        refused = secure_host.judged(guest, "off")
    assert refused.code == 1
    assert "Secure Boot is off" in refused.words


def test_a_log_that_was_rolled_back_stops_the_agent(host: Host, tmp_path: Path) -> None:
    backup = tmp_path / "state"
    shutil.copy(host.machine.state, backup)
    with host.machine.boot() as guest:
        keep(guest, tmp_path / "lost")
    shutil.copy(host.machine.state, tmp_path / "newest")
    shutil.copy(backup, host.machine.state)
    try:
        with host.machine.boot() as guest:
            assert guest.ready is None
        assert "start counter" in host.machine.serial.read_text(errors="replace")
    finally:
        shutil.copy(tmp_path / "newest", host.machine.state)


def attacked(host: Host, boot: Boot, name: str) -> Judged:
    """Boot something else on a host, and put the good one back."""
    host.machine.install(boot)
    try:
        with host.machine.boot() as guest:
            return host.judged(guest, name)
    finally:
        host.machine.install(host.boot)


def other_build(kernel: bytes) -> bytes:
    """A kernel that says it is of another build: it boots as well, and is another file."""
    place = int.from_bytes(kernel[0x20E:0x210], "little") + 0x200
    end = kernel.index(b"\0", place)
    return kernel[:place] + b"6.1.0-evil".ljust(end - place, b" ") + kernel[end:]
