# SPDX-License-Identifier: Apache-2.0
"""Enrolment with a real software TPM: what is granted, and every refusal one by one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from enrolling import HOST, NOW, EnrollingCa, EnrollingHost, altered, later, with_genesis
from soft_tpm import ecc_key
from tpms import Machine, Tpm

from quotary_attest.enrol.credential import make_credential
from quotary_attest.enrol.errors import EnrolmentUsageError, Refused
from quotary_attest.enrol.files import Activation, Challenge, Request, file_digest
from quotary_attest.enrol.issuance import make_ak_certificate, make_root
from quotary_attest.state import read_certificates
from quotary_attest.tpm.connection import Connection
from quotary_attest.tpm.errors import TpmError, TpmForeignKey
from quotary_attest.tpm.tss import lib
from quotary_verifier.errors import EvidenceError, MalformedError, QuotaryError, UnsupportedError
from quotary_verifier.pki.chain import TrustAnchors, verify_ak_chain
from quotary_verifier.wire.records import Genesis
from quotary_verifier.wire.tpm import CURVE_P384, parse_public

OWN_ATTRIBUTES = 0x00050472
AUTH_UNAVAILABLE = 0x12F
"""TPM_RC_AUTH_UNAVAILABLE: nobody can authorise a key of which the TPM has the public part only."""


@pytest.fixture
def host(tpm: Tpm, tmp_path: Path) -> EnrollingHost:
    """A host that was not enrolled yet."""
    return EnrollingHost.make(tpm, tmp_path / "state")


@pytest.fixture
def ca(tpm: Tpm, tmp_path: Path) -> EnrollingCa:
    """A CA that trusts the maker of the host's TPM."""
    return EnrollingCa.make(tmp_path / "ca", tpm.machine.ek_root, tpm.machine.ek_issuer)


