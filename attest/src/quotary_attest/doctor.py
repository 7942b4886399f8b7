# SPDX-License-Identifier: Apache-2.0
"""Is this host fit to attest? One finding for each thing that can be looked at without changing anything.

An agent may run meanwhile: what belongs to it alone (its emulator, its lock, its addresses) is then asked of it, or
left. Nothing is extended, quoted, incremented or written.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from cryptography import x509

from quotary_attest.config import AgentConfig
from quotary_attest.config.rules import Address
from quotary_attest.engine.host import check_leaf
from quotary_attest.roots import RootError
from quotary_attest.state import HostIdentity, StateError, read_certificates, read_identity
from quotary_verifier.wire.tpm_public import parse_public

if TYPE_CHECKING:
    from quotary_attest.tpm.connection import Connection
    from quotary_attest.tpm.model import Authorizations, TpmIdentity

ENOUGH_SPACE: Final = 1 << 30
"""Bytes of free space below which a warning is due."""

SOON: Final = 14 * 86400
"""Seconds before a certificate's end from which on a warning is due."""

_NEEDED_SPACE: Final = 64 << 20
_CONNECT_SECONDS: Final = 3.0
_OTHERS: Final = 0o077


class Health(Enum):
    """What a finding says."""

    GOOD = "good"
    WARNING = "warning"
    WRONG = "wrong"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, and what to do about it."""

    what: str
    health: Health
    text: str
    hint: str = ""


def good(what: str, text: str) -> Finding:
    """Return that something is as it should be."""
    return Finding(what, Health.GOOD, text)


def wrong(what: str, error: Exception | str) -> Finding:
    """Return that something is not, with the error's hint."""
    return Finding(what, Health.WRONG, str(error), str(getattr(error, "hint", "")))


def agent_runs(folder: Path) -> bool:
    """Tell whether an agent holds the state folder."""
    try:
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


def examine_state(folder: Path) -> Iterator[Finding]:
    """Look at the state folder: identity, who may read it, space."""
    try:
        identity = read_identity(folder)
        yield good("state", f"{folder} holds the origin {identity.origin}")
    except StateError as error:
        yield wrong("state", error)
        return
    yield _permissions(folder)
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e9:.1f} GB free where {folder} lies"
    health = (
        Health.GOOD if free >= ENOUGH_SPACE else Health.WARNING if free >= _NEEDED_SPACE else Health.WRONG
    )
    hint = (
        ""
        if health is Health.GOOD
        else "free some, or set [retention] keep_days: a full disk stops attesting"
    )
    yield Finding("disk", health, text, hint)


def _permissions(folder: Path) -> Finding:
    for path in (folder, folder / "identity"):
        found = path.stat()
        if found.st_uid != os.geteuid():
            hint = "run this as the agent's user"
            return Finding(
                "permissions", Health.WARNING, f"{path} belongs to uid {found.st_uid}, not to this user", hint
            )
        if stat.S_IMODE(found.st_mode) & _OTHERS:
            return Finding("permissions", Health.WRONG, f"{path} is open to other users", f"chmod go= {path}")
    return good("permissions", "nobody else may enter the state folder")


def examine_tpm(
    folder: Path, identity: HostIdentity, tcti: str, authorizations: Authorizations
) -> Iterator[Finding]:
    """Look at the TPM: is it there, is it the origin's, are the origin's PCRs its own?"""
    from quotary_attest.tpm.connection import Connection
    from quotary_attest.tpm.reading import read_clock, read_properties

    try:
        with Connection(tcti) as connection:
            properties = read_properties(connection)
            kind = "software TPM" if properties.is_software else "TPM"
            name = f"{properties.manufacturer} {properties.vendor} {properties.firmware:016x}"
            yield good("tpm", f"{kind}: {name}")
            yield _manager(tcti)
            yield from _keys(connection, folder, identity, authorizations)
            if not read_clock(connection).safe:
                hint = "that mends itself; auditors see it"
                text = "the tpm's clock has not been safe since the power was cut"
                yield Finding("tpm clock", Health.WARNING, text, hint)
    except (RootError, StateError) as error:
        yield wrong("tpm", error)
        return
    if not properties.is_software:
        yield _pcrs(identity)


def _manager(tcti: str) -> Finding:
    name, _, path = tcti.partition(":")
    if name == "device" and Path(path).name.startswith("tpm") and not Path(path).name.startswith("tpmrm"):
        hint = "use device:/dev/tpmrm0, the kernel's resource manager"
        return Finding("resource manager", Health.WARNING, f"{path} lets one program in at a time", hint)
    return good("resource manager", f"the tpm is reached by {tcti}")


def _keys(
    connection: Connection, folder: Path, identity: HostIdentity, authorizations: Authorizations
) -> Iterator[Finding]:
    from quotary_attest.tpm.keys import counter_value, held, load_ak, open_counter

    with connection.scope() as scope:
        held(scope, identity.tpm_keys, load_ak(connection, identity.tpm_keys, authorizations=authorizations))
    yield _key(identity.tpm_keys)
    counter = counter_value(connection, open_counter(connection, identity.tpm_keys))
    stored = _stored_starts(folder)
    if counter in (stored, stored - 1):
        yield good("start counter", f"it is at {counter}, as the state says")
    else:
        text = f"it is at {counter}, and the state says {stored}"
        hint = "the state is an old copy, or another agent used this origin: find the newer folder, else a new origin"
        yield Finding("start counter", Health.WRONG, text, hint)


