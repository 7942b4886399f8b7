# SPDX-License-Identifier: Apache-2.0
"""Rules on PCR values, counts and workload events; reference sets; rules that only warn; policies that end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from appraising import ORIGIN, appraised, digest, evidence, only, policy, without_logs, workload
from boot_defects import BOOT
from forge import NOW

from quotary_verifier import Policy, PolicyError
from quotary_verifier.logs.workload import WorkloadEvent
from quotary_verifier.policy.findings import PlatformEvidence, Severity, shown
from quotary_verifier.policy.load import load_policy
from quotary_verifier.policy.rules import RULES
from quotary_verifier.wire.tpm import ClockInfo

VALUES = {pcr: value.hex() for pcr, value in BOOT.values().items()}
OTHER = digest(b"another").hex()


def pcrs(table: str = "platform", **values: str) -> str:
    return f"[{table}.pcrs]\n" + "".join(f'{name[1:]} = ["{value}"]\n' for name, value in values.items())


# --- PCR values ----------------------------------------------------------------------------------------------


def test_a_pcr_with_one_of_its_values_is_accepted_and_another_is_shown_with_what_is_allowed() -> None:
    assert not appraised(pcrs(_0=VALUES[0]), evidence()).findings
    found = only(appraised(pcrs(_0=VALUES[0], _4=OTHER), evidence()))
    assert (found.rule, found.pcr, found.found, found.allowed) == ("platform.pcrs.4", 4, VALUES[4], (OTHER,))
    assert VALUES[4] in found.message
    assert OTHER in found.message


def test_every_pcr_that_departs_is_told() -> None:
    found = appraised(pcrs(_0=OTHER, _2=OTHER, _7=OTHER), evidence()).findings
    assert [item.pcr for item in found] == [0, 2, 7]


def test_a_pcr_that_commits_extend_meets_no_fixed_value() -> None:
    of = evidence()
    found = only(appraised(pcrs(_15=of.pcrs[15].hex()), of))
    assert "extends with every commit" in found.message


@pytest.mark.parametrize("pcr", [0, 4, 7])
def test_a_boot_that_was_never_measured_needs_a_policy_that_lists_zero(pcr: int) -> None:
    of = without_logs(evidence())
    of = replace(of, pcrs={**of.pcrs, pcr: bytes(32)})
    found = only(appraised(pcrs(_2=VALUES[2]), of))
    assert (found.rule, found.pcr) == ("platform.measured", pcr)
    assert not appraised(pcrs(_2=VALUES[2]) + f'{pcr} = ["{"0" * 64}"]\n', of).findings


def test_a_policy_without_rules_on_the_platform_finds_nothing() -> None:
    of = evidence()
    assert not appraised("", replace(of, pcrs=dict.fromkeys(range(16), bytes(32)))).findings


# --- counts --------------------------------------------------------------------------------------------------


def counted(resets: int = 7, restarts: int = 0, *, own: bool = True) -> PlatformEvidence:
    return replace(evidence(), clock=ClockInfo(5, resets, restarts, True), own_key=own)


def test_a_host_that_slept_can_be_refused() -> None:
    assert not appraised("[platform.clock]\nrestarts = 1\n", counted(restarts=1)).findings
    found = only(appraised("[platform.clock]\nrestarts = 0\n", counted(restarts=1)))
    assert (found.rule, found.found) == ("platform.clock.restarts", "1")


def window(first: int, last: int | None = None, origin: str = ORIGIN) -> str:
    end = "" if last is None else f"last = {last}\n"
    return f'[[platform.clock.boots]]\norigin = "{origin}"\nfirst = {first}\n{end}'


@pytest.mark.parametrize(("resets", "fits"), [(4, False), (5, True), (9, True), (10, False)])
def test_evidence_of_boots_outside_a_window_can_be_refused(resets: int, fits: bool) -> None:
    found = appraised(window(5, 9), counted(resets)).findings
    assert [item.rule for item in found] == ([] if fits else ["platform.clock.boots"])


def test_a_window_without_end_counts_from_a_boot_on_and_for_its_origin_only() -> None:
    assert not appraised(window(5), counted(2**32 - 1)).findings
    assert "those from 5" in only(appraised(window(5), counted(4))).message
    assert not appraised(window(5, origin="o.example/" + "b" * 32), counted(4)).findings


def test_counts_of_a_foreign_key_cannot_be_judged() -> None:
    for text in ("[platform.clock]\nrestarts = 0\n", window(5)):
        assert only(appraised(text, counted(own=False))).severity is Severity.COULD_NOT
    other = window(5, origin="o.example/" + "b" * 32)
    assert not appraised(other, counted(own=False)).findings


# --- workload events -----------------------------------------------------------------------------------------


def test_an_event_of_a_type_that_is_not_allowed_is_named() -> None:
    text = '[workload]\ntypes = ["agent", "engine", "model"]\n'
    assert not appraised(text, evidence()).findings
    adapter = WorkloadEvent("adapter", "lora\n\x1b[1m", digest(b"lora"), {})
    found = only(appraised(text, replace(evidence(), workload=workload(adapter))))
    assert (found.rule, found.event, found.found) == ("workload.types", 3, digest(b"lora").hex())
    assert found.message.isprintable()


def engine(name: str | None, content: bytes | None) -> str:
    text = '[[workload.event]]\ntype = "engine"\n'
    text += "" if name is None else f'name = "{name}"\n'
    return text + ("" if content is None else f'digest = "{digest(content).hex()}"\n')


def test_an_event_of_a_type_with_entries_must_fit_one_of_them() -> None:
    right = engine("llama-server", b"engine")
    for text in (right, engine(None, b"engine"), engine("llama-server", None), engine("x", b"x") + right):
        assert not appraised(text, evidence()).findings
    for text in (engine("llama-server", b"other"), engine("vllm", b"engine")):
        found = only(appraised(text, evidence()))
        assert (found.rule, found.event, found.path) == ("workload.events", 1, "llama-server")


def test_a_model_beside_the_allowed_ones_can_be_refused() -> None:
    text = f'[[model]]\nname = "SmolLM2-135M"\nweights = "{digest(b"weights").hex()}"\n[workload]\nonly_models = true\n'
    assert not appraised(text, evidence()).findings
    second = WorkloadEvent("model", "another", digest(b"weights"), {})
    found = only(appraised(text, replace(evidence(), workload=workload(second))))
    assert (found.rule, found.path) == ("workload.models", "another")


def test_events_given_by_their_digests_leave_the_rules_open() -> None:
    of = replace(evidence(), workload=workload(opaque=True))
    found = appraised('[workload]\ntypes = ["agent"]\n', of).findings
    assert [item.severity for item in found] == [Severity.COULD_NOT] * 3
    assert not appraised("", of).findings


# --- reference sets ------------------------------------------------------------------------------------------


def reference(name: str, **values: str) -> str:
    return f'[[reference]]\nname = "{name}"\n' + pcrs("reference", **values)


def test_a_fleet_has_reference_sets_and_the_one_that_fits_is_named() -> None:
    text = reference("Milan", _0=OTHER) + reference("Genoa", _0=VALUES[0])
    found = appraised(text, evidence())
    assert (found.findings, found.reference) == ((), "Genoa")


def test_where_none_fits_the_nearest_is_told_with_all_that_is_in_the_way() -> None:
    text = reference("Milan", _0=OTHER, _2=OTHER, _7=OTHER) + reference("Genoa", _0=OTHER, _2=VALUES[2])
    found = appraised(text, evidence())
    assert found.reference is None
    assert [item.rule for item in found.findings] == ["reference", "platform.pcrs.0"]
    assert "none of 2 reference sets fits; the nearest is 'Genoa'" in found.findings[0].message
    assert found.findings[1].message.startswith("reference set 'Genoa': PCR 0 is ")


def test_common_rules_hold_beside_a_reference_set() -> None:
    text = pcrs(_7=OTHER) + reference("Genoa", _0=VALUES[0])
    found = appraised(text, evidence())
    assert (only(found).pcr, found.reference) == (7, "Genoa")


def test_values_of_two_sets_are_not_mixed() -> None:
    text = reference("a", _0=VALUES[0], _2=OTHER) + reference("b", _0=OTHER, _2=VALUES[2])
    assert appraised(text, evidence()).reference is None


def test_a_set_that_could_not_be_judged_leaves_the_rule_open() -> None:
    text = reference("a", _0=OTHER) + '[[reference]]\nname = "b"\n[reference.secure_boot]\n'
    found = appraised(text, without_logs(evidence())).findings
    assert {item.severity for item in found} == {Severity.COULD_NOT}
    assert "'b'" in found[0].message


def test_a_set_that_fits_is_taken_before_one_that_fits_with_warnings() -> None:
    warn = '[[warn]]\nrule = "platform.pcrs.0"\nuntil = 2027-01-01T00:00:00Z\n'
    text = reference("a", _0=OTHER) + reference("b", _0=VALUES[0]) + warn
    found = appraised(text, evidence())
    assert (found.findings, found.reference) == ((), "b")
    found = appraised(reference("a", _0=OTHER) + warn, evidence())
    assert (only(found).severity, found.reference) == (Severity.WARN, "a")


def test_tolerances_of_a_set_that_does_not_fit_are_not_listed() -> None:
    quiet = '[[reference]]\nname = "{}"\n[reference.ima]\nboot_aggregate = false\nignore = ["/usr/*"]\n'
    text = quiet.format("a") + pcrs("reference", _0=OTHER) + reference("b", _0=VALUES[0])
    assert appraised(text, evidence()).tolerances == ()
    fits = appraised(quiet.format("a"), evidence())
    assert (fits.reference, len(fits.tolerances)) == ("a", 2)


def test_a_boot_that_was_never_measured_fits_no_set_that_does_not_list_zero() -> None:
    of = without_logs(evidence())
    of = replace(of, pcrs={**of.pcrs, 4: bytes(32)})
    assert appraised(reference("a", _0=VALUES[0]), of).reference is None
    assert appraised(reference("a", _0=VALUES[0], _4="0" * 64), of).reference == "a"
    assert appraised(pcrs(_4="0" * 64) + reference("a", _0=VALUES[0]), of).reference == "a"


# --- rules that only warn ------------------------------------------------------------------------------------


def warn(rule: str, until: str = "2026-11-23T12:00:01Z") -> str:
    return f'[[warn]]\nrule = "{rule}"\nuntil = {until}\n'


@pytest.mark.parametrize("rule", ["platform.pcrs", "platform.pcrs.4"])
def test_a_rule_only_warns_until_its_date_and_says_from_when_it_counts(rule: str) -> None:
    text = pcrs(_4=OTHER) + warn(rule)
    found = only(appraised(text, evidence(), NOW))
    assert (found.severity, found.until) == (Severity.WARN, NOW + 1)
    assert found.message.endswith("; rejected from 2026-11-23T12:00:01Z")
    assert only(appraised(text, evidence(), NOW + 1)).severity is Severity.FAIL


def test_other_rules_go_on_to_count() -> None:
    text = pcrs(_4=OTHER, _7=OTHER) + warn("platform.pcrs.4")
    assert [item.severity for item in appraised(text, evidence()).findings] == [Severity.FAIL, Severity.WARN]


def test_the_nearest_date_to_a_rule_decides() -> None:
    text = pcrs(_4=OTHER) + warn("platform.pcrs") + warn("platform.pcrs.4", "2026-11-23T11:00:00Z")
    assert only(appraised(text, evidence())).severity is Severity.FAIL


def test_a_rule_that_cannot_be_judged_warns_too() -> None:
    text = "[platform.secure_boot]\n" + warn("platform.secure_boot")
    assert only(appraised(text, without_logs(evidence()))).severity is Severity.WARN


def test_reference_sets_can_be_rolled_out_in_stages() -> None:
    text = reference("a", _0=OTHER) + warn("reference")
    found = appraised(text, evidence())
    assert [item.severity for item in found.findings] == [Severity.WARN, Severity.WARN]
    assert {item.severity for item in appraised(text, evidence(), NOW + 1).findings} == {Severity.FAIL}


def test_every_rule_that_a_finding_can_name_has_a_code() -> None:
    assert {rule for rule in RULES if "." not in rule} == {"reference", "workload"}
    assert "platform.pcrs.15" in RULES


# --- who wrote the workload log ------------------------------------------------------------------------------

FILE = f'digest = "{OTHER}"\n'
PINS = {
    pcrs(_4=OTHER): True,
    pcrs(_4="0" * 64): False,
    pcrs(_8=OTHER, _9=OTHER, _10=OTHER, _11=OTHER): False,
    pcrs(_0=OTHER, _7=OTHER): False,
    "[platform.secure_boot]\n": False,
    f'[platform.boot]\napplications = ["{OTHER}"]\n': True,
    f'[platform.boot]\napplications = ["{OTHER}"]\n' + warn("platform.boot"): False,
    f'[platform.boot]\napplications = ["{OTHER}"]\n' + warn("platform.boot.order"): True,
    f'[platform.boot]\nfiles = ["{OTHER}"]\n': False,
    '[platform.boot]\ncommand_lines = ["ro"]\n': False,
    f"[[platform.ima.file]]\n{FILE}": False,
    pcrs(_4=OTHER) + warn("platform.pcrs.4"): False,
    pcrs(_4=OTHER) + warn("platform.pcrs.4", "2020-01-01T00:00:00Z"): False,
    reference("a", _4=OTHER) + reference("b", _4=OTHER): True,
    reference("a", _4=OTHER) + reference("b", _9=OTHER): False,
    reference("a", _4=OTHER) + warn("reference"): False,
    "": False,
}


@pytest.mark.parametrize("text", PINS)
def test_only_rules_on_what_was_started_pin_who_wrote_the_workload_log(text: str) -> None:
    assert policy(text).pins_the_writer is PINS[text]


# --- policies that end ---------------------------------------------------------------------------------------


def ending(text: str) -> Policy:
    head = policy("")
    assert head.expires is None
    return load_policy(f'schema = "quotary-policy/v1"\n{text}\n[[pin]]\norigin = "{ORIGIN}"\n'.encode())


def test_a_policy_ends_at_a_time_and_is_none_from_then_on() -> None:
    made = ending("version = 3\nexpires = 2026-11-23T13:00:00+01:00")
    assert (made.version, made.expires) == (3, NOW)
    made.require_current(NOW - 1)
    with pytest.raises(PolicyError, match="ended at 2026-11-23T12:00:00Z"):
        made.require_current(NOW)


def test_what_is_shown_is_one_line_of_bounded_length() -> None:
    assert shown(b"/bin/\xff\n\x9b") == "/bin/\\xff\\n\\x9b"
    assert len(shown("x" * 10_000)) < 300