@pytest.fixture(scope="module")
def other_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State of a TPM with other endorsement keys, by another maker."""
    from quotary_attest.tpm.emulator import Emulator

    state = tmp_path_factory.mktemp("other-template") / "state"
    Emulator(state).manufacture()
    return state


@pytest.fixture
def other_tpm(
    tpm_provider: Callable[[Path, Path], Machine], tmp_path: Path, other_template: Path
) -> Iterator[Tpm]:
    """A second TPM."""
    folder = tmp_path / "other"
    folder.mkdir()
    made = Tpm(tpm_provider(folder, other_template))
    yield made
    made.stop()


@pytest.fixture
def both(tpm: Tpm, other_tpm: Tpm, tmp_path: Path) -> EnrollingCa:
    """A CA that trusts the makers of both TPMs."""
    roots = [path for each in (tpm, other_tpm) for path in (each.machine.ek_root, each.machine.ek_issuer)]
    return EnrollingCa.make(tmp_path / "both", *roots)


def refused(what: str, error: type[Exception] = Refused) -> Any:
    """The block ends in this error."""
    return pytest.raises(error, match=what)


# what is granted


@pytest.mark.parametrize("kind", ["ecc-p384", "rsa-2048"])
def test_a_host_gets_a_certificate_for_its_key_its_name_its_log_and_its_tpm(
    host: EnrollingHost, ca: EnrollingCa, kind: str
) -> None:
    activation = host.activate(ca.challenge(host.request(kind=kind)))
    host.install(ca.issue(activation).grant)
    path = read_certificates(host.folder)
    endorsement = verify_ak_chain(path, TrustAnchors.from_pem(ca.folder.root_pem), NOW)
    assert len(path) == 1
    assert endorsement.spki_der == parse_public(host.identity.tpm.ak_public).to_spki_der()
    assert endorsement.dns_names == (HOST,)
    assert endorsement.uris == (f"quotary://{host.origin}",)
    assert (endorsement.tpm_manufacturer, endorsement.tpm_model) == ("id:00001014", "swtpm")


def test_the_certificate_is_small_and_holds_nothing_but_what_a_verifier_looks_at(
    host: EnrollingHost, ca: EnrollingCa
) -> None:
    der = ca.enrol(host).entry.certificate
    certificate = x509.load_der_x509_certificate(der)
    assert len(der) < 620
    assert {extension.oid.dotted_string: extension.critical for extension in certificate.extensions} == {
        "2.5.29.19": True,
        "2.5.29.15": True,
        "2.5.29.37": False,
        "2.5.29.17": True,
        "2.5.29.35": False,
    }
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature and not (
        usage.key_cert_sign or usage.key_agreement or usage.key_encipherment
    )
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    roles = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [role.dotted_string for role in roles] == ["2.23.133.8.3"]


def test_a_certificate_lives_as_long_as_was_said_and_never_longer_than_its_root(
    host: EnrollingHost, ca: EnrollingCa
) -> None:
    short = ca.enrol(host, days=7).entry
    assert (short.not_after - short.not_before).days == 7
    assert ca.enrol(host, days=36_000).entry.not_after == ca.folder.root.not_valid_after_utc


def test_a_host_renews_its_certificate_under_another_serial_number(
    host: EnrollingHost, ca: EnrollingCa
) -> None:
    first, second = ca.enrol(host), ca.enrol(host)
    assert first.entry.serial != second.entry.serial
    assert first.entry.identity == second.entry.identity
    assert [entry.serial for entry in ca.folder.ledger.entries()] == [first.entry.serial, second.entry.serial]


def test_the_ledger_only_grows_and_holds_each_certificate(host: EnrollingHost, ca: EnrollingCa) -> None:
    ca.enrol(host)
    before = (ca.folder.path / "ledger.jsonl").read_bytes()
    issued = ca.enrol(host)
    after = (ca.folder.path / "ledger.jsonl").read_bytes()
    assert after.startswith(before) and after.endswith(b"\n")
    assert ca.folder.ledger.entries()[-1] == issued.entry


def test_the_ca_keeps_no_secret_of_a_challenge(host: EnrollingHost, ca: EnrollingCa) -> None:
    challenge = ca.challenge(host.request())
    proof = Activation.decode(host.activate(challenge)).proof
    kept = json.loads(next((ca.folder.path / "pending").iterdir()).read_text())
    assert kept["answer"] == hashlib.sha256(proof).hexdigest()
    assert proof.hex() not in json.dumps(kept)


def test_what_a_ca_keeps_is_readable_by_its_owner_only(host: EnrollingHost, ca: EnrollingCa) -> None:
    ca.enrol(host)
    ca.challenge(host.request())
    for path in [ca.folder.path, *ca.folder.path.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


# the attestation key


@pytest.mark.parametrize("bit", [0x2, 0x10, 0x20, 0x40, 0x400, 0x10000, 0x40000])
def test_a_key_that_lacks_one_attribute_is_refused_before_anything_is_issued(
    host: EnrollingHost, ca: EnrollingCa, bit: int
) -> None:
    genesis = genesis_with_ak(host, ecc_key(attributes=OWN_ATTRIBUTES & ~bit).public.raw)
    with refused("not an attestation key|not the agent's", EvidenceError):
        ca.challenge(with_genesis(host.request(), genesis))
    assert ca.idle


@pytest.mark.parametrize("bit", [0x80, 0x20000])
def test_a_key_with_one_attribute_more_is_refused(host: EnrollingHost, ca: EnrollingCa, bit: int) -> None:
    genesis = genesis_with_ak(host, ecc_key(attributes=OWN_ATTRIBUTES | bit).public.raw)
    with refused("not an attestation key|not the agent's", EvidenceError):
        ca.challenge(with_genesis(host.request(), genesis))
    assert ca.idle


def test_a_key_with_a_policy_is_refused(host: EnrollingHost, ca: EnrollingCa) -> None:
    genesis = genesis_with_ak(host, ecc_key(auth_policy=bytes(32)).public.raw)
    with refused("policy", EvidenceError):
        ca.challenge(with_genesis(host.request(), genesis))


def test_a_key_on_another_curve_than_the_agents_is_refused(host: EnrollingHost, ca: EnrollingCa) -> None:
    genesis = genesis_with_ak(host, ecc_key(CURVE_P384).public.raw)
    with refused("p-256", EvidenceError):
        ca.challenge(with_genesis(host.request(), genesis))


def test_a_key_that_is_no_point_of_its_curve_is_refused(host: EnrollingHost, ca: EnrollingCa) -> None:
    public = ecc_key().public
    genesis = genesis_with_ak(host, public.raw[:-1] + bytes((public.raw[-1] ^ 1,)))
    with refused("not a public key", MalformedError):
        ca.challenge(with_genesis(host.request(), genesis))


@pytest.mark.parametrize("hierarchy", ["NULL", "OWNER", "ENDORSEMENT"])
def test_a_software_key_that_claims_the_attributes_of_a_tpm_cannot_answer_its_challenge(
    host: EnrollingHost, ca: EnrollingCa, hierarchy: str
) -> None:
    liar = ecc_key(attributes=OWN_ATTRIBUTES)
    request = with_genesis(host.request(), genesis_with_ak(host, liar.public.raw))
    challenge = Challenge.decode(ca.challenge(request))
    area, _ = lib.TPMT_PUBLIC.unmarshal(liar.public.raw)
    within = getattr(lib.ESYS_TR, hierarchy)
    with Connection(host.tpm.tcti) as connection:
        loaded = connection.commands.load_external(lib.TPM2B_PUBLIC(publicArea=area), None, within)
        with pytest.raises(TpmError) as caught:
            activate_with(connection, loaded, challenge)
    assert caught.value.rc == AUTH_UNAVAILABLE


def test_without_looking_at_the_attributes_a_software_key_would_pass(host: EnrollingHost) -> None:
    """The reason for the rule: a TPM opens a credential for a key that was made outside of it."""
    secret, key = bytes(range(32)), ecc_key(attributes=0x00040040)
    request = Request.decode(host.request(kind="rsa-2048"))
    ek = parse_public(request.ek_public)
    made = make_credential(ek, ek.public_key(), ak_name=key.public.name, secret=secret)
    challenge = dataclasses.replace(
        EXAMPLE_CHALLENGE, id_object=made.id_object, encrypted_secret=made.encrypted_secret
    )
    with Connection(host.tpm.tcti) as connection:
        loaded = connection.commands.load_external(*external(key))
        assert activate_with(connection, loaded, challenge) == secret


def test_an_origin_without_a_key_in_a_tpm_is_not_enrolled(host: EnrollingHost, ca: EnrollingCa) -> None:
    with refused("only TPM origins", EvidenceError):
        ca.challenge(with_genesis(host.request(), dataclasses.replace(host.identity.genesis, tpm=None)))


def test_a_start_counter_that_is_no_counter_is_refused(host: EnrollingHost, ca: EnrollingCa) -> None:
    genesis = host.identity.genesis
    assert genesis.tpm is not None
    counter = genesis.tpm.counter
    attributes = int.from_bytes(counter[6:10]) & ~0xF0
    plain = dataclasses.replace(genesis.tpm, counter=counter[:6] + attributes.to_bytes(4) + counter[10:])
    with refused("not a counter", EvidenceError):
        ca.challenge(with_genesis(host.request(), dataclasses.replace(genesis, tpm=plain)))


# the endorsement key


def test_a_certificate_of_another_tpm_is_refused(
    host: EnrollingHost, other_tpm: Tpm, both: EnrollingCa
) -> None:
    foreign = EnrollingHost.make(other_tpm, host.folder.parent / "foreign")
    mine, theirs = Request.decode(host.request()), Request.decode(foreign.request())
    mixed = dataclasses.replace(mine, ek_certificate=theirs.ek_certificate)
    with refused("of another key", EvidenceError):
        both.challenge(mixed.encode())
    assert both.idle


def test_a_request_with_the_whole_endorsement_of_another_tpm_cannot_be_activated(
    host: EnrollingHost, other_tpm: Tpm, both: EnrollingCa
) -> None:
    foreign = EnrollingHost.make(other_tpm, host.folder.parent / "foreign")
    mine, theirs = Request.decode(host.request()), Request.decode(foreign.request())
    stolen = dataclasses.replace(
        mine, ek_certificate=theirs.ek_certificate, ek_public=theirs.ek_public
    ).encode()
    (host.folder / "enrolment" / "request").write_bytes(stolen)
    with refused("does not belong to this tpm", TpmForeignKey):
        host.activate(both.challenge(stolen))


def test_an_endorsement_that_does_not_lead_to_a_named_root_is_refused(
    host: EnrollingHost, other_tpm: Tpm, tmp_path: Path
) -> None:
    stranger = EnrollingCa.make(tmp_path / "stranger", other_tpm.machine.ek_root, other_tpm.machine.ek_issuer)
    with refused("does not hold", EvidenceError):
        stranger.challenge(host.request())
    assert stranger.idle


def test_an_endorsement_certificate_is_checked_at_the_time_of_the_challenge(
    host: EnrollingHost, ca: EnrollingCa
) -> None:
    with refused("not valid at", EvidenceError):
        ca.challenge(host.request(), now=later(days=-4000))


@pytest.mark.parametrize("bit", [0x2, 0x10, 0x20, 0x10000, 0x20000, 0x40000])
def test_a_public_area_that_is_not_an_endorsement_keys_is_refused(
    host: EnrollingHost, ca: EnrollingCa, bit: int
) -> None:
    public = Request.decode(host.request()).ek_public
    attributes = int.from_bytes(public[4:8]) ^ bit
    with refused("not an endorsement key", EvidenceError):
        ca.challenge(altered(host.request(), 4, lambda area: area[:4] + attributes.to_bytes(4) + area[8:]))


def test_a_tpm_without_a_certificate_is_enrolled_with_one_from_a_file(
    host: EnrollingHost, ca: EnrollingCa
) -> None:
    certificate = Request.decode(host.request(kind="rsa-2048")).ek_certificate
    request = host.request(certificate=certificate)
    assert Request.decode(request).ek_certificate == certificate
    host.install(ca.issue(host.activate(ca.challenge(request))).grant)


def test_a_certificate_file_of_another_tpm_makes_no_request(host: EnrollingHost, other_tpm: Tpm) -> None:
    foreign = EnrollingHost.make(other_tpm, host.folder.parent / "foreign")
    certificate = Request.decode(foreign.request()).ek_certificate
    with refused("fits an endorsement key"):
        host.request(certificate=certificate)


def certificate_for(key: Any) -> bytes:
    """Some certificate of a key, as a file might hold."""
    return make_root("Example", key, now=NOW, days=1).public_bytes(Encoding.DER)


def test_a_certificate_file_with_a_key_of_another_kind_makes_no_request(host: EnrollingHost) -> None:
    for curve in (ec.SECP256K1(), ec.SECP521R1()):
        with refused("are not supported", UnsupportedError):
            host.request(certificate=certificate_for(ec.generate_private_key(curve)))
    with refused("cannot be read", MalformedError):
        host.request(certificate=b"\x30\x00")


# files that somebody changed


@pytest.mark.parametrize("key", [2, 3, 4, 5, 6])
def test_a_request_that_was_changed_on_its_way_earns_nothing(
    host: EnrollingHost, ca: EnrollingCa, key: int
) -> None:
    changed = altered(host.request(), key, CHANGES["request", key])
    with pytest.raises(QuotaryError):
        host.activate(ca.challenge(changed))
    assert not ca.folder.ledger.entries()


def test_who_changes_the_request_and_mends_the_challenge_is_found_out_by_the_proof(
    host: EnrollingHost, ca: EnrollingCa
) -> None:
    honest = host.request()
    hijacked = with_genesis(honest, dataclasses.replace(host.identity.genesis, note_key=bytes(32)))
    challenge = ca.challenge(hijacked)
    mended = altered(altered(challenge, 3, lambda _: file_digest(honest)), 4, lambda _: host.origin)
    answer = Activation.decode(host.activate(mended))
    passed_on = dataclasses.replace(
        answer, challenge=file_digest(challenge), identity=Challenge.decode(challenge).identity
    )
    with refused("does not prove"):
        ca.issue(passed_on.encode())
    assert ca.idle


@pytest.mark.parametrize("key", [2, 3, 4, 5, 6, 7, 8, 9])
def test_a_challenge_that_was_changed_on_its_way_earns_nothing(
    host: EnrollingHost, ca: EnrollingCa, key: int
) -> None:
    changed = altered(ca.challenge(host.request()), key, CHANGES["challenge", key])
    with pytest.raises((QuotaryError, TpmError)):
        ca.issue(host.activate(changed))
    assert not ca.folder.ledger.entries()


@pytest.mark.parametrize("key", [2, 3, 4, 5, 6, 7])
def test_an_activation_that_was_changed_on_its_way_earns_nothing(
    host: EnrollingHost, ca: EnrollingCa, key: int
) -> None:
    changed = altered(host.activate(ca.challenge(host.request())), key, CHANGES["activation", key])
    with refused("no such challenge|another challenge|does not prove"):
        ca.issue(changed)
    assert not ca.folder.ledger.entries()


@pytest.mark.parametrize("key", [2, 3, 4, 5, 6])
def test_a_grant_that_was_changed_on_its_way_is_not_installed(
    host: EnrollingHost, ca: EnrollingCa, key: int
) -> None:
    grant = ca.enrol(host).grant
    with pytest.raises(QuotaryError):
        host.install(altered(grant, key, CHANGES["grant", key]))
    assert read_certificates(host.folder) == ()
    host.install(grant)


def flipped(data: bytes) -> bytes:
    """The last byte changed."""
    return data[:-1] + bytes((data[-1] ^ 1,))


def other_origin(origin: str) -> str:
    """Another log of the same host."""
    return origin[:-1] + ("a" if origin[-1] != "a" else "b")


def other_note_key(record: bytes) -> bytes:
    """The same host and AK, but another note key."""
    return dataclasses.replace(Genesis.decode(record), note_key=bytes(32)).encode()


CHANGES: dict[tuple[str, int], Callable[[Any], Any]] = {
    ("request", 2): flipped,
    ("request", 3): other_note_key,
    ("request", 4): flipped,
    ("request", 5): flipped,
    ("request", 6): lambda certificates: [*certificates, b"\x30\x00"],
    **{("challenge", key): flipped for key in (2, 3, 5, 6, 8, 9)},
    ("challenge", 4): other_origin,
    ("challenge", 7): lambda expires: expires + 1,
    **{("activation", key): flipped for key in (2, 3, 5, 6, 7)},
    ("activation", 4): other_origin,
    **{("grant", key): flipped for key in (2, 4, 5)},
    ("grant", 3): other_origin,
    ("grant", 6): lambda certificates: [flipped(certificates[0]), *certificates[1:]],
}


# once, and in time


def test_an_activation_is_answered_once(host: EnrollingHost, ca: EnrollingCa) -> None:
    activation = host.activate(ca.challenge(host.request()))
    ca.issue(activation)
    with refused("no such challenge is open"):
        ca.issue(activation)
    assert len(ca.folder.ledger.entries()) == 1


def test_after_a_wrong_answer_the_right_one_comes_too_late(host: EnrollingHost, ca: EnrollingCa) -> None:
    activation = host.activate(ca.challenge(host.request()))
    with refused("does not prove"):
        ca.issue(altered(activation, 7, flipped))
    with refused("no such challenge is open"):
        ca.issue(activation)
    assert ca.idle


def test_two_answers_at_the_same_time_earn_one_certificate(host: EnrollingHost, ca: EnrollingCa) -> None:
    activation = host.activate(ca.challenge(host.request()))
    outcomes: list[str] = []
    gate = threading.Barrier(4)

    def answer() -> None:
        gate.wait()
        try:
            ca.issue(activation)
            outcomes.append("issued")
        except Refused:
            outcomes.append("refused")

    threads = [threading.Thread(target=answer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["issued", "refused", "refused", "refused"]
    assert len(ca.folder.ledger.entries()) == 1


def test_a_challenge_expires_for_the_host_and_for_the_ca(host: EnrollingHost, ca: EnrollingCa) -> None:
    challenge = ca.challenge(host.request(), hours=1)
    with refused("has expired"):
        host.activate(challenge, now=later(hours=1))
    activation = host.activate(challenge, now=later(minutes=59))
    with refused("has expired"):
        ca.issue(activation, now=later(hours=1))
    with refused("no such challenge is open"):
        ca.issue(activation, now=later(minutes=59))


def test_a_newer_challenge_voids_the_older_one(host: EnrollingHost, ca: EnrollingCa) -> None:
    request = host.request()
    older = host.activate(ca.challenge(request))
    newer = host.activate(ca.challenge(request))
    with refused("no such challenge is open"):
        ca.issue(older)
    ca.issue(newer)


def test_expired_challenges_do_not_pile_up(host: EnrollingHost, ca: EnrollingCa, tmp_path: Path) -> None:
    ca.challenge(host.request(), hours=1)
    second = EnrollingHost.make(host.tpm, tmp_path / "second", "gpu-2.example.com")
    ca.challenge(second.request(), now=later(hours=2))
    assert [pending.origin for pending in ca.folder.pending()] == [second.origin]


def test_a_challenge_for_an_older_request_is_not_answered(host: EnrollingHost, ca: EnrollingCa) -> None:
    challenge = ca.challenge(host.request())
    host.request()
    with refused("last request"):
        host.activate(challenge)


def test_a_host_that_did_not_ask_answers_nothing(host: EnrollingHost, ca: EnrollingCa) -> None:
    challenge = ca.challenge(host.request())
    (host.folder / "enrolment" / "request").unlink()
    with refused("has not asked"):
        host.activate(challenge)


def test_a_grant_is_installed_once(host: EnrollingHost, ca: EnrollingCa) -> None:
    grant = ca.enrol(host).grant
    host.install(grant)
    with refused("not waiting for a grant"):
        host.install(grant)


def test_a_grant_of_an_earlier_enrolment_is_not_installed(host: EnrollingHost, ca: EnrollingCa) -> None:
    earlier = ca.enrol(host).grant
    ca.enrol(host)
    with refused("last activation"):
        host.install(earlier)


def test_a_ca_whose_root_has_expired_issues_nothing(host: EnrollingHost, ca: EnrollingCa) -> None:
    after = ca.folder.root.not_valid_after_utc
    activation = host.activate(ca.challenge(host.request(), now=after), now=after)
    with refused("has expired", EnrolmentUsageError):
        ca.issue(activation, now=after)
    assert ca.idle


# who is who


def test_a_host_name_stays_with_its_key(host: EnrollingHost, ca: EnrollingCa, tmp_path: Path) -> None:
    ca.enrol(host)
    again = EnrollingHost.make(host.tpm, tmp_path / "again", HOST)
    request = again.request()
    with refused("another attestation key"):
        ca.challenge(request)
    assert not ca.folder.pending()


def test_a_host_name_stays_with_its_tpm(
    host: EnrollingHost, other_tpm: Tpm, both: EnrollingCa, tmp_path: Path
) -> None:
    both.enrol(host)
    impostor = EnrollingHost.make(other_tpm, tmp_path / "impostor", HOST)
    with refused("another endorsement key"):
        both.challenge(impostor.request())


def test_two_tpms_that_ask_for_one_name_at_the_same_time_do_not_both_get_it(
    host: EnrollingHost, other_tpm: Tpm, both: EnrollingCa, tmp_path: Path
) -> None:
    rival = EnrollingHost.make(other_tpm, tmp_path / "rival", HOST)
    first = host.activate(both.challenge(host.request()))
    second = rival.activate(both.challenge(rival.request()))
    both.issue(first)
    with refused("another endorsement key"):
        both.issue(second)


@pytest.mark.parametrize("name", [HOST, "gpu-2.example.com"])
def test_a_key_stays_with_its_log(host: EnrollingHost, ca: EnrollingCa, name: str) -> None:
    ca.enrol(host)
    second = dataclasses.replace(host.identity.genesis, note_key=bytes(32), host=name)
    with refused("this attestation key is enrolled for"):
        ca.challenge(with_genesis(host.request(), second))


def test_an_operator_replaces_a_host_and_the_old_one_does_not_come_back(
    host: EnrollingHost, other_tpm: Tpm, both: EnrollingCa, tmp_path: Path
) -> None:
    old = both.enrol(host).entry
    heir = EnrollingHost.make(other_tpm, tmp_path / "heir", HOST)
    assert both.enrol(heir, replace=True).entry.replaces == (old.serial,)
    both.enrol(heir)
    with refused("another endorsement key"):
        both.challenge(host.request())


def test_replace_covers_what_stood_there_when_it_was_said(
    host: EnrollingHost, other_tpm: Tpm, both: EnrollingCa, tmp_path: Path
) -> None:
    rival = EnrollingHost.make(other_tpm, tmp_path / "rival", HOST)
    replacing = rival.activate(both.challenge(rival.request(), replace=True))
    both.enrol(host)
    with refused("another endorsement key"):
        both.issue(replacing)


def test_a_request_for_another_name_than_the_operator_expects_is_refused(
    host: EnrollingHost, ca: EnrollingCa
) -> None:
    with refused("not for gpu-9"):
        ca.challenge(host.request(), host="gpu-9.example.com")
    ca.challenge(host.request(), host=HOST)


def test_a_challenge_for_another_origin_is_not_answered(
    host: EnrollingHost, ca: EnrollingCa, tmp_path: Path
) -> None:
    other = EnrollingHost.make(host.tpm, tmp_path / "other-origin", "gpu-2.example.com")
    request = other.request()
    (host.folder / "enrolment").mkdir()
    (host.folder / "enrolment" / "request").write_bytes(request)
    with refused("another host, origin or key"):
        host.activate(ca.challenge(request))


def test_a_grant_of_another_ca_than_the_named_one_is_not_installed(
    host: EnrollingHost, ca: EnrollingCa, tmp_path: Path
) -> None:
    expected = EnrollingCa.make(tmp_path / "expected", host.tpm.machine.ek_root).folder.root
    with refused("another CA"):
        host.install(ca.enrol(host).grant, root=expected.public_bytes(Encoding.DER))


def test_a_grant_whose_certificate_does_not_lead_to_its_root_is_not_installed(
    host: EnrollingHost, ca: EnrollingCa, tmp_path: Path
) -> None:
    other = EnrollingCa.make(tmp_path / "unrelated", host.tpm.machine.ek_root).folder.root
    grant = altered(ca.enrol(host).grant, 6, lambda path: [path[0], other.public_bytes(Encoding.DER)])
    with refused("does not hold", EvidenceError):
        host.install(grant)


def test_a_grant_with_the_certificate_of_another_key_is_not_installed(
    host: EnrollingHost, ca: EnrollingCa, tmp_path: Path
) -> None:
    other = EnrollingHost.make(host.tpm, tmp_path / "second", "gpu-2.example.com")
    theirs = ca.enrol(other).entry.certificate
    grant = altered(ca.enrol(host).grant, 6, lambda path: [theirs, path[1]])
    with refused("another key than this host's AK", EvidenceError):
        host.install(grant)


def test_a_grant_with_an_older_certificate_of_this_key_for_another_log_is_not_installed(
    host: EnrollingHost, ca: EnrollingCa
) -> None:
    entry, grant = (issued := ca.enrol(host)).entry, issued.grant
    issuer = ca.folder.issuer()
    key = x509.load_der_x509_certificate(entry.certificate).public_key()
    leaf = make_ak_certificate(issuer, key, origin=other_origin(host.origin), tpm=None, now=NOW, days=1)  # type: ignore[arg-type]
    with refused("does not name this host's log", EvidenceError):
        host.install(altered(grant, 6, lambda path: [leaf.public_bytes(Encoding.DER), path[1]]))


# helpers that need a TPM's own commands

EXAMPLE_CHALLENGE = Challenge(bytes(16), bytes(32), None, 0, b"", b"")  # type: ignore[arg-type]


def genesis_with_ak(host: EnrollingHost, ak: bytes) -> Genesis:
    """The host's genesis record with another AK."""
    genesis = host.identity.genesis
    assert genesis.tpm is not None
    return dataclasses.replace(genesis, tpm=dataclasses.replace(genesis.tpm, ak=ak))


