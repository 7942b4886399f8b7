# SPDX-License-Identifier: Apache-2.0
"""Questions to audited logs: what fits which conditions and when, and what rests on a key that was lost."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from nacl.signing import SigningKey
from served_logs import Answer, serving
from soft_log import PCRS, TIME, SoftLog

from quotary_cli.main import run
from quotary_cli.questions import _Measured
from quotary_verifier.audit.report import AuditedBoot, AuditedBootLog, AuditReport, Span
from quotary_verifier.errors import EvidenceError
from quotary_verifier.tlog.note import TYPE_COSIGNATURE, TYPE_ED25519, VerifierKey
from quotary_verifier.wire.history import split

HOUR = 3_600_000
OTHER = hashlib.sha256(b"other firmware").digest()
WITNESSES = {f"witness-{number}.example": SigningKey(bytes([number]) * 32) for number in range(3)}


def at(hour: float) -> str:
    """An hour of the host's clock, for the command line."""
    moment = dt.datetime.fromtimestamp((TIME + hour * HOUR) / 1000, dt.UTC)
    return moment.isoformat(timespec="seconds")


def tick(log: SoftLog, hour: float) -> None:
    """Let the TPM's clock be at an hour."""
    log.clock = replace(log.clock, clock=int(hour * HOUR))


@pytest.fixture
def log(tmp_path: Path) -> SoftLog:
    """Two boots: llama from hour 0, qwen beside it from hour 10; from hour 20 other firmware and only qwen."""
    log = SoftLog(tmp_path / "log")
    tick(log, 0)
    log.start()
    for hour in range(1, 10):
        tick(log, hour)
        log.outputs(10)
    tick(log, 10)
    log.epoch(["llama", "qwen"])
    log.outputs(5)
    tick(log, 20)
    log.reset()
    log.pcrs[0] = OTHER
    log.start(models=["qwen"])
    tick(log, 25)
    log.outputs(20)
    log.finish()
    return log


def vkey(name: str) -> str:
    return VerifierKey(name, TYPE_COSIGNATURE, bytes(WITNESSES[name].verify_key)).encode()


def policy_for(log: SoftLog, folder: Path, extra: str = "") -> Path:
    text = f'schema = "quotary-policy/v1"\n[[pin]]\norigin = "{log.origin}"\n[tpm]\nsoftware = true\n{extra}'
    (folder / "policy.toml").write_text(text)
    return folder / "policy.toml"


def witnesses(threshold: int = 1) -> str:
    keys = ", ".join(f'"{vkey(name)}"' for name in WITNESSES)
    return f"[witnesses]\nkeys = [{keys}]\nthreshold = {threshold}\n"


