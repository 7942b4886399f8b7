# SPDX-License-Identifier: Apache-2.0
"""`attest policy learn`, `check` and `diff`: what two good boots teach accepts the third, and no attack."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from forge import NOW, Forge
from measured_boots import COMMAND_LINE, PROGRAMS, BootOf, sha256
from tcg_logs import TcgWriter

from quotary_cli.bootdiff import Side, compare
from quotary_cli.main import run
from quotary_verifier import Question, Rejected, verify
from quotary_verifier.logs import tcg_types as t
from quotary_verifier.logs.tcg import Event, parse_tcg_log
from quotary_verifier.wire.attestation import Attestation

HOST = Forge()
AT = ["--at", str(NOW)]


def seeds(number: int) -> dict[str, bytes]:
    """Files whose content or name changes with each boot."""
    return {"/var/lib/seed": b"%d" % number, f"/var/log/system@{number}.journal": b"entries %d" % number}


FIRST = BootOf(files={**PROGRAMS, **seeds(1)})
SECOND = replace(FIRST, order=b"\2\0\1\0", disk=b"GPT 2", resets=8, files={**PROGRAMS, **seeds(2)})
THIRD = replace(FIRST, order=b"\3\0", disk=b"GPT 3", refused=3, resets=9, files={**PROGRAMS, **seeds(3)})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("base.toml").write_text(HOST.policy())
    Path("out").write_bytes(HOST.body)
    return tmp_path


def give(
    boot: BootOf, name: str = "evidence", host: Forge = HOST, logs: str = "tcg ima", clock: int = 1
) -> str:
    """Write a boot's evidence and return its file."""
    path = Path(f"{name}.attestation")
    path.write_bytes(boot.attestation(host, logs=logs, clock=clock).encode())
    return str(path)


