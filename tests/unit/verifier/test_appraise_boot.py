# SPDX-License-Identifier: Apache-2.0
"""Rules on Secure Boot, on what was started and on what loaders read: each accepts the host, and names what departs.

A false log here always replays: the writer of a log cannot change a digest, but type, data and label are his to choose.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from appraising import accepted, appraised, digest, evidence, only, without_logs
from boot_defects import BOOT, number_of
from tcg_logs import TcgWriter, Written, good_boot, guid_bytes, signature_list, variable

from quotary_verifier.logs import tcg_types as t
from quotary_verifier.logs.tcg import ReplayedLog, parse_tcg_log
from quotary_verifier.logs.uefi import GLOBAL, IMAGE_SECURITY, SHIM, file_names
from quotary_verifier.policy import appraise_firmware
from quotary_verifier.policy.findings import PlatformEvidence, Severity

SHIM_IMAGE, GRUB_IMAGE = digest(b"shimx64.efi"), digest(b"grubx64.efi")
CERTIFICATE = b"\x30\x82\x01\x00" + b"c" * 256
"""The form of a certificate; nothing here looks into one."""


def x509(name: bytes) -> str:
    return f"x509:{digest(name).hex()}"


KEYS = {name: x509(name.encode() * 40) for name in ("PK", "KEK", "db")}
REFUSED = [f"sha256:{digest(b'refused %d' % number).hex()}" for number in range(2)]


def secure_boot(**rules: object) -> str:
    return "[platform.secure_boot]\n" + "".join(f"{name} = {value!s}\n" for name, value in rules.items())


def texts(*values: str) -> str:
    return "[" + ", ".join(f'"{value}"' for value in values) + "]"


# --- Secure Boot ---------------------------------------------------------------------------------------------


def test_secure_boot_with_its_keys_is_accepted() -> None:
    rules = {name.lower(): texts(entry, x509(b"another")) for name, entry in KEYS.items()}
    assert not appraised(secure_boot(**rules, dbx=texts(REFUSED[1])), evidence()).findings


def test_secure_boot_that_is_off_is_rejected_unless_the_policy_does_not_ask_for_it() -> None:
    off = evidence(good_boot(enabled=False))
    finding = only(appraised(secure_boot(), off))
    assert (finding.rule, finding.severity, finding.pcr) == ("platform.secure_boot.state", Severity.FAIL, 7)
    assert "Secure Boot is off" in finding.message
    assert not appraised(secure_boot(enabled="false"), off).findings


def test_firmware_in_its_debug_mode_is_rejected_where_secure_boot_must_be_on() -> None:
    boot = good_boot()
    boot.events.insert(2, Written(7, t.EV_EFI_ACTION, b"UEFI Debug Mode"))
    assert only(appraised(secure_boot(), evidence(boot))).found == "UEFI Debug Mode"
    assert not appraised(secure_boot(enabled="false"), evidence(boot)).findings


@pytest.mark.parametrize("data", [b"UEFI Debug Mode", b"UEFI Debug Mode\0", b"harmless"])
@pytest.mark.parametrize("kind", [t.EV_EFI_VARIABLE_AUTHORITY, t.EV_EFI_SPDM_DEVICE_POLICY, t.EV_EFI_ACTION])
def test_the_remark_of_a_debugger_is_found_whatever_the_log_calls_it(kind: int, data: bytes) -> None:
    measured = b"UEFI Debug Mode" if data == b"harmless" else data
    boot = good_boot()
    boot.events.insert(2, Written(7, t.EV_EFI_ACTION, measured))
    logged = boot.altered(2, type=kind, data=data, measured=measured)
    assert not accepted(appraised(secure_boot(), evidence(boot, logged=logged)))


@pytest.mark.parametrize("name", ["PK", "KEK", "db"])
def test_an_entry_that_the_policy_does_not_allow_is_named(name: str) -> None:
    finding = only(appraised(secure_boot(**{name.lower(): texts(x509(b"mine"))}), evidence()))
    assert finding.rule == f"platform.secure_boot.{name.lower()}"
    assert (finding.path, finding.found, finding.allowed) == (name, KEYS[name], (x509(b"mine"),))
    assert f"{name} has the entry {KEYS[name]}" in finding.message


def test_an_image_that_dbx_should_refuse_and_does_not_is_named() -> None:
    missing = f"sha256:{digest(b'an old shim').hex()}"
    finding = only(appraised(secure_boot(dbx=texts(missing, *REFUSED)), evidence()))
    assert (finding.rule, finding.allowed) == ("platform.secure_boot.dbx", (missing,))


def booted_by(authority: bytes, *, name: str = "db", vendor: str = IMAGE_SECURITY) -> PlatformEvidence:
    """The host with another authority behind the separator of PCR 7."""
    boot = good_boot()
    place = number_of(t.EV_EFI_VARIABLE_AUTHORITY)
    return evidence(boot.altered(place, data=variable(vendor, name, authority)))


OWNED = guid_bytes(GLOBAL) + CERTIFICATE


def test_an_authority_is_known_by_its_certificate_whoever_is_said_to_own_it() -> None:
    rule = secure_boot(authorities=texts(x509(CERTIFICATE)))
    for authority in (OWNED, guid_bytes(IMAGE_SECURITY) + CERTIFICATE, CERTIFICATE):
        assert not appraised(rule, booted_by(authority)).findings
    finding = only(appraised(rule, booted_by(OWNED[:-1] + b"!")))
    assert finding.rule == "platform.secure_boot.authorities"
    assert finding.event == number_of(t.EV_EFI_VARIABLE_AUTHORITY) + 1, "the Spec ID event is number 0"


def test_an_image_that_was_accepted_by_its_digest_is_an_authority_too() -> None:
    by_digest = booted_by(guid_bytes(GLOBAL) + digest(b"image"))
    assert not appraised(
        secure_boot(authorities=texts(f"sha256:{digest(b'image').hex()}")), by_digest
    ).findings
    assert only(appraised(secure_boot(authorities=texts(x509(b"a"))), by_digest)).found is not None


def test_what_shim_measures_of_its_settings_is_no_authority_and_no_error() -> None:
    boot = good_boot().altered(
        number_of(t.EV_EFI_VARIABLE_AUTHORITY), data=variable(IMAGE_SECURITY, "db", OWNED)
    )
    for name, content in (("SbatLevel", b"sbat,1,2021030218\n"), ("MokListTrusted", b"\1")):
        boot.add(7, t.EV_EFI_VARIABLE_AUTHORITY, variable(SHIM, name, content))
    assert not appraised(secure_boot(authorities=texts(x509(CERTIFICATE))), evidence(boot)).findings
    boot.add(7, t.EV_EFI_VARIABLE_AUTHORITY, variable(SHIM, "Shim", CERTIFICATE[:-1] + b"?"))
    assert only(appraised(secure_boot(authorities=texts(x509(CERTIFICATE))), evidence(boot))).path == "Shim"


def test_an_authority_whose_data_was_exchanged_is_known_by_its_event_alone() -> None:
    boot = good_boot().altered(
        number_of(t.EV_EFI_VARIABLE_AUTHORITY), data=variable(IMAGE_SECURITY, "db", OWNED)
    )
    place = number_of(t.EV_EFI_VARIABLE_AUTHORITY)
    hidden = boot.altered(place, data=b"nothing", measured=boot.events[place].data)
    event = f"event:{digest(boot.events[place].data).hex()}"
    finding = only(
        appraised(secure_boot(authorities=texts(x509(CERTIFICATE))), evidence(boot, logged=hidden))
    )
    assert finding.found == event
    assert not appraised(secure_boot(authorities=texts(event)), evidence(boot, logged=hidden)).findings


def test_a_boot_that_shows_no_authority_is_not_one_by_an_allowed_authority() -> None:
    boot = good_boot().without(number_of(t.EV_EFI_VARIABLE_AUTHORITY))
    finding = only(appraised(secure_boot(authorities=texts(x509(CERTIFICATE))), evidence(boot)))
    assert "does not show who vouched" in finding.message


def test_a_secure_boot_state_that_cannot_be_read_is_rejected_whatever_it_claims() -> None:
    place = 2  # the variable SecureBoot
    assert BOOT.events[place].register == 7
    exchanged = BOOT.altered(
        place, data=variable(GLOBAL, "SecureBoot", b"\0"), measured=BOOT.events[place].data
    )
    finding = only(appraised(secure_boot(), evidence(logged=exchanged)))
    assert (finding.rule, finding.severity) == ("platform.secure_boot.state", Severity.FAIL)


def test_a_log_that_lacks_a_variable_needs_a_tolerance_which_the_result_names() -> None:
    boot = good_boot().without(6)  # dbx
    assert only(appraised(secure_boot(), evidence(boot))).rule == "platform.secure_boot.state"
    tolerant = '[platform]\ntolerate = ["no-secure-boot-state"]\n' + secure_boot()
    found = appraised(tolerant, evidence(boot))
    assert (found.findings, found.tolerances) == ((), ("firmware log: no-secure-boot-state",))


def test_names_of_entries_of_other_types_are_those_types() -> None:
    kind = "3bd2a492-96c0-4079-b420-fcf98ef103ed"
    content = variable(IMAGE_SECURITY, "dbx", signature_list(kind, [b"h" * 48]))
    boot = good_boot().altered(6, data=content)
    assert not appraised(secure_boot(dbx=texts(f"{kind}:{digest(b'h' * 48).hex()}")), evidence(boot)).findings


# --- what was started ----------------------------------------------------------------------------------------

STARTED = f"[platform.boot]\napplications = {texts(SHIM_IMAGE.hex(), GRUB_IMAGE.hex())}\n"
IMAGE = number_of(t.EV_EFI_BOOT_SERVICES_APPLICATION)


def test_images_that_the_policy_allows_may_be_started() -> None:
    assert not appraised(STARTED, evidence()).findings


def test_another_image_is_named_by_event_digest_and_what_the_log_calls_it() -> None:
    path = (
        b"\x04\x04"
        + (4 + 24).to_bytes(2, "little")
        + "\\EVIL.EFI\x1b\0".encode("utf-16-le")
        + b"\x7f\xff\x04\0"
    )
    path = path[:2] + (len(path) - 4).to_bytes(2, "little") + path[4:]
    image = b"".join(number.to_bytes(8, "little") for number in (0, 0, 0, len(path))) + path
    boot = good_boot().add(4, t.EV_EFI_BOOT_SERVICES_APPLICATION, image, b"evil")
    boot.events.insert(IMAGE, boot.events.pop())
    finding = only(appraised(STARTED, evidence(boot)))
    assert (finding.rule, finding.pcr, finding.event) == ("platform.boot.applications", 4, IMAGE + 1)
    assert finding.found == digest(b"evil").hex()
    assert finding.allowed == tuple(sorted([SHIM_IMAGE.hex(), GRUB_IMAGE.hex()]))
    assert finding.path == "\\EVIL.EFI\\x1b", "what a log calls an image can hold no escape code"


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (t.EV_EFI_ACTION, b"Calling nothing"),
        (t.EV_ACTION, b"Booting BCV Device 80h"),
        (t.EV_IPL, b"harmless"),
        (t.EV_COMPACT_HASH, b""),
        (t.EV_EVENT_TAG, b"\0" * 8),
        (t.EV_OMIT_BOOT_DEVICE_EVENTS, b"BOOT ATTEMPTS OMITTED"),
    ],
)
def test_an_image_that_the_log_calls_something_else_is_found_all_the_same(kind: int, data: bytes) -> None:
    boot = BOOT.altered(IMAGE, measured=b"evil")
    retyped = boot.altered(IMAGE, type=kind, data=data)
    finding = only(appraised(STARTED, evidence(boot, logged=retyped)))
    assert (finding.event, finding.found) == (IMAGE + 1, digest(b"evil").hex())


def test_an_image_whose_hashed_bytes_stand_in_the_log_is_no_remark() -> None:
    hashed = b"MZ" + bytes(62) + b"PE\0\0" + b"evil"
    boot = BOOT.altered(IMAGE, measured=hashed)
    retyped = boot.altered(IMAGE, type=t.EV_EFI_ACTION, data=hashed, measured=None)
    assert only(appraised(STARTED, evidence(boot, logged=retyped))).found == digest(hashed).hex()


def test_an_image_called_a_separator_is_refused() -> None:
    boot = BOOT.altered(IMAGE, measured=b"evil")
    retyped = boot.altered(IMAGE, type=t.EV_SEPARATOR, data=bytes(4))
    of = evidence(boot, logged=retyped)
    rules = [item.rule for item in appraised(STARTED, of).findings]
    assert rules == ["platform.boot.order", "platform.boot.applications"]
    until = '[[warn]]\nrule = "platform.boot.order"\nuntil = 2027-01-01T00:00:00Z\n'
    assert not accepted(appraised(STARTED + until, of))


def test_remarks_of_the_firmware_start_nothing() -> None:
    boot = good_boot().add(4, t.EV_EFI_ACTION, b"Booting to Recovery")
    assert not appraised(STARTED, evidence(boot)).findings


def test_departures_of_a_boots_order_are_named_tolerances() -> None:
    places = [n for n, event in enumerate(BOOT.events) if event.data.startswith(b"Exit Boot Services")]
    boot = BOOT.without(places[1]).without(places[0])
    finding = only(appraised(STARTED, evidence(boot)))
    assert finding.rule == "platform.boot.order"
    assert "tolerance 'no-exit-boot-services'" in finding.message
    found = appraised('[platform]\ntolerate = ["no-exit-boot-services"]\n' + STARTED, evidence(boot))
    assert (found.findings, found.tolerances) == ((), ("firmware log: no-exit-boot-services",))


def test_a_device_path_is_read_as_far_as_it_is_one() -> None:
    node = b"\x04\x04" + (4 + 8).to_bytes(2, "little") + "\\EFI".encode("utf-16-le")
    assert file_names(b"\x01\x01\x06\0\0\0" + node + node) == "\\EFI\\\\EFI"
    for broken in (b"", b"\x04", b"\x04\x04\0\0", b"\x04\x04\x03\0", node[:5], b"\x7f\xff\x04\0" + node):
        assert len(file_names(broken)) <= 4


# --- what loaders read ---------------------------------------------------------------------------------------

LINES = "[platform.boot]\ncommand_lines = ['linux /vmlinuz quiet', '/vmlinuz( quiet)?']\n"
KERNEL = digest(b"the kernel").hex()


def loader(text: str, of: PlatformEvidence | None = None) -> list[str]:
    found = appraised(text, of or evidence()).findings
    assert all(finding.rule == "platform.boot.loader" for finding in found)
    return [finding.message for finding in found]


def test_command_lines_that_fit_and_files_that_are_listed_are_accepted() -> None:
    assert loader(LINES) == []
    assert loader(LINES + f'files = ["{KERNEL}"]\n') == []
    assert loader(f'[platform.boot]\nfiles = ["{KERNEL}"]\n') == []


def cmdline(text: bytes, label: bytes = b"kernel_cmdline: ", measured: bytes | None = None) -> TcgWriter:
    place = next(n for n, event in enumerate(BOOT.events) if event.data.startswith(b"kernel_cmdline"))
    return BOOT.altered(place, data=label + text + b"\0", measured=text if measured is None else measured)


def test_a_command_line_that_fits_nothing_is_shown_with_its_event() -> None:
    finding = only(appraised(LINES, evidence(cmdline(b"/vmlinuz quiet init=/bin/sh\x1b[2J"))))
    assert (finding.pcr, finding.path) == (8, "kernel_cmdline")
    assert finding.found == "/vmlinuz quiet init=/bin/sh\\x1b[2J"
    assert f"event {finding.event}" in finding.message


@pytest.mark.parametrize("label", [b"grub_cmd: ", b"", b"note: ", b"MokList: "])
def test_a_command_line_is_judged_whatever_the_log_calls_it(label: bytes) -> None:
    assert "fits no command line" in loader(LINES, evidence(cmdline(b"init=/bin/sh", label)))[0]


def test_text_that_is_more_than_a_boot_has_fits_nothing_so_that_it_takes_no_minutes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    boot = good_boot()
    for number in range(20):
        boot.events += [Written(8, t.EV_IPL, b"%04d " % number + b"x" * 1000)] * 2
    rules = "[platform.boot]\ncommand_lines = ['.*']\n"
    assert not appraised(rules, evidence(boot)).findings
    monkeypatch.setattr(appraise_firmware, "_MAX_TEXTS", 11_000)
    found = appraised(rules, evidence(boot)).findings
    assert [item.found[:4] for item in found if item.found] == [
        f"{number:04}" for number in range(10, 20) for _ in "ab"
    ]


def test_a_command_line_that_the_log_does_not_show_is_refused() -> None:
    shown = cmdline(b"/vmlinuz quiet", measured=b"init=/bin/sh")
    assert f"digest {digest(b'init=/bin/sh').hex()}" in loader(LINES, evidence(shown))[0]


@pytest.mark.parametrize("kind", [t.EV_EVENT_TAG, t.EV_EFI_ACTION, t.EV_SEPARATOR, 0x12345])
def test_an_event_of_another_type_in_a_loader_pcr_is_refused(kind: int) -> None:
    place = next(n for n, event in enumerate(BOOT.events) if event.register == 8)
    retyped = BOOT.altered(place, type=kind, data=b"x", measured=BOOT.events[place].measured)
    assert len(loader(LINES, evidence(logged=retyped))) == 1


def test_what_the_kernels_stub_measures_again_of_an_accepted_line_is_accepted() -> None:
    """systemd-boot logs the line in PCR 12, and Linux's EFI stub measures the same bytes into PCR 9 without text."""
    line = "root=/dev/sda1 ro\0".encode("utf-16-le")
    tag = (0x8F3B22ED).to_bytes(4, "little") + (4).to_bytes(4, "little") + b"LOAD"
    boot = good_boot()
    boot.events = [event for event in boot.events if event.register not in {8, 9}]
    boot.add(12, t.EV_IPL, line).add(9, t.EV_EVENT_TAG, tag, line)
    rule = "[platform.boot]\ncommand_lines = ['root=/dev/sda[0-9] ro']\nfiles = []\n"
    assert loader(rule, evidence(boot)) == []
    other = boot.altered(len(boot.events) - 1, measured=line + b"!")
    assert len(loader(rule, evidence(other))) == 1


