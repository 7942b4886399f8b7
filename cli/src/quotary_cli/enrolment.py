# SPDX-License-Identifier: Apache-2.0
"""What the commands of both sides of an enrolment share: files, passphrases, and errors as exit codes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quotary_cli.output import ExitCode, Failure, clean, print_json
from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.wire.limits import MAX_CERTIFICATE, MAX_ENROLMENT

if TYPE_CHECKING:
    from quotary_verifier.pki.chain import CaCertificate, TrustAnchors

_MAX_PASSPHRASE = 1024
_MAX_PEM = 4 * 1024 * 1024
_PRIVATE = 0o600

FILE = click.Path(path_type=Path, exists=True, dir_okay=False, readable=True)
FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
out_option = click.option(
    "--out",
    "-o",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write the answer.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def now() -> datetime:
    """The time of this command."""
    return datetime.now(UTC)


@contextmanager
def failures(*, install: str = "quotary-attest") -> Iterator[None]:
    """Turn every error of an enrolment into a failure with its exit code (design section 7).

    `install` is what brings the host side where it is missing; a CA needs no TPM library.
    """
    try:
        yield
    except (MalformedError, EvidenceError) as error:
        raise _failure(error, ExitCode.REJECTED) from None
    except UnsupportedError as error:
        raise _failure(error, ExitCode.NOT_CHECKED) from None
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"quotary_attest", "tpm2_pytss"}:
            raise
        raise Failure(
            "the host side of quotary is not installed",
            code=ExitCode.FAILURE,
            hint=f"pip install '{install}'",
        ) from None
    except Exception as error:
        code = _host_side(error)
        if code is None:
            raise
        raise _failure(error, code) from None


def _host_side(error: Exception) -> ExitCode | None:
    """The exit code of an error of the host side, None where it is not one of those."""
    from quotary_attest.enrol.errors import EnrolmentUsageError
    from quotary_attest.log.errors import StoreError
    from quotary_attest.roots import RootError
    from quotary_attest.state import StateError

    if isinstance(error, EnrolmentUsageError):
        return ExitCode.USAGE
    return ExitCode.FAILURE if isinstance(error, RootError | StateError | StoreError) else None


def _failure(error: Exception, code: ExitCode) -> Failure:
    return Failure(str(error), code=code, hint=getattr(error, "hint", ""))


def read_file(path: Path, limit: int = MAX_ENROLMENT) -> bytes:
    """Read a file that the command line names; one byte over the limit is read, so that the reader refuses it."""
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise Failure(f"{path}: {_reason(error)}", code=ExitCode.USAGE) from None


def read_passphrase(path: Path | None) -> bytes | None:
    """The first line of a passphrase file, None where none is named."""
    if path is None:
        return None
    line = read_file(path, _MAX_PASSPHRASE).split(b"\n", 1)[0].rstrip(b"\r")
    if not 0 < len(line) <= _MAX_PASSPHRASE:
        raise Failure(f"{path}: the first line is not a passphrase", code=ExitCode.USAGE)
    return line


def read_certificate(path: Path) -> bytes:
    """One certificate as DER, from a DER or PEM file."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    data = read_file(path, 2 * MAX_CERTIFICATE)
    try:
        if b"-----BEGIN" not in data:
            x509.load_der_x509_certificate(data)
            return data
        return x509.load_pem_x509_certificate(data).public_bytes(Encoding.DER)
    except ValueError:
        raise Failure(f"{path}: not a certificate", code=ExitCode.USAGE) from None


def read_anchors(paths: tuple[Path, ...]) -> TrustAnchors:
    """The roots, and the CA certificates that help to reach them, of PEM bundles; unusable ones are named."""
    from quotary_verifier.pki.chain import TrustAnchors, load_bundle

    found: list[CaCertificate] = []
    for path in paths:
        try:
            bundle = load_bundle(read_file(path, _MAX_PEM))
        except MalformedError as error:
            raise Failure(f"{path}: {error}", code=ExitCode.USAGE) from None
        for unusable in bundle.unreadable:
            click.echo(
                clean(f"{path}: certificate {unusable.position + 1} left out: {unusable.reason}"), err=True
            )
        found += bundle.certificates
    try:
        return TrustAnchors.of(found)
    except MalformedError as error:
        raise Failure(
            str(error), code=ExitCode.USAGE, hint="name a file with the manufacturer's root"
        ) from None


def write_file(path: Path, data: bytes) -> None:
    """Write an answer, readable by its owner only, in place of an older one. Failure where it cannot be."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _PRIVATE)
        with open(descriptor, "wb") as file:  # noqa: PTH123 - of a descriptor with its mode set
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except OSError as error:
        raise Failure(f"{path}: {_reason(error)}", code=ExitCode.FAILURE) from None


def show(value: dict[str, Any], *, as_json: bool) -> None:
    """Print a result: one JSON object, or a line for each entry; texts and lists of texts only."""
    if as_json:
        print_json(value)
        return
    width = max(map(len, value))
    for key, entry in value.items():
        if key != "schema" and entry not in ("", []):
            text = ", ".join(entry) if isinstance(entry, list) else str(entry)
            click.echo(f"{key.replace('_', ' '):<{width}}  {clean(text)}")


def _reason(error: OSError) -> str:
    return (error.strerror or "cannot be used").lower()
