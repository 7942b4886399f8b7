# SPDX-License-Identifier: Apache-2.0
"""`attest agent init`: a new origin on this host."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quotary_cli.agent_tee import KINDS, init_without_tpm
from quotary_cli.agent_tpm import (
    emulator_folder,
    emulator_option,
    host_failures,
    reach_tpm,
    state_option,
    tpm_option,
    write_choice,
)
from quotary_cli.enrolment import FILE, read_file, show
from quotary_cli.output import ExitCode, Failure
from quotary_verifier.errors import MalformedError
from quotary_verifier.wire.names import check_host

if TYPE_CHECKING:
    from quotary_attest.tpm.connection import Connection
    from quotary_attest.tpm.model import Authorizations, TpmIdentity

SCHEMA = "quotary-agent-init/v1"
_MAX_AUTH = 1024
_OF_A_TPM = (
    "--tpm",
    "--emulator",
    "--chain-pcr",
    "--workload-pcr",
    "--ak",
    "--owner-auth-file",
    "--endorsement-auth-file",
)


class _Handle(click.ParamType[int]):
    """A handle of a TPM, as the TPM's own tools write it."""

    name = "handle"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read hexadecimal with 0x, or decimal digits."""
        try:
            return int(value, 16 if value[:2].lower() == "0x" else 10)
        except ValueError:
            self.fail(f"{value!r} is no handle such as 0x81000003", param, ctx)


HANDLE = _Handle()


@click.command()
@state_option
@click.option(
    "--host", required=True, help="The host's DNS name, in lower case; its certificate will carry it."
)
@tpm_option
@emulator_option
@click.option(
    "--tee",
    "tees",
    type=click.Choice(KINDS),
    multiple=True,
    help="Confidential-computing hardware to live on, in place of a TPM (docs/howto/tee.md).",
)
@click.option(
    "--chain-pcr", type=click.IntRange(0, 23), help="PCR that chains the commits (default: chosen)."
)
@click.option("--workload-pcr", type=click.IntRange(0, 23), help="PCR of the workload log (default: chosen).")
@click.option(
    "--ak",
    type=HANDLE,
    metavar="HANDLE",
    help="A key that is in the TPM already, in place of a new one; on Azure 0x81000003 (docs/howto/tee.md).",
)
@click.option(
    "--ak-auth-file", type=FILE, help="File whose first line authorises the key of --ak, if it has one."
)
@click.option("--owner-auth-file", type=FILE, help="File whose first line authorises the owner hierarchy.")
@click.option(
    "--endorsement-auth-file", type=FILE, help="File whose first line authorises the endorsement hierarchy."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def init(
    state: Path,
    host: str,
    tpm: str | None,
    emulator: bool,
    tees: tuple[str, ...],
    chain_pcr: int | None,
    workload_pcr: int | None,
    ak: int | None,
    ak_auth_file: Path | None,
    owner_auth_file: Path | None,
    endorsement_auth_file: Path | None,
    as_json: bool,
) -> None:
    """Make a new origin: an attestation key and a start counter in the TPM, a genesis record, an empty log.

    No PCR is touched. The state folder must be new or empty, and must never be restored from a backup.
    With --tee no TPM is contacted, and none is needed: every commit then needs a report of each kind that is named.
    """
    if ak is None and ak_auth_file is not None:
        raise Failure("--ak-auth-file needs --ak", code=ExitCode.USAGE)
    try:
        check_host(host)
    except MalformedError as error:
        raise Failure(f"--host {host}: {error}", code=ExitCode.USAGE) from None
    if tees:
        _check_alone(
            tpm, emulator or None, chain_pcr, workload_pcr, ak, owner_auth_file, endorsement_auth_file
        )
        with host_failures():
            without = init_without_tpm(state, host, tuple(dict.fromkeys(tees)))
        show({"schema": SCHEMA, **without}, as_json=as_json)
        return
    with host_failures():
        from quotary_attest.origin import init_state
        from quotary_attest.state import StateError
        from quotary_attest.tpm.connection import Connection
        from quotary_attest.tpm.errors import TpmConflict
        from quotary_attest.tpm.keys import counter_value, open_counter
        from quotary_attest.tpm.model import Authorizations
        from quotary_attest.tpm.pcr_choice import check_choice, choose_pcrs, known_uses
        from quotary_attest.tpm.reading import read_pcrs

        try:
            check_choice(chain_pcr, workload_pcr)
        except TpmConflict as error:
            raise Failure(str(error), code=ExitCode.USAGE, hint=error.hint) from None
        if (state / "identity").exists():
            raise StateError(f"{state} holds an origin already", hint="a new origin needs a new state folder")
        auths = Authorizations(owner=_auth(owner_auth_file), endorsement=_auth(endorsement_auth_file))
        with (
            _new_emulator(state),
            reach_tpm(state, tpm, emulator=emulator) as tcti,
            Connection(tcti) as connection,
        ):
            uses = {} if emulator else known_uses()
            chain, workload = choose_pcrs(read_pcrs(connection), uses, chain=chain_pcr, workload=workload_pcr)
            made = _make(connection, (chain, workload), auths, ak, _auth(ak_auth_file))
            counter = counter_value(connection, open_counter(connection, made))
            identity = init_state(state, host, made, counter=counter)
        write_choice(state, tpm, emulator=emulator)
    properties = made.properties
    kind = "software TPM" if properties.is_software else "TPM"
    show(
        {
            "schema": SCHEMA,
            "origin": identity.origin,
            "state": str(state),
            "tpm": f"{kind}: {properties.manufacturer} {properties.vendor} {properties.firmware:016x}",
            "chain_pcr": str(chain),
            "workload_pcr": str(workload),
            **({} if ak is None else {"ak": _shared(ak, with_auth=ak_auth_file is not None)}),
        },
        as_json=as_json,
    )


def _make(
    connection: Connection, pcrs: tuple[int, int], auths: Authorizations, ak: int | None, ak_auth: bytes
) -> TpmIdentity:
    """Make an origin's keys, or its counter alone where the attestation key `ak` is there already."""
    chain, workload = pcrs
    if ak is None:
        from quotary_attest.tpm.keys import make_identity

        return make_identity(connection, chain_pcr=chain, workload_pcr=workload, authorizations=auths)
    from quotary_attest.tpm.foreign import make_foreign_identity

    return make_foreign_identity(
        connection, ak, chain_pcr=chain, workload_pcr=workload, ak_auth=ak_auth, authorizations=auths
    )


def _check_alone(*values: object) -> None:
    """Raise Failure where one of the options that are of a TPM (`_OF_A_TPM`, in that order) stands beside --tee."""
    given = [option for option, value in zip(_OF_A_TPM, values, strict=True) if value is not None]
    if given:
        raise Failure(
            f"--tee stands in place of a tpm, and {', '.join(given)} is of a tpm",
            code=ExitCode.USAGE,
            hint="beside a tpm, leave out --tee and name the hardware as a [[root]] (docs/howto/tee.md)",
        )


def _shared(ak: int, *, with_auth: bool) -> str:
    """Say what an operator has to know of a key that the agent did not make."""
    who = "with the authorisation that was given" if with_auth else "any process with the tpm can quote"
    return f"0x{ak:08x}: {who}"


@contextmanager
def _new_emulator(state: Path) -> Iterator[None]:
    """Take an emulator's folder away again where the block made it and failed; one that was there stays."""
    folder = emulator_folder(state)
    there = folder.exists()
    try:
        yield
    except BaseException:
        if not there:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _auth(path: Path | None) -> bytes:
    return b"" if path is None else read_file(path, _MAX_AUTH).split(b"\n", 1)[0].rstrip(b"\r")
