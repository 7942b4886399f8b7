# SPDX-License-Identifier: Apache-2.0
"""`attest agent measure`: what the agent would measure, without an agent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quotary_cli.agent_tpm import host_failures
from quotary_cli.enrolment import FILE, json_option
from quotary_cli.output import ExitCode, Failure, clean, print_json

if TYPE_CHECKING:
    from quotary_attest.measure import Measurement
    from quotary_attest.workload import ServedModel

SCHEMA = "quotary-agent-measure/v1"


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--name", help="The name that requests use (default: that of the file or folder).")
@click.option(
    "--signature", type=FILE, help="The model's OpenSSF signature (default: model.sig, or FILE.sig)."
)
@click.option("--signer-key", "keys", type=FILE, multiple=True, help="Public key (PEM) that may sign models.")
@click.option(
    "--signer-ca",
    "authorities",
    type=FILE,
    multiple=True,
    help="Authority (PEM) whose certificates may sign models.",
)
@json_option
def measure(
    paths: tuple[Path, ...],
    name: str | None,
    signature: Path | None,
    keys: tuple[Path, ...],
    authorities: tuple[Path, ...],
    as_json: bool,
) -> int:
    """Print what the start of an agent would measure for the model in PATHS: one file, the files of one model, or one
    model folder.

    \b
    Policies allow a model by the digest that this prints. Exit codes:
      0  measured; a signature, if there is one, verified, or no signer was named
      1  the signature is false, or does not cover these files
      3  signers were named and the signature could not be checked
      4  a file cannot be read, or changed meanwhile
    """
    with host_failures():
        model, measured = _measured(paths, name, signature, keys, authorities)
    result = _result(model, measured)
    if as_json:
        print_json(result)
    else:
        _show(result)
    unchecked = result["signature"] not in ("none", "verified")
    return ExitCode.NOT_CHECKED if unchecked and (keys or authorities) else ExitCode.OK


def _measured(
    paths: tuple[Path, ...],
    name: str | None,
    signature: Path | None,
    keys: tuple[Path, ...],
    authorities: tuple[Path, ...],
) -> tuple[ServedModel, Measurement]:
    from quotary_attest.measure import ModelFile, SignatureError, model_size
    from quotary_attest.measuring.openssf import load_signers
    from quotary_attest.workload import check_name, measure_model
    from quotary_cli.agent_workload import progress_of

    name = name or (paths[0].resolve().name if paths[0].is_dir() else paths[0].stem)
    try:
        check_name(name)
    except ValueError as error:
        raise Failure(str(error), code=ExitCode.USAGE) from None
    signers = load_signers(keys, authorities)
    file = ModelFile(name, paths, signature=signature)
    try:
        with progress_of(model_size(paths), name) as progress:
            return measure_model(file, progress, signers=signers)
    except SignatureError as error:
        raise Failure(str(error), code=ExitCode.REJECTED, hint=error.hint) from None


def _result(model: ServedModel, measured: Measurement) -> dict[str, Any]:
    details = dict(model.details)
    return {
        "schema": SCHEMA,
        "model": model.name,
        "digest": model.weights.hex(),
        "files": len(measured.files),
        "bytes": measured.size,
        "parts": {part: digest.hex() for part, digest in measured.parts.items()},
        "openssf": _hex(details.get("openssf")),
        "signature": details.get("signature", "none"),
        "signer": details.get("signer", ""),
        "reason": details.get("signature_reason", ""),
        "manifest": [
            {"name": file.name, "bytes": file.size, "sha256": file.digest.hex(), "verity": file.verity}
            for file in measured.files
        ],
    }


def _hex(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else ""


def _show(result: dict[str, Any]) -> None:
    lines = [("model", result["model"]), ("digest", result["digest"])]
    lines.append(("files", f"{result['files']}, {result['bytes']} bytes"))
    lines += [(part, digest) for part, digest in result["parts"].items()]
    signature = " ".join(filter(None, (result["signature"], result["signer"] or result["reason"])))
    lines.append(("signature", signature))
    for label, text in lines:
        click.echo(f"{label:<14} {clean(str(text))}")
    for file in result["manifest"]:
        click.echo(f"{file['sha256']}  {clean(file['name'])}")