def asked(
    capsys: pytest.CaptureFixture[str],
    log: SoftLog,
    *words: object,
    extra: str = "",
    code: int = 0,
    what: str = "query",
) -> dict[str, Any]:
    folder = log.files.folder
    policy = policy_for(log, folder.parent, extra)
    assert run(["log", what, str(folder), "--policy", str(policy), *map(str, words), "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def matches(found: dict[str, Any]) -> list[list[int]]:
    (answer,) = found["logs"]
    return [match["leaves"] for match in answer["matches"]]


def test_all_outputs_of_hosts_with_this_firmware(log: SoftLog, capsys: pytest.CaptureFixture[str]) -> None:
    found = asked(capsys, log, "--pcr", f"0={OTHER.hex()}")
    assert (found["schema"], found["clock"]) == ("quotary-log-query/v1", "host")
    assert matches(found) == [[97, 118]]
    assert found["logs"][0]["leaves"] == 21
    both = ("--pcr", f"0={OTHER.hex()}", "--pcr", f"0={PCRS[0].hex()}")
    assert matches(asked(capsys, log, *both)) == [[1, 92], [92, 97], [97, 118]]
    assert matches(asked(capsys, log, *both, "--pcr", f"2={OTHER.hex()}")) == []
    zero = ("--pcr", f"3={bytes(32).hex()}", "--model", "llama")
    assert matches(asked(capsys, log, *zero)) == [[1, 92], [92, 97]]


def test_between_two_times_only_the_commits_of_that_time_count(
    log: SoftLog, capsys: pytest.CaptureFixture[str]
) -> None:
    assert matches(asked(capsys, log, "--between", at(2.5), at(4.5))) == [[22, 42]]
    assert matches(asked(capsys, log, "--between", at(9.5), at(26))) == [[92, 97], [97, 118]]
    assert matches(asked(capsys, log, "--between", at(11), at(19))) == []
    error = asked(capsys, log, "--between", at(4), at(2), code=2)
    assert error["error"] == "--between takes the earlier time first"


@pytest.mark.parametrize("what", ["query", "affected"])
@pytest.mark.parametrize("second", ["other commits", "fewer commits", "nothing", "another host"])
def test_a_server_that_answers_otherwise_after_the_audit_is_refused(
    what: str, second: str, log: SoftLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = log.files.folder
    files = {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()
    }
    other = SoftLog(tmp_path / "other")
    other.start()
    another = other.finish()
    name = "history/000"
    commits = list(split(files[name]))
    swapped = {
        "other commits": b"".join((*commits[:-1], commits[-2])),
        "fewer commits": b"".join(commits[:-1]),
        "nothing": None,
        "another host": files[name],
    }[second]
    asked_for: list[str] = []

    def answer(path: str) -> Answer:
        wanted = path.removeprefix("/log/")
        asked_for.append(wanted)
        if asked_for.count(name) > 1 and wanted == name:
            return (404, {}, b"") if swapped is None else (200, {}, swapped)
        if asked_for.count("checkpoint") > 1 and second == "another host":
            data = another / wanted
            return (200, {}, data.read_bytes()) if data.is_file() else (404, {}, b"")
        return (200, {}, files[wanted]) if wanted in files else (404, {}, b"")

    words = {
        "query": ["--between", at(2.5), at(4.5)],
        "affected": ["--key", str(stolen_key(tmp_path)), "--since", at(0)],
    }[what]
    policy = policy_for(log, tmp_path)
    with serving(answer) as served:
        code = run(["log", what, f"{served.url}/log", "--policy", str(policy), *words])
    said = capsys.readouterr().err
    assert (code, "not the log that was audited" in said) == (1, True), said


def stolen_key(folder: Path) -> Path:
    """A key that nobody in these tests uses."""
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    (folder / "stolen.pem").write_bytes(key.public_bytes(serialization.Encoding.PEM, form))
    return folder / "stolen.pem"


def test_models_and_weights_by_period(log: SoftLog, capsys: pytest.CaptureFixture[str]) -> None:
    assert matches(asked(capsys, log, "--model", "qwen")) == [[92, 97], [97, 118]]
    weights = hashlib.sha256(b"llama").hexdigest()
    assert matches(asked(capsys, log, "--weights", f"sha256:{weights}")) == [[1, 92], [92, 97]]
    assert matches(asked(capsys, log, "--engine", "vllm", "--model", "nothing")) == []


def test_a_month_is_appraised_again_under_todays_policy(
    log: SoftLog, capsys: pytest.CaptureFixture[str]
) -> None:
    today = f'[platform.pcrs]\n0 = ["{PCRS[0].hex()}"]\n'
    found = asked(capsys, log, "--status", "rejected", "--between", at(19), at(30), extra=today)
    assert matches(found) == [[97, 118]]
    (match,) = found["logs"][0]["matches"]
    assert "PCR 0" in match["findings"][0][2]
    assert matches(asked(capsys, log, "--status", "accepted", extra=today)) == [[1, 92], [92, 97]]


def test_a_false_log_answers_and_is_rejected(log: SoftLog, capsys: pytest.CaptureFixture[str]) -> None:
    tile = next((log.files.folder / "tile" / "0").rglob("*118"))
    tile.write_bytes(bytes(len(tile.read_bytes())))
    found = asked(capsys, log, "--model", "qwen", code=1)
    assert found["logs"][0]["exit"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pcr", "0"], "a PCR from 0 to 15"),
        (["--pcr", "16=" + 64 * "a"], "a PCR from 0 to 15"),
        (["--pcr", "0=" + 64 * "A"], "not 64 lower-case hexadecimal digits"),
        (["--pcr", "10=" + 64 * "a"], "PCR 10 has another value after every program that runs"),
        (["--measured", "ab"], "not 64 lower-case hexadecimal digits"),
        (["--between", "yesterday", "today"], "not a time"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(
    words: list[str], message: str, log: SoftLog, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in asked(capsys, log, *words, code=2)["error"]


def test_an_answer_for_people_names_times_leaves_and_models(
    log: SoftLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = policy_for(log, tmp_path)
    assert run(["log", "query", str(log.files.folder), "-p", str(policy), "--model", "llama"]) == 0
    assert capsys.readouterr().out == (
        f"{log.origin}  96 leaves fit, times by the host's clock in UTC\n"
        "  boot 0    2026-09-21 14:13 to 23:13             leaves 1-91, commits 0-9, accepted: llama\n"
        "  boot 0    2026-09-22 00:13                      leaves 92-96, commits 10, accepted: llama, qwen\n"
    )


def test_what_was_measured_is_not_known_of_a_boot_that_names_no_log(
    log: SoftLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "log",
        "query",
        str(log.files.folder),
        "-p",
        str(policy_for(log, tmp_path)),
        "--measured",
        "ab" * 32,
    ]
    assert run(command) == 3
    assert "no log of boot 0, 1 replays, so nothing tells what was measured there" in capsys.readouterr().out
    assert run([*command, "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["logs"][0]["unlogged_boots"] == [0, 1]


def pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def test_a_boot_log_that_is_another_when_it_is_read_again_answers_nothing() -> None:
    class Source:
        def read(self, _path: str, _most: int) -> bytes:
            return b"the log of a host on which nothing ran"

    blank = Span(0, 0, 1, 2, None, None)
    named = AuditedBootLog("ima", "replayed", hashlib.sha256(b"what ran").hexdigest(), 8, "")
    boot = AuditedBoot(0, 7, 0, blank, "zero", True, "", (named,))
    measured = _Measured(frozenset({b"e" * 32}), replace(cannot(), boots=(boot,)), Source())
    with pytest.raises(EvidenceError, match="does not hold the bytes"):
        measured.in_boot(0)


def cannot() -> AuditReport:
    return AuditReport(0, "", False, None, (), (), (), (), (), None, (), (), ())


def affected(
    capsys: pytest.CaptureFixture[str], log: SoftLog, key: bytes, hour: float, *words: object, **more: Any
) -> dict[str, Any]:
    file = log.files.folder.parent / "key"
    file.write_bytes(key)
    found = asked(capsys, log, "--key", file, "--since", at(hour), *words, what="affected", **more)
    return dict(found["logs"][0]) if "logs" in found else found


def test_without_witnesses_everything_rests_on_a_lost_attestation_key(
    log: SoftLog, capsys: pytest.CaptureFixture[str]
) -> None:
    found = affected(capsys, log, log.key.public.to_spki_der(), 5)
    assert (found["role"], found["ranges"], found["leaves"]) == ("attestation key", [[0, 118]], 118)
    other = pem(ec.generate_private_key(ec.SECP256R1()).public_key())
    found = affected(capsys, log, other, 5)
    assert (found["role"], found["ranges"]) == (None, [])


def cosign(log: SoftLog, names: tuple[str, ...], hour: float) -> None:
    """Let witnesses see the newest checkpoint at an hour."""
    from quotary_verifier.tlog.cosignature import cosign
    from quotary_verifier.tlog.note import Note, sign_ed25519

    text, time = log.text(), int((TIME + hour * HOUR) / 1000)
    lines = [sign_ed25519(text, log.origin, log.note_key)]
    lines += [cosign(text, name, WITNESSES[name], time) for name in names]
    log.files.write(f"cosigned/{log.size}", Note(text, tuple(lines)).encode())


def test_what_witnesses_saw_before_stands_whatever_the_hosts_clock_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = SoftLog(tmp_path / "log")
    log.start()
    cosign(log, tuple(WITNESSES), 1)
    log.outputs(10)
    cosign(log, tuple(WITNESSES), 4)
    log.outputs(10)
    cosign(log, tuple(WITNESSES), 8)
    log.finish()
    spki = log.key.public.to_spki_der()
    note_key = VerifierKey(log.origin, TYPE_ED25519, bytes(log.note_key.verify_key)).encode().encode()
    for key, role in ((spki, "attestation key"), (note_key, "note key")):
        found = affected(capsys, log, key, 5, extra=witnesses())
        assert (found["role"], found["ranges"]) == (role, [[12, 22]])
        assert affected(capsys, log, key, 9, extra=witnesses())["ranges"] == []
        assert affected(capsys, log, key, 0, extra=witnesses())["ranges"] == [[0, 22]]


def test_a_lost_witness_matters_where_the_others_are_no_quorum(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = SoftLog(tmp_path / "log")
    first, second, third = WITNESSES
    log.start()
    cosign(log, (first, second, third), 4)
    log.outputs(10)
    cosign(log, (first, second), 8)
    log.finish()
    key = vkey(first).encode()
    found = affected(capsys, log, key, 2, extra=witnesses(2))
    assert (found["role"], found["ranges"]) == ("witness", [[2, 12]])
    assert affected(capsys, log, key, 9, extra=witnesses(2))["ranges"] == []
    assert affected(capsys, log, vkey(third).encode(), 2, extra=witnesses(2))["ranges"] == []


def certificate(subject: str, key: Any, issuer: str, signer: Any, *, ca: bool) -> x509.Certificate:
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in (subject, issuer)]
    moment = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    made = x509.CertificateBuilder(names[1], names[0], key, 7, moment, moment + dt.timedelta(days=900))
    made = made.add_extension(x509.BasicConstraints(ca, None), critical=True)
    return made.sign(signer, hashes.SHA256())


def test_a_lost_authority_touches_the_commits_that_came_with_its_certificates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = ec.generate_private_key(ec.SECP256R1())
    root = certificate("CA", authority.public_key(), "CA", authority, ca=True)
    log = SoftLog(tmp_path / "log")
    log.start()
    log.outputs(10)
    ak = serialization.load_der_public_key(log.key.public.to_spki_der())
    log.certificates = (
        log.put(certificate("host", ak, "CA", authority, ca=False).public_bytes(serialization.Encoding.DER)),
    )
    log.outputs(10)
    log.finish()
    found = affected(capsys, log, root.public_bytes(serialization.Encoding.PEM), 1)
    assert (found["role"], found["ranges"]) == ("certificate authority", [[12, 22]])
    assert "the policy pins this origin" in found["said"]
    stranger = ec.generate_private_key(ec.SECP256R1())
    other = certificate("CA", stranger.public_key(), "CA", stranger, ca=True)
    assert affected(capsys, log, other.public_bytes(serialization.Encoding.DER), 1)["role"] is None
    key = root.public_bytes(serialization.Encoding.PEM)
    place = log.files.folder / f"blob/{log.certificates[0].hex()}"
    place.write_bytes(other.public_bytes(serialization.Encoding.DER))
    assert "not the log that was audited" in affected(capsys, log, key, 1, code=1)["error"]
    place.unlink()  # what is withheld hides what it would say
    assert affected(capsys, log, key, 1, code=3)["role"] is None


def test_what_is_no_key_is_refused(log: SoftLog, capsys: pytest.CaptureFixture[str]) -> None:
    for data in (b"", b"no key", b"-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n", bytes(99)):
        assert "neither a certificate nor a public key" in affected(capsys, log, data, 1, code=2)["error"]