def attest(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = run([*words, *AT, "--json"])
    return code, json.loads(capsys.readouterr().out)


def learn(*evidence: str, out: str = "learned.toml") -> int:
    return run(["policy", "learn", *evidence, "--base", "base.toml", "--out", out, *AT])


@pytest.fixture
def learned(folder: Path) -> Path:
    """A policy learned from two boots."""
    assert learn(give(FIRST, "first"), give(SECOND, "second")) == 0
    return folder / "learned.toml"


def checked(
    evidence: str, capsys: pytest.CaptureFixture[str], policy: str = "learned.toml"
) -> tuple[int, list[dict[str, Any]]]:
    code, found = attest("policy", "check", evidence, "--policy", policy, capsys=capsys)
    return code, [finding for result in found["results"] for finding in result["findings"]]


def test_the_third_boot_is_accepted_though_what_varies_varied_again(
    learned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert checked(give(THIRD), capsys) == (0, [])
    words = ["verify", "out", "--attestation", "evidence.attestation", "--policy", "learned.toml"]
    assert attest(*words, capsys=capsys)[0] == 0


ATTACKS = {
    "another kernel": (replace(THIRD, kernel=b"kernel 6.13"), "platform.boot.applications", "\\linux"),
    "another boot loader": (
        replace(THIRD, loader=b"systemd-boot 258"),
        "platform.boot.applications",
        "systemd-bootx64.efi",
    ),
    "a changed command line": (
        replace(THIRD, command_line=COMMAND_LINE + " init=/bin/sh"),
        "platform.boot.loader",
        "init=/bin/sh",
    ),
    "secure boot switched off": (
        replace(THIRD, secure_boot=False),
        "platform.secure_boot.state",
        "Secure Boot is off",
    ),
    "a dbx that forgot": (replace(THIRD, refused=1), "platform.secure_boot.dbx", "dbx lacks"),
    "an unknown program": (
        replace(THIRD, files={**THIRD.files, "/usr/bin/evil": b"evil"}),
        "platform.ima.files",
        "/usr/bin/evil",
    ),
    "a changed program": (
        replace(THIRD, files={**THIRD.files, "/usr/bin/program-1": b"evil"}),
        "platform.ima.files",
        "/usr/bin/program-1",
    ),
    "a known program at another path": (
        replace(THIRD, files={**THIRD.files, "/tmp/sh": PROGRAMS["/usr/bin/program-0"]}),
        "platform.ima.files",
        "/tmp/sh",
    ),
    "other firmware": (replace(THIRD, firmware=b"implant"), "platform.pcrs.0", "PCR 0"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_rejected_and_its_culprit_is_named(
    learned: Path, capsys: pytest.CaptureFixture[str], attack: str
) -> None:
    boot, rule, culprit = ATTACKS[attack]
    code, findings = checked(give(boot), capsys)
    assert code == 1
    (named,) = [finding["message"] for finding in findings if finding["rule"] == rule]
    assert culprit in named
    words = ["verify", "out", "--attestation", "evidence.attestation", "--policy", "learned.toml"]
    code, found = attest(*words, capsys=capsys)
    assert (code, found["results"][0]["verdict"]["failing"]) == (1, "platform")


def test_a_swapped_model_is_rejected(learned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swapped = replace(HOST, weights=hashlib.sha256(b"other weights").digest())
    code, findings = checked(give(THIRD, host=swapped), capsys)
    assert (code, [finding["rule"] for finding in findings]) == (1, ["model"])
    words = ["verify", "out", "--attestation", "evidence.attestation", "--policy", "learned.toml"]
    assert attest(*words, capsys=capsys)[1]["results"][0]["verdict"]["failing"] == "model"


def test_evidence_without_its_logs_could_not_be_checked(
    learned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, findings = checked(give(THIRD, logs=""), capsys)
    assert code == 3
    assert {finding["severity"] for finding in findings} == {"could-not"}


def test_what_varied_stands_in_the_policy_with_its_reason(learned: Path) -> None:
    text = learned.read_text()
    remarks = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#"))
    assert "PCR 1 is not fixed" in remarks
    assert "the boot order was 0001 and is 0002, 0001" in remarks
    assert "PCR 5 is not fixed" in remarks
    assert "ignored: /var/lib/seed (its content changes by itself)" in remarks
    assert "/var/log/system@*.journal" in text
    assert not any(f"{pcr} = [" in text for pcr in (1, 4, 5, 7, 8, 9, 10, 12))


def test_the_list_of_files_is_one_that_sha256sum_reads(learned: Path, tmp_path: Path) -> None:
    listed = Path("learned.files.sha256sum").read_text()
    assert [line.split("  ") for line in listed.splitlines()] == [
        [sha256(content).hex(), path] for path, content in sorted(PROGRAMS.items())
    ]
    for path, content in PROGRAMS.items():
        (tmp_path / Path(path).name).write_bytes(content)
    Path("here").write_text(listed.replace("/usr/bin/", str(tmp_path) + "/"))
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "here"], check=True)


def test_nothing_is_learned_from_evidence_that_is_false(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(Path(give(FIRST, "first")).read_bytes())
    for name, logs in (("tcg", SECOND.log().agile()), ("ima", SECOND.ima())):
        parsed = Attestation.decode(bytes(data))
        false = replace(parsed, boot_logs={**parsed.boot_logs, name: logs})
        Path("false.attestation").write_bytes(false.encode())
        assert learn("first.attestation", "false.attestation") == 1
    other = give(FIRST, "other", host=Forge())
    assert learn("first.attestation", other) == 1
    assert not Path("learned.toml").exists()
    assert "nothing" not in capsys.readouterr().out


def test_of_many_attestations_of_a_boot_the_last_is_learned_from_and_every_model(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("boots").mkdir()
    longer = replace(FIRST, files={**FIRST.files, "/usr/bin/late": b"late"})
    other = replace(HOST, model="Qwen")
    give(FIRST, "boots/1", clock=1000)
    give(longer, "boots/0", clock=2000)
    give(FIRST, "boots/2", other, clock=500)
    capsys.readouterr()
    words = ["policy", "learn", "boots", "--base", "base.toml", "--out", "learned.toml"]
    code, found = attest(*words, capsys=capsys)
    assert (code, [Path(boot["name"]).stem for boot in found["boots"]]) == (0, ["0"])
    assert [model.partition(" ")[0] for model in found["models"]] == ["Qwen", HOST.model]
    assert "/usr/bin/late" in Path("learned.files.sha256sum").read_text()


def test_trust_must_come_from_somewhere(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evidence = give(FIRST)
    assert run(["policy", "learn", evidence, "--out", "p.toml"]) == 2
    assert run(["policy", "learn", evidence, "--out", "p.toml", "--pin", HOST.origin, *AT]) == 0
    assert HOST.origin in Path("p.toml").read_text()
    Path("base.toml").write_text(HOST.policy('[platform.pcrs]\n0 = ["' + "00" * 32 + '"]\n'))
    assert learn(evidence) == 2
    assert "rules on platforms already" in capsys.readouterr().err


def test_a_software_tpm_is_refused_with_the_option_that_accepts_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    libtpms = 0x2019_1023_0016_3636
    emulated = replace(HOST, pcrs=FIRST.pcrs()).attestation(reset_count=FIRST.resets, firmware=libtpms)
    Path("soft.attestation").write_bytes(emulated.encode())
    words = ["policy", "learn", "soft.attestation", "--out", "p.toml", *AT]
    assert run([*words, "--pin", HOST.origin]) == 1
    assert "hint: --software-tpm accepts it" in capsys.readouterr().err
    assert run([*words, "--pin", HOST.origin, "--software-tpm"]) == 0
    capsys.readouterr()
    assert run([*words, "--base", "base.toml"]) == 1
    assert "software = true under [tpm]" in capsys.readouterr().err


def test_a_base_with_lists_is_refused_for_its_rules_and_not_for_a_list(
    learned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["policy", "learn", give(THIRD), "--base", str(learned), "--out", "again.toml", *AT]
    assert run(words) == 2
    said = capsys.readouterr().err
    assert "rules on platforms already (platform)" in said
    assert "list" not in said.split("hint:")[0].split(": ", 2)[2]
    Path("no.toml").write_text("schema = [")
    assert run([*words[:3], "--base", "no.toml", "--out", "again.toml"]) == 2


def test_where_secure_boot_was_off_rules_and_words_agree(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    off = replace(FIRST, secure_boot=False)
    assert learn(give(off, "first"), give(replace(SECOND, secure_boot=False), "second")) == 0
    rules = tomllib.loads(Path("learned.toml").read_text())["platform"]["secure_boot"]
    empty = [name for name, key in (("PK", "pk"), ("KEK", "kek"), ("db", "db")) if rules[key] == []]
    assert not rules["enabled"]
    said = " ".join(Path("learned.toml").read_text().replace("\n# ", " ").split())
    assert "it need not be on" in said
    assert "not asked for" not in said.split("[platform.secure_boot]")[0]
    assert (f"{', '.join(empty)} had no entry in any boot, and may have none" in said) == bool(empty)
    assert checked(give(replace(THIRD, secure_boot=False)), capsys) == (0, [])


def test_of_many_departures_from_one_rule_the_first_are_shown_and_the_rest_counted(
    learned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = {f"/usr/bin/strange{number:02}": b"%d" % number for number in range(20)}
    evidence = give(replace(THIRD, files={**THIRD.files, **strange}))
    capsys.readouterr()
    words = ["policy", "check", evidence, "--policy", "learned.toml", *AT]
    assert run(words) == 1
    short = capsys.readouterr().out.splitlines()
    assert sum("/usr/bin/strange" in line for line in short) == 5
    assert any("15 more, 20 in all (--all shows each)" in line for line in short)
    assert run([*words, "--all"]) == 1
    whole = capsys.readouterr().out
    assert (whole.count("/usr/bin/strange"), "in all" in whole) == (20, False)
    _, found = checked(evidence, capsys)
    assert len(found) == 20


def test_one_boot_teaches_and_says_that_it_shows_nothing_of_what_varies(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert learn(give(FIRST)) == 0
    assert "one boot shows nothing of what varies" in capsys.readouterr().err
    assert checked(give(FIRST), capsys)[0] == 0
    assert checked(give(SECOND), capsys)[0] == 1


def test_hosts_of_several_kinds_get_reference_sets_of_their_own(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = replace(FIRST, firmware=b"of another maker", loader=b"GRUB", version="F.42")
    second = Forge(host="gpu-08.example.net", authority=HOST.authority)
    assert learn(give(FIRST, "a"), give(SECOND, "b"), give(other, "c", host=second)) == 0
    text = Path("learned.toml").read_text()
    assert text.count("[[reference]]") == 2
    assert "firmware version: F.42" in text
    code, found = attest("policy", "check", "c.attestation", "-p", "learned.toml", capsys=capsys)
    assert (code, found["results"][0]["reference"][:9]) == (0, "firmware-")
    mixed = replace(other, kernel=b"kernel 6.13")
    code, findings = checked(give(mixed, host=second), capsys)
    assert code == 1
    assert any("\\linux" in finding["message"] for finding in findings)
    assert checked(give(replace(FIRST, loader=b"GRUB")), capsys)[0] == 1


def test_without_logs_values_stand_in_place_of_rules(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert learn(give(FIRST, "a", logs=""), give(SECOND, "b", logs="")) == 0
    text = Path("learned.toml").read_text()
    assert "not every boot came with its firmware's log" in text.replace("\n# ", " ")
    for pcr in (0, 2, 3, 4, 6, 7, 9, 12):
        assert f"\n{pcr} = [" in text
    assert checked(give(THIRD, logs=""), capsys)[0] == 1  # its dbx grew, which a value cannot allow
    assert checked(give(replace(THIRD, refused=2), logs=""), capsys)[0] == 0


def test_a_late_pcr_is_fixed_only_where_boots_agree(folder: Path) -> None:
    late = [
        replace(boot, late={11: sha256(b"phases"), 14: sha256(b"%d" % boot.resets)})
        for boot in (FIRST, SECOND)
    ]
    assert learn(give(late[0], "a"), give(late[1], "b")) == 0
    text = Path("learned.toml").read_text()
    assert f'11 = ["{sha256(b"phases").hex()}"]' in text
    assert "PCR 14 is not fixed" in text
    assert learn("a.attestation") == 0
    assert "11 = [" not in Path("learned.toml").read_text()


def test_a_boot_that_was_never_measured_teaches_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = replace(HOST, pcrs={})
    Path("bare.attestation").write_bytes(measured.attestation().encode())
    assert learn("bare.attestation") == 1
    assert "model-only" in capsys.readouterr().err


def test_a_program_that_changed_is_listed_with_every_content_and_never_ignored(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    updated = replace(SECOND, files={**SECOND.files, "/usr/bin/program-0": b"updated"})
    assert learn(give(FIRST, "a"), give(updated, "b")) == 0
    assert "had several contents: /usr/bin/program-0" in capsys.readouterr().err
    assert "/usr/bin" not in [
        line for line in Path("learned.toml").read_text().splitlines() if "ignored" in line
    ]
    again = replace(THIRD, files={**THIRD.files, "/usr/bin/program-0": b"updated again"})
    assert checked(give(again), capsys)[0] == 1


def test_verification_by_the_library_rejects_what_check_rejects(learned: Path) -> None:
    from quotary_cli.policyfile import read_policy

    policy = read_policy(learned)
    question = Question(HOST.body, at=NOW)
    verify(THIRD.attestation(HOST).encode(), question, policy)
    with pytest.raises(Rejected, match="init=/bin/sh"):
        verify(ATTACKS["a changed command line"][0].attestation(HOST).encode(), question, policy)


def test_refused_entries_are_those_that_every_boot_had(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert learn(give(FIRST, "a"), give(replace(SECOND, refused=4), "b")) == 0
    assert checked(give(replace(THIRD, refused=2)), capsys)[0] == 0
    assert checked(give(replace(THIRD, refused=1)), capsys)[0] == 1


def test_a_command_line_is_taken_to_the_letter(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "root=/dev/vda2 a.b*c(d)[e]{f}+?|^$ \\"
    assert learn(give(replace(FIRST, command_line=line), "a")) == 0
    one = replace(FIRST, command_line=line)
    assert checked(give(one), capsys)[0] == 0
    assert checked(give(replace(one, command_line=line.replace("a.b", "a_b"))), capsys)[0] == 1


@pytest.mark.parametrize("line", ["x=" + "y" * 5000, "quiet \x07bell"], ids=["long", "not printable"])
def test_a_text_that_no_pattern_can_have_is_taken_by_its_digest(
    folder: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    one = replace(FIRST, command_line=line)
    assert learn(give(one, "a")) == 0
    assert "command_lines" not in Path("learned.toml").read_text()
    assert checked(give(one), capsys)[0] == 0
    assert checked(give(replace(one, command_line=line + "z")), capsys)[0] == 1


@pytest.mark.parametrize(
    "path", ["/usr/bin/tool-{}.new", "/var/tmp/{}"], ids=["programs", "no constant part"]
)
def test_new_names_are_ignored_only_where_no_programs_lie_and_a_part_is_constant(
    folder: Path, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    boots = [
        replace(FIRST, files={**PROGRAMS, path.format(name): name.encode()}, resets=number)
        for number, name in enumerate(("abc", "xyz", "klm"))
    ]
    assert learn(give(boots[0], "a"), give(boots[1], "b")) == 0
    assert checked(give(boots[0]), capsys)[0] == 0
    assert checked(give(boots[2]), capsys)[0] == 1


@pytest.mark.parametrize("name", ["kexec-cmdline", ".ima", "/memfd:runner"])
def test_keys_command_lines_and_programs_in_memory_that_change_are_listed_and_never_ignored(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    boots = [replace(FIRST, files={**PROGRAMS, name: b"%d" % number}, resets=number) for number in range(3)]
    assert learn(give(boots[0], "a"), give(boots[1], "b")) == 0
    assert f"had several contents: {name}" in capsys.readouterr().err
    assert "ignore" not in tomllib.loads(Path("learned.toml").read_text())["platform"]["ima"]
    assert checked(give(boots[1]), capsys)[0] == 0
    assert checked(give(boots[2]), capsys)[0] == 1


def test_nothing_that_a_log_says_breaks_out_of_the_policy(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = (
        '"\'\\\n\r\u2028[tpm]\nsoftware = true\n[[pin]]\norigin = "evil.example/x"\n#\x1b[2J\u202e\x9b'
        + "." * 40
    )
    names = {f"{start}{out}": start.encode() for start in ("/usr/bin/", "bare", "/var/lib/")}
    one = replace(FIRST, version=out, files={**PROGRAMS, **names}, command_line=out.replace("\n", " "))
    assert learn(give(one, "a"), give(replace(one, resets=8, disk=out.encode()), "b")) == 0
    text = Path("learned.toml").read_text()
    assert all(char.isprintable() or char == "\n" for char in text)
    found, base = tomllib.loads(text), tomllib.loads(HOST.policy())
    assert {key: value for key, value in found.items() if key not in ("platform", "model")} == base
    assert found["platform"].keys() == {"pcrs", "secure_boot", "boot", "ima"}
    assert checked(give(one), capsys)[0] == 0
    assert checked(give(replace(one, files=PROGRAMS | {f"/usr/bin/{out}x": b"/usr/bin/"})), capsys)[0] == 1


def test_registers_that_nobody_extended_are_said_to_be_left_open(learned: Path) -> None:
    assert "PCR 11, 14 is zero in each boot and left open" in learned.read_text().replace("\n# ", " ")


def test_a_violation_is_accepted_where_a_good_boot_had_one_and_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boot = replace(FIRST, unmeasured=("/var/log/written",))
    assert learn(give(boot, "a")) == 0
    assert "1 measurements were not possible" in capsys.readouterr().err
    assert "violations = true" in Path("learned.toml").read_text()
    assert checked(give(boot), capsys)[0] == 0
    assert learn(give(FIRST, "a")) == 0
    assert checked(give(boot), capsys)[0] == 1


def test_a_loader_pcr_that_no_log_explains_is_left_to_its_value(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late = {12: sha256(b"extended later")}
    boots = [replace(boot, late=late) for boot in (FIRST, SECOND, THIRD)]
    assert learn(give(boots[0], "a"), give(boots[1], "b")) == 0
    text = Path("learned.toml").read_text()
    assert "pcrs = [8, 9]" in text
    assert f'12 = ["{late[12].hex()}"]' in text
    assert checked(give(boots[2]), capsys)[0] == 0
    assert checked(give(THIRD), capsys)[0] == 1
    other = replace(boots[2], late={12: sha256(b"other")}, command_line="init=/bin/sh")
    messages, _ = differences("a.attestation", give(other), "--policy", "base.toml", capsys=capsys)
    assert not [message for message in messages if "init=/bin/sh" in message]
    assert any(message.startswith("PCR 12: its value changed") for message in messages)
    messages, _ = differences(give(FIRST, "c"), "a.attestation", "--policy", "base.toml", capsys=capsys)
    assert [message[:25] for message in messages] == ["PCR 12: its value changed"]


def test_a_boot_aggregate_that_nothing_confirms_is_not_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert learn(give(FIRST, "a", logs="ima"), give(SECOND, "b", logs="ima")) == 0
    assert "boot_aggregate = false" in Path("learned.toml").read_text()
    assert checked(give(replace(THIRD, refused=2), logs="ima"), capsys)[0] == 0


# --- diff ----------------------------------------------------------------------------------------------------


def differences(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[list[str], dict[str, Any]]:
    code, found = attest("policy", "diff", *words, capsys=capsys)
    assert code == 0
    return [change["message"] for change in found["changes"]], found


def test_two_boots_are_compared_down_to_the_event(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = replace(
        FIRST,
        loader=b"systemd-boot 258",
        refused=5,
        order=b"\2\0\1\0",
        command_line="root=/dev/vda2 ima_policy=tcb init=/bin/sh",
        files={**PROGRAMS, "/usr/bin/program-1": b"changed", "/usr/bin/new": b"new"},
        resets=8,
    )
    del changed.files["/usr/bin/program-3"]  # type: ignore[attr-defined]
    messages, found = differences(
        give(replace(FIRST, files=PROGRAMS), "a"), give(changed, "b"), "--policy", "base.toml", capsys=capsys
    )
    assert found["verified"] is True
    before, after = (sha256(b"systemd-boot %d" % number).hex()[:16] for number in (257, 258))
    for expected in (
        "reset count changed from 7 to 8",
        "PCR 1: the boot order was 0001 and is 0002, 0001",
        f"systemd-bootx64.efi) changed from {before}… to {after}…",
        "PCR 7: dbx grew by 3 hashes",
        "PCR 12: the command line changed: +init=/bin/sh -quiet",
        "IMA: /usr/bin/new was added",
        "IMA: /usr/bin/program-1 changed from sha256:",
        "IMA: /usr/bin/program-3 was removed",
    ):
        assert [message for message in messages if expected in message], expected
    assert len(messages) == 8


def test_equal_boots_have_no_difference(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    messages, found = differences(give(FIRST, "a"), give(FIRST, "b"), "--policy", "base.toml", capsys=capsys)
    assert (messages, found["equal"]) == ([], True)


def test_a_folder_stands_for_the_one_boot_that_it_shows(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        Path(name).mkdir()
    give(FIRST, "a/early", clock=1)
    give(replace(FIRST, files={**FIRST.files, "/usr/bin/late": b"late"}), "a/late", clock=2)
    give(FIRST, "b/one")
    words = ("b", "a", "--policy", "base.toml")
    messages, _ = differences(*words, capsys=capsys)
    assert [message[:31] for message in messages] == ["IMA: /usr/bin/late was added (sh"[:31]]
    give(SECOND, "a/second")
    code, found = attest("policy", "diff", *words, capsys=capsys)
    assert (code, "it shows 2 boots" in found["error"]) == (2, True)


def test_raw_logs_are_compared_only_under_an_ugly_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, boot in (("a", FIRST), ("b", replace(FIRST, secure_boot=False, kernel=b"other"))):
        Path(name).mkdir()
        Path(name, "binary_bios_measurements").write_bytes(boot.log().agile())
        Path(name, "binary_runtime_measurements").write_bytes(boot.ima())
    assert run(["policy", "diff", "a", "b"]) == 2
    messages, found = differences("a", "b", "--unverified-do-not-trust", capsys=capsys)
    assert found["verified"] is False
    assert "PCR 7: Secure Boot was on and is off" in messages
    assert run(["policy", "diff", "a", "b", "--unverified-do-not-trust"]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("UNVERIFIED")
    assert "the kernel (\\linux) changed" in shown.out
    alone = ["a/binary_bios_measurements", "b/binary_bios_measurements"]
    assert len(differences(*alone, "--unverified-do-not-trust", capsys=capsys)[0]) > 2


def test_what_a_log_says_cannot_act_on_a_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, path in (("a", "/tmp/a"), ("b", "/tmp/\x1b[2J\nPCR 4: nothing changed")):
        Path(name).write_bytes(replace(FIRST, files={path: b"content"}).ima())
    capsys.readouterr()
    assert run(["policy", "diff", "a", "b", "--unverified-do-not-trust"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert len(out.splitlines()) == 2


def test_a_value_that_no_log_explains_is_told_as_such(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (replace(FIRST, late={14: sha256(text)}) for text in (b"a", b"b"))
    messages, _ = differences(give(a, "a"), give(b, "b"), "--policy", "base.toml", capsys=capsys)
    (message,) = messages
    assert message.startswith("PCR 14: its value changed")
    assert "no log says why" in message


def test_logs_of_thousands_of_events_are_compared_in_a_moment() -> None:
    event = (8).to_bytes(4, "little") + t.EV_IPL.to_bytes(4, "little") + (1).to_bytes(4, "little") + b"\x0b\0"
    head = TcgWriter((0x0B,)).header()
    texts = [b"%d" % (number % 3) for number in range(8000)]
    logs = [
        head + b"".join(event + sha256(text) + bytes(4) for text in side) for side in (texts, texts[::-1])
    ]
    before, after = (Side(str(n), False, events=_replayed(log)) for n, log in enumerate(logs))
    started = time.process_time()
    changes = list(compare(before, after))
    assert time.process_time() - started < 2
    assert [change.text for change in changes] == ["PCR 8: the order of its events changed"]


def _replayed(log: bytes) -> tuple[Event, ...]:
    parsed = parse_tcg_log(log)
    return parsed.replay(parsed.unverified_values_do_not_trust(0x0B), required=()).events


def test_an_event_that_moved_is_neither_added_nor_removed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = FIRST.log()
    images = [number for number, one in enumerate(writer.events) if one.type in t.IMAGE_TYPES]
    swapped = TcgWriter(writer.banks, list(writer.events))
    first, second = images
    swapped.events[first], swapped.events[second] = writer.events[second], writer.events[first]
    Path("a").write_bytes(writer.agile())
    Path("b").write_bytes(swapped.agile())
    messages, _ = differences("a", "b", "--unverified-do-not-trust", capsys=capsys)
    assert messages == ["PCR 4: the order of its events changed"]
