# SPDX-License-Identifier: Apache-2.0
"""Nitro, NitroTPM and NVIDIA devices, the thread in which every device is asked, and roots by their names."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import amd_pki
import cbor2
import device_forge
import pytest
from amd_pki import AmdForge
from device_forge import NitroForge, device_root
from nvidia_forge import NvidiaForge
from tee_devices import FakeNsm, FakeNvml, FakeTsm, failure, snp_mint, snp_table

from quotary_attest.roots import EvidenceRoot, TeeEvidence
from quotary_attest.tee.calls import Calls
from quotary_attest.tee.errors import TeeBusy, TeeError, TeeGone, TeeMissing, TeeRefused, TeeWrong
from quotary_attest.tee.nsm import NitroTpmDevice, NsmDevice
from quotary_attest.tee.nvml import NvidiaDevices, load_nvml
from quotary_attest.tee.opening import ROOTS, Places, open_root
from quotary_attest.tee.root import DeviceRoot, TeeOptions
from quotary_verifier.evidence.tee.device_pki import PinnedRoot
from quotary_verifier.evidence.tee.lines import Bound, TeeRoots, verify_tee_line
from quotary_verifier.wire.tee_support import TeeSupport

D, GENESIS = b"\xd1" * 32, b"\x9e" * 32
PINNED = PinnedRoot(device_root().der)
OPTIONS = TeeOptions(roots=TeeRoots(nitro=PINNED, nvidia=PINNED), now=lambda: device_forge.NOW)


def accepted(identifier: str, found: TeeEvidence) -> None:
    support = TeeSupport(identifier, found.endorsements)
    assert verify_tee_line(found.evidence, support, Bound(D, GENESIS), device_forge.NOW, OPTIONS.roots)


# --- Nitro


async def test_a_nitro_document_has_the_commit_as_user_data_and_the_genesis_record_as_nonce() -> None:
    nsm = FakeNsm()
    root = DeviceRoot(NsmDevice(ask=nsm), OPTIONS)
    found = await root.bind(D + GENESIS)
    accepted("quotary/nitro/v1", found)
    assert nsm.requests == [{"Attestation": {"user_data": D, "nonce": GENESIS, "public_key": None}}]


def test_the_device_takes_one_ioctl_with_two_buffers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "nsm"
    device.touch()
    monkeypatch.setattr("fcntl.ioctl", FakeNsm().ioctl)
    accepted("quotary/nitro/v1", NsmDevice(device).collect(D + GENESIS))


def test_a_device_that_says_it_wrote_more_than_there_is_room_for_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "nsm"
    device.touch()

    def ioctl(_device: int, _code: int, message: bytearray, _mutate: bool) -> int:
        message[24:] = (0x3001).to_bytes(8, "little")
        return 0

    monkeypatch.setattr("fcntl.ioctl", ioctl)
    with pytest.raises(TeeError, match="protocol error"):
        NsmDevice(device).collect(D + GENESIS)


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (errno.ENOENT, TeeMissing, "there is no /dev/nsm"),
        (errno.EACCES, TeeRefused, "may not open"),
        (errno.EBUSY, TeeBusy, "busy"),
        (errno.EIO, TeeError, "input/output error"),
    ],
)
def test_an_error_of_the_security_module_is_told_with_a_hint(
    code: int, kind: type[TeeError], message: str
) -> None:
    def ask(_request: bytes) -> bytes:
        raise failure(code)

    with pytest.raises(kind, match=message) as caught:
        NsmDevice(ask=ask).collect(D + GENESIS)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (cbor2.dumps({"Error": "Input\x1bTooLarge"}), r"refused: Input\?TooLarge"),
        (b"", "cannot be read"),
        (cbor2.dumps({"Attestation": {"document": b""}}) + b"\0", "cannot be read"),
        (cbor2.dumps({"DescribeNSM": {}}), "no document"),
        (cbor2.dumps({"Attestation": {"document": "text"}}), "no document"),
        (cbor2.dumps([1]), "no document"),
        (cbor2.dumps({"Attestation": {"document": b"\x84"}}), "cannot be used"),
    ],
)
def test_an_answer_without_a_document_is_told(response: bytes, message: str) -> None:
    with pytest.raises(TeeError, match=message):
        NsmDevice(ask=lambda _request: response).collect(D + GENESIS)


@pytest.mark.parametrize("payload", [{"user_data": GENESIS}, {"nonce": D}, {"nonce": None}])
def test_a_document_over_other_bytes_is_refused(payload: dict[str, Any]) -> None:
    with pytest.raises(TeeWrong, match="other bytes"):
        NsmDevice(ask=FakeNsm(payload=payload)).collect(D + GENESIS)


async def test_a_document_whose_time_is_not_the_hosts_is_not_handed_out() -> None:
    early = NitroForge(time=device_forge.NOW.replace(year=2027))
    with pytest.raises(TeeWrong, match="yet to come") as caught:
        await DeviceRoot(NsmDevice(ask=FakeNsm(early)), OPTIONS).bind(D + GENESIS)
    assert "clock" in caught.value.hint


# --- NitroTPM


def command(folder: Path, body: str) -> tuple[str, ...]:
    """A program in the place of AWS's command."""
    script = folder / "nitro-tpm-attest"
    script.write_text(f"import sys, pathlib\narguments = sys.argv[1:]\n{body}\n")
    return (sys.executable, str(script))


