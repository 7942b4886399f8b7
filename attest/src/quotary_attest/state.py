# SPDX-License-Identifier: Apache-2.0
"""The state folder: one origin's keys and counter file, its certificates, workload logs and log (design section 4).

::

    lock                   flock: one agent per folder
    identity               note key, genesis record, the TPM's key blobs and authorisations, if there is a TPM
    starts                 the start counter's next value, on disk before each increment
    certificates/ak.der    DER certificates of the AK, leaf first, one after another; absent before enrolment
    workload/*.cel         workload log of each boot, and *.secrets: what stands behind its commitments
    log/                   records, tree, journal and published history

Files are readable by their owner only (0600, folders 0700). A folder must never be restored from a backup: the
start counter in the TPM tells. An origin without a TPM has no `starts` and no certificates, and nothing that tells.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from quotary_attest.log.durable import FILE_MODE, FOLDER_MODE, make_folder, replace_file
from quotary_attest.log.errors import StoreError
from quotary_attest.tpm.model import TpmIdentity, TpmProperties
from quotary_verifier.errors import QuotaryError
from quotary_verifier.wire import cbor
from quotary_verifier.wire.limits import MAX_CERTIFICATE, MAX_CERTIFICATES
from quotary_verifier.wire.names import origin_of
from quotary_verifier.wire.records import Genesis

_MAX_IDENTITY: Final = 64 * 1024
_PROBE: Final = 4 << 20
_SEQUENCE: Final = 0x30
_LONG_FORM: Final = 0x80


class StateError(Exception):
    """The state folder cannot be used: absent, in use, damaged, or not empty where it has to be."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """An origin and its keys. `note_seed` is the 32-byte Ed25519 seed; `tpm` is None where it lives on
    confidential-computing hardware alone."""

    genesis_record: bytes
    note_seed: bytes = field(repr=False)
    tpm: TpmIdentity | None = None

    @property
    def tpm_keys(self) -> TpmIdentity:
        """The keys in the TPM. Raises StateError where the origin has none."""
        if self.tpm is None:
            raise StateError(
                "this origin has no tpm: it lives on confidential-computing hardware alone",
                hint="whoever relies on it pins it in their policy (docs/howto/tee.md)",
            )
        return self.tpm

    @property
    def genesis(self) -> Genesis:
        """The genesis record, read."""
        return Genesis.decode(self.genesis_record)

    @property
    def origin(self) -> str:
        """The name of this log."""
        return origin_of(self.genesis.host, self.genesis_record)

    def encode(self) -> bytes:
        """Return the bytes of the identity file."""
        fields = {"version": 1, "genesis": self.genesis_record, "note": self.note_seed}
        return cbor.encode(fields if self.tpm is None else {**fields, "tpm": asdict(self.tpm)})

    @classmethod
    def decode(cls, data: bytes) -> HostIdentity:
        """Read an identity file. Raises StateError where it is damaged."""
        try:
            value: dict[str, Any] = cbor.decode(data, max_bytes=_MAX_IDENTITY, what="identity file")
            identity = cls(value["genesis"], value["note"], _tpm(value["tpm"]) if "tpm" in value else None)
            if (Genesis.decode(identity.genesis_record).tpm is None) != (identity.tpm is None):
                raise TypeError("its genesis record and its keys are not of one origin")
        except (QuotaryError, KeyError, TypeError) as error:
            raise StateError(f"the identity file is damaged: {error}") from error
        return identity


def _tpm(value: Mapping[str, Any]) -> TpmIdentity:
    return TpmIdentity(**{**value, "properties": TpmProperties(**value["properties"])})


def read_identity(folder: Path) -> HostIdentity:
    """Read the identity of a state folder without locking it.

    Raises:
        StateError: there is none, it may not be read, or it is damaged.
    """
    try:
        return HostIdentity.decode((folder / "identity").read_bytes())
    except FileNotFoundError:
        raise StateError(
            f"there is no identity in {folder}", hint="make one with `attest agent init`"
        ) from None
    except OSError as error:
        raise StateError(f"cannot read the identity in {folder}: {error.strerror}") from error


class StateFolder:
    """A state folder held by this process: nobody else can open it until `close`. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Lock the folder.

        Raises:
            StateError: it is not there, or another agent holds it.
        """
        self.path = path
        try:
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        except OSError as error:
            raise StateError(
                f"cannot open the state folder {path}: {error.strerror}",
                hint="make it with `attest agent init`",
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise StateError(
                f"another agent uses the state folder {path}", hint="one agent per origin: stop the other one"
            ) from None

    def close(self) -> None:
        """Let go of the folder; twice is fine."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> StateFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def log(self) -> Path:
        """Folder of the log."""
        return self.path / "log"

    @property
    def workload(self) -> Path:
        """Folder of the workload logs."""
        return self.path / "workload"

    def probe(self) -> None:
        """Write as much as a commit may need and take it away again. Raises StorageFull, StorageFailed."""
        path = self.path / "probe"
        replace_file(path, bytes(_PROBE))
        path.unlink()

    def read_starts(self) -> int:
        """Return the start counter's next value as it went to disk before the last increment.

        Raises:
            StateError: the file is missing or damaged.
        """
        try:
            return int((self.path / "starts").read_text("ascii"))
        except (OSError, ValueError) as error:
            raise StateError(f"the file {self.path / 'starts'} is missing or damaged") from error

    def write_starts(self, value: int) -> None:
        """Put the start counter's next value on disk, durably. Raises StoreError."""
        replace_file(self.path / "starts", f"{value}\n".encode())


