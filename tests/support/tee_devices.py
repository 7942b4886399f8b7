# SPDX-License-Identifier: Apache-2.0
"""Confidential-computing hardware for tests: a configfs-tsm, a Nitro security module and an NVML that behave as theirs.

What they make is minted with the tests' own chains, so that the verifier accepts it, and is wrong in whatever way a
test asks for.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cbor2
from amd_pki import AmdForge
from cryptography.hazmat.primitives.serialization import Encoding
from device_forge import NitroForge
from intel_sgx import TdxForge
from nvidia_forge import NvidiaForge

from quotary_attest.tee.certtable import ASK, VCEK, VLEK
from quotary_attest.tee.configfs import KernelFiles
from quotary_verifier.evidence.tee.amd_certs import SigningKey

Mint = Callable[[bytes], bytes]


def failure(code: int) -> OSError:
    """An error as the kernel gives it."""
    return OSError(code, os.strerror(code))


def cert_table(*entries: tuple[bytes, bytes], end: bytes = bytes(24)) -> bytes:
    """A host's certificate table: GUID and certificate for each entry."""
    at = 24 * len(entries) + len(end)
    head, body = b"", b""
    for guid, certificate in entries:
        head += guid + struct.pack("<II", at + len(body), len(certificate))
        body += certificate
    return head + end + body


def snp_mint(forge: AmdForge) -> Mint:
    """Makes reports of a forged processor."""
    return lambda data: forge.report({0x50: data})


def snp_table(forge: AmdForge) -> bytes:
    """The table that a good host puts beside them."""
    guid = VLEK if forge.signing_key is SigningKey.VLEK else VCEK
    return cert_table((guid, forge.leaf()), (ASK, forge.issuer()))


def tdx_mint(data: bytes) -> bytes:
    """Makes quotes of a forged platform, with what hosts leave behind their end."""
    return TdxForge(body={0x208: data}).quote() + bytes(70)


@dataclass
class _Entry:
    inblob: bytes | None = None
    privlevel: int | None = None
    written: int = 0
    read: int = 0
    outblob: bytes = b""


@dataclass
class FakeTsm:
    """configfs-tsm as Linux has it (drivers/virt/coco/guest/report.c, fs/configfs/file.c).

    `lost`: so many writes of `inblob` fail when the file is closed, which nobody is told. `busy`: so many are refused.
    `intruders`: so often does somebody else write while the report is made. `stale`: the driver gives this in place of
    a new report. `missing`, `denied`: there is no interface, or not for this user. `failing`: attribute → errno.
    """

    mint: Mint
    provider: str | None = "sev_guest"
    auxblob: bytes | None = None
    floor: int = 0
    lost: int = 0
    busy: int = 0
    intruders: int = 0
    stale: bytes | None = None
    missing: bool = False
    denied: bool = False
    failing: dict[str, int] = field(default_factory=dict)
    entries: dict[str, _Entry] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)
    asked: list[tuple[bytes, int | None]] = field(default_factory=list)

    def make(self, entry: str) -> None:
        """mkdir: ENXIO without a driver."""
        if self.missing:
            raise failure(errno.ENOENT)
        if self.denied:
            raise failure(errno.EACCES)
        if self.provider is None:
            raise failure(errno.ENXIO)
        if entry in self.entries:
            raise failure(errno.EEXIST)
        self.entries[entry] = _Entry()
        self.made.append(entry)

    def write(self, entry: str, attribute: str, data: bytes) -> None:
        """A text attribute answers at once, a binary one is committed by a close that tells nothing."""
        state = self._of(entry, attribute)
        if attribute == "privlevel":
            if int(data) < self.floor:
                raise failure(errno.EINVAL)
            state.privlevel = int(data)
        elif attribute != "inblob":
            raise failure(errno.EACCES)
        elif self.busy:
            self.busy -= 1
            raise failure(errno.EBUSY)
        elif self.lost or not 32 <= len(data) <= 64:
            self.lost -= 1
            return
        else:
            state.inblob = data
        state.written += 1

    def read(self, entry: str, attribute: str) -> bytes:
        """Text has a newline behind it; the report is made when it is read, and kept until the next write."""
        state = self._of(entry, attribute)
        if attribute == "provider":
            return f"{self.provider}\n".encode()
        if attribute == "generation":
            return b"%d\n" % state.written
        if attribute == "outblob":
            return self._report(state)
        if attribute == "auxblob" and self.auxblob is not None:
            self._report(state)
            return self.auxblob
        raise failure(errno.ENOENT)

    def _report(self, state: _Entry) -> bytes:
        if state.inblob is None:
            raise failure(errno.EINVAL)
        if state.read != state.written:
            state.outblob = self.stale or self.mint(state.inblob)
            state.read = state.written
            self.asked.append((state.inblob, state.privlevel))
            if self.intruders:
                self.intruders -= 1
                state.written += 1
        return state.outblob

    def remove(self, entry: str) -> None:
        """rmdir."""
        del self.entries[entry]

    def _of(self, entry: str, attribute: str) -> _Entry:
        if code := self.failing.get(attribute):
            raise failure(code)
        if entry not in self.entries:
            raise failure(errno.ENOENT)
        return self.entries[entry]