def test_another_initrd_is_named_as_the_log_calls_it() -> None:
    place = next(n for n, event in enumerate(BOOT.events) if event.register == 9)
    rule = f'[platform.boot]\nfiles = ["{KERNEL}"]\n'
    found = only(appraised(rule, evidence(BOOT.altered(place, data=b"/initrd.img\0", measured=b"another"))))
    assert (found.pcr, found.path, found.found) == (9, "/initrd.img", digest(b"another").hex())


def uki(name: str = ".linux", measured: bytes | None = None) -> TcgWriter:
    named = (name + "\0").encode("utf-16-le")
    boot = good_boot().add(11, t.EV_IPL, named, (name + "\0").encode() if measured is None else measured)
    return boot.add(11, t.EV_IPL, named, b"the kernel's section")


def test_sections_of_a_unified_kernel_are_files_and_their_names_are_nothing() -> None:
    section = digest(b"the kernel's section").hex()
    rule = f'[platform.boot]\npcrs = [11]\nfiles = ["{section}"]\n'
    assert loader(rule, evidence(uki())) == []
    assert len(loader(rule.replace(section, KERNEL), evidence(uki()))) == 1
    assert len(loader(rule, evidence(uki("init=/bin/sh")))) == 1, (
        "a command line that poses as a section's name"
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({8: digest(b"more")}, "holds something else than the log says"),
        ({12: digest(b"hidden")}, "the log has no event of it"),
    ],
)
def test_a_pcr_that_the_log_does_not_explain_leaves_the_rule_open(change: dict[int, bytes], why: str) -> None:
    of = evidence()
    assert of.firmware is not None
    if (
        8 in change
    ):  # PCR 8 must be explained for a log to replay at all, so a log is made in which it is withheld
        of = replace(of, firmware=_withheld(8))
    found = appraised(LINES, replace(of, pcrs={**of.pcrs, **change})).findings
    assert any(why in item.message and item.severity is Severity.COULD_NOT for item in found)


