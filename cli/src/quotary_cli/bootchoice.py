# SPDX-License-Identifier: Apache-2.0
"""Chooses of many attestations those that teach something: the last of each boot, for each set of models it shows.

An archive holds thousands of attestations of one boot, whose logs only grow. The choice is made by what they claim;
each one that is chosen is verified afterwards, and the others are not used.
"""

from __future__ import annotations

from collections.abc import Iterable

from quotary_cli.given import Given
from quotary_cli.output import ExitCode, Failure
from quotary_verifier.errors import QuotaryError
from quotary_verifier.recipe.platform import read_host
from quotary_verifier.tlog.hardware import IDENTIFIER_TPM2_QUOTE, hardware_key_id, hardware_lines_by_id
from quotary_verifier.tlog.note import parse_note
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.records import Genesis
from quotary_verifier.wire.tpm import parse_attest, unpack_evidence

Key = tuple[object, ...]


def choose(given: Iterable[Given]) -> list[Given]:
    """Return the chosen ones in their order; one that cannot be read is among them, so that verification says why.

    Raises Failure for one of a host without a TPM.
    """
    last: dict[Key, tuple[int, int, Given]] = {}
    for number, one in enumerate(given):
        try:
            data = one.load()
            _require_tpm(one.name, Genesis.decode(Attestation.decode(data).genesis))
            key, clock = _claimed_do_not_trust(data)
        except QuotaryError:
            key, clock = (number,), 0
        if key not in last or last[key][0] <= clock:
            last[key] = (clock, number, one)
    return [one for _, _, one in sorted(last.values(), key=lambda item: item[1])]


def _require_tpm(name: str, genesis: Genesis) -> None:
    if genesis.tpm is None:
        raise Failure(
            f"{name}: its host has no tpm, so no boot was measured that rules could be made of",
            code=ExitCode.NOT_CHECKED,
            hint="name what it was launched with in [tee]: `attest inspect` shows it (docs/howto/tee.md)",
        )


def _claimed_do_not_trust(data: bytes) -> tuple[Key, int]:
    """Return which boot and which workload log an attestation claims to be of, and when in that boot (milliseconds).

    Raises:
        QuotaryError: it cannot be read so far.
    """
    attestation = Attestation.decode(data)
    host = read_host(attestation.genesis)
    known = {hardware_key_id(host.origin, IDENTIFIER_TPM2_QUOTE, host.spki): IDENTIFIER_TPM2_QUOTE}
    lines = hardware_lines_by_id(parse_note(attestation.note), host.origin, known)
    clocks = [parse_attest(unpack_evidence(line.evidence)[0]).clock for line in lines[:1]]
    boots = [(clock.reset_count, clock.restart_count) for clock in clocks]
    logs = tuple(support.workload_log for support in attestation.supports)
    return (host.origin, *boots, logs), max((clock.clock for clock in clocks), default=0)
