# SPDX-License-Identifier: Apache-2.0
"""One request and its answer, from the nonce to the verdict. No input or output: a transport hands in what comes.

A transport calls, in this order: `answered` with status and fields; `feed` with each piece of the body, handing on
what it returns; `end` and `wanted_logs`, which say what must be fetched; `conclude`, whose rest is handed on last. A
body that is not read to its end is `abandon`ed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from quotary.bootlogs import Wanted
from quotary.endings import Endings
from quotary.errors import (
    AttestationError,
    AttestationMissing,
    AttestationNotChecked,
    AttestationRejected,
)
from quotary.judge import Judge, OtherOriginError
from quotary_verifier import (
    HashedBody,
    MalformedError,
    NotChecked,
    PolicyError,
    Question,
    Rejected,
    Verdict,
)
from quotary_verifier.wire.inband_stream import Stripper
from quotary_verifier.wire.limits import MAX_NONCE, MIN_NONCE
from quotary_verifier.wire.names import parse_output_id

NONCE = "Quotary-Nonce"
OUTPUT = "Quotary-Output"
ATTESTED = "Quotary-Attested"
ATTESTATION = "Quotary-Attestation"

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_UTF8 = re.compile(r'charset\s*=\s*"?(?:utf-?8|(?:us-)?ascii)"?\s*(?:;|\Z)', re.IGNORECASE)
_PLACES = ("location", "uri")  # aiohttp follows either


class Form(Enum):
    """How a body is taken in: not at all, held until it is verified, or handed on while it comes."""

    UNCHECKED = 0
    WHOLE = 1
    EVENTS = 2
    OPAQUE = 3


class Exchange:
    """One request, its answer, and what became of the answer's attestation.

    Attributes:
        method: Of the request.
        url: Of the request.
        request: The request's body.
        nonce: What was sent with it.
        made_nonce: Whether it was made here, for this attempt; else it is the caller's.
        status: Of the answer; None before it came.
        output_id: By which the host knows the answer, if it said so.
        attestation: The attestation's bytes, once they were found.
        output: The answer's body without the attestation; None if it was not read to its end, is longer than
            `Limits.kept`, or has not been looked at.
        error: Why there is no verdict, if there is none and the answer is done.
    """

    def __init__(self, judge: Judge, method: str, url: str, request: bytes, nonce: str | None = None) -> None:
        self.method, self.url, self.request = method, url, request
        self.nonce = judge.make_nonce() if nonce is None else _parse_nonce(nonce)
        self.made_nonce = nonce is None
        self.status: int | None = None
        self.output_id: str | None = None
        self.attestation: bytes | None = None
        self.output: bytes | None = None
        self.error: AttestationError | None = None
        self.form = Form.UNCHECKED
        self._judge = judge
        self._limits = judge.checks.limits
        self._verdict: Verdict | None = None
        self._stripper = Stripper(self._limits.held)
        self._endings = Endings()
        self._hash = hashlib.sha256()
        self._kept: bytearray | None = bytearray()
        self._rest = bytearray()
        self._closed = False

    @property
    def verdict(self) -> Verdict:
        """The verdict on the answer.

        Raises:
            AttestationError: there is none, and why; or not yet.
        """
        if self._verdict is not None:
            return self._verdict
        raise self.error or AttestationNotChecked(
            "the answer has not been read to its end, where its verdict stands", self
        )

    @property
    def done(self) -> bool:
        """Whether it is known what became of the answer."""
        return self._closed

    def save(self, stem: Path | str) -> None:
        """Write what `attest verify` takes: `STEM.body`, `STEM.attestation`, `STEM.request`, and the nonce as text.

        Raises:
            AttestationError: there is no attestation, or the body was not kept.
            OSError: a file could not be written.
        """
        if self.attestation is None or self.output is None:
            raise self.error or AttestationNotChecked("the answer was not kept", self)
        for suffix, data in (
            ("body", self.output),
            ("attestation", self.attestation),
            ("request", self.request),
            ("nonce", self.nonce.hex().encode()),
        ):
            Path(f"{stem}.{suffix}").write_bytes(data)

    # --- for transports ------------------------------------------------------------------------------------------

    def answered(self, status: int, fields: Iterable[tuple[str, str]]) -> None:
        """Take in the head of the answer and decide how its body is taken in.

        Raises:
            AttestationError: it can be told already that the answer will not do.
        """
        values: dict[str, list[str]] = {}
        for name, value in fields:
            values.setdefault(name.lower(), []).append(value.strip())
        self.status = status
        self.output_id = _output_id(values.get(OUTPUT.lower(), []))
        if status in _REDIRECTS:
            self._check_redirect([place for name in _PLACES for place in values.get(name, [])])
        if ATTESTED.lower() in values or (self.output_id is None and not self._required):
            self._without()
            return
        coding = values.get("content-encoding", ["identity"])
        if coding != ["identity"]:
            self._stop(AttestationNotChecked(
                f"the answer came with the content coding {', '.join(coding)[:40]}, though identity was asked for", self
            ))  # fmt: skip
            return
        if not all(map(_is_utf8, values.get("content-type", []))):
            # the field is not attested, and in another character set the same bytes would be another text
            self._stop(AttestationNotChecked("the answer came with a character set other than UTF-8", self))
            return
        self.form = _form(values.get("content-type", []))
        self.attestation = self._from_header(values.get(ATTESTATION.lower(), []))

    def feed(self, data: bytes) -> bytes:
        """Take in a piece of the body and return what may be handed on now.

        Raises:
            AttestationError: more would have to be held than the limit allows.
        """
        if self.form is Form.UNCHECKED:
            return data
        out = data
        if self.form is not Form.OPAQUE:
            try:
                out = self._stripper.feed(data)
            except MalformedError as error:
                return self._give_up(AttestationNotChecked(str(error), self))
        self._take(out)
        held = 0 if self.form is Form.WHOLE else self._endings.allowed(out)
        self._rest += out[held:]
        if len(self._rest) > self._limits.held:
            problem = f"more than {self._limits.held} bytes would have to be held until there is a verdict"
            return out[:held] + self._give_up(AttestationNotChecked(problem, self))
        return out[:held]

    def end(self) -> str | None:
        """End the body; return the URL from which the attestation must be fetched, None if nothing is to fetch."""
        if self.form is Form.UNCHECKED:
            return None
        if self.form is not Form.OPAQUE:
            try:
                rest = self._stripper.finish()
            except MalformedError as error:
                self.error = AttestationRejected(str(error), self)
                rest = self._stripper.give_up()
            self._take(rest)
            self._rest += rest
        inband = self._stripper.attestation
        self.attestation = inband or self.attestation
        if self._kept is not None:
            self.output, self._kept = bytes(self._kept), None
        if self.error or self.attestation is not None or self.output_id is None:
            return None
        return urljoin(self.url, self._judge.checks.door + self.output_id)

    def fetched(self, status: int, body: bytes) -> None:
        """Take in what came of the fetch."""
        if status == 200:
            self.attestation = body
        elif status == 404:
            self.error = AttestationMissing(f"the host has no attestation of {self.output_id}", self)
        else:
            self.not_fetched(f"the host answered {status}")

    def not_fetched(self, why: str) -> None:
        """Note that the fetch failed."""
        self.error = AttestationNotChecked(
            f"the attestation of {self.output_id} was not fetched: {why}", self
        )

    def wanted_logs(self) -> list[tuple[Wanted, str]]:
        """Return what is to be fetched besides: boot logs that are not known here, and their URLs. Ask until there is
        nothing more. Of a log whose first bytes may be known the rest is enough (`Range`)."""
        logs, door = self._judge.logs, urljoin(self.url, self._judge.checks.door)
        if logs is None or self.attestation is None or self.error is not None:
            return []
        place = door.removesuffix("attestations/") + "blob/"
        return [(wanted, place + wanted.digest.hex()) for wanted in logs.missing(self.attestation)]

    def took_log(self, wanted: Wanted, status: int, body: bytes) -> None:
        """Take in what came of fetching a boot log; without it, what it would show is not checked."""
        if self._judge.logs is not None:
            rest = wanted.known > 0 and status in (206, 416)
            self._judge.logs.take(wanted, body if status in (200, 206) else None, rest=rest)

    def conclude(self) -> bytes:
        """Judge the answer, and return the rest of its body, which is handed on last.

        Raises:
            AttestationError: the answer is not attested as the policy demands, and `Checks.on_failure` is `raise`.
        """
        self._closed = True
        if self.form is not Form.UNCHECKED:
            if self.error is None:
                self._judge_body()
            if self.error is not None:
                self._fail(self.error)
        rest, self._rest = bytes(self._rest), bytearray()
        return rest

    def abandon(self) -> None:
        """Note that the body is not read further. Afterwards there can be no verdict: what the host recorded is what it
        sent, and that may be more than what arrived.
        """
        if not self._closed:
            self._closed = True
            self.error = self.error or AttestationNotChecked(
                "the answer was not read to its end, where its verdict stands", self
            )

    @property
    def may_send_credentials(self) -> bool:
        """Whether the fetch goes where the request went, so that its credentials may go along."""
        return _origin(urljoin(self.url, self._judge.checks.door)) == _origin(self.url)

    # --- inside --------------------------------------------------------------------------------------------------

    @property
    def _required(self) -> bool:
        """Whether the answer must be attested. An error is no output: it need not, and what it carries is attached."""
        if self.status is None or self.status >= 400:
            return False
        return not self._judge.checks.allows_unattested(urlsplit(self.url).path)

    def _check_redirect(self, location: list[str]) -> None:
        if any(_origin(urljoin(self.url, place)) != _origin(self.url) for place in location):
            self._stop(AttestationRejected("the answer is a redirect to another host", self), always=True)

    def _without(self) -> None:
        """Go on without an attestation if that is allowed."""
        missing = AttestationMissing(f"the answer of {urlsplit(self.url).path} has no attestation", self)
        if self._required:
            self._stop(missing)
        self.error, self._closed = missing, True

    def _from_header(self, values: list[str]) -> bytes | None:
        if not values:
            return None
        try:
            (value,) = values
            return base64.b64decode(value, validate=True)
        except (ValueError, binascii.Error):
            self.error = AttestationRejected(f"the field {ATTESTATION} is no base64", self)
            return None

    def _take(self, out: bytes) -> None:
        self._hash.update(out)
        if self._kept is not None:
            self._kept += out
            if len(self._kept) > self._limits.kept:
                self._kept = None

    def _give_up(self, error: AttestationError) -> bytes:
        """End checking: raise, or hand on what is held and all that follows."""
        self._stop(error)
        held, self._rest = bytes(self._rest) + self._stripper.give_up(), bytearray()
        self.form = Form.UNCHECKED
        return held

    def _stop(self, error: AttestationError, *, always: bool = False) -> None:
        self._closed = True
        self.error = error
        if always:
            raise error
        self._fail(error)

    def _fail(self, error: AttestationError) -> None:
        attach = self._judge.checks.on_failure == "attach"
        if not attach and self.status is not None and self.status < 400:
            raise error

    def _judge_body(self) -> None:
        if self.attestation is None:
            self.error = AttestationMissing(
                f"the answer of {urlsplit(self.url).path} has no attestation", self
            )
            return
        output = HashedBody(self._hash.digest(), self._stripper.attestation is not None)
        request = self.request if self._judge.checks.request else None
        logs = {} if self._judge.logs is None else self._judge.logs.given(self.attestation)
        question = Question(output, self._judge.now(), request, self.nonce, logs=logs)
        try:
            self._verdict = self._judge.verify(self.attestation, question)
        except Rejected as error:
            self.error = AttestationRejected(str(error), self, error.report)
        except NotChecked as error:
            self.error = AttestationNotChecked(str(error), self, error.report)
        except PolicyError as error:  # it ended while the client was in use
            self.error = AttestationNotChecked(str(error), self)
        except OtherOriginError as error:
            self.error = AttestationRejected(str(error), self, error.verdict.report)


def _form(kinds: list[str]) -> Form:
    kind = kinds[0].partition(";")[0].strip().lower() if kinds else ""
    if kind == "text/event-stream":
        return Form.EVENTS
    return Form.WHOLE if not kind or kind.endswith(("/json", "+json")) else Form.OPAQUE


def _is_utf8(kind: str) -> bool:
    return kind.lower().count("charset") == len(_UTF8.findall(kind))


def _output_id(values: list[str]) -> str | None:
    try:
        (value,) = values
        parse_output_id(value)
    except (ValueError, MalformedError):
        return None
    return value


def _parse_nonce(text: str) -> bytes:
    """Return the bytes of a nonce that the caller set.

    Raises:
        ValueError: it is no nonce.
    """
    nonce = bytes.fromhex(text)
    if nonce.hex() != text or not MIN_NONCE <= len(nonce) <= MAX_NONCE:
        raise ValueError(f"{NONCE} takes {MIN_NONCE} to {MAX_NONCE} bytes in lower-case hexadecimal")
    return nonce


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """Return scheme, host and port of a URL."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, port
