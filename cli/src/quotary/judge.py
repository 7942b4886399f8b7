# SPDX-License-Identifier: Apache-2.0
"""Verifies the answers of one client, and remembers commits so that their signatures are verified once."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from quotary.bootlogs import HostLogs
from quotary.checks import Checks, PolicySource, read_policy
from quotary_verifier import MalformedError, Question, UnsupportedError, Verdict, VerifiedCommit, verify_in
from quotary_verifier.wire.attestation import Attestation

_NONCE_BYTES = 32
_COMMITS = 16


class OtherOriginError(Exception):
    """A verified answer of a log that the caller did not ask for; `verdict` is what was found."""

    def __init__(self, message: str, verdict: Verdict) -> None:
        super().__init__(message)
        self.verdict = verdict


class Judge:
    """Applies `checks` to answers. Safe to use from several threads.

    Raises:
        PolicyError: on construction, if the policy cannot be read or used.
    """

    def __init__(self, checks: Checks | PolicySource) -> None:
        self.checks = checks if isinstance(checks, Checks) else Checks(checks)
        self.logs = HostLogs(self.checks.clock) if self.checks.logs else None
        self.policy = read_policy(self.checks.policy, self.checks.policy_trust, self.checks.clock)
        # The answers of one commit mostly come in the same second, for which its verification stands.
        self._commits: OrderedDict[tuple[int, bytes], VerifiedCommit] = OrderedDict()
        self._lock = Lock()

    def make_nonce(self) -> bytes:
        """Return a fresh nonce."""
        return self.checks.randomness(_NONCE_BYTES)

    def now(self) -> int:
        """Return the time of verification."""
        return int(self.checks.clock())

    def verify(self, attestation: bytes, question: Question) -> Verdict:
        """Verify one answer.

        Raises:
            Rejected: it does not hold, or not under this policy.
            NotChecked: a required check could not be done.
            OtherOriginError: it holds, but is of another log than `Checks.origin`.
        """
        key = _commit_of(attestation, question.at)
        with self._lock:
            commit = None if key is None else self._commits.get(key)
        if commit is not None:
            verdict = commit.verify(attestation, question)
        else:
            verdict, commit = verify_in(attestation, question, self.policy)
            if key is not None:
                self._remember(key, commit)
        self._check_origin(verdict)
        return verdict

    def _remember(self, key: tuple[int, bytes], commit: VerifiedCommit) -> None:
        with self._lock:
            self._commits[key] = commit
            while len(self._commits) > _COMMITS:
                self._commits.popitem(last=False)

    def _check_origin(self, verdict: Verdict) -> None:
        wanted = self.checks.origin
        if wanted is None:
            return
        claim = verdict.claim("origin")
        if claim is None or claim.value != wanted:
            found = None if claim is None else claim.value
            raise OtherOriginError(f"the answer is of the log {found}, not of {wanted}", verdict)


def _commit_of(attestation: bytes, at: int) -> tuple[int, bytes] | None:
    """Return what tells commits apart; None for what does not decode, which verification will say better."""
    try:
        return at, Attestation.decode(attestation).note
    except (MalformedError, UnsupportedError):
        return None
