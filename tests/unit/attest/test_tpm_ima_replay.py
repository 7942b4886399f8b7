# SPDX-License-Identifier: Apache-2.0
"""Replaying the IMA log to a quoted value."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest
from corpus import corpus_bytes, needs_corpus
from corpus import entry as indexed
from ima_logs import ima_entry

from quotary_attest.tpm.ima import ImaReplay, entries

ZERO = dict.fromkeys(range(16), bytes(32))


def extend(value: bytes, data: bytes) -> bytes:
    return hashlib.sha256(value + hashlib.sha256(data).digest()).digest()


def value_after(*datas: bytes) -> bytes:
    value = bytes(32)
    for data in datas:
        value = extend(value, data)
    return value


def wants(value: bytes) -> object:
    def fits(values: Mapping[int, bytes]) -> bool:
        return values[10] == value

    return fits


@needs_corpus
@pytest.mark.parametrize("name", ["ima-ibm-binary-sig-sha1.bin", "ima-ibm-binary-sig-sha256.bin"])
def test_a_real_log_replays_to_the_pcr_of_its_machine(name: str) -> None:
    log = corpus_bytes(f"tpm/ima/{name}")
    value = bytes(32)
    found = list(entries(log))
    for measured in found:
        assert measured.pcr == 10
        value = hashlib.sha256(value + measured.digest).digest()
    expected = indexed(f"tpm/ima/{name}")["expected"]
    assert len(found) == expected["records"]
    assert value.hex() == expected["pcr10"]["sha256"]
    assert found[-1].end == len(log)


def test_the_prefix_that_fits_the_quote_is_found_although_the_log_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(ima_entry(data) for data in (b"a", b"b", b"c", b"d")))
    replay = ImaReplay(path)
    known = ZERO | {10: value_after(b"a")}
    found = replay.fit(known, wants(value_after(b"a", b"b", b"c")))
    assert found == known | {10: value_after(b"a", b"b", b"c")}


def test_the_next_fit_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(ima_entry(b"a") + ima_entry(b"b"))
    replay = ImaReplay(path)
    first = replay.fit(ZERO | {10: value_after(b"a")}, wants(value_after(b"a", b"b")))
    assert first is not None
    path.write_bytes(path.read_bytes() + ima_entry(b"c"))
    assert replay.fit(first, wants(value_after(b"a", b"b", b"c"))) is not None


def test_values_that_were_read_again_meanwhile_are_found_further_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(ima_entry(data) for data in (b"a", b"b", b"c", b"d")))
    replay = ImaReplay(path)
    assert replay.fit(ZERO | {10: value_after(b"a")}, wants(value_after(b"a", b"b"))) is not None
    reread = ZERO | {10: value_after(b"a", b"b", b"c")}
    assert replay.fit(reread, wants(value_after(b"a", b"b", b"c", b"d"))) is not None


def test_a_log_that_does_not_lead_to_the_known_value_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(ima_entry(b"a") + ima_entry(b"b"))
    replay = ImaReplay(path)
    assert replay.fit(ZERO | {10: b"\x01" * 32}, wants(value_after(b"a", b"b"))) is None
    assert replay.fit(ZERO | {10: value_after(b"a")}, wants(value_after(b"a", b"b"))) is None


def test_without_a_log_nothing_is_found(tmp_path: Path) -> None:
    assert ImaReplay(tmp_path / "absent").fit(ZERO, wants(bytes(32))) is None


def test_a_log_that_is_not_there_yet_is_found_later(tmp_path: Path) -> None:
    replay = ImaReplay(tmp_path / "log")
    known = ZERO | {10: value_after(b"a")}
    assert replay.fit(known, wants(value_after(b"a", b"b"))) is None
    (tmp_path / "log").write_bytes(ima_entry(b"a") + ima_entry(b"b"))
    assert replay.fit(known, wants(value_after(b"a", b"b"))) is not None


def test_a_violation_extends_ones() -> None:
    (entry,) = entries(ima_entry(b"a", violation=True))
    assert entry.digest == b"\xff" * 32


def test_an_entry_that_is_not_complete_ends_the_log() -> None:
    log = ima_entry(b"a") + ima_entry(b"b")
    cuts = (0, 10, len(ima_entry(b"a")), len(log) - 1, len(log))
    assert [len(list(entries(log[:cut]))) for cut in cuts] == [0, 0, 1, 1, 2]


def test_the_old_template_pads_the_file_name(tmp_path: Path) -> None:
    name = b"boot_aggregate"
    fields = b"\x07" * 20 + len(name).to_bytes(4, "little") + name
    log = (10).to_bytes(4, "little") + b"\x01" * 20 + (3).to_bytes(4, "little") + b"ima" + fields
    (entry,) = entries(log)
    assert entry.digest == hashlib.sha256(b"\x07" * 20 + name.ljust(256, b"\0")).digest()
    assert entry.end == len(log)


def test_kernels_that_extend_padded_sha1_hashes_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(ima_entry(b"a") + ima_entry(b"b"))

    def padded(value: bytes, data: bytes) -> bytes:
        return hashlib.sha256(value + hashlib.sha1(data).digest().ljust(32, b"\0")).digest()

    first = padded(bytes(32), b"a")
    second = padded(first, b"b")
    assert ImaReplay(path).fit(ZERO | {10: first}, wants(second)) == ZERO | {10: second}


def test_entries_of_another_pcr_are_followed_too(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(ima_entry(b"a") + ima_entry(b"x", pcr=11) + ima_entry(b"b"))
    replay = ImaReplay(path)
    known = ZERO | {10: value_after(b"a")}
    found = replay.fit(known, wants(value_after(b"a", b"b")))
    assert found == known | {10: value_after(b"a", b"b"), 11: value_after(b"x")}
