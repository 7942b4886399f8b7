# SPDX-License-Identifier: Apache-2.0
"""Replaying the IMA log to a quoted value."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from corpus import corpus_bytes, needs_corpus
from corpus import entry as indexed
from hypothesis import given, settings
from hypothesis import strategies as st
from ima_logs import ima_entry

from quotary_attest.roots import LogPrefix
from quotary_attest.tpm.ima import ImaReplay, entries
from quotary_verifier.logs.ima import parse_ima_binary

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


def name_of(log: bytes) -> LogPrefix:
    return LogPrefix(hashlib.sha256(log).digest(), len(log))


def test_a_prefix_is_named_by_its_bytes_and_follows_the_log(tmp_path: Path) -> None:
    path, log = tmp_path / "log", b""
    replay, datas = ImaReplay(path), []
    for data in (b"a", b"b", b"c"):
        datas.append(data)
        log += ima_entry(data)
        path.write_bytes(log + ima_entry(b"later") + ima_entry(b"not complete")[:-1])
        for _ in range(2):  # a quote that nothing moved before
            assert replay.prefix(ZERO | {10: value_after(*datas)}) == (name_of(log), "")
        path.write_bytes(log)


def test_a_fit_and_the_prefix_of_its_values_are_the_same_place(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(map(ima_entry, (b"a", b"b", b"c"))))
    replay = ImaReplay(path)
    found = replay.fit(ZERO | {10: value_after(b"a")}, wants(value_after(b"a", b"b")))
    assert found is not None
    assert replay.prefix(found) == (name_of(ima_entry(b"a") + ima_entry(b"b")), "")


@pytest.mark.parametrize("size", [20, 32, 48, 64])
def test_a_log_with_template_hashes_of_any_size_is_named(tmp_path: Path, size: int) -> None:
    log = b"".join(ima_entry(data, size=size) for data in (b"a", b"b"))
    (tmp_path / "log").write_bytes(log)
    replay = ImaReplay(tmp_path / "log")
    assert replay.prefix(ZERO | {10: value_after(b"a", b"b")}) == (name_of(log), "")


def test_a_log_in_several_pcrs_is_named_where_all_of_them_are_as_quoted(tmp_path: Path) -> None:
    log = ima_entry(b"a") + ima_entry(b"x", pcr=11) + ima_entry(b"b")
    (tmp_path / "log").write_bytes(log + ima_entry(b"y", pcr=11))
    replay = ImaReplay(tmp_path / "log", own=(13, 15))
    values = ZERO | {10: value_after(b"a", b"b"), 11: value_after(b"x")}
    assert replay.prefix(values) == (name_of(log), "")
    parse_ima_binary(log).replay(values)


@pytest.mark.parametrize("pcr", [13, 16])
def test_a_log_that_speaks_of_the_agents_own_pcrs_or_of_one_that_is_not_quoted_is_not_named(
    tmp_path: Path, pcr: int
) -> None:
    (tmp_path / "log").write_bytes(ima_entry(b"a") + ima_entry(b"x", pcr=pcr) + ima_entry(b"b"))
    replay = ImaReplay(tmp_path / "log", own=(13, 15))
    values = ZERO | {10: value_after(b"a", b"b"), 13: value_after(b"x")}
    prefix, flaw = replay.prefix(values if pcr == 13 else {**values, 13: bytes(32)})
    assert prefix is None
    assert f"it extends pcr {pcr}" in flaw


def test_a_false_template_hash_spoils_every_later_prefix_and_none_before(tmp_path: Path) -> None:
    path = tmp_path / "log"
    false = ima_entry(b"b").replace(hashlib.sha1(b"b").digest(), b"\1" * 20)
    path.write_bytes(ima_entry(b"a") + false + ima_entry(b"c"))
    replay = ImaReplay(path)
    assert replay.prefix(ZERO | {10: value_after(b"a")}) == (name_of(ima_entry(b"a")), "")
    for datas in ((b"a", b"b"), (b"a", b"b", b"c")):
        prefix, flaw = replay.prefix(ZERO | {10: value_after(*datas)})
        assert (prefix, "template hash" in flaw) == (None, True)


def test_padded_hashes_of_old_kernels_are_followed_and_not_named(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(ima_entry(b"a"))
    value = hashlib.sha256(bytes(32) + hashlib.sha1(b"a").digest().ljust(32, b"\0")).digest()
    prefix, flaw = ImaReplay(tmp_path / "log").prefix(ZERO | {10: value})
    assert (prefix, "before 5.8" in flaw) == (None, True)


def test_a_log_of_another_tpm_costs_one_reading_and_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(ima_entry(b"a"))
    replay = ImaReplay(path)
    values = ZERO | {10: b"\1" * 32}
    assert "kexec" in replay.prefix(values)[1]
    path.write_bytes(ima_entry(b"a") + ima_entry(b"b"))
    assert "kexec" in replay.prefix(ZERO | {10: value_after(b"a")})[1], "it is not searched again"


def test_a_tpm_into_which_nothing_was_measured_has_no_log_and_nothing_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(ima_entry(b"a"))
    replay = ImaReplay(tmp_path / "log")
    assert replay.prefix(ZERO) == (None, "")
    assert ImaReplay(tmp_path / "absent").prefix(ZERO | {10: b"\1" * 32}) == (None, "")
    (tmp_path / "folder").mkdir()
    assert ImaReplay(tmp_path / "folder").prefix(ZERO | {10: b"\1" * 32}) == (
        None,
        "it cannot be read: is a directory",
    )
    assert replay.prefix(ZERO | {10: value_after(b"a")}) == (name_of(ima_entry(b"a")), "")


@given(
    st.lists(st.tuples(st.sampled_from([10, 10, 10, 11]), st.binary(max_size=8), st.booleans()), min_size=1)
)
@settings(deadline=None, max_examples=60)
def test_what_is_named_is_what_the_verifier_replays_to_the_same_values(
    records: list[tuple[int, bytes, bool]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        path.write_bytes(b"")
        replay, values, log = ImaReplay(path), dict(ZERO), b""
        for pcr, data, violation in records:
            log += ima_entry(data, pcr=pcr, violation=violation)
            digest = b"\xff" * 32 if violation else hashlib.sha256(data).digest()
            values[pcr] = hashlib.sha256(values[pcr] + digest).digest()
            path.write_bytes(log)
            if values[10] == bytes(32):
                continue  # a kernel's first record is for PCR 10
            prefix, flaw = replay.prefix(values)
            assert (prefix, flaw) == (name_of(log), "")
            replayed = parse_ima_binary(log).replay(values)
            assert (replayed.unconfirmed, dict(replayed.values)) == (
                0,
                {p: values[p] for p in replayed.values},
            )
