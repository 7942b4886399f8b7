# SPDX-License-Identifier: Apache-2.0
"""The CA's ledger: one JSON object a line for every certificate issued, appended and never rewritten.

It is also what holds a host to its identity: who asks for a host name or an AK that stands here already has
to be the same as before, or an operator has to say that the old one is replaced.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from quotary_attest.enrol.errors import EnrolmentUsageError
from quotary_attest.enrol.files import Identity

_PRIVATE: Final = 0o600


@dataclass(frozen=True, slots=True)
class Entry:
    """One issued certificate: its serial number in hexadecimal, for whom, and its DER.

    `tpm` is the TPM's manufacturer, model and version, empty where the EK certificate does not say.
    `replaces` are the serial numbers of entries that an operator gave up with this one.
    """

    serial: str
    identity: Identity
    issued: datetime
    not_before: datetime
    not_after: datetime
    tpm: tuple[str, ...]
    replaces: tuple[str, ...]
    certificate: bytes

    def line(self) -> dict[str, Any]:
        """The entry as a JSON object."""
        return {
            "serial": self.serial,
            "host": self.identity.host,
            "origin": self.identity.origin,
            "ak_name": self.identity.ak_name.hex(),
            "ek_sha256": self.identity.ek_digest.hex(),
            "tpm": list(self.tpm),
            "issued": format_time(self.issued),
            "not_before": format_time(self.not_before),
            "not_after": format_time(self.not_after),
            "replaces": list(self.replaces),
            "certificate": base64.b64encode(self.certificate).decode(),
        }

    @classmethod
    def read(cls, line: str) -> Entry:
        """Read a line. KeyError, TypeError or ValueError where it is none."""
        value = json.loads(line)
        identity = Identity(
            value["origin"], bytes.fromhex(value["ak_name"]), bytes.fromhex(value["ek_sha256"])
        )
        return cls(
            serial=value["serial"],
            identity=identity,
            issued=datetime.fromisoformat(value["issued"]),
            not_before=datetime.fromisoformat(value["not_before"]),
            not_after=datetime.fromisoformat(value["not_after"]),
            tpm=tuple(value["tpm"]),
            replaces=tuple(value["replaces"]),
            certificate=base64.b64decode(value["certificate"], validate=True),
        )


class Ledger:
    """The ledger file. Whoever appends holds the CA folder's lock."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self) -> list[Entry]:
        """All entries, oldest first. A last line without its newline was never completed; it does not count.

        Raises EnrolmentUsageError where a line is damaged: the ledger holds what was issued, none is skipped.
        """
        entries = []
        for number, line in enumerate(self._lines(), 1):
            try:
                entries.append(Entry.read(line))
            except (KeyError, TypeError, ValueError):
                raise EnrolmentUsageError(
                    f"line {number} of {self._path} is damaged",
                    hint="restore the ledger: without it the CA cannot tell one host from another",
                ) from None
        return entries

    def _lines(self) -> list[str]:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        return data[: data.rfind(b"\n") + 1].decode("utf-8", "replace").splitlines()

    def append(self, entry: Entry) -> None:
        """Add an entry and wait until it is on disk. Raises OSError.

        What a crash left of an unfinished line is cut off first: its certificate was never handed out.
        """
        line = json.dumps(entry.line(), sort_keys=True).encode() + b"\n"
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE)
        with open(descriptor, "r+b", buffering=0) as file:  # noqa: PTH123 - of a descriptor with its mode set
            complete = file.read().rfind(b"\n") + 1
            file.truncate(complete)
            file.seek(complete)
            file.write(line)
            os.fsync(descriptor)


def conflicts(entries: Iterable[Entry], identity: Identity) -> list[Entry]:
    """The entries in force that stand against `identity`, oldest first.

    A host name belongs to one AK in one TPM, and an AK to one origin. An entry is in force until another one
    replaces it, whether or not its certificate has expired.
    """
    found: dict[str, Entry] = {}
    for entry in entries:
        for serial in entry.replaces:
            found.pop(serial, None)
        if entry.identity == identity:
            continue
        if entry.identity.host == identity.host or entry.identity.ak_name == identity.ak_name:
            found[entry.serial] = entry
    return list(found.values())


def format_time(time: datetime) -> str:
    """A time as RFC 3339 in UTC, in whole seconds."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
