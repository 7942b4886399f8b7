# SPDX-License-Identifier: Apache-2.0
"""Verifies every answer that the load client kept, with the public verifier, as its client would.

Outputs of one commit share the verification of its signatures (`VerifiedCommit`); bodies, requests, nonces and
places in the log are checked of each.
"""

from __future__ import annotations

import json
import struct
from collections import Counter, OrderedDict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from quotary_verifier import Policy, Question, QuotaryError, VerifiedCommit, load_policy, strip, verify_in
from quotary_verifier.wire.attestation import Attestation

HEAD = struct.Struct(">Q??HII")
"""Number, whether it is a stream, whether it ended properly, status, lengths of request and body."""

_COMMITS = 64
_SHOWN = 5
_DONE = b"\n\ndata: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as the client kept it."""

    number: int
    stream: bool
    ended: bool
    status: int
    request: bytes
    body: bytes

    @property
    def acknowledged(self) -> bool:
        """Whether a client takes this for a whole, successful answer."""
        return self.ended and self.status == 200 and (not self.stream or self.body.endswith(_DONE))

    @property
    def refusal(self) -> str:
        """Status and code of an answer that is an error."""
        try:
            return f"status {self.status} {json.loads(self.body)['error']['code']}"
        except (ValueError, LookupError, TypeError):
            return f"status {self.status}"

    @property
    def nonce(self) -> bytes:
        """The nonce that the client asked to have bound."""
        return self.number.to_bytes(16)


@dataclass
class Checked:
    """What became of the answers. `indices` are the places in the log of those that verified."""

    answers: int = 0
    verified: int = 0
    indices: set[int] = field(default_factory=set)
    outputs: set[bytes] = field(default_factory=set)
    others: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, other: Checked) -> None:
        """Take in what another process checked."""
        self.answers += other.answers
        self.verified += other.verified
        self.indices |= other.indices
        self.outputs |= other.outputs
        self.others += other.others
        self.failures += other.failures

    @property
    def distinct(self) -> bool:
        """Whether no two verified answers share an output id or a place in the log."""
        return self.verified == len(self.indices) == len(self.outputs)


def answers(file: BinaryIO) -> Iterator[Answer]:
    """Read what the client kept, up to the last whole answer."""
    while len(head := file.read(HEAD.size)) == HEAD.size:
        number, stream, ended, status, request, body = HEAD.unpack(head)
        asked, came = file.read(request), file.read(body)
        if len(came) == body:
            yield Answer(number, stream, ended, status, asked, came)


class Judge:
    """Verifies answers under one policy at one time, and remembers the commits that it met last."""

    def __init__(self, policy: Policy, at: int) -> None:
        self._policy, self._at = policy, at
        self._commits: OrderedDict[bytes, VerifiedCommit] = OrderedDict()

    def verify(self, answer: Answer) -> tuple[int, bytes]:
        """Return index and record of a verified answer. Raises ValueError or QuotaryError."""
        body, encoded = strip(answer.body)
        if encoded is None:
            raise ValueError("an answer came without its attestation")
        question = Question(body, at=self._at, request=answer.request, nonce=answer.nonce)
        parsed = Attestation.decode(encoded)
        commit = self._commits.get(parsed.note)
        if commit is not None:
            self._commits.move_to_end(parsed.note)
            commit.verify(encoded, question)
        else:
            _, self._commits[parsed.note] = verify_in(encoded, question, self._policy)
            if len(self._commits) > _COMMITS:
                self._commits.popitem(last=False)
        return parsed.index, parsed.record


def check(file: Path, policy: bytes, at: int, *, processes: int = 2) -> Checked:
    """Verify all answers of a file, the work shared by processes; what failed is told in words."""
    total = Checked()
    with ProcessPoolExecutor(processes) as pool:
        parts = [pool.submit(_check_part, file, policy, at, processes, part) for part in range(processes)]
        for part in parts:
            total.add(part.result())
    return total


def _check_part(file: Path, policy: bytes, at: int, of: int, part: int) -> Checked:
    judge, found = Judge(load_policy(policy), at), Checked()
    with file.open("rb") as source:
        for answer in answers(source):
            if answer.number % of == part:
                _check_one(judge, answer, found)
    return found


def _check_one(judge: Judge, answer: Answer, found: Checked) -> None:
    found.answers += 1
    if not answer.acknowledged:
        kind = "stream" if answer.stream else "short answer"
        found.others[f"{kind}: {answer.refusal}" if answer.ended else f"{kind}: broke off"] += 1
        return
    try:
        index, record = judge.verify(answer)
    except (ValueError, QuotaryError) as error:
        if len(found.failures) < _SHOWN:
            found.failures.append(f"answer {answer.number}: {type(error).__name__}: {error}")
        found.others["acknowledged, but does not verify"] += 1
        return
    found.verified += 1
    found.indices.add(index)
    found.outputs.add(record)
