# SPDX-License-Identifier: Apache-2.0
"""AWS Nitro documents: of an enclave by the device /dev/nsm, of an EC2 instance by the command nitro-tpm-attest.

The device takes one ioctl with two buffers, request and response, both CBOR (aws-nitro-enclaves-nsm-api, `driver`).
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import struct
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from quotary_attest.roots import TeeEvidence
from quotary_attest.tee.errors import TeeBusy, TeeError, TeeGone, TeeMissing, TeeRefused, TeeWrong
from quotary_verifier.errors import QuotaryError
from quotary_verifier.evidence.tee.nitro_document import parse_nitro_document
from quotary_verifier.tlog.hardware import IDENTIFIER_NITRO
from quotary_verifier.wire import cbor

NSM: Final = Path("/dev/nsm")
COMMAND: Final = "nitro-tpm-attest"

MAX_REQUEST: Final = 0x1000
MAX_RESPONSE: Final = 0x3000
NSM_IOCTL: Final = 0xC0200A00
"""_IOWR(0x0A, 0, two iovecs of 16 bytes), as on every 64-bit machine that Linux has."""

_IOVECS: Final = struct.Struct("=QQQQ")
_ATTESTATION: Final = "Attestation"
_ANSWER_FIELDS: Final = 1

Ask = Callable[[bytes], bytes]
"""From a request to a response, both CBOR. Raises OSError."""


@dataclass(frozen=True, slots=True)
class NsmDevice:
    """The security module of an enclave. `ask` is injected by tests."""

    path: Path = NSM
    ask: Ask | None = None

    @property
    def identifier(self) -> str:
        """The identifier of its hardware line."""
        return IDENTIFIER_NITRO

    def describe(self) -> str:
        """Say what it is."""
        return f"nitro enclave by {self.path}"

    def collect(self, report_data: bytes) -> TeeEvidence:
        """Return a document with the first 32 bytes as user data and the others as nonce."""
        user_data, nonce = report_data[:32], report_data[32:]
        fields = {"user_data": user_data, "nonce": nonce, "public_key": None}
        request = cbor.encode({_ATTESTATION: fields})
        try:
            response = (self.ask or _ioctl(self.path))(request)
        except OSError as error:
            raise nsm_error(self.path, error) from None
        return _bound(_document(response), user_data, nonce)


def _ioctl(path: Path) -> Ask:
    def ask(request: bytes) -> bytes:
        """Hand the kernel both buffers; it writes back how long the answer is."""
        if len(request) > MAX_REQUEST:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        sent, answer = array.array("B", request), array.array("B", bytes(MAX_RESPONSE))
        (sent_at, _), (answer_at, _) = sent.buffer_info(), answer.buffer_info()
        message = bytearray(_IOVECS.pack(sent_at, len(sent), answer_at, len(answer)))
        device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(device, NSM_IOCTL, message, True)
        finally:
            os.close(device)
        size = _IOVECS.unpack(message)[3]
        if size > len(answer):
            raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
        return answer.tobytes()[:size]

    return ask


def _document(response: bytes) -> bytes:
    try:
        answer: Any = cbor.decode_unordered(response, max_bytes=MAX_RESPONSE, what="the answer of the nsm")
    except QuotaryError as error:
        raise TeeWrong(f"the security module's answer cannot be read: {error}") from None
    if type(answer) is dict and len(answer) == _ANSWER_FIELDS:
        refusal, content = answer.get("Error"), answer.get(_ATTESTATION)
        if type(refusal) is str:
            raise TeeError(
                f"the security module refused: {_plain(refusal)}", hint="see what it says to `nsm-check`"
            )
        if type(content) is dict and type(content.get("document")) is bytes:
            return bytes(content["document"])
    raise TeeWrong("the security module's answer has no document")


def nsm_error(path: Path, error: OSError) -> TeeError:
    """What an error of the device means."""
    if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        hint = "inside an enclave, load the driver (modprobe nsm); on an ec2 instance, there is none"
        return TeeMissing(f"there is no {path}", hint=hint)
    if error.errno in (errno.EACCES, errno.EPERM):
        return TeeRefused(f"this user may not open {path}", hint=f"give the agent's user access to {path}")
    if error.errno in (errno.EBUSY, errno.EAGAIN, errno.EINTR):
        return TeeBusy("the security module is busy", hint="end what asks it all the time")
    reason = (error.strerror or str(error)).lower()
    return TeeError(f"{path}: {reason}", hint="see `dmesg` for what the nsm driver says")


@dataclass(frozen=True, slots=True)
class NitroTpmDevice:
    """The NitroTPM of an EC2 instance, by AWS's own command (package aws-nitro-tpm-tools): it alone speaks to that TPM.

    `command`: the program and leading arguments. `seconds`: how long it may take.
    """

    command: tuple[str, ...] = (COMMAND,)
    seconds: float = 20.0
    folder: Path | None = field(default=None)

    @property
    def identifier(self) -> str:
        """The identifier of its hardware line."""
        return IDENTIFIER_NITRO

    def describe(self) -> str:
        """Say what it is."""
        return f"nitrotpm by {self.command[0]}"

    def collect(self, report_data: bytes) -> TeeEvidence:
        """Return a document with the first 32 bytes as user data and the others as nonce."""
        user_data, nonce = report_data[:32], report_data[32:]
        with tempfile.TemporaryDirectory(prefix="quotary-", dir=self.folder) as name:
            files = Path(name, "user-data"), Path(name, "nonce")
            for file, content in zip(files, (user_data, nonce), strict=True):
                file.write_bytes(content)
            document = self._run("--user-data", str(files[0]), "--nonce", str(files[1]))
        return _bound(document, user_data, nonce)

    def _run(self, *arguments: str) -> bytes:
        try:
            done = subprocess.run(
                [*self.command, *arguments], capture_output=True, timeout=self.seconds, check=False
            )
        except FileNotFoundError:
            hint = "install aws-nitro-tpm-tools; the instance needs a NitroTPM"
            raise TeeMissing(f"there is no {self.command[0]}", hint=hint) from None
        except PermissionError:
            raise TeeRefused(f"this user may not run {self.command[0]}") from None
        except subprocess.TimeoutExpired:
            raise TeeGone(f"{self.command[0]} did not end within {self.seconds:g} seconds") from None
        if done.returncode:
            said = _plain(done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2])
            hint = "is this user in the group of /dev/tpm0, and does the instance have a NitroTPM?"
            raise TeeError(f"{self.command[0]} ended with {done.returncode}: {said}", hint=hint)
        return done.stdout


def _bound(document: bytes, user_data: bytes, nonce: bytes) -> TeeEvidence:
    try:
        found = parse_nitro_document(document)
    except QuotaryError as error:
        raise TeeWrong(f"the nitro document cannot be used: {error}") from None
    if (found.user_data, found.nonce) != (user_data, nonce):
        raise TeeWrong("the nitro document is over other bytes than were asked for")
    return TeeEvidence(document)


def _plain(text: str) -> str:
    """What a device says, fit for one line."""
    return "".join(char if char.isprintable() else "?" for char in text[:200])