def test_awss_command_is_given_both_halves_in_files_of_this_user_alone(tmp_path: Path) -> None:
    pcrs = {number: bytes([number + 1]) * 48 for number in range(5)}
    made = NitroForge(without=("pcrs",)).having(user_data=D, nonce=GENESIS, nitrotpm_pcrs=pcrs)
    (tmp_path / "document").write_bytes(made.document())
    body = f"""
assert [arguments[0], arguments[2]] == ["--user-data", "--nonce"]
files = [pathlib.Path(name) for name in arguments[1::2]]
assert [file.read_bytes() for file in files] == [{D!r}, {GENESIS!r}]
assert files[0].parent.stat().st_mode & 0o77 == 0
sys.stdout.buffer.write(pathlib.Path({str(tmp_path / "document")!r}).read_bytes())
"""
    device = NitroTpmDevice(command(tmp_path, body), folder=tmp_path)
    accepted("quotary/nitro/v1", device.collect(D + GENESIS))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["document", "nitro-tpm-attest"]


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ("sys.exit('one\\nno \\x1btpm')", TeeError, r"ended with 1: no \?tpm"),
        ("print('text')", TeeWrong, "cannot be used"),
        ("import signal; signal.pause()", TeeGone, "did not end within 0.5 seconds"),
    ],
)
def test_a_command_that_fails_is_told(tmp_path: Path, body: str, kind: type[TeeError], message: str) -> None:
    device = NitroTpmDevice(command(tmp_path, body), seconds=0.5 if "pause" in body else 20, folder=tmp_path)
    with pytest.raises(kind, match=message):
        device.collect(D + GENESIS)


def test_a_command_that_is_not_there_or_not_for_this_user_is_told(tmp_path: Path) -> None:
    with pytest.raises(TeeMissing, match="there is no") as caught:
        NitroTpmDevice((str(tmp_path / "none"),)).collect(D + GENESIS)
    assert "aws-nitro-tpm-tools" in caught.value.hint
    plain = tmp_path / "plain"
    plain.touch(mode=stat.S_IRUSR)
    with pytest.raises(TeeRefused, match="may not run"):
        NitroTpmDevice((str(plain),)).collect(D + GENESIS)


# --- NVIDIA


@pytest.mark.parametrize("with_root", [True, False])
async def test_all_devices_of_a_host_answer_the_commit_in_one_evidence(with_root: bool) -> None:
    nvml = FakeNvml([NvidiaForge(), NvidiaForge("GB202", number=40)], with_root=with_root)
    root = DeviceRoot(NvidiaDevices(nvml), OPTIONS)
    found = await root.bind(D + GENESIS)
    accepted("quotary/nvidia/v1", found)
    assert sorted(found.endorsements) == ["device-0", "device-1"]
    assert device_root().der not in [der for path in found.endorsements.values() for der in path]
    assert nvml.running == 0


@pytest.mark.parametrize(
    ("trouble", "kind", "message", "hint"),
    [
        ({"failing": {"nvmlInit": "NVML Shared Library Not Found"}}, TeeMissing, "cannot be asked", "load"),
        ({"failing": {"nvmlInit": "Driver Not Loaded"}}, TeeMissing, "cannot be asked", "load"),
        ({"failing": {"report": "Insufficient Permissions"}}, TeeRefused, "no report", "/dev/nvidia"),
        ({"failing": {"report": "Not Supported"}}, TeeError, "not supported", "confidential mode"),
        ({"failing": {"certificate": "Unknown Error"}}, TeeError, "unknown error", "confidential mode"),
        ({"devices": []}, TeeMissing, "0 nvidia devices", ""),
        ({"devices": [NvidiaForge()] * 33}, TeeMissing, "33 nvidia devices", ""),
        ({"other_nonce": GENESIS}, TeeWrong, "another nonce", ""),
        (
            {"devices": [NvidiaForge(head=b"\x12\xe0\x01\xff")]},
            TeeWrong,
            "cannot be used",
            "confidential mode",
        ),
    ],
)
def test_what_keeps_nvidia_devices_from_reporting_is_told(
    trouble: dict[str, Any], kind: type[TeeError], message: str, hint: str
) -> None:
    nvml = FakeNvml(**trouble)
    with pytest.raises(kind, match=message) as caught:
        NvidiaDevices(nvml).collect(D + GENESIS)
    assert hint in caught.value.hint
    assert nvml.running == 0


def test_an_end_of_the_library_that_fails_does_not_hide_the_reports() -> None:
    assert NvidiaDevices(FakeNvml(failing={"nvmlShutdown": "Unknown Error"})).collect(D + GENESIS).evidence


