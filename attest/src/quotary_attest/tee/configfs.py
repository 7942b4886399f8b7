# SPDX-License-Identifier: Apache-2.0
"""Reports by Linux's configfs-tsm, one interface for SEV-SNP, TDX and CCA (its ABI: "configfs-tsm-report").

A request is a folder of its own. Its traps: what is written to `inblob` is committed when the file is closed, and an
error there is told to nobody; whoever else writes into the folder changes what `outblob` will be. So `generation`,
which counts the writes, is held against our own count before and after the report is read. That the report then is
over the bytes that were asked for is checked by the caller, who knows its form.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, Protocol

from quotary_attest.tee.errors import TeeBusy, TeeError, TeeMissing, TeeRefused, TeeWrong

REPORTS: Final = Path("/sys/kernel/config/tsm/report")
"""Where the kernel has the interface, with configfs in its usual place."""

REPORT_DATA_BYTES: Final = 64
MAX_BLOB: Final = 1 << 20
"""Bytes of a report or certificate table; kernels have 32 KiB."""

_MAX_TEXT: Final = 4096
_ATTEMPTS: Final = 5
_FIRST_WAIT: Final = 0.05
_AGAIN: Final = frozenset({errno.EBUSY, errno.EAGAIN, errno.EINTR})


class TsmFiles(Protocol):
    """The kernel's side: folders of requests, and their attributes. Every method raises OSError."""

    def make(self, entry: str) -> None:
        """Make the folder of a request."""

    def write(self, entry: str, attribute: str, data: bytes) -> None:
        """Write an attribute by exactly one write; a failure of what follows from it is silent."""

    def read(self, entry: str, attribute: str) -> bytes:
        """Read an attribute whole."""

    def remove(self, entry: str) -> None:
        """Remove the folder of a request."""


@dataclass(frozen=True, slots=True)
class KernelFiles:
    """The interface itself, or a folder that looks like it."""

    folder: Path = REPORTS

    def make(self, entry: str) -> None:
        """Make the folder of a request."""
        (self.folder / entry).mkdir(mode=0o700)

    def write(self, entry: str, attribute: str, data: bytes) -> None:
        """Open for writing alone (reading too gives ETXTBSY), write once, close."""
        file = os.open(self.folder / entry / attribute, os.O_WRONLY | os.O_CLOEXEC)
        try:
            written = os.write(file, data)
        finally:
            os.close(file)
        if written != len(data):
            raise OSError(errno.EIO, f"{written} of {len(data)} bytes were written")

    def read(self, entry: str, attribute: str) -> bytes:
        """Read until the end, without a buffer. EFBIG where there is more than can be."""
        file = os.open(self.folder / entry / attribute, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = b""
            while part := os.read(file, 1 << 16):
                data += part
                if len(data) > MAX_BLOB:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            return data
        finally:
            os.close(file)

    def remove(self, entry: str) -> None:
        """Remove the folder; its attributes go with it."""
        (self.folder / entry).rmdir()


@dataclass(frozen=True, slots=True)
class TsmReport:
    """What the kernel gave: the report, and what the host put beside it (SEV-SNP: certificates) or nothing."""

    report: bytes
    auxiliary: bytes


@dataclass(frozen=True, slots=True)
class TsmRequest:
    """What is asked. `provider`: the driver that has to answer. `privlevel`: VMPL to ask as, None for the default."""

    report_data: bytes
    provider: str
    auxiliary: bool = False
    privlevel: int | None = None


class _Moved(Exception):  # noqa: N818
    """The request is not what was asked: a write got lost, or somebody else wrote."""


def provider_of(files: TsmFiles) -> str:
    """Return the name of the driver that answers, such as "sev_guest". Raises TeeError."""
    with _told(), _entry(files) as entry:
        return _text(files.read(entry, "provider"))


def make_report(
    files: TsmFiles, request: TsmRequest, *, sleep: Callable[[float], None] = time.sleep
) -> TsmReport:
    """Ask for a report, again where the kernel is busy or the request was disturbed.

    Raises:
        TeeMissing: the kernel has no such interface or driver, or another one.
        TeeRefused: this process may not ask.
        TeeBusy: it never came to an answer.
        TeeError: the hardware, its firmware or the host refused.
    """
    if len(request.report_data) != REPORT_DATA_BYTES:
        raise ValueError(f"report data have {REPORT_DATA_BYTES} bytes")
    moved = False
    for attempt in range(_ATTEMPTS):
        if attempt:
            sleep(_FIRST_WAIT * 2**attempt)
        try:
            with _told():
                return _attempt(files, request)
        except _Moved:
            moved = True
        except TeeBusy:
            moved = False
    if moved:
        raise TeeWrong(
            "the kernel did not take the request for a report as it was written",
            hint="another program writes into the folders of configfs-tsm, or the driver refuses: see `dmesg`",
        )
    raise TeeBusy(
        "the kernel is busy with other reports",
        hint="end what asks for reports all the time; the firmware slows such a guest down",
    )


def _attempt(files: TsmFiles, request: TsmRequest) -> TsmReport:
    with _entry(files) as entry:
        provider = _text(files.read(entry, "provider"))
        if provider != request.provider:
            raise TeeMissing(
                f"this machine's reports are made by {provider!r}, not by {request.provider!r}",
                hint="name the root that this machine has: `attest tee status`",
            )
        due = _generation(files, entry)
        if request.privlevel is not None:
            files.write(entry, "privlevel", b"%d" % request.privlevel)
            due += 1
        files.write(entry, "inblob", request.report_data)
        due += 1
        _require_generation(files, entry, due)
        report = files.read(entry, "outblob")
        auxiliary = _auxiliary(files, entry) if request.auxiliary else b""
        _require_generation(files, entry, due)
        return TsmReport(report, auxiliary)


def _auxiliary(files: TsmFiles, entry: str) -> bytes:
    """What the host put beside the report; many hosts put nothing there, and a kernel may not have the attribute."""
    try:
        return files.read(entry, "auxblob")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODATA, errno.EINVAL):
            return b""
        raise


