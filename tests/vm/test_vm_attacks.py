# SPDX-License-Identifier: Apache-2.0
"""What a policy learned from two good boots of a measured host refuses, and how it names the culprit.

The first four tests share one boot, the host's third; it ends before the others touch the disks.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
from vm_boot_disk import COMMAND_LINE, Boot, Keys, switch_secure_boot_off
from vm_cases import Judged, attest, check, fresh, keep, learn, run_unknown_program, verdict, verify
from vm_guest import OTHER_MODEL, Guest, Machine
from vm_image import Image

from quotary_verifier import Outcome, Step

pytestmark = [pytest.mark.vm_attacks, pytest.mark.timeout(2400)]


@dataclass(frozen=True)
class Host:
    """A machine, a policy learned from two boots of it, and what it boots when nobody attacks."""

    machine: Machine
    boot: Boot
    origin: str
    folder: Path

    @property
    def policy(self) -> Path:
        """The policy that was learned."""
        return self.folder / "policy.toml"

    def judged(self, guest: Guest, name: str) -> Judged:
        """Ask a guest, and hold what it attests against the policy."""
        return check(keep(guest, self.folder / name), self.policy)


def learned(folder: Path, image: Image, boot: Boot, names: Sequence[str] = ("first", "second")) -> Host:
    """Boot a new machine, and learn. The log as it was in the last boot is exported, the state disk copied."""
    machine = Machine(folder / "machine", image, boot)
    kept, origin = [], ""
    for name in names:
        with machine.boot() as guest:
            kept.append(keep(guest, folder / name))
            origin = guest.origin
            exported = attest("log", "export", guest.log_url, folder / f"{name}.tar")
            assert exported.code == 0, exported.words
    learn(kept, folder / "policy.toml", origin)
    shutil.copy(machine.state, folder / "backup")
    return Host(machine, boot, origin, folder)


@pytest.fixture(scope="module")
def host(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A host that boots by an entry of systemd-boot, without Secure Boot."""
    return learned(tmp_path_factory.mktemp("plain"), image, Boot.of(image))


@pytest.fixture(scope="class")
def third(host: Host) -> Iterator[Guest]:
    """The host's third boot."""
    with host.machine.boot() as guest:
        yield guest


class TestThirdBoot:
    """One boot: good at first, then its administrator turns against it."""

    def test_a_third_boot_is_accepted_and_its_whole_history_audited(self, host: Host, third: Guest) -> None:
        kept = keep(third, host.folder / "third")
        accepted = check(kept, host.policy)
        assert accepted.code == 0, accepted.words
        verified = verify(kept, host.policy)
        assert verified.code == 0, verified.words
        audited = attest("audit", third.log_url, "--policy", host.policy, "--records", kept)
        assert audited.code == 0, audited.words

    def test_a_rebooted_host_is_told_from_the_boot_that_a_policy_speaks_of(
        self, host: Host, third: Guest
    ) -> None:
        before = check(host.folder / "second", host.policy).said["results"][0]["reset_count"]
        window = f'[[platform.clock.boots]]\norigin = "{host.origin}"\nfirst = {before}\nlast = {before}\n'
        policy = host.folder / "this-boot.toml"
        policy.write_text(host.policy.read_text() + "\n" + window)
        assert check(host.folder / "second", policy).code == 0
        refused = check(host.folder / "third", policy)
        assert refused.code == 1
        assert "platform.clock" in refused.words
        assert fresh(third, host.policy).outcome is Outcome.VERIFIED
        assert fresh(third, policy).failing is Step.PLATFORM

    def test_a_swapped_model_is_refused_by_its_digest(self, host: Host, third: Guest) -> None:
        third.run("stop_agent; stop_engine; cd ${MODEL%/*}")
        third.run("busybox mv model.gguf good.gguf; busybox mv other.gguf model.gguf")
        assert third.run("start_engine; start_agent").strip(), third.console.shown()
        kept = keep(third, host.folder / "other-model")
        third.run(
            "stop_agent; stop_engine; busybox mv model.gguf other.gguf; busybox mv good.gguf model.gguf"
        )
        assert third.run("start_engine; start_agent; cd /; busybox sync").strip(), third.console.shown()
        (finding,) = check(kept, host.policy).findings  # the platform is as it was
        assert finding["rule"] == "model"
        refused = verify(kept, host.policy)
        assert refused.code == 1
        assert verdict(refused)["failing"] == Step.MODEL
        assert sha256(OTHER_MODEL).hexdigest() in verdict(refused)["reason"]

    def test_an_unknown_program_is_refused_by_its_path(self, host: Host, third: Guest) -> None:
        path = run_unknown_program(third)
        refused = host.judged(third, "unknown-program")
        assert refused.code == 1
        assert [finding["path"] for finding in refused.findings] == [path], refused.words


@pytest.fixture(scope="class")
def attacked(host: Host) -> Iterator[Judged]:
    """What the policy says after another kernel was booted, with another command line; the good one is put back."""
    kernel = host.folder / "other-build"
    kernel.write_bytes(other_build(host.boot.kernel.read_bytes()))
    changed = COMMAND_LINE.replace("panic=-1", "panic=-1 init_on_alloc=0")
    host.machine.install(host.boot.changed(kernel=kernel, command_line=changed))
    try:
        with host.machine.boot() as guest:
            yield host.judged(guest, "attacked")
    finally:
        host.machine.install(host.boot)


class TestOtherBoot:
    """One boot with two changes: each is named."""

    def test_another_kernel_is_refused_by_its_path_in_pcr_4(self, attacked: Judged) -> None:
        assert attacked.code == 1
        assert any(one["pcr"] == 4 and "linux" in one["message"] for one in attacked.findings), attacked.words

    def test_a_changed_command_line_is_refused_with_its_text(self, attacked: Judged) -> None:
        assert attacked.code == 1
        assert any("init_on_alloc=0" in one["message"] for one in attacked.findings), attacked.words


def test_a_log_that_was_rolled_back_stops_the_agent_and_is_seen_by_who_holds_an_answer(host: Host) -> None:
    newest = host.folder / "newest"
    shutil.copy(host.machine.state, newest)
    shutil.copy(host.folder / "backup", host.machine.state)
    try:
        with host.machine.boot() as guest:
            assert guest.ready is None
        assert "start counter" in host.machine.serial.read_text(errors="replace")
    finally:
        shutil.copy(newest, host.machine.state)
    audited = attest(
        "audit", host.folder / "second.tar", "--policy", host.policy, "--records", host.folder / "third"
    )
    assert audited.code == 1
    assert audited.said["records"]["unmatched"]


def test_secure_boot_switched_off_is_refused_by_name(
    image: Image, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("secure")
    boot = Boot.of(image).changed(unified=True, keys=Keys.make(folder / "keys"))
    host = learned(folder, image, boot, ["first"])
    switch_secure_boot_off(host.machine.variables)
    with host.machine.boot() as guest:
        refused = host.judged(guest, "off")
    assert refused.code == 1
    assert "Secure Boot is off" in refused.words


def other_build(kernel: bytes) -> bytes:
    """A kernel that says it is of another build: it boots as well, and is another file."""
    place = int.from_bytes(kernel[0x20E:0x210], "little") + 0x200
    end = kernel.index(b"\0", place)
    return kernel[:place] + b"6.1.0-other".ljust(end - place, b" ") + kernel[end:]
