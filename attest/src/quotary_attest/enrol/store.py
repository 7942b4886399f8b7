# SPDX-License-Identifier: Apache-2.0
"""The CA's folder: root certificate, key, open challenges and ledger.

::

    root.pem            self-signed root; what policies and agents are given
    key.pem             its P-256 key, PKCS #8, mode 0600, encrypted where a passphrase was given
    ledger.jsonl        every certificate issued
    pending/<id>.json   open challenges, by the hash of the answer that opens them
    lock                flock: one command at a time
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from quotary_attest.enrol.errors import EnrolmentUsageError
from quotary_attest.enrol.files import Identity
from quotary_attest.enrol.issuance import Issuer, make_root
from quotary_attest.enrol.ledger import Ledger
from quotary_attest.log.durable import fsync_folder, make_folder, replace_file

_PRIVATE: Final = 0o600
_FOLDER: Final = 0o700


@dataclass(frozen=True, slots=True)
class Pending:
    """An open challenge as the CA keeps it: hexadecimal text and numbers only, no secret.

    `answer` is the SHA-256 of the one proof that opens it; `expires` is in milliseconds since the epoch; `ak`
    is the TPMT_PUBLIC; `days` and `replaces` are what the operator allowed when the challenge was made.
    """

    challenge_id: str
    challenge: str
    answer: str
    origin: str
    ak_name: str
    ek_digest: str
    ak: str
    tpm: tuple[str, ...]
    expires: int
    days: int
    replaces: tuple[str, ...]

    @property
    def identity(self) -> Identity:
        """Who was challenged."""
        return Identity(self.origin, bytes.fromhex(self.ak_name), bytes.fromhex(self.ek_digest))


class CaFolder:
    """A CA's folder. Methods that change it are to be called inside `locked`."""

    def __init__(self, path: Path) -> None:
        """Open the folder. Raises EnrolmentUsageError where there is no CA."""
        self.path = path
        if not (path / "root.pem").is_file():
            raise EnrolmentUsageError(f"there is no ca in {path}", hint="make one with `attest ca init`")

    @property
    def ledger(self) -> Ledger:
        """What was issued."""
        return Ledger(self.path / "ledger.jsonl")

    @property
    def root_pem(self) -> bytes:
        """The root certificate as PEM."""
        return (self.path / "root.pem").read_bytes()

    @property
    def root(self) -> x509.Certificate:
        """The root certificate. Raises EnrolmentUsageError where the file is damaged."""
        try:
            return x509.load_pem_x509_certificate(self.root_pem)
        except ValueError:
            raise EnrolmentUsageError(f"{self.path / 'root.pem'} is not a certificate") from None

    def issuer(self, passphrase: bytes | None = None) -> Issuer:
        """Load the CA's key.

        Raises:
            EnrolmentUsageError: no or the wrong passphrase, or a key that is not the root's.
        """
        key = _load_key(self.path / "key.pem", passphrase)
        root = self.root
        if key.public_key() != root.public_key():
            raise EnrolmentUsageError(f"the key in {self.path} is not the key of its root certificate")
        return Issuer(root, key)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Wait until no other command works on this folder, and keep others out."""
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def save(self, pending: Pending) -> None:
        """Keep an open challenge; it is on disk when this returns."""
        data = json.dumps(asdict(pending), sort_keys=True).encode()
        replace_file(self._pending(pending.challenge_id), data)

    def take(self, challenge_id: bytes) -> Pending | None:
        """Remove an open challenge, durably, and return it; None where there is none.

        It is gone whatever follows: one answer is all that a challenge allows.
        """
        path = self._pending(challenge_id.hex())
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        path.unlink()
        fsync_folder(path.parent)
        return _read_pending(path, data)

    def pending(self) -> list[Pending]:
        """All open challenges, expired ones too."""
        found = []
        for path in sorted((self.path / "pending").glob("*.json")):
            with contextlib.suppress(FileNotFoundError):  # another command took it meanwhile
                found.append(_read_pending(path, path.read_bytes()))
        return found

    def forget(self, pending: Pending) -> None:
        """Remove an open challenge that nobody may answer any more."""
        self._pending(pending.challenge_id).unlink(missing_ok=True)

    def _pending(self, challenge_id: str) -> Path:
        return self.path / "pending" / f"{challenge_id}.json"


def _read_pending(path: Path, data: bytes) -> Pending:
    try:
        value: dict[str, Any] = json.loads(data)
        lists = {name: tuple(value[name]) for name in ("tpm", "replaces")}
        return Pending(**(value | lists))
    except (ValueError, KeyError, TypeError):
        raise EnrolmentUsageError(f"{path} is damaged", hint="remove it, and make a new challenge") from None


def create_ca(
    path: Path, *, name: str, now: datetime, days: int, passphrase: bytes | None = None
) -> x509.Certificate:
    """Make a CA: a P-256 key and a self-signed root with the common name `name`, valid for `days` days.

    The root certificate is written last, so that an interrupted run leaves no CA.

    Raises:
        EnrolmentUsageError: the folder holds something already, or `name` cannot be a common name.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise EnrolmentUsageError(f"{path} is not an empty folder", hint="give a new folder for a new ca")
    key = ec.generate_private_key(ec.SECP256R1())
    try:
        root = make_root(name, key, now=now, days=days)
    except (ValueError, OverflowError) as error:
        raise EnrolmentUsageError(f"no root can be made for this name and time: {error}") from None
    make_folder(path / "pending")
    path.chmod(_FOLDER)
    replace_file(path / "key.pem", _key_pem(key, passphrase))
    replace_file(path / "root.pem", root.public_bytes(serialization.Encoding.PEM))
    return root


def _key_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None) -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def _load_key(path: Path, passphrase: bytes | None) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), passphrase)
    except TypeError:
        if passphrase is None:
            raise EnrolmentUsageError(
                "the key of this ca is encrypted",
                hint="name the file with its passphrase: --passphrase-file FILE",
            ) from None
        raise EnrolmentUsageError(
            "the key of this ca is not encrypted", hint="leave --passphrase-file out"
        ) from None
    except ValueError:
        raise EnrolmentUsageError("the passphrase does not open the key of this ca") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise EnrolmentUsageError(f"{path} is not a p-256 key")
    return key


def milliseconds(time: datetime) -> int:
    """A time as milliseconds since the epoch."""
    return int(time.timestamp() * 1000)


def expiry(now: datetime, hours: float) -> int:
    """When a challenge made now ends, in milliseconds since the epoch."""
    return milliseconds(now + timedelta(hours=hours))