@pytest.mark.parametrize("size", [0, 0x2001])
def test_lengths_that_cannot_be_are_refused(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    answer = SimpleNamespace(attestationReport=bytes(0x2000), attestationReportSize=size)
    monkeypatch.setattr(nvml, "nvmlDeviceGetConfComputeGpuAttestationReport", lambda *_: answer)
    with pytest.raises(TeeWrong, match="length"):
        NvidiaDevices(nvml).collect(D + GENESIS)


@pytest.mark.parametrize(
    "pem", [b"nothing", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_certificates_that_cannot_be_read_are_refused(pem: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    answer = SimpleNamespace(attestationCertChain=pem, attestationCertChainSize=len(pem))
    monkeypatch.setattr(nvml, "nvmlDeviceGetConfComputeGpuCertificate", lambda *_: answer)
    with pytest.raises(TeeWrong, match="certificates"):
        NvidiaDevices(nvml).collect(D + GENESIS)


def test_without_the_package_an_operator_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(TeeMissing) as caught:
        load_nvml()
    assert "quotary[nvidia]" in caught.value.hint
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    assert NvidiaDevices().collect(D + GENESIS).evidence
    assert load_nvml().nvmlDeviceGetCount() == 1


# --- the thread


async def test_a_device_that_hangs_is_given_up_and_nothing_is_asked_beside_it() -> None:
    calls, hanging, asked = Calls("a device", 0.2), threading.Event(), []
    with pytest.raises(TeeGone, match=r"a device did not answer within 0\.2 seconds") as caught:
        await calls.run(hanging.wait)
    assert "dmesg" in caught.value.hint
    with pytest.raises(TeeGone):
        await calls.run(lambda: asked.append(1))
    assert asked == []
    hanging.set()
    await calls.run(lambda: asked.append(2))
    assert asked == [2]


async def test_a_caller_who_is_cancelled_keeps_nobody_from_asking_next() -> None:
    calls, started, going_on = Calls("a device", 20), threading.Event(), threading.Event()

    def job() -> None:
        started.set()
        going_on.wait()

    first = asyncio.create_task(calls.run(job))
    await asyncio.to_thread(started.wait)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.create_task(calls.run(threading.get_ident))
    going_on.set()
    assert await second != threading.get_ident()


async def test_what_a_job_raises_reaches_its_caller() -> None:
    def job() -> None:
        raise TeeBusy("busy")

    calls = Calls("a device", 20)
    with pytest.raises(TeeBusy):
        await calls.run(job)
    assert await calls.run(os.getpid) == os.getpid()


# --- roots by name


@pytest.mark.parametrize("name", ROOTS)
def test_every_root_has_a_name_an_identifier_and_a_description(name: str) -> None:
    root = open_root(name)
    assert isinstance(root, EvidenceRoot)
    assert root.identifier.startswith("quotary/")
    assert root.describe()


def test_a_name_that_no_root_has_is_told() -> None:
    with pytest.raises(TeeMissing, match="no root 'sgx'") as caught:
        open_root("sgx")
    assert "sev-snp, tdx" in caught.value.hint


async def test_a_root_that_was_opened_by_its_name_binds_and_closes() -> None:
    forge = AmdForge()
    files = FakeTsm(snp_mint(forge), auxblob=snp_table(forge))
    options = TeeOptions(roots=TeeRoots(amd=forge.roots()), now=lambda: amd_pki.NOW)
    root = open_root("sev-snp", options, privlevel=1, places=Places(tsm=files))
    assert (await root.bind(D + GENESIS)).endorsements
    assert files.asked == [(D + GENESIS, 1)]
    await root.close()
    await root.close()


def test_the_package_itself_has_what_is_used_of_it_and_says_that_there_is_no_driver() -> None:
    package = pytest.importorskip("pynvml")
    used = [name for name in vars(FakeNvml) if name.startswith("nvml")]
    assert len(used) == 6
    assert all(callable(getattr(package, name)) for name in used)
    report = package.c_nvmlConfComputeGpuAttestationReport_t()
    report.nonce = (type(report.nonce)._type_ * 32)(*D)
    assert bytes(report.nonce) == D
    assert (len(bytes(report.attestationReport)), report.attestationReportSize) == (0x2000, 0)
    chain = package.c_nvmlConfComputeGpuCertificate_t()
    assert (len(bytes(chain.attestationCertChain)), chain.attestationCertChainSize) == (0x1400, 0)
    with pytest.raises(TeeMissing, match="cannot be asked") as caught:
        NvidiaDevices(FailingLibrary(package)).collect(D + GENESIS)
    assert "libnvidia-ml" in caught.value.hint


class FailingLibrary:
    """The package, on a machine without the driver's library, whatever this machine has."""

    def __init__(self, package: Any) -> None:
        self._package = package

    def __getattr__(self, name: str) -> Any:
        return getattr(self._package, name)

    def nvmlInit(self) -> None:
        raise self._package.NVMLError(self._package.NVML_ERROR_LIBRARY_NOT_FOUND)