def external(key: Any) -> tuple[Any, Any]:
    """Both areas of a software key, for TPM2_LoadExternal."""
    area, _ = lib.TPMT_PUBLIC.unmarshal(key.public.raw)
    number = key.private.private_numbers().private_value.to_bytes(32)
    sensitive = lib.TPMT_SENSITIVE(
        sensitiveType=lib.TPM2_ALG.ECC, sensitive=lib.TPMU_SENSITIVE_COMPOSITE(ecc=number)
    )
    return lib.TPM2B_PUBLIC(publicArea=area), lib.TPM2B_SENSITIVE(sensitiveArea=sensitive)


def activate_with(connection: Connection, loaded: Any, challenge: Challenge) -> bytes:
    """TPM2_ActivateCredential for any loaded key, by the RSA or P-384 endorsement key."""
    from quotary_attest.tpm.ek import _ek_session, _endorsement_key
    from quotary_attest.tpm.model import Authorizations

    kind = "rsa-2048" if len(challenge.encrypted_secret) == 256 else "ecc-p384"
    with connection.scope() as scope:
        scope.key(loaded)
        ek, public = _endorsement_key(connection, scope, kind, Authorizations())
        by_password = bool(public.publicArea.objectAttributes & lib.TPMA_OBJECT.USERWITHAUTH)
        session = lib.ESYS_TR.PASSWORD if by_password else _ek_session(connection, scope)
        return bytes(
            connection.commands.activate_credential(
                loaded,
                ek,
                lib.TPM2B_ID_OBJECT(challenge.id_object),
                lib.TPM2B_ENCRYPTED_SECRET(challenge.encrypted_secret),
                session1=lib.ESYS_TR.PASSWORD,
                session2=session,
            )
        )
