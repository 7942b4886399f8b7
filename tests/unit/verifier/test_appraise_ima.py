# SPDX-License-Identifier: Apache-2.0
"""Rules on the files that ran: every record of the IMA log is allowed for what it is, or named."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import pytest
from appraising import appraised, digest, evidence, only, without_logs
from boot_defects import FILES, RECORDS
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from ima_logs import counted, file_data, ima_entry, ng

from quotary_verifier.logs.ima_signature import key_id
from quotary_verifier.policy import findings
from quotary_verifier.policy.findings import Appraisal, Finding, PlatformEvidence, Severity
from quotary_verifier.policy.globs import Globs

PROGRAMS = [(f"/usr/bin/program-{number}", digest(b"program %d" % number).hex()) for number in range(FILES)]
EVIL = ng("/usr/bin/evil", digest(b"evil"))


def listed(files: Sequence[tuple[str, str]] = PROGRAMS, rules: str = "") -> str:
    """A policy's rules with an allow list."""
    entries = "".join(
        f'[[platform.ima.file]]\ndigest = "{value}"\n' + (f'path = "{path}"\n' if path else "")
        for path, value in files
    )
    return f"[platform.ima]\n{rules}{entries}"


def ran(*more: bytes) -> PlatformEvidence:
    return evidence(records=[*RECORDS, *more])


def test_files_on_the_list_may_run() -> None:
    assert not appraised(listed(), evidence()).findings


def test_an_unknown_file_is_named_by_record_path_and_digest() -> None:
    found = only(appraised(listed(), ran(EVIL)))
    assert (found.rule, found.severity, found.pcr, found.event) == (
        "platform.ima.files",
        Severity.FAIL,
        10,
        4,
    )
    assert (found.path, found.found) == ("/usr/bin/evil", digest(b"evil").hex())
    assert "record 4 of the IMA log, /usr/bin/evil: the policy allows neither its path nor" in found.message


def test_a_known_file_with_other_content_is_told_from_an_unknown_one() -> None:
    found = only(appraised(listed(), ran(ng(PROGRAMS[0][0], digest(b"patched")))))
    assert found.allowed == (PROGRAMS[0][1],)
    assert f"the policy allows {PROGRAMS[0][1]} there" in found.message


def test_a_known_digest_at_another_path_is_refused_unless_it_may_lie_anywhere() -> None:
    moved = ran(ng("/tmp/x", digest(b"program 0")))
    found = only(appraised(listed(), moved))
    assert (found.allowed, "at other paths only" in found.message) == ((PROGRAMS[0][0],), True)
    anywhere = [("", PROGRAMS[0][1]), *PROGRAMS[1:]]
    assert not appraised(listed(anywhere), moved).findings


def test_a_digest_that_lies_at_thousands_of_paths_is_told_with_a_few_of_them() -> None:
    """Every system has thousands of empty files: a finding of each by each would take gigabytes."""
    empty = [(f"/usr/lib/{number:05}/__init__.py", digest(b"").hex()) for number in range(5000)]
    text = "[platform.ima]\n[[platform.ima.list]]\n" + 'file = "e.sha256sum"\nsha256 = "{}"\n'
    data = "".join(f"{value}  {path}\n" for path, value in [*empty, *PROGRAMS]).encode()
    of = ran(*[ng(f"/srv/{number}.py", digest(b"")) for number in range(50)])
    name = digest(data)
    found = appraised(text.format(name.hex()), of, lists={name: data}).findings
    assert len(found) == 50
    assert "; 5000 in all)" in found[0].message
    assert found[0].allowed[0] == empty[0][0]
    assert sum(len(item.allowed) for item in found) < 5000


def test_every_unknown_file_is_told_up_to_a_bound_and_then_that_there_are_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    strangers = [ng(f"/x/{number}", digest(b"x%d" % number)) for number in range(9)]
    assert len(appraised(listed(), ran(*strangers)).findings) == 9
    monkeypatch.setattr(findings, "MAX_FINDINGS", 5)
    found = appraised(listed(), ran(*strangers)).findings
    assert [item.path for item in found] == ["/x/0", "/x/1", "/x/2", "/x/3", "/x/4", None]
    assert "the list ends after 5" in found[-1].message


