# SPDX-License-Identifier: Apache-2.0
"""A connection to a TPM: opening, sending with retries, and flushing whatever was loaded.

All commands go through `Commands`, so that every TSS error in this package passes one place, `error_for`.
A connection belongs to one thread; `quotary_attest.tpm.worker` sees to that in the agent.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from quotary_attest.tpm.errors import TpmBusy, TpmError, TpmGone, TpmUnsupported, error_for, may_retry
from quotary_attest.tpm.tss import TSS2_Exception, lib

_INITIALIZE = 0x100
_EMULATED = ("swtpm", "mssim")


@dataclass(frozen=True, slots=True)
class Retry:
    """How long to go on when the TPM says "again": `attempts` in all, waiting `first` seconds and then twice
    as long each time, up to `longest`. `sleep` is injected by tests. The default gives up after some 8 s,
    which is longer than a discrete TPM's self-test."""

    attempts: int = 14
    first: float = 0.02
    longest: float = 1.0
    sleep: Callable[[float], None] = time.sleep

    def delays(self) -> Iterator[float]:
        """The waits between the attempts, in seconds."""
        for step in range(self.attempts - 1):
            yield min(self.first * 2**step, self.longest)


class Commands:
    """The ESAPI functions, each with retries and with errors of the `TpmError` family."""

    def __init__(self, esys: Any, retry: Retry) -> None:
        self._esys = esys
        self._retry = retry

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._esys, name)

        def command(*args: Any, **keywords: Any) -> Any:
            return send(name, lambda: function(*args, **keywords), self._retry)

        return command


def send(name: str, call: Callable[[], Any], retry: Retry) -> Any:
    """Call an ESAPI function; send it again while the TPM asks for that.

    Raises the TpmError that `error_for` finds; TpmBusy when the patience of `retry` ended.
    """
    delays = retry.delays()
    while True:
        try:
            return call()
        except TSS2_Exception as error:
            rc = int(error.rc)
        wait = next(delays, None)
        if wait is None or not may_retry(rc):
            raise error_for(rc, name) from None
        retry.sleep(wait)


class Scope:
    """Handles that must not outlive a job. `key` and `session` are flushed from the TPM, `known` only leaves
    the library's memory (NV indices, persistent objects)."""

    def __init__(self, commands: Commands) -> None:
        self._undo = contextlib.ExitStack()
        self._commands = commands

    def key(self, handle: Any) -> Any:
        """Flush a transient object at the end of the scope."""
        self._undo.callback(self._quietly, "flush_context", handle)
        return handle

    session = key

    def known(self, handle: Any) -> Any:
        """Forget an index or persistent object at the end of the scope."""
        self._undo.callback(self._quietly, "tr_close", handle)
        return handle

    def _quietly(self, name: str, handle: Any) -> None:
        # A failing flush must not hide the job's own error; where the TPM is gone, there is nothing to flush.
        with contextlib.suppress(TpmError):
            getattr(self._commands, name)(handle)

    def __enter__(self) -> Scope:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()


class Connection:
    """An open connection; use it as a context manager or call `close`.

    `tcti` is a TSS string: `device:/dev/tpmrm0`, `swtpm:path=SOCKET`, `swtpm:host=H,port=P`, `tabrmd:…`.
    Raises TpmGone when nothing answers, TpmUnsupported when there is no such TCTI.
    """

    def __init__(self, tcti: str, *, retry: Retry | None = None) -> None:
        self.tcti = tcti
        _check_device(tcti)
        patience = retry or Retry()
        self._esys = send("connect", lambda: lib.ESAPI(tcti), patience)
        self.commands = Commands(self._esys, patience)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        """Send TPM2_Startup to an emulator, which no firmware starts; a device's firmware has done it."""
        if self.tcti.partition(":")[0] not in _EMULATED:
            return
        try:
            self.commands.startup(lib.TPM2_SU.CLEAR)
        except TpmError as error:
            if error.rc != _INITIALIZE:  # it says that it is started already
                raise

    def scope(self) -> Scope:
        """A context in which loaded objects and sessions are registered, to be flushed whatever happens."""
        return Scope(self.commands)

    def authorize(self, handle: Any, auth: bytes) -> None:
        """Set the authorisation value that the library sends for a handle."""
        self.commands.tr_set_auth(handle, auth)

    def close(self) -> None:
        """Close the transport. Never raises; twice is fine."""
        if not self._esys.is_closed():
            self._esys.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_device(tcti: str) -> None:
    """Say what is wrong with a device file in words; the TSS reports an I/O failure for every reason."""
    name, _, path = tcti.partition(":")
    if not tcti.strip():
        raise TpmUnsupported("the tcti is empty", hint="for example device:/dev/tpmrm0")
    if name != "device" or not path:
        return
    device = Path(path)
    if not device.exists():
        raise TpmGone(
            f"there is no {device}",
            hint="enable the tpm in the firmware's setup; in a container, pass the device in; "
            "without a tpm, `attest agent init` takes confidential-computing hardware (--tee), "
            "or a software tpm to try things out (--emulator)",
        )
    if not device.is_char_device():
        raise TpmUnsupported(f"{device} is not a tpm device", hint="for example device:/dev/tpmrm0")
    if not os.access(device, os.R_OK | os.W_OK):
        raise TpmGone(f"this user may not open {device}", hint="add the user to the group tss")


__all__ = ["Commands", "Connection", "Retry", "Scope", "TpmBusy", "send"]
