# SPDX-License-Identifier: Apache-2.0
"""Which logs a commit names, quote by quote, without a TPM: what a verifier would refuse is left out and why."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ima_logs import file_data, host_log, ima_entry, replayed
from tcg_logs import good_boot

from quotary_attest.bootlogs import BootLogSettings
from quotary_attest.engine import bootlogs
from quotary_attest.engine.bootlogs import BootLogs
from quotary_attest.log.growing import GrowingLogs
from quotary_attest.log.store import Store
from quotary_attest.roots import ClockReading, LogPrefix, Quote
from quotary_attest.tpm import ima as replaying
from quotary_attest.tpm.ima import ImaReplay

OWN = (13, 15)
BOOT = good_boot()
RECORDS = host_log({pcr: BOOT.values().get(pcr, bytes(32)) for pcr in range(10)}, 3)


class Setup:
    """Logs in a folder, what names them, and a quote that fits them."""

    def __init__(self, folder: Path, records: list[bytes]) -> None:
        self.folder = folder
        self.store = Store.open(folder / "log")
        (folder / "tcg").write_bytes(BOOT.agile())
        (folder / "ima").write_bytes(b"".join(map(ima_entry, records)))
        self.logs = BootLogs(
            BootLogSettings(folder / "tcg", folder / "ima"), self.store, OWN, lambda _name: None
        )
        self.logs.begin()
        self.replay = ImaReplay(folder / "ima", OWN)
        self.pcrs = dict.fromkeys(range(16), bytes(32)) | BOOT.values() | {10: replayed(records)}

    def quote(self, **changes: object) -> Quote:
        prefix, flaw = self.replay.prefix(self.pcrs)
        made = Quote(b"", b"", b"", dict(self.pcrs), ClockReading(1, 7, 0, True), 1, prefix, flaw)
        return replace(made, **changes)  # type: ignore[arg-type]

    def names(self, **changes: object) -> set[str]:
        return set(self.logs.named(self.quote(**changes)))

    def reason(self, name: str) -> str:
        log = self.logs.status()[name]
        assert (log["state"] == "left out") is bool(log["reason"])
        return str(log["reason"])

    def close(self) -> None:
        self.replay.close()
        self.logs.begin()
        self.store.close()


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    made = Setup(tmp_path, RECORDS)
    yield made
    made.close()


def test_both_logs_are_named_where_both_replay(setup: Setup) -> None:
    assert setup.names() == {"tcg", "ima"}
    for digest, size in setup.logs.named(setup.quote()).values():
        data = setup.store.serve(f"blob/{digest.hex()}")
        assert (hashlib.sha256(data).digest(), len(data)) == (digest, size)


def test_a_boot_aggregate_of_another_boot_leaves_the_ima_log_out_until_nothing_says_what_it_was(
    tmp_path: Path,
) -> None:
    setup = Setup(tmp_path, host_log(dict.fromkeys(range(10), b"\1" * 32), 2))
    assert setup.names() == {"tcg"}
    assert "aggregate" in setup.reason("ima")
    setup.pcrs[4] = b"\2" * 32  # the firmware's log is out, too: nothing is known of PCR 8 and 9 at boot
    assert setup.names() == {"ima"}
    setup.close()


def test_a_log_that_is_another_one_when_it_is_stored_is_not_named(setup: Setup) -> None:
    foreign = LogPrefix(hashlib.sha256(b"another").digest(), 60)
    assert setup.names(ima=foreign) == {"tcg"}
    assert "another one than a moment ago" in setup.reason("ima")
    assert setup.names() == {"tcg", "ima"}, "the next quote finds it as it is"
    longer = LogPrefix(hashlib.sha256(b"another").digest(), 1 << 20)
    assert setup.names(ima=longer) == {"tcg"}


def test_logs_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    setup = Setup(tmp_path, RECORDS)
    quote = setup.quote()
    for name in ("tcg", "ima"):
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
    setup.logs.begin()
    assert set(setup.logs.named(quote)) == set()
    assert setup.reason("tcg") == setup.reason("ima") == "it cannot be read: is a directory"
    setup.close()


def test_a_log_that_is_longer_than_a_verifier_reads_is_left_out(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootlogs, "MAX_BOOT_LOG", len(BOOT.agile()) - 1)
    monkeypatch.setattr(replaying, "MAX_IMA_RECORDS", len(RECORDS) - 1)
    setup.logs.begin()
    assert setup.names() == set()
    assert "more than" in setup.reason("tcg")
    assert "more than a verifier reads" in setup.reason("ima")


def test_a_reason_is_logged_once_and_again_when_it_is_another(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "quotary.agent")
    good = setup.pcrs[4]
    for value in (b"\1" * 32, b"\1" * 32, b"\2" * 32, good, good):
        setup.pcrs[4] = value
        setup.names()
    lines = [record.message for record in caplog.records if "tcg" in record.message]
    assert [line.startswith("boot log tcg is left out") for line in lines] == [True, True, False]


def test_where_the_firmwares_pcrs_did_not_move_its_log_is_not_replayed_again(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert setup.names() == {"tcg", "ima"}

    def never(*_: object) -> None:
        raise AssertionError("it was replayed again")

    monkeypatch.setattr(bootlogs, "replay_firmware", never)
    monkeypatch.setattr(GrowingLogs, "newest", never)
    for number in range(3):
        with (setup.folder / "ima").open("ab") as file:
            file.write(ima_entry(file_data(50 + number)))
        setup.pcrs[10] = hashlib.sha256(
            setup.pcrs[10] + hashlib.sha256(file_data(50 + number)).digest()
        ).digest()
        setup.pcrs[11] = bytes([number]) * 32
        assert setup.names() == {"tcg", "ima"}