def test_what_cannot_be_judged_does_not_hide_what_is_false(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "MAX_FINDINGS", 2)
    unknown = [ima_entry(b"data %d" % number, name=b"d-new") for number in range(5)]
    records = [*RECORDS, *[b"data %d" % number for number in range(5)], EVIL]
    entries = b"".join([*map(ima_entry, RECORDS), *unknown, ima_entry(EVIL)])
    found = appraised(listed(), evidence(records=records, entries=entries)).findings
    assert [item.severity for item in found] == [Severity.FAIL, *[Severity.COULD_NOT] * 3]
    assert "3 more that could not be judged" in found[-1].message


def test_ignored_paths_are_counted_in_the_verdict() -> None:
    log = ng("/var/log/syslog", digest(b"changing"))
    found = appraised(listed(rules='ignore = ["/var/log/*", "/proc/*"]\n'), ran(log, log))
    assert found.findings == ()
    assert found.tolerances == ("IMA log: 2 records of files at paths that the policy ignores",)
    assert len(appraised(listed(rules='ignore = ["/var/logs/*"]\n'), ran(log)).findings) == 1


@pytest.mark.parametrize(
    ("glob", "path", "fits"),
    [
        ("/a", "/a", True),
        ("/a", "/ab", False),
        ("/a/*", "/a/b/c", True),
        ("/a/*", "/a", False),
        ("/a/*", "/x/a/b", False),
        ("*/cache", "/x/cache", True),
        ("*/cache", "/x/cache/y", False),
        ("/a*b*c", "/a-c-b-c", True),
        ("/a*b*c", "/a-c", False),
        ("/ab*ba", "/aba", False),
        ("/a**b", "/ab", True),
        ("/a?", "/ab", False),
        ("/[ab]", "/a", False),
        ("/a*", "/a\n\x1b", True),
    ],
)
def test_globs(glob: str, path: str, fits: bool) -> None:
    assert Globs(["/never", glob]).fit(path.encode()) is fits


def test_a_glob_takes_time_in_proportion_to_the_path() -> None:
    assert not Globs(["/" + "a*" * 200 + "b"]).fit(b"/" + b"a" * 1_000_000)


def violating(*after: bytes, path: str = "/var/log/x") -> PlatformEvidence:
    data = ng(path, bytes(32))
    entries = b"".join([*map(ima_entry, RECORDS), ima_entry(data, violation=True), *map(ima_entry, after)])
    return evidence(records=[*RECORDS, b"", *after], entries=entries)


def test_a_violation_is_rejected_whatever_path_it_names() -> None:
    found = only(appraised(listed(rules='ignore = ["/var/log/*"]\n'), violating()))
    assert (found.rule, found.path, found.event) == ("platform.ima.violations", "/var/log/x", 4)


def test_violations_that_the_policy_accepts_are_counted_in_the_verdict() -> None:
    found = appraised(listed(rules="violations = true\n"), violating())
    assert (found.findings, found.tolerances) == ((), ("IMA log: 1 violations accepted",))


def test_a_violation_with_the_digest_of_an_allowed_file_is_still_one() -> None:
    entries = b"".join([*map(ima_entry, RECORDS), ima_entry(RECORDS[1], violation=True)])
    of = evidence(records=[*RECORDS, b""], entries=entries)
    assert only(appraised(listed(), of)).rule == "platform.ima.violations"


def test_a_violation_of_an_unknown_template_is_one_of_a_file_without_name() -> None:
    entries = b"".join([*map(ima_entry, RECORDS), ima_entry(b"x", violation=True, name=b"d-new")])
    found = only(appraised(listed(), evidence(records=[*RECORDS, b""], entries=entries)))
    assert (found.rule, found.path) == ("platform.ima.violations", None)
    assert "a file without name" in found.message


def test_a_template_without_a_digest_is_refused() -> None:
    found = only(appraised(listed(), with_template(b"n-ng", counted(b"/usr/bin/program-0\0"))))
    assert (found.rule, found.severity) == ("platform.ima.templates", Severity.FAIL)