def _withheld(pcr: int) -> ReplayedLog:
    values = BOOT.values() | {pcr: digest(b"more")}
    return (
        parse_tcg_log(BOOT.agile()).replace(values)
        if False
        else parse_tcg_log(BOOT.agile()).replay(values, required=[])
    )


def test_a_loader_pcr_that_commits_extend_leaves_the_rule_open() -> None:
    of = evidence()
    found = only(appraised(LINES, replace(of, moving=of.moving | {12})))
    assert (found.pcr, found.severity) == (12, Severity.COULD_NOT)


def test_a_boot_that_measured_no_command_line_leaves_the_rule_open() -> None:
    boot = good_boot()
    boot.events = [event for event in boot.events if event.register != 8]
    found = only(appraised(LINES, evidence(boot)))
    assert (found.severity, "no command line in PCR 8, 12" in found.message) == (Severity.COULD_NOT, True)


# --- without the log -----------------------------------------------------------------------------------------

RULES = {"secure_boot": (secure_boot(), 7), "applications": (STARTED, 4), "loader": (LINES, None)}


@pytest.mark.parametrize("name", RULES)
def test_without_the_log_a_rule_is_left_open_and_says_why(name: str) -> None:
    of = replace(without_logs(evidence()), missing={"tcg": "the log is given by its digest only"})
    found = only(appraised(RULES[name][0], of))
    assert found.severity is Severity.COULD_NOT
    assert "the log is given by its digest only" in found.message