@dataclass(frozen=True, slots=True)
class FolderTsm(KernelFiles):
    """The agent's own file access, on a folder where what the kernel does is done after each of its steps."""

    mint: Mint = bytes
    table: bytes = b""

    def make(self, entry: str) -> None:
        """mkdir, and the attributes that appear."""
        super(FolderTsm, self).make(entry)
        for name, content in (("provider", b"sev_guest\n"), ("generation", b"0\n"), ("inblob", b"")):
            (self.folder / entry / name).write_bytes(content)

    def write(self, entry: str, attribute: str, data: bytes) -> None:
        """Write, and what the kernel does at the close."""
        super(FolderTsm, self).write(entry, attribute, data)
        folder = self.folder / entry
        count = int((folder / "generation").read_text())
        (folder / "generation").write_text(f"{count + 1}\n")
        if attribute == "inblob":
            (folder / "outblob").write_bytes(self.mint(data))
            (folder / "auxblob").write_bytes(self.table)

    def remove(self, entry: str) -> None:
        """rmdir, with which the attributes go."""
        for file in (self.folder / entry).iterdir():
            file.unlink()
        super(FolderTsm, self).remove(entry)


@dataclass
class FakeNsm:
    """A Nitro security module: a request's CBOR to a response's. `error`: what it answers in place of a document."""

    forge: NitroForge = field(default_factory=NitroForge)
    error: str = ""
    payload: dict[str, Any] = field(default_factory=dict)
    requests: list[Any] = field(default_factory=list)

    def __call__(self, request: bytes) -> bytes:
        """Answer one request."""
        asked = cbor2.loads(request)
        self.requests.append(asked)
        if self.error:
            return cbor2.dumps({"Error": self.error})
        fields = {**asked["Attestation"], **self.payload}
        return cbor2.dumps({"Attestation": {"document": self.forge.having(**fields).document()}})

    def ioctl(self, _device: int, code: int, message: bytearray, _mutate: bool) -> int:
        """The kernel's side of the device: buffers by their addresses, and how long the answer is."""
        assert code == 0xC0200A00
        request_at, request_size, answer_at, room = struct.unpack("=QQQQ", message)
        answer = self(ctypes.string_at(request_at, request_size))
        if request_size > 0x1000 or len(answer) > room:
            raise failure(errno.EMSGSIZE)
        ctypes.memmove(answer_at, answer, len(answer))
        message[24:] = len(answer).to_bytes(8, "little")
        return 0


class FakeNvmlError(Exception):
    """The error of the package's name."""


def _block(data: bytes, size: int) -> tuple[Any, int]:
    return (ctypes.c_uint8 * size)(*data), len(data)


@dataclass
class FakeNvml:
    """The package nvidia-ml-py with devices behind it. `failing`: function → what its error says."""

    devices: Sequence[NvidiaForge] = field(default_factory=lambda: [NvidiaForge()])
    failing: dict[str, str] = field(default_factory=dict)
    other_nonce: bytes = b""
    with_root: bool = True
    running: int = 0
    NVMLError: type[Exception] = FakeNvmlError

    def _check(self, name: str) -> None:
        if name in self.failing:
            raise FakeNvmlError(self.failing[name])

    def nvmlInit(self) -> None:
        """Begin."""
        self._check("nvmlInit")
        self.running += 1

    def nvmlShutdown(self) -> None:
        """End."""
        self.running -= 1
        self._check("nvmlShutdown")

    def nvmlDeviceGetCount(self) -> int:
        """How many there are."""
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> NvidiaForge:
        """One of them."""
        return self.devices[index]

    def nvmlDeviceGetConfComputeGpuAttestationReport(self, device: NvidiaForge, nonce: bytes) -> Any:
        """A structure as the library's, of fixed size."""
        self._check("report")
        device.nonce = self.other_nonce or bytes(nonce)
        data, size = _block(device.report(), 0x2000)
        return SimpleNamespace(attestationReport=data, attestationReportSize=size)

    def nvmlDeviceGetConfComputeGpuCertificate(self, device: NvidiaForge) -> Any:
        """The certificates as PEM, root behind."""
        self._check("certificate")
        chain = [*device.path(), *([device.root] if self.with_root else [])]
        pem = b"".join(one.certificate.public_bytes(Encoding.PEM) for one in chain)
        data, size = _block(pem, 0x1400)
        return SimpleNamespace(attestationCertChain=data, attestationCertChainSize=size)


def made_file(path: Path, content: bytes = b"") -> Path:
    """A file with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