def with_template(name: bytes, data: bytes) -> PlatformEvidence:
    entries = b"".join([*map(ima_entry, RECORDS), ima_entry(data, name=name)])
    return evidence(records=[*RECORDS, data], entries=entries)


def test_a_template_that_the_policy_does_not_allow_is_refused_even_for_a_known_file() -> None:
    allowed = with_template(b"ima-sig", ng(PROGRAMS[0][0], digest(b"program 0"), b""))
    assert not appraised(listed(), allowed).findings
    found = only(appraised(listed(rules='templates = ["ima-ng"]\n'), allowed))
    assert (found.rule, "'ima-sig'" in found.message) == ("platform.ima.templates", True)


def test_an_unknown_template_is_left_open_and_a_malformed_record_is_false() -> None:
    found = only(appraised(listed(), with_template(b"d-new", b"x")))
    assert (found.rule, found.severity) == ("platform.ima.templates", Severity.COULD_NOT)
    assert only(appraised(listed(), with_template(b"ima-ng", b"\xff" * 9))).severity is Severity.FAIL


@pytest.mark.parametrize("label", [b"sha1", b"md5", b"sm3", b"sha3-256"])
def test_a_digest_by_another_algorithm_is_not_looked_up(label: bytes) -> None:
    size = {b"sha1": 20, b"md5": 16}.get(label, 32)
    files = [*PROGRAMS, ("", "11" * 32)]
    found = only(appraised(listed(files), ran(ng("/bin/x", b"\x11" * size, label=label))))
    assert f"by {label.decode()} cannot be looked up" in found.message


def test_digests_by_sha512_are_looked_up() -> None:
    value = hashlib.sha512(b"program").digest()
    files = [*PROGRAMS, ("/bin/x", f"sha512:{value.hex()}")]
    assert not appraised(listed(files), ran(ng("/bin/x", value, label=b"sha512"))).findings


def test_a_digest_of_fs_verity_is_not_one_of_a_file() -> None:
    data = counted(b"verity:sha256:\0" + digest(b"program 0"), PROGRAMS[0][0].encode() + b"\0")
    assert "verity digest" in only(appraised(listed(), with_template(b"ima-ngv2", data))).message
    known = counted(b"ima:sha256:\0" + digest(b"program 0"), PROGRAMS[0][0].encode() + b"\0")
    assert not appraised(listed(), with_template(b"ima-ngv2", known)).findings


# --- the boot aggregate --------------------------------------------------------------------------------------


def test_another_first_record_than_a_boot_aggregate_is_refused() -> None:
    found = appraised(listed(), evidence(records=RECORDS[1:])).findings
    assert [item.rule for item in found] == ["platform.ima.aggregate"]


def test_a_boot_aggregate_that_no_log_explains_leaves_the_rule_open() -> None:
    records = [ng("boot_aggregate", digest(b"another")), *RECORDS[1:]]
    of = evidence(records=records)
    assert only(appraised(listed(), of)).severity is Severity.FAIL
    assert only(appraised(listed(), replace(of, firmware=None))).severity is Severity.COULD_NOT
    moved = replace(of, moving=of.moving | {0})
    assert "extends" in only(appraised(listed(), moved)).message


def test_a_boot_aggregate_by_another_hash_leaves_the_rule_open() -> None:
    records = [ng("boot_aggregate", bytes(20), label=b"sha1"), *RECORDS[1:]]
    assert only(appraised(listed(), evidence(records=records))).severity is Severity.COULD_NOT


def test_a_policy_can_do_without_the_boot_aggregate_and_the_verdict_says_so() -> None:
    records = [ng("boot_aggregate", digest(b"another")), *RECORDS[1:]]
    found = appraised(listed(rules="boot_aggregate = false\n"), evidence(records=records))
    assert (found.findings, found.tolerances) == ((), ("IMA log: the boot aggregate is not asked for",))


