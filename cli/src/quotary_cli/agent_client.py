# SPDX-License-Identifier: Apache-2.0
"""`attest agent sign` and `attest agent status`: clients of the running agent's local interface."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from quotary_cli.agent_roots import endorsement_text, roots_text
from quotary_cli.enrolment import show, write_file
from quotary_cli.output import ExitCode, Failure, print_json

SIGN_SCHEMA = "quotary-agent-sign/v1"
STATUS_SCHEMA = "quotary-agent-status/v1"
_TIMEOUT = 120.0
_MAX_ANSWER = 256 * 1024 * 1024
_BLOCK = 1 << 20

state_option = click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="The agent's state folder; its socket lies there.",
)
socket_option = click.option(
    "--socket", "path", type=click.Path(path_type=Path), help="The agent's local interface."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("agent", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT)
        self.sock.connect(str(self._path))


@click.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@state_option
@socket_option
@click.option("--nonce", metavar="HEX", help="Bind this nonce of 8 to 64 bytes into each record.")
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder for the answers.",
)
@json_option
def sign(
    files: tuple[Path, ...],
    state: Path | None,
    path: Path | None,
    nonce: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Have the running agent attest FILES; each gets a FILE.attestation beside it, or in the folder of --out.

    Only digests go to the agent. The record says that a local caller submitted the output, and names no model.
    """
    request: dict[str, Any] = {"items": [{"digests": {"body": _digest(file)}} for file in files]}
    if nonce is not None:
        request["nonce"] = nonce
    agent = socket_of(state, path)
    answer = call(agent, "POST", "/v1/attest", request)
    results = []
    for file, (output_id, attestation) in zip(files, _outputs(agent, answer, len(files)), strict=True):
        target = (file.parent if out is None else out) / f"{file.name}.attestation"
        write_file(target, attestation)
        results.append({"file": str(file), "output_id": output_id, "attestation": str(target)})
    if as_json:
        print_json({"schema": SIGN_SCHEMA, "outputs": results})
        return
    for result in results:
        show(result, as_json=False)


@click.command()
@state_option
@socket_option
@click.option("--nonce", required=True, metavar="HEX", help="The nonce of who wants to know, 8 to 64 bytes.")
@click.option(
    "--out", "-o", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Where to write it."
)
def quote(state: Path | None, path: Path | None, nonce: str, out: Path) -> None:
    """Have the running agent quote its platform as it is now, over a nonce.

    What it writes is verified by `attest verify --fresh FILE --policy P --nonce HEX`.
    """
    write_file(out, _request(socket_of(state, path), "POST", "/v1/quote", {"nonce": nonce}))


@click.command()
@state_option
@socket_option
@json_option
def status(state: Path | None, path: Path | None, as_json: bool) -> None:
    """Show how the running agent is: origin, state, log size, boot, models, certificates."""
    agent = socket_of(state, path)
    answer = call(agent, "GET", "/v1/status", None)
    if "origin" not in answer:
        raise _stranger(agent)
    if as_json:
        print_json({"schema": STATUS_SCHEMA, **answer})
        return
    shown = {key: _text(key, value) for key, value in answer.items() if value not in ("", [], None)}
    show(shown, as_json=False)


def _outputs(path: Path, answer: dict[str, Any], count: int) -> list[tuple[str, bytes]]:
    """Return output id and attestation of each file, from an answer of the form that the agent's have."""
    try:
        found = [
            (str(item["output_id"]), base64.b64decode(item["attestation"], validate=True))
            for item in answer["outputs"]
        ]
    except (KeyError, TypeError, ValueError):
        raise _stranger(path) from None
    if len(found) != count:
        raise _stranger(path)
    return found


def _stranger(path: Path) -> Failure:
    return Failure(f"what answers at {path} is not the agent", code=ExitCode.FAILURE)


def _text(key: str, value: Any) -> str:
    if key == "certificate_expiry" and isinstance(value, int):
        with contextlib.suppress(
            OverflowError, OSError, ValueError
        ):  # a number that is no time is shown as it is
            return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%dT%H:%M:%SZ}"
    if key == "boot_logs" and isinstance(value, dict):
        return ", ".join(f"{name}: {_log_text(log)}" for name, log in value.items())
    if key == "ak_endorsement" and isinstance(value, dict):
        return endorsement_text(value)
    if key == "roots" and isinstance(value, list):
        return roots_text(value)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _log_text(log: Any) -> str:
    """Say what became of a log of the boot."""
    if not isinstance(log, dict):
        return str(log)
    state, size, reason = str(log.get("state")), log.get("bytes"), str(log.get("reason") or "")
    return f"{state} ({reason})" if reason else f"{state} ({size} bytes)" if size else state


def socket_of(state: Path | None, path: Path | None) -> Path:
    """Return where the agent's local interface is. Raises Failure where nothing says which agent."""
    if path is not None:
        return path
    if state is None:
        raise Failure("which agent: --state or --socket is needed", code=ExitCode.USAGE)
    return state / "agent.sock"


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise Failure(f"{file}: {(error.strerror or '').lower()}", code=ExitCode.USAGE) from None
    return digest.hexdigest()


def call(path: Path, method: str, target: str, body: dict[str, Any] | None) -> dict[str, Any]:
    """Ask the running agent and return its answer. Raises Failure with what it refused."""
    return _json(path, _request(path, method, target, body))


def _request(path: Path, method: str, target: str, body: dict[str, Any] | None) -> bytes:
    connection = _Connection(path)
    try:
        connection.request(
            method, target, None if body is None else json.dumps(body), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        data = response.read(_MAX_ANSWER)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Failure(
            f"the agent does not answer at {path}: {reason.lower()}",
            code=ExitCode.FAILURE,
            hint="start it with `attest agent run`, or name its socket with --socket",
        ) from None
    finally:
        connection.close()
    if response.status != http.client.OK:
        unavailable = response.status == http.client.SERVICE_UNAVAILABLE
        hint = "`attest agent status` says why" if unavailable else ""
        raise Failure(_refusal(_json(path, data)), code=_code(response.status), hint=hint)
    return data


def _json(path: Path, data: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise _stranger(path)
    return answer


def _refusal(answer: dict[str, Any]) -> str:
    error = answer.get("error")
    return str(error.get("message", "no reason given")) if isinstance(error, dict) else "no reason given"


def _code(status_code: int) -> ExitCode:
    bad_request = status_code in (http.client.BAD_REQUEST, http.client.REQUEST_ENTITY_TOO_LARGE)
    return ExitCode.USAGE if bad_request else ExitCode.FAILURE