@pytest.mark.parametrize("name", ["secure_boot", "applications"])
def test_a_boot_that_was_never_measured_is_rejected_without_any_log(name: str) -> None:
    text, pcr = RULES[name]
    assert pcr is not None
    of = without_logs(evidence())
    found = appraised(text, replace(of, pcrs={**of.pcrs, pcr: bytes(32)}))
    assert {finding.severity for finding in found.findings} == {Severity.FAIL}
    assert any(f"PCR {pcr} is zero" in finding.message for finding in found.findings)


@pytest.mark.parametrize("name", ["secure_boot", "applications"])
def test_a_boot_pcr_that_commits_extend_leaves_the_rule_open(name: str) -> None:
    text, pcr = RULES[name]
    assert pcr is not None
    of = evidence()
    assert only(appraised(text, replace(of, moving=frozenset({pcr, 15})))).severity is Severity.COULD_NOT


def test_every_departure_is_told_and_the_worst_come_first() -> None:
    text = secure_boot(db=texts(x509(b"mine"))) + STARTED.replace(SHIM_IMAGE.hex(), "0" * 64)
    text += "pcrs = [12]\ncommand_lines = ['x']\n"
    found = appraised(text, evidence())
    assert [finding.severity for finding in found.findings] == [
        Severity.FAIL,
        Severity.FAIL,
        Severity.COULD_NOT,
    ]
    assert not accepted(found)


