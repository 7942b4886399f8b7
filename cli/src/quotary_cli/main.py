# SPDX-License-Identifier: Apache-2.0
"""The command `attest` and the one place where errors become messages and exit codes (design section 7)."""

from __future__ import annotations

import errno
import gc
import os
import re
import sys

import click

from quotary_cli import __version__
from quotary_cli.lazy import LazyGroup
from quotary_cli.output import ExitCode, Failure, print_failure, wants_json

_COMMANDS = {
    "verify": ("quotary_cli.verify", "verify", "Verify outputs against their attestations and a policy."),
    "inspect": ("quotary_cli.inspect", "inspect", "Show what a file holds, without verifying it."),
    "audit": ("quotary_cli.audit", "audit", "Audit a host's whole history against a policy."),
    "policy": ("quotary_cli.policy", "policy", "Make, check, compare and sign what you accept."),
    "agent": ("quotary_cli.agent", "agent", "Run the signing agent of an inference host."),
    "log": ("quotary_cli.log", "log", "Take a host's published log along, and look into it."),
    "tee": ("quotary_cli.tee", "tee", "Look at confidential-computing hardware, and fetch its collateral."),
    "ca": ("quotary_cli.ca", "ca", "Run a certificate authority that endorses hosts."),
}
_OBJECTS_BETWEEN_COLLECTIONS = 100_000
"""More than any command makes while it starts; at a hundred bytes each, what cycles hold on to stays at megabytes."""
_USUAL = gc.get_threshold()

_CLICK_GIVES_UP = 1
"""What click exits with where the reader of stdout went away; no command of ours raises SystemExit with it."""

_NOUN = re.compile(r"(?<=: )(?:File|Directory|Path)(?= ')")
"""Where click begins a sentence within a message: invalid value for 'FILE': File 'x' does not exist."""


@click.group(cls=LazyGroup, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", message="attest %(version)s")
def cli() -> None:
    """Prove and verify where AI outputs came from.

    \b
    Exit codes:
      0  verified, or done
      1  rejected: the evidence is malformed, false, or lacks something the policy requires
      2  usage: the command line, a named file or the policy cannot be used
      3  could not be checked: nothing is false, but a required check could not be done
      4  TPM, agent or input/output failure
    """


def main() -> None:
    """Run the command; every error ends in one message, a hint where there is one, and an exit code.

    What a start makes is no garbage, and what is left at the end goes with the process: to look for cycles in either
    took a fifth of `attest verify` of one file. Commands that run for long call `collect_as_usual`.
    """
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    code = run(sys.argv[1:])
    gc.freeze()
    sys.exit(code)


def collect_as_usual() -> None:
    """Let the collector come as often as Python means it to, once a command that runs for long has started."""
    gc.set_threshold(*_USUAL)


def run(arguments: list[str]) -> int:
    """Run the command with these arguments and return its exit code."""
    try:
        result = cli.main(args=arguments, prog_name="attest", standalone_mode=False)
        return result if isinstance(result, int) else ExitCode.OK
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort:
        failure = Failure("interrupted", code=ExitCode.FAILURE)
    except click.UsageError as error:
        failure = Failure(_lower(error.format_message()), code=ExitCode.USAGE, hint=_usage_hint(error))
    except click.ClickException as error:
        failure = Failure(_lower(error.format_message()), code=ExitCode.USAGE)
    except Failure as error:
        failure = error
    except (BrokenPipeError, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != _CLICK_GIVES_UP:
            raise  # a command of ours ends with its own code
        # the reader of stdout went away, for which click would exit with 1, our code for rejected evidence: nothing
        # is left to say, and Python must not try at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return ExitCode.FAILURE
    except OSError as error:
        failure = Failure(_os_message(error), code=ExitCode.FAILURE, hint=_os_hint(error))
    print_failure(failure, as_json=wants_json(arguments))
    return failure.code


def _usage_hint(error: click.UsageError) -> str:
    return f"see '{error.ctx.command_path} --help'" if error.ctx is not None else "see 'attest --help'"


def _lower(message: str) -> str:
    text = _NOUN.sub(lambda noun: noun[0].lower(), message.strip().rstrip("."))
    return text[:1].lower() + text[1:]


def _os_message(error: OSError) -> str:
    what = (error.strerror or str(error)).replace("error while attempting to bind on", "cannot listen on", 1)
    return _lower(f"{error.filename}: {what}" if error.filename else what)


def _os_hint(error: OSError) -> str:
    return "name another address, or end what listens there" if error.errno == errno.EADDRINUSE else ""
