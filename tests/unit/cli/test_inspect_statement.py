# SPDX-License-Identifier: Apache-2.0
"""`attest inspect` shows what a host states."""

from __future__ import annotations

from forge import NOW, Forge

from quotary_cli.kinds import describe
from quotary_verifier.wire.declaration import Declaration, Service
from quotary_verifier.wire.records import Statement


def test_inspect_shows_the_promise_in_a_statement_and_in_its_attestation() -> None:
    text = Declaration.of([Service(("/v1/chat/completions",))]).text
    record = Statement(b"s" * 16, NOW * 1000, text).encode()
    kind, content = describe(record)
    assert kind == "statement"
    assert content["services"] == [{"paths": ["/v1/chat/completions"], "unless": [], "without": []}]
    kind, whole = describe(Forge().attestation(record=record).encode())
    assert (kind, whole["record"]) == ("attestation", content)


def test_inspect_shows_the_text_of_a_statement_that_it_cannot_read() -> None:
    _, content = describe(Statement(b"s" * 16, 1, '{"schema":"quotary-statement/v9"}').encode())
    assert content["text"] == '{"schema":"quotary-statement/v9"}'
    assert "v9" in content["unread"]