def test_a_setting_of_shims_under_another_vendor_is_an_authority() -> None:
    boot = good_boot().altered(
        number_of(t.EV_EFI_VARIABLE_AUTHORITY), data=variable(IMAGE_SECURITY, "db", OWNED)
    )
    boot.add(7, t.EV_EFI_VARIABLE_AUTHORITY, variable(IMAGE_SECURITY, "SbatLevel", b"x"))
    assert (
        only(appraised(secure_boot(authorities=texts(x509(CERTIFICATE))), evidence(boot))).path == "SbatLevel"
    )


def test_an_event_of_an_unknown_type_in_an_appraised_pcr_is_never_passed_over() -> None:
    boot = good_boot().add(4, 0x12345, b"harmless")
    found = appraised(STARTED, evidence(boot))
    assert [item.rule for item in found.findings] == ["platform.boot.order"]
    assert "type 0x00012345" in found.findings[0].message


def test_a_change_in_a_pcr_of_the_running_system_breaks_no_rule_on_the_boot() -> None:
    """Boot PCRs and those that a running system extends are separate groups."""
    of = evidence(good_boot().add(12, t.EV_IPL, "quiet\0".encode("utf-16-le")))
    assert of.firmware is not None
    moved = {**of.pcrs, 12: digest(b"a service"), 14: digest(b"another")}
    log = parse_tcg_log(BOOT.agile()).replay(moved)
    assert not appraised(secure_boot() + STARTED, replace(of, pcrs=moved, firmware=log)).findings
