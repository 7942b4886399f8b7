# SPDX-License-Identifier: Apache-2.0
"""The CA's folder: ledger, open challenges and key, as crashes and strangers may leave them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from quotary_attest.enrol.errors import EnrolmentUsageError
from quotary_attest.enrol.files import Identity
from quotary_attest.enrol.issuance import Issuer, TpmModel, make_ak_certificate, make_root
from quotary_attest.enrol.ledger import Entry, Ledger, conflicts
from quotary_attest.enrol.store import CaFolder, Pending, create_ca

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def identity(host: str = "a.example", origin: str = "a", ak: int = 1, ek: int = 1) -> Identity:
    """An identity by small numbers."""
    return Identity(f"{host}/{origin * 32}", b"\x00\x0b" + bytes((ak,)) * 32, bytes((ek,)) * 32)


def entry(serial: str, who: Identity, *replaces: str) -> Entry:
    """A ledger entry."""
    return Entry(serial, who, NOW, NOW, NOW, ("id:00001014", "swtpm", "id:1"), replaces, b"\x30\x00")


@pytest.fixture
def ca(tmp_path: Path) -> CaFolder:
    """A new CA."""
    create_ca(tmp_path / "ca", name="Example", now=NOW, days=100)
    return CaFolder(tmp_path / "ca")


PENDING = Pending(
    challenge_id="00" * 16,
    challenge="11" * 32,
    answer="22" * 32,
    origin="a.example/" + "a" * 32,
    ak_name="000b" + "33" * 32,
    ek_digest="44" * 32,
    ak="55",
    tpm=("id:00001014", "swtpm", "id:1"),
    expires=1_800_000_000_000,
    days=30,
    replaces=("01",),
)


def test_an_entry_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    entries = [entry("01", identity()), entry("02", identity(ak=2), "01")]
    for each in entries:
        ledger.append(each)
    assert ledger.entries() == entries


def test_a_ledger_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert Ledger(tmp_path / "ledger").entries() == []


@pytest.mark.parametrize("torn", [b"{", b'{"serial": "02"', b"\xff\xfe"])
def test_an_unfinished_line_does_not_count_and_gives_way_to_the_next(tmp_path: Path, torn: bytes) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.append(entry("01", identity()))
    with (tmp_path / "ledger").open("ab") as file:
        file.write(torn)
    assert [each.serial for each in ledger.entries()] == ["01"]
    ledger.append(entry("02", identity()))
    assert [each.serial for each in ledger.entries()] == ["01", "02"]
    assert torn not in (tmp_path / "ledger").read_bytes().splitlines()


@pytest.mark.parametrize("line", [b"{}", b"[]", b"nothing", b'{"serial": 1, "origin": 2}'])
def test_a_damaged_line_stops_the_ca(tmp_path: Path, line: bytes) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.append(entry("01", identity()))
    with (tmp_path / "ledger").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(EnrolmentUsageError, match=r"line 2 of .* is damaged"):
        ledger.entries()


def test_the_same_identity_stands_against_nobody() -> None:
    assert conflicts([entry("01", identity())], identity()) == []


@pytest.mark.parametrize(
    "asking",
    [
        identity(ak=2),
        identity(ek=2),
        identity(origin="b"),
        identity(host="b.example", origin="b"),
        identity(origin="b", ak=2, ek=2),
    ],
)
def test_another_key_tpm_or_log_under_one_name_or_key_is_a_conflict(asking: Identity) -> None:
    assert [each.serial for each in conflicts([entry("01", identity())], asking)] == ["01"]


def test_two_hosts_may_share_a_tpm() -> None:
    assert conflicts([entry("01", identity())], identity(host="b.example", origin="b", ak=2)) == []


def test_a_replaced_entry_is_no_longer_in_force_but_its_heir_is() -> None:
    entries = [entry("01", identity()), entry("02", identity(ak=2), "01")]
    assert conflicts(entries, identity(ak=2)) == []
    assert [each.serial for each in conflicts(entries, identity())] == ["02"]
    back = [*entries, entry("03", identity(), "02")]
    assert conflicts(back, identity()) == []


def test_an_open_challenge_is_taken_once(ca: CaFolder) -> None:
    ca.save(PENDING)
    assert ca.pending() == [PENDING]
    assert ca.take(bytes(16)) == PENDING
    assert ca.take(bytes(16)) is None
    assert ca.pending() == []


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"unknown": 1}'])
def test_a_damaged_challenge_is_named_and_never_answered(ca: CaFolder, content: str) -> None:
    ca.save(PENDING)
    (ca.path / "pending" / f"{PENDING.challenge_id}.json").write_text(content)
    with pytest.raises(EnrolmentUsageError, match="is damaged"):
        ca.take(bytes(16))
    assert ca.take(bytes(16)) is None


def test_a_challenge_with_fields_of_another_version_is_not_guessed_at(ca: CaFolder) -> None:
    ca.save(PENDING)
    path = ca.path / "pending" / f"{PENDING.challenge_id}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"more": 1}))
    with pytest.raises(EnrolmentUsageError, match="is damaged"):
        ca.pending()


def test_the_root_may_issue_leaves_and_nothing_else(ca: CaFolder) -> None:
    root = ca.root
    constraints = root.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = root.extensions.get_extension_for_class(x509.KeyUsage)
    assert constraints.critical and constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    assert usage.critical and usage.value.key_cert_sign and not usage.value.digital_signature
    assert isinstance(root.public_key(), ec.EllipticCurvePublicKey)
    root.verify_directly_issued_by(root)


def test_an_interrupted_init_leaves_no_ca(ca: CaFolder) -> None:
    (ca.path / "root.pem").unlink()
    with pytest.raises(EnrolmentUsageError, match="there is no ca"):
        CaFolder(ca.path)


def test_a_key_that_is_not_the_roots_is_refused(ca: CaFolder) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    write_key(ca, stranger)
    with pytest.raises(EnrolmentUsageError, match="not the key of its root"):
        ca.issuer()


def test_a_key_on_another_curve_is_refused(ca: CaFolder) -> None:
    write_key(ca, ec.generate_private_key(ec.SECP384R1()))
    with pytest.raises(EnrolmentUsageError, match="not a p-256 key"):
        ca.issuer()


def write_key(ca: CaFolder, key: ec.EllipticCurvePrivateKey) -> None:
    """Put another key into the folder."""
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (ca.path / "key.pem").write_bytes(key.private_bytes(*pem))


def test_a_damaged_root_is_named(ca: CaFolder) -> None:
    (ca.path / "root.pem").write_text("nothing")
    with pytest.raises(EnrolmentUsageError, match="is not a certificate"):
        ca.issuer()


@pytest.mark.parametrize(("name", "days"), [("", 10), ("x" * 65, 10), ("Example", 3_000_000)])
def test_a_root_that_cannot_be_made_leaves_no_folder(tmp_path: Path, name: str, days: int) -> None:
    with pytest.raises(EnrolmentUsageError):
        create_ca(tmp_path / "ca", name=name, now=NOW, days=days)
    assert not (tmp_path / "ca").exists()


def test_an_occupied_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(EnrolmentUsageError, match="not an empty folder"):
        create_ca(tmp_path, name="Example", now=NOW, days=10)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_certificate_names_no_tpm_where_none_is_known(ca: CaFolder) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    leaf = make_ak_certificate(ca.issuer(), key, origin="a.example/" + "a" * 32, tpm=None, now=NOW, days=1)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DirectoryName) == []
    assert names.get_values_for_type(x509.DNSName) == ["a.example"]


def test_serial_numbers_are_random_and_times_allow_for_clocks_that_lag(ca: CaFolder) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    made = [
        make_ak_certificate(
            ca.issuer(), key, origin="a.example/" + "a" * 32, tpm=TpmModel("m", "o", "v"), now=NOW, days=1
        )
        for _ in range(2)
    ]
    assert made[0].serial_number != made[1].serial_number
    assert all(leaf.serial_number.bit_length() > 100 for leaf in made)
    assert made[0].not_valid_before_utc <= NOW < made[0].not_valid_after_utc


def test_a_leaf_never_begins_before_its_root() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    root = make_root("Example", key, now=NOW, days=10)
    earlier = NOW.replace(year=2020)
    leaf = make_ak_certificate(
        Issuer(root, key), key.public_key(), origin="a.example/" + "a" * 32, tpm=None, now=earlier, days=1
    )
    assert leaf.not_valid_before_utc == root.not_valid_before_utc


def test_a_pending_record_gives_back_who_was_challenged() -> None:
    assert replace(PENDING, ak_name="000b" + "66" * 32).identity.ak_name == b"\x00\x0b" + b"\x66" * 32