def _generation(files: TsmFiles, entry: str) -> int:
    text = _text(files.read(entry, "generation"))
    if not text.isascii() or not text.isdigit():
        raise TeeWrong("the kernel's count of writes is no number", hint="is this configfs-tsm?")
    return int(text)


def _require_generation(files: TsmFiles, entry: str, due: int) -> None:
    if _generation(files, entry) != due:
        raise _Moved


def _text(data: bytes) -> str:
    """A text attribute, without the newline that the kernel puts behind it."""
    return data[:_MAX_TEXT].decode("ascii", "replace").removesuffix("\n")


@contextmanager
def _entry(files: TsmFiles) -> Iterator[str]:
    """The folder of a request, which is removed whatever happens."""
    entry = f"quotary-{secrets.token_hex(8)}"
    files.make(entry)
    try:
        yield entry
    finally:
        # a folder left behind costs the kernel a little memory; an error here must not hide the request's own
        with contextlib.suppress(OSError):
            files.remove(entry)


@contextmanager
def _told() -> Iterator[None]:
    """Turn the kernel's errors into ours."""
    try:
        yield
    except OSError as error:
        _raise(error)


def _raise(error: OSError) -> NoReturn:
    code = error.errno or 0
    if code in _AGAIN:
        raise TeeBusy("the kernel is busy with other reports") from None
    for codes, kind, message, hint in _ERRORS:
        if code in codes:
            raise kind(message, hint=hint) from None
    reason = (error.strerror or str(error)).lower()
    raise TeeError(
        f"no report could be made: {reason}", hint="see `dmesg` for what the guest driver says"
    ) from None


_ERRORS: Final[tuple[tuple[frozenset[int], type[TeeError], str, str], ...]] = (
    (
        frozenset({errno.ENXIO, errno.ENODEV}),
        TeeMissing,
        "no driver of this kernel makes reports",
        "load the guest driver (modprobe sev-guest, tdx-guest or arm-cca-guest); is this a confidential vm?",
    ),
    (
        frozenset({errno.ENOENT, errno.ENOTDIR}),
        TeeMissing,
        "the kernel has no configfs-tsm",
        "it takes linux 6.7 with CONFIG_TSM_REPORTS, a guest driver, and configfs mounted at /sys/kernel/config",
    ),
    (
        frozenset({errno.EACCES, errno.EPERM, errno.EROFS}),
        TeeRefused,
        "this user may not ask the kernel for reports",
        "only root may: run the agent as root, or see docs/howto/tee.md",
    ),
    (
        frozenset({errno.ETIMEDOUT, errno.ETIME}),
        TeeError,
        "the host did not answer the request for a report",
        "the host's quote generation service has to run; ask who runs the host",
    ),
    (
        frozenset({errno.EFBIG, errno.ENOSPC, errno.EMSGSIZE}),
        TeeError,
        "the report is larger than this kernel, or this agent, can take",
        "a newer kernel may take it",
    ),
)