def create_state(folder: Path, identity: HostIdentity, starts: int | None) -> None:
    """Write a new state folder: identity last, so that an interrupted `init` leaves nothing that could start.

    `starts` is the start counter's present value, None without a TPM. The log itself is made by the caller before.

    Raises:
        StateError: the folder holds an identity already.
    """
    if (folder / "identity").exists():
        raise StateError(
            f"{folder} holds an origin already",
            hint="a new origin needs a new state folder; the old log stays",
        )
    make_folder(folder / "workload")
    if starts is not None:
        replace_file(folder / "starts", f"{starts}\n".encode())
    replace_file(folder / "identity", identity.encode())


def make_state_folder(folder: Path) -> None:
    """Make an empty state folder, mode 0700.

    Raises:
        StateError: it exists and is not empty, or cannot be made.
    """
    try:
        make_folder(folder)
        if any(folder.iterdir()):
            raise StateError(f"{folder} is not empty", hint="give a new folder for a new origin")
        folder.chmod(FOLDER_MODE)
    except (OSError, StoreError) as error:
        raise StateError(f"cannot make the state folder {folder}: {error}") from error


def read_certificates(folder: Path) -> tuple[bytes, ...]:
    """Return the AK's certificate path as installed, leaf first; empty before enrolment.

    Raises:
        StateError: the file is not a sequence of DER certificates.
    """
    try:
        data = (folder / "certificates" / "ak.der").read_bytes()
    except FileNotFoundError:
        return ()
    certificates = []
    while data:
        length = _der_length(data)
        certificates.append(data[:length])
        data = data[length:]
    if len(certificates) > MAX_CERTIFICATES:
        raise StateError(f"the certificate path has more than {MAX_CERTIFICATES} certificates")
    return tuple(certificates)


def install_certificates(folder: Path, certificates: Sequence[bytes]) -> None:
    """Install the AK's certificate path, DER, leaf first, without the root. A running agent reloads it.

    Raises:
        StateError: an item is no DER certificate.
    """
    for certificate in certificates:
        if _der_length(certificate) != len(certificate):
            raise StateError("a certificate is followed by other bytes")
    target = folder / "certificates"
    make_folder(target)
    replace_file(target / "ak.der", b"".join(certificates))


def _der_length(data: bytes) -> int:
    """Return how many bytes the DER SEQUENCE at the start of `data` has, header included."""
    if len(data) < 4 or data[0] != _SEQUENCE or data[1] not in (_LONG_FORM | 1, _LONG_FORM | 2):
        raise StateError("the certificate file is not a sequence of der certificates")
    octets = data[1] & ~_LONG_FORM
    length = 2 + octets + int.from_bytes(data[2 : 2 + octets])
    if length > min(len(data), MAX_CERTIFICATE):
        raise StateError("a certificate in the certificate file is cut off or too long")
    return length
