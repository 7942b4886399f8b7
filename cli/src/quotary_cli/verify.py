# SPDX-License-Identifier: Apache-2.0
"""`attest verify`: verify outputs, offline, against their attestations and a policy."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quotary_cli.moments import parse_time
from quotary_cli.output import ExitCode, Failure, print_json
from quotary_cli.policyfile import PolicyFile, policy_options
from quotary_cli.render import render_report
from quotary_verifier import (
    MalformedError,
    NotChecked,
    Outcome,
    Policy,
    Question,
    QuotaryError,
    Rejected,
    Report,
    strip,
)
from quotary_verifier import (
    verify as verify_output,
)
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.limits import MAX_ATTESTATION

if TYPE_CHECKING:
    from quotary_cli.bootlogs import BootLogFiles

SCHEMA = "quotary-verify/v1"
SUFFIX = ".attestation"
STDIN = "-"


@frozen
class Job:
    """One output to verify: its name for people, its bytes, and its attestation's bytes.

    `attestation` is None where the file is not an output but a fresh quote or a statement's attestation.
    """

    name: str
    output: bytes
    attestation: bytes | None


@click.command()
@click.argument(
    "outputs", nargs=-1, required=True, metavar="OUTPUT...", type=click.Path(path_type=Path, allow_dash=True)
)
@click.option(
    "--attestation",
    "-a",
    type=click.Path(path_type=Path, exists=True),
    help="The attestation, or a folder of OUTPUT.attestation files (default: beside OUTPUT, or in band).",
)
@policy_options
@click.option(
    "--request",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The request body that the output must answer.",
)
@click.option("--nonce", metavar="HEX", help="The nonce that you sent with the request.")
@click.option(
    "--at", metavar="TIME", help="Verify as of this time (RFC 3339 or seconds since 1970; default: now)."
)
@click.option("--fresh", is_flag=True, help="Each OUTPUT is a fresh quote over --nonce, and no output.")
@click.option(
    "--statement",
    is_flag=True,
    help="Each OUTPUT is the attestation of what a host states of its answers, and no output.",
)
@click.option(
    "--with-logs",
    "logs",
    type=click.Path(path_type=Path, exists=True),
    multiple=True,
    help="Where boot logs are that attestations name by digest, or that a fresh quote is of: a file, a folder, or an"
    " archive; may be given again.",
)
@click.option("--exact", is_flag=True, help="Allow no tolerance in how the file's bytes are matched.")
@click.option("--explain", is_flag=True, help="Show every step of the recipe.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(
    outputs: tuple[Path, ...],
    attestation: Path | None,
    policy: PolicyFile,
    request: Path | None,
    nonce: str | None,
    at: str | None,
    fresh: bool,
    statement: bool,
    logs: tuple[Path, ...],
    exact: bool,
    explain: bool,
    as_json: bool,
) -> int:
    """Verify that each OUTPUT (a file, a folder, or - for standard input) is what an accepted host attested.

    A file is tried as the response body, with or without its in-band attestation, then as the text of a choice,
    then as that text with one more newline at its end, which counts as a tolerance. With --fresh
    it must be a fresh quote (from `attest agent quote`) over --nonce; without, no fresh quote passes for an output.
    The same holds for --statement and what a proxy answers at /quotary/v1/statement.
    """
    moment = parse_time(at)
    rules = policy.read(moment)
    request_body = None if request is None else _read(request)
    nonce_bytes = None if nonce is None else _hex(nonce)
    if fresh and (nonce_bytes is None or request is not None or attestation is not None):
        raise Failure(
            "--fresh goes with --nonce, and with neither --request nor --attestation", code=ExitCode.USAGE
        )
    if statement and (fresh or nonce is not None or request is not None or attestation is not None):
        raise Failure(
            "--statement goes with none of --fresh, --nonce, --request and --attestation",
            code=ExitCode.USAGE,
        )
    results = []
    kept = _kept_logs(logs)
    jobs = _whole_jobs(outputs) if fresh or statement else _jobs(outputs, attestation)
    for job in _with_progress(list(jobs), as_json):
        given = {} if kept is None else kept.for_attestation(job.output if statement else job.attestation)
        question = Question(job.output, moment, request_body, nonce_bytes, exact, given)
        if fresh and kept is not None:
            results.append((job.name, _fresh_with(job.output, question, rules, kept)))
        else:
            results.append((job.name, _verify_one(job, question, rules)))
    if as_json:
        print_json(_as_json(results))
    else:
        for name, report in results:
            render_report(name, report, explain=explain)
    return _exit_code([report for _, report in results])


def _verify_one(job: Job, question: Question, policy: Policy) -> Report:
    try:
        if job.attestation is None:
            if question.nonce is None:
                return _statement(job.output, question, policy)
            from quotary_verifier import verify_fresh  # late, as statements

            return verify_fresh(job.output, question.nonce, question.at, policy).report
        return verify_output(job.attestation, question, policy).report
    except (Rejected, NotChecked) as outcome:
        return outcome.report


def _fresh_with(quote: bytes, question: Question, policy: Policy, kept: BootLogFiles) -> Report:
    from quotary_cli.freshlogs import judge_fresh

    return judge_fresh(quote, question.nonce or b"", question.at, policy, kept)


def _statement(attestation: bytes, question: Question, policy: Policy) -> Report:
    from quotary_verifier import verify_statement  # late: most verifications need none of it

    return verify_statement(attestation, question.at, policy, question.logs).verdict.report


def _kept_logs(places: tuple[Path, ...]) -> BootLogFiles | None:
    """Return where boot logs are to be looked for; None, and no code loaded, where nobody says so."""
    if not places:
        return None
    from quotary_cli.bootlogs import BootLogFiles

    kept = BootLogFiles(places)
    click.get_current_context().call_on_close(kept.close)
    return kept


def _exit_code(reports: list[Report]) -> ExitCode:
    outcomes = {report.outcome for report in reports}
    if Outcome.REJECTED in outcomes:
        return ExitCode.REJECTED
    return ExitCode.NOT_CHECKED if Outcome.COULD_NOT_CHECK in outcomes else ExitCode.OK


def _as_json(results: list[tuple[str, Report]]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "exit": int(_exit_code([report for _, report in results])),
        "results": [{"output": name, "verdict": report.as_json()} for name, report in results],
    }


def _read(path: Path, most: int = -1) -> bytes:
    """Read a file, or no more of it than shows that it has over `most` bytes, for which there is another error."""
    size = -1 if most < 0 else most + 1
    try:
        if str(path) == STDIN:
            return sys.stdin.buffer.read(size)
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}".lower(), code=ExitCode.USAGE) from None


def _hex(text: str) -> bytes:
    try:
        nonce = bytes.fromhex(text)
    except ValueError:
        nonce = b""
    if nonce.hex() != text or not 8 <= len(nonce) <= 64:
        raise Failure("--nonce takes 8 to 64 bytes in lower-case hexadecimal", code=ExitCode.USAGE)
    return nonce


def _whole_jobs(outputs: tuple[Path, ...]) -> Iterator[Job]:
    for path in outputs:
        for file in _files(path):
            yield Job(str(file), _read(file, MAX_ATTESTATION), None)


def _jobs(outputs: tuple[Path, ...], attestation: Path | None) -> Iterator[Job]:
    for path in outputs:
        for file in _files(path):
            output = _read(file)
            yield Job(str(file), output, _attestation_of(file, output, attestation))


def _files(path: Path) -> list[Path]:
    if str(path) == STDIN:
        return [path]
    if not path.exists():
        raise Failure(f"{path}: no such file or folder", code=ExitCode.USAGE)
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.is_file() and file.suffix != SUFFIX)
    if not files:
        raise Failure(f"{path}: the folder holds no outputs", code=ExitCode.USAGE)
    return files


def _attestation_of(file: Path, output: bytes, given: Path | None) -> bytes:
    if given is not None and not given.is_dir():
        return _read(given, MAX_ATTESTATION)
    folder = file.parent if given is None else given
    for candidate in (folder / (file.name + SUFFIX), folder / (file.stem + SUFFIX)):
        if candidate.is_file():
            return _read(candidate, MAX_ATTESTATION)
    try:
        embedded = strip(output)[1]
    except MalformedError:
        embedded = None
    if embedded is None:
        raise Failure(
            f"{file}: no attestation in it and no {file.name}{SUFFIX} beside it",
            code=ExitCode.USAGE,
            hint=_missing_hint(output),
        )
    return embedded


def _missing_hint(output: bytes) -> str:
    """Say what to do where no attestation was found; a file of ours that is no output is recognised."""
    from quotary_cli.kinds import describe

    try:
        kind, _ = describe(output)
    except QuotaryError:
        kind = ""
    if kind == "fresh quote":
        return "this is a fresh quote: verify it with --fresh and the --nonce that was asked with"
    if kind == "attestation":
        return "this is an attestation: name the output, and this with --attestation; or --statement for a host's"
    return "name it with --attestation, or fetch it from the host by the id in the Quotary-Output header"


def _with_progress(jobs: list[Job], as_json: bool) -> Iterator[Job]:
    if len(jobs) < 50 or as_json or not sys.stderr.isatty():
        yield from jobs
        return
    with click.progressbar(jobs, label="verifying", file=sys.stderr) as bar:
        yield from bar
