# SPDX-License-Identifier: Apache-2.0
"""What happens inside one job: extend, quote, and making sense of what was quoted.

A `Session` is an open connection with loaded keys, and what the PCRs are predicted to be. The prediction
saves all reading: a commit is PCR_Extend and Quote, and the quoted digest shows whether the prediction holds.
Where it does not, the session finds out what moved (design section 3, "TPM", and section 4, "Crash").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

from quotary_attest.roots import (
    QUOTED_PCRS,
    ClockReading,
    CommitSteps,
    ForeignExtend,
    PlatformReset,
    PlatformState,
    PlatformUnknown,
    Quote,
)
from quotary_attest.tpm.connection import Connection
from quotary_attest.tpm.errors import TpmConflict, TpmError, TpmGone, TpmMissing
from quotary_attest.tpm.ima import ImaReplay
from quotary_attest.tpm.keys import counter_value, held, load_ak, load_keys
from quotary_attest.tpm.model import Authorizations, TpmIdentity
from quotary_attest.tpm.reading import pcr_digest, read_clock, read_pcrs
from quotary_attest.tpm.templates import COUNTER_SIZE, pcr_selection, sha256_digest
from quotary_attest.tpm.tss import lib
from quotary_verifier.errors import QuotaryError
from quotary_verifier.evidence.tpm_keys import check_ak
from quotary_verifier.evidence.tpm_quote import verify_signature
from quotary_verifier.wire.bindings import ZERO, chain_extend
from quotary_verifier.wire.tpm import Attest, pack_evidence, parse_attest, parse_public, parse_signature

T = TypeVar("T")

EXTRA_QUOTES: Final = 3
"""How often the same digest is quoted again when PCRs moved during the quote (design section 3)."""

_SLEPT: Final = 0.5
"""Seconds by which the suspended time must grow before the clock is read ahead of a commit."""


class Session:
    """An open connection with loaded keys. One thread uses it."""

    def __init__(
        self,
        connection: Connection,
        identity: TpmIdentity,
        authorizations: Authorizations,
        *,
        ima: ImaReplay,
        suspended: Callable[[], float],
    ) -> None:
        """Load the keys and read the platform. `suspended` tells the seconds this system has slept."""
        self.connection = connection
        self._identity = identity
        self._authorizations = authorizations
        self._ima = ima
        self._suspended = suspended
        self._slept = suspended()
        self._gone = False
        self._ak = parse_public(identity.ak_public)
        self._hash = check_ak(self._ak).hash_alg
        self._keys = load_keys(connection, identity, authorizations=authorizations)
        self._selection = pcr_selection(QUOTED_PCRS)
        self._scheme = lib.TPMT_SIG_SCHEME(scheme=lib.TPM2_ALG.NULL)
        self._pcrs: dict[int, bytes] | None = None
        self._clock = read_clock(connection)

    def perform(self, job: Callable[[Session], T]) -> T:
        """Do a job, unless an earlier one found the transport broken: then nothing is worth trying."""
        if self._gone:
            raise TpmGone(
                "the connection to the tpm was lost", hint="it is made anew as soon as the tpm answers"
            )
        try:
            return job(self)
        except TpmGone:
            self._gone = True
            raise

    def platform(self) -> PlatformState:
        """Read clock and PCRs, and predict from them."""
        self._pcrs = None
        before = read_clock(self.connection)
        pcrs = read_pcrs(self.connection)
        clock = read_clock(self.connection)
        if clock.boot != before.boot:
            raise PlatformReset("the platform was reset while its pcrs were read", clock)
        self._pcrs, self._clock = pcrs, clock
        return PlatformState(clock, dict(pcrs))

    def extend(self, pcr: int, digest: bytes) -> bytes:
        """Extend one of the origin's own two PCRs; return the value it had before."""
        values = self._known()
        self._pcrs = None  # should the command fail, nobody knows whether it was done
        self.connection.commands.pcr_extend(getattr(lib.ESYS_TR, f"PCR{pcr}"), sha256_digest(digest))
        before = values[pcr]
        values[pcr] = chain_extend(before, digest)
        self._pcrs = values
        return before

    def commit(self, digest: bytes, steps: CommitSteps) -> Quote:
        """Extend the chain PCR and quote the same digest."""
        steps.before()
        self._look_after_sleep()
        before = self.extend(self._identity.chain_pcr, digest)
        steps.between()
        quote = self._quote(digest, before)
        steps.after(quote)
        return quote

    def quote(self, extra_data: bytes) -> Quote:
        """Quote without any extend."""
        return self._quote(extra_data, self._known()[self._identity.chain_pcr])

    def certify_counter(self, extra_data: bytes) -> bytes:
        """NV_Certify the whole counter; evidence as bytes."""
        attest, signature = self._signed(
            lambda ak: self.connection.commands.nv_certify(
                ak, self._keys.counter, extra_data, self._scheme, COUNTER_SIZE, 0
            )
        )
        return pack_evidence(attest, signature)

    def read_counter(self) -> int:
        """The counter's value."""
        return counter_value(self.connection, self._keys.counter)

    def increment_counter(self) -> int:
        """Add one to the counter; the value read back."""
        self.connection.commands.nv_increment(self._keys.counter)
        return self.read_counter()

    def close(self) -> None:
        """Flush the AK and close the transport."""
        with self.connection.scope() as scope:
            held(scope, self._identity, self._keys.ak)
        self.connection.close()
        self._ima.close()

    def _known(self) -> dict[int, bytes]:
        if self._pcrs is None:
            raise PlatformUnknown(
                "the pcr values are not known after an earlier failure", hint="read the platform first"
            )
        return self._pcrs

    def _quote(self, extra_data: bytes, chain_before: bytes) -> Quote:
        """Quote until values are found that hash to the quoted digest."""
        self._known()
        for _ in range(1 + EXTRA_QUOTES):
            attest, signature = self._signed(
                lambda ak: self.connection.commands.quote(ak, self._selection, extra_data, self._scheme)
            )
            parsed = _parse(attest, extra_data)
            clock = _clock(parsed)
            if self._explains(parsed, clock):
                self._accept(clock, chain_before)
                evidence, pcrs = pack_evidence(attest, signature), dict(self._known())
                ima, flaw = self._ima.prefix(pcrs)
                return Quote(attest, signature, evidence, pcrs, clock, parsed.firmware_version, ima, flaw)
        raise TpmConflict(
            f"pcrs moved during each of {1 + EXTRA_QUOTES} quotes",
            hint="on an ima host make the ima log readable for the agent (ima_log in its configuration); "
            "else find the program that extends pcrs all the time",
        )

    def _signed(self, sign: Callable[[Any], tuple[Any, Any]]) -> tuple[bytes, bytes]:
        """Let the AK sign: (TPMS_ATTEST, TPMT_SIGNATURE), verified, so that nobody is answered with a broken
        one. A raw TPM forgets loaded keys when it sleeps; then the AK is loaded again."""
        try:
            attest, signature = sign(self._keys.ak)
        except TpmMissing:
            self._reload_ak()
            attest, signature = sign(self._keys.ak)
        signed, packed = bytes(attest), bytes(signature.marshal())
        try:
            verify_signature(self._ak, signed, parse_signature(packed))
        except QuotaryError as error:
            raise TpmError(
                f"what the tpm signed does not verify: {error}",
                hint="the tpm or the way to it is broken: see the kernel's log",
            ) from error
        return signed, packed

    def _reload_ak(self) -> None:
        self.connection.commands.tr_close(self._keys.ak)
        ak = load_ak(self.connection, self._identity, authorizations=self._authorizations)
        self._keys = replace(self._keys, ak=ak)

    def _explains(self, parsed: Attest, clock: ClockReading) -> bool:
        """Find the values behind a quoted digest; False when they moved on and the quote must be repeated.

        Raises ForeignExtend or PlatformReset when one of our own PCRs is not as we left it.
        """

        def fits(values: Mapping[int, bytes]) -> bool:
            return parsed.quote is not None and pcr_digest(values, self._hash) == parsed.quote.pcr_digest

        predicted = self._known()
        if fits(predicted):
            return True
        if (replayed := self._ima.fit(predicted, fits)) is not None:
            self._pcrs = replayed
            return True
        self._pcrs = None
        found = read_pcrs(self.connection)
        for pcr in (self._identity.chain_pcr, self._identity.workload_pcr):
            if found[pcr] != predicted[pcr]:
                self._lost(pcr, predicted[pcr], found[pcr], clock)
        self._pcrs = found
        return fits(found)

    def _lost(self, pcr: int, expected: bytes, found: bytes, clock: ClockReading) -> None:
        if clock.boot != self._clock.boot:
            raise PlatformReset("the platform was reset or hibernated under the running agent", clock)
        raise ForeignExtend(pcr, expected, found)

    def _accept(self, clock: ClockReading, chain_before: bytes) -> None:
        """Judge the boot of values that are as predicted.

        After sleep (S3) the restart count has moved and the PCRs are kept. A chain PCR that was zero cannot
        tell sleep from hibernation, so there a moved count ends the boot too.
        """
        if clock.boot != self._clock.boot and (
            clock.reset_count != self._clock.reset_count or chain_before == ZERO
        ):
            self._pcrs = None
            raise PlatformReset("the platform was reset or hibernated under the running agent", clock)
        self._clock = clock

    def _look_after_sleep(self) -> None:
        """After the system slept, look whether the chain survived *before* a new boot's chain is extended."""
        slept = self._suspended()
        if slept - self._slept < _SLEPT:
            return
        self._slept = slept
        predicted = self._known()
        clock = read_clock(self.connection)
        found = read_pcrs(self.connection)
        self._pcrs = None
        for pcr in (self._identity.chain_pcr, self._identity.workload_pcr):
            if found[pcr] != predicted[pcr]:
                self._lost(pcr, predicted[pcr], found[pcr], clock)
        self._pcrs = found
        self._accept(clock, found[self._identity.chain_pcr])


def _clock(parsed: Attest) -> ClockReading:
    clock = parsed.clock
    return ClockReading(clock.clock, clock.reset_count, clock.restart_count, clock.safe)


def _parse(attest: bytes, extra_data: bytes) -> Attest:
    """Parse a quote as the verifier will; a TPM or transport that answers with something else is an error."""
    try:
        parsed = parse_attest(attest)
    except QuotaryError as error:
        raise TpmError(f"the quote of the tpm cannot be used: {error}") from error
    if parsed.extra_data != extra_data or parsed.quote is None:
        raise TpmError("the tpm quoted something else than it was asked to quote")
    return parsed
