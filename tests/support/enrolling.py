# SPDX-License-Identifier: Apache-2.0
"""Hosts and CAs for the tests of enrolment: a state folder over a TPM, and a CA folder, without an agent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from nacl.signing import SigningKey
from tpms import Tpm

from quotary_attest.enrol import ca, host
from quotary_attest.enrol.ca import Issued, Terms
from quotary_attest.enrol.files import Request
from quotary_attest.enrol.store import CaFolder, create_ca
from quotary_attest.state import HostIdentity, create_state, make_state_folder
from quotary_attest.tpm.connection import Connection
from quotary_verifier.pki.chain import TrustAnchors
from quotary_verifier.wire import cbor
from quotary_verifier.wire.records import Genesis, TpmIdentity

NOW = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
"""The time of these tests: after every EK certificate that a fixture makes."""
HOST = "gpu-1.example.com"


def genesis_of(
    name: str, ak: bytes, parent: bytes, counter: bytes, note_key: bytes, *, salt: bytes = bytes(16)
) -> Genesis:
    """A genesis record with an AK."""
    tpm = TpmIdentity(ak, parent, chain_pcr=15, workload_pcr=13, counter=counter)
    return Genesis(salt=salt, time=1_700_000_000_000, host=name, note_key=note_key, tpm=tpm)


@dataclass(frozen=True)
class EnrollingHost:
    """A host with a TPM and a state folder."""

    tpm: Tpm
    folder: Path
    identity: HostIdentity

    @classmethod
    def make(cls, tpm: Tpm, folder: Path, name: str = HOST) -> EnrollingHost:
        """Make keys in the TPM, and a state folder with their genesis record."""
        keys = tpm.identity()
        note = SigningKey.generate()
        genesis = genesis_of(
            name,
            keys.ak_public,
            keys.parent_name,
            keys.nv_public,
            bytes(note.verify_key),
            salt=bytes(note)[:16],
        )
        identity = HostIdentity(genesis.encode(), bytes(note), keys)
        make_state_folder(folder)
        create_state(folder, identity, 1)
        return cls(tpm, folder, identity)

    @property
    def origin(self) -> str:
        """The host's origin."""
        return self.identity.origin

    def request(self, **options: Any) -> bytes:
        """A request file."""
        with Connection(self.tpm.tcti) as connection:
            return host.make_request(connection, self.folder, **options)

    def activate(self, challenge: bytes, now: datetime = NOW) -> bytes:
        """An activation file."""
        with Connection(self.tpm.tcti) as connection:
            return host.activate(connection, self.folder, challenge, now)

    def install(self, grant: bytes, now: datetime = NOW, root: bytes | None = None) -> host.Installed:
        """Install a grant."""
        return host.install(self.folder, grant, now, root=root)


@dataclass(frozen=True)
class EnrollingCa:
    """A CA that trusts some roots of TPM manufacturers."""

    folder: CaFolder
    terms: Terms = field(repr=False)

    @classmethod
    def make(cls, folder: Path, *roots: Path) -> EnrollingCa:
        """A CA without a passphrase; `roots` are PEM files, intermediates among them."""
        create_ca(folder, name="Example AK CA", now=NOW, days=3650)
        anchors = TrustAnchors.from_pem(b"".join(path.read_bytes() for path in roots))
        return cls(CaFolder(folder), Terms(anchors))

    def challenge(self, request: bytes, now: datetime = NOW, **terms: Any) -> bytes:
        """A challenge file."""
        return ca.challenge(self.folder, request, replace(self.terms, **terms), now)

    def issue(self, activation: bytes, now: datetime = NOW) -> Issued:
        """A grant, and what the ledger says of it."""
        return ca.issue(self.folder, self.folder.issuer(), activation, now)

    def enrol(self, enrolling: EnrollingHost, **terms: Any) -> Issued:
        """A whole enrolment, up to the grant."""
        return self.issue(enrolling.activate(self.challenge(enrolling.request(), **terms)))

    @property
    def idle(self) -> bool:
        """Whether nothing was issued and no challenge is open."""
        return not self.folder.ledger.entries() and not self.folder.pending()


def altered(data: bytes, key: int, change: Callable[[Any], Any]) -> bytes:
    """A file with one field changed."""
    value = cbor.decode(data, max_bytes=1 << 16)
    value[key] = change(value[key])
    return cbor.encode(value)


def with_genesis(request: bytes, genesis: Genesis) -> bytes:
    """A request for another genesis record."""
    return replace(Request.decode(request), genesis=genesis.encode()).encode()


def later(**time: float) -> datetime:
    """Some time after NOW."""
    return NOW + timedelta(**time)