def _key(keys: TpmIdentity) -> Finding:
    if not keys.is_foreign:
        return good("key", "the attestation key is this tpm's")
    text = f"the attestation key is the tpm's own at 0x{keys.ak_handle:08x}"
    if keys.ak_auth:
        return good("key", f"{text}, with an authorisation that others do not need to know")
    hint = "let nobody else have the tpm; policies have to say unauthenticated_ak = true"
    return Finding("key", Health.GOOD, f"{text}: any process with the tpm can quote", hint)


def _stored_starts(folder: Path) -> int:
    try:
        return int((folder / "starts").read_text("ascii"))
    except (OSError, ValueError):
        raise StateError(f"the file {folder / 'starts'} is missing or damaged") from None


def _pcrs(identity: HostIdentity) -> Finding:
    from quotary_attest.tpm.pcr_choice import known_uses

    uses, chosen = known_uses(), (identity.tpm_keys.chain_pcr, identity.tpm_keys.workload_pcr)
    taken = [f"pcr {pcr}: {'; '.join(uses[pcr])}" for pcr in chosen if pcr in uses]
    if taken:
        hint = "switch that off, or make a new origin with other pcrs: whoever extends them stops the agent"
        return Finding("pcrs", Health.WRONG, ", ".join(taken), hint)
    return good("pcrs", f"no known service of this host uses pcr {chosen[0]} or {chosen[1]}")


def examine_certificates(folder: Path, identity: HostIdentity, now: datetime) -> Finding:
    """Look at the installed certificates: are they the key's, and for how long?"""
    what = "certificate"
    try:
        found = read_certificates(folder)
        check_leaf(found, attestation_key_of(identity))
    except (StateError, OSError) as error:
        return wrong(what, error)
    if not found:
        hint = "consumers must pin the origin in their policies; else `attest agent enroll`"
        return Finding(what, Health.WARNING, "none is installed", hint)
    end = min(x509.load_der_x509_certificate(each).not_valid_after_utc for each in found)
    begin = max(x509.load_der_x509_certificate(each).not_valid_before_utc for each in found)
    left = (end - now).total_seconds()
    hint = "enrol again (`attest agent enroll`)"
    if left <= 0:
        return Finding(what, Health.WRONG, f"it ran out on {end:%Y-%m-%d}", hint)
    if now < begin:
        return Finding(what, Health.WRONG, f"it is valid from {begin:%Y-%m-%d} on", "is the clock right?")
    if left < SOON:
        return Finding(what, Health.WARNING, f"it runs out on {end:%Y-%m-%d}", hint)
    return good(what, f"valid until {end:%Y-%m-%d}")


def examine_clock(identity: HostIdentity, now: datetime) -> Finding:
    """Look at the host's clock: is it kept right, and not before the origin was made?"""
    made = datetime.fromtimestamp(identity.genesis.time / 1000, UTC)
    if now < made:
        return Finding("clock", Health.WRONG, f"it is before the origin was made, {made:%Y-%m-%d}", "set it")
    synchronised = _synchronised()
    if synchronised is None:
        return Finding("clock", Health.NOT_CHECKED, "nobody says whether it is kept right (timedatectl)")
    if not synchronised:
        hint = "switch time synchronisation on: records carry this clock"
        return Finding("clock", Health.WARNING, "it is not synchronised", hint)
    return good("clock", "it is synchronised")


def _synchronised() -> bool | None:
    """What systemd says of the kernel's clock; None where it says nothing."""
    command = ["timedatectl", "show", "--property=NTPSynchronized", "--value"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return {"yes": True, "no": False}.get(said)


def examine_doors(config: AgentConfig, *, running: bool) -> Iterator[Finding]:
    """Look at what stands before and behind the proxies: model servers that answer, addresses that are free."""
    for at, proxy in enumerate(config.proxy):
        if not config.engine.start:
            yield _upstream(f"proxy[{at}].upstream", proxy.upstream)
        if proxy.listen is not None and not running:
            yield _free(f"proxy[{at}].listen", proxy.listen)
    if config.metrics.listen is not None and not running:
        yield _free("metrics.listen", config.metrics.listen)


def _upstream(what: str, url: str) -> Finding:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), _CONNECT_SECONDS):
            return good(what, f"{url} takes connections")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return Finding(what, Health.WARNING, f"{url}: {reason}", "start the model server")


def _free(what: str, address: Address) -> Finding:
    if address.port == 0:
        return good(what, "any free port")
    try:
        socket.create_server(
            (address.host, address.port), family=socket.AF_INET6 if ":" in address.host else socket.AF_INET
        ).close()
    except OSError as error:
        return Finding(what, Health.WRONG, f"{address}: {(error.strerror or str(error)).lower()}")
    return good(what, f"{address} is free")


def attestation_key_of(identity: HostIdentity) -> bytes:
    """Return the AK's SubjectPublicKeyInfo, DER."""
    return parse_public(identity.tpm_keys.ak_public).to_spki_der()