@pytest.mark.parametrize("rules", ["", "boot_aggregate = false\n", 'ignore = ["boot*"]\n'])
def test_a_file_that_is_called_like_the_boot_aggregate_does_not_pass_for_it(rules: str) -> None:
    """The kernel writes a bare name where a path is longer than it can write."""
    found = only(appraised(listed(rules=rules), ran(ng("boot_aggregate", digest(b"evil")))))
    assert (found.event, found.severity) == (4, Severity.FAIL)


def test_the_same_aggregate_may_stand_again_after_a_kexec() -> None:
    assert not appraised(listed(), ran(RECORDS[0])).findings


# --- signatures ----------------------------------------------------------------------------------------------

KEY = ec.generate_private_key(ec.SECP256R1())
PEM = (
    KEY.public_key()
    .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    .decode()
)
KEYS = f'keys = ["""\n{PEM}"""]\n'


def signed(content: bytes, key: ec.EllipticCurvePrivateKey = KEY, algorithm: int = 4) -> bytes:
    signature = key.sign(digest(content), ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    return bytes((3, 2, algorithm)) + key_id(key.public_key()) + len(signature).to_bytes(2) + signature


def of_signature(signature: bytes) -> Finding | None:
    data = ng("/usr/bin/new", digest(b"new"), signature)
    found = appraised(listed(rules=KEYS), with_template(b"ima-sig", data)).findings
    return found[0] if found else None


def test_a_signature_by_a_key_of_the_policy_stands_for_a_digest() -> None:
    assert of_signature(signed(b"new")) is None


@pytest.mark.parametrize(
    ("signature", "why"),
    [
        (b"", "it has no signature"),
        (signed(b"other"), "no given key made the signature"),
        (signed(b"new", ec.generate_private_key(ec.SECP256R1())), "no given key made the signature"),
        (b"\3\2\4", "an IMA signature is truncated"),
        (signed(b"new", algorithm=2), "another digest than sha256"),
    ],
    ids=["none", "of another file", "by another key", "cut off", "over sha1"],
)
def test_any_other_signature_is_named(signature: bytes, why: str) -> None:
    found = of_signature(signature)
    assert found is not None
    assert (found.severity, why in found.message) == (Severity.FAIL, True), found.message


def test_a_signature_that_cannot_be_judged_leaves_the_rule_open() -> None:
    found = of_signature(b"\3\7\4" + bytes(6))
    assert found is not None
    assert found.severity is Severity.COULD_NOT


# --- without the log, and what an attacker writes ------------------------------------------------------------


def test_without_the_log_the_rule_is_left_open_and_with_pcr_10_at_zero_it_is_broken() -> None:
    of = replace(without_logs(evidence()), missing={"ima": "the log is given by its digest only"})
    found = only(appraised(listed(), of))
    assert (found.severity, "by its digest only" in found.message) == (Severity.COULD_NOT, True)
    never = only(appraised(listed(), replace(of, pcrs={**of.pcrs, 10: bytes(32)})))
    assert (never.severity, "measured none of the files" in never.message) == (Severity.FAIL, True)


def test_a_log_that_is_silent_of_pcr_10_leaves_the_rule_open() -> None:
    from quotary_verifier.logs.ima import parse_ima_binary

    elsewhere = ima_entry(EVIL, pcr=11)
    value = digest(bytes(32) + digest(EVIL))
    log = parse_ima_binary(elsewhere).replay({10: digest(b"hidden"), 11: value})
    found = only(appraised(listed(), replace(evidence(), ima=log)))
    assert (found.severity, "has no record of it" in found.message) == (Severity.COULD_NOT, True)


def test_a_path_can_neither_begin_a_line_nor_hold_an_escape_code() -> None:
    found = only(appraised(listed(), ran(ng("/tmp/\n\x1b[2J\u202e" + "x" * 5000, digest(b"evil")))))
    assert found.message.isprintable()
    assert len(found.message) < 1000
    assert found.path is not None
    assert found.path.startswith("/tmp/\\n\\x1b[2J\\u202e")


def test_a_host_that_runs_the_list_of_another_is_not_accepted() -> None:
    found: Appraisal = appraised(listed(), evidence(records=[RECORDS[0], file_data(7)]))
    assert only(found).path == "/usr/bin/program-7"
