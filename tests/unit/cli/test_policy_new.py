# SPDX-License-Identifier: Apache-2.0
"""`attest policy new` and `import`: templates that load and hold what they say, lists of what others made."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alone_forge import AloneForge
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from forge import NOW, Forge
from measured_boots import PROGRAMS, BootOf, sha256
from tee_defects import LAUNCH, ROOTS

from quotary_cli.main import run
from quotary_cli.policy_import import globs_of
from quotary_cli.policy_templates import TEMPLATES
from quotary_cli.policyfile import read_policy
from quotary_verifier import ClaimSource, Policy, Question, Rejected, verify
from quotary_verifier.policy.load import load_policy

HOST = Forge()
BOOT = BootOf()
NO_CA = {"confidential-vm": "--authority"}
MODEL = f"{HOST.model}=sha256:{HOST.weights.hex()}"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ca.pem").write_text(HOST.authority.pem)
    Path("evidence.attestation").write_bytes(BOOT.attestation(HOST).encode())


def new(template: str, *words: str) -> int:
    return run(["policy", "new", "--template", template, "--pin", HOST.origin, "--out", "p.toml", *words])


def attest(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = run([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def checked(capsys: pytest.CaptureFixture[str]) -> tuple[int, set[str]]:
    words = ["policy", "check", "evidence.attestation", "--policy", "p.toml", "--at", str(NOW)]
    code, found = attest(*words, capsys=capsys)
    return code, {finding["rule"] for result in found["results"] for finding in result["findings"]}


@pytest.mark.parametrize(
    ("template", "trust"),
    [(each, how) for each in TEMPLATES for how in ("--pin", "--authority") if how not in NO_CA.get(each, "")],
)
def test_a_template_loads_with_whom_to_trust_and_which_models(
    template: str, trust: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        ["--pin", HOST.origin] if trust == "--pin" else ["--authority", "ca.pem", "--host", "*.example.net"]
    )
    capsys.readouterr()
    assert run(["policy", "new", "--template", template, *words, "--model", MODEL]) == 0
    policy = load_policy(capsys.readouterr().out.encode())
    assert (policy.pins == {HOST.origin}) is (trust == "--pin")
    assert [item.hosts for item in policy.authorities] == ([] if trust == "--pin" else [("*.example.net",)])
    assert policy.models[0].weights == HOST.weights
    assert policy.unauthenticated_ak is (template == "cloud-vtpm")


def test_a_policy_for_an_origin_without_a_tpm_pins_it_as_no_authority_can_endorse_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["policy", "new", "--template", "confidential-vm", "--authority", "ca.pem"]
    assert run(words) == 2
    assert "--pin" in capsys.readouterr().err
    assert new("confidential-vm") == 0
    assert "`attest verify` says" in capsys.readouterr().err


def test_strict_refuses_what_is_not_decided(capsys: pytest.CaptureFixture[str]) -> None:
    assert new("strict") == 0
    assert checked(capsys)[0] == 1
    assert checked(capsys)[1] >= {
        "platform.secure_boot.db",
        "platform.secure_boot.kek",
        "platform.secure_boot.pk",
        "platform.secure_boot.authorities",
        "platform.boot.applications",
        "platform.boot.loader",
        "platform.ima.files",
        "model",
    }
    assert read_policy(Path("p.toml")).freshness.nonce


def test_strict_accepts_once_all_is_decided(capsys: pytest.CaptureFixture[str]) -> None:
    assert new("strict", "--model", MODEL) == 0
    text = Path("p.toml").read_text()
    listed = "".join(f"{sha256(content).hex()}  {path}\n" for path, content in PROGRAMS.items())
    Path("programs").write_text(listed)
    capsys.readouterr()
    assert run(["policy", "import", "sha256sum", "programs", "--out", "host.sha256sum"]) == 0
    snippet = capsys.readouterr().out
    Path("base.toml").write_text(HOST.policy())
    learn = ["policy", "learn", "evidence.attestation", "--base", "base.toml", "--out", "l.toml"]
    assert run([*learn, "--at", str(NOW)]) == 0
    learned = Path("l.toml").read_text()
    for key in ("db", "kek", "pk", "authorities", "dbx", "applications", "files", "command_lines"):
        value = re.search(rf"^{key} = (\[.*?\]$)", learned, re.MULTILINE | re.DOTALL)
        assert value is not None
        text = re.sub(
            rf"^{key} = \[\]", lambda _, value=value, key=key: f"{key} = {value[1]}", text, flags=re.M
        )
    Path("p.toml").write_text(text + "\n" + snippet)
    assert checked(capsys) == (0, set())


def test_a_cloud_policy_wants_secure_boot_and_a_model_policy_nothing_of_the_platform(
    capsys: pytest.CaptureFixture[str],
) -> None:
    off = replace(BOOT, secure_boot=False)
    for template, code in (("cloud-vtpm", 1), ("model-only", 0)):
        Path("p.toml").unlink(missing_ok=True)
        assert new(template, "--model", MODEL) == 0
        Path("evidence.attestation").write_bytes(BOOT.attestation(HOST).encode())
        assert checked(capsys)[0] == 0
        Path("evidence.attestation").write_bytes(off.attestation(HOST).encode())
        assert checked(capsys)[0] == code
        other = replace(HOST, weights=sha256(b"other"))
        Path("evidence.attestation").write_bytes(BOOT.attestation(other).encode())
        assert checked(capsys)[0] == 1


def test_what_a_template_needs_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["policy", "new", "--template", "strict"]) == 2
    assert "--pin or --authority" in capsys.readouterr().err
    assert run(["policy", "new", "--template", "model-only", "--pin", HOST.origin]) == 2
    assert "--model" in capsys.readouterr().err
    assert run(["policy", "new", "--template", "strict", "--pin", "nonsense"]) == 2
    assert run(["policy", "new", "--template", "strict", "--pin", HOST.origin, "--host", "a.example"]) == 2
    for model in ("nothing", "name=sha256:12"):
        assert run(["policy", "new", "--template", "strict", "--pin", HOST.origin, "--model", model]) == 2
    assert new("strict") == 0
    assert new("strict") == 2
    assert "a file already" in capsys.readouterr().err


# --- import --------------------------------------------------------------------------------------------------


def imported(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, Any], Policy]:
    """Import, and load a policy with what was printed."""
    code, found = attest("policy", "import", *words, "--out", "list.sha256sum", capsys=capsys)
    assert code == 0
    Path("p.toml").write_text(HOST.policy() + found["toml"])
    return found, read_policy(Path("p.toml"))


def test_what_sha256sum_prints_is_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("plain", "with space", "with\nnewline", "back\\slash"):
        (tmp_path / name).write_text(name)
    made = subprocess.run(["sha256sum", *sorted(tmp_path.iterdir())], capture_output=True, check=True)
    Path("made").write_bytes(made.stdout)
    found, policy = imported(capsys, "sha256sum", "made")
    assert policy.platform.ima is not None
    files = policy.platform.ima.files
    assert found["list"]["files"] == len(made.stdout.splitlines())
    for name in ("with\nnewline", "back\\slash"):
        assert files[sha256(name.encode())] == (str(tmp_path / name).encode(),)
    assert hashlib.sha256(Path("list.sha256sum").read_bytes()).hexdigest() == found["list"]["sha256"]


def test_relative_paths_need_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("made").write_text(f"{'ab' * 32}  ./tool\n{'cd' * 32} *other\n")
    words = ["policy", "import", "sha256sum", "made", "--out", "list.sha256sum"]
    code, found = attest(*words, capsys=capsys)
    assert (code, "--prefix" in found["hint"]) == (2, True)
    _, policy = imported(capsys, "sha256sum", "made", "--prefix", "/usr/bin/")
    assert policy.platform.ima is not None
    assert policy.platform.ima.files[b"\xab" * 32] == (b"/usr/bin/tool",)
    assert policy.platform.ima.files[b"\xcd" * 32] == (b"/usr/bin/other",)
    Path("made").write_text("no list\n")
    assert run(words) == 2


def test_a_keylime_policy_is_taken_with_all_that_has_a_counterpart(
    capsys: pytest.CaptureFixture[str],
) -> None:
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    value = {
        "meta": {"version": 5, "generator": 3, "timestamp": "2026-11-01 00:00:00"},
        "release": 0,
        "digests": {
            "boot_aggregate": ["aa" * 32],
            "/usr/bin/bash": ["ab" * 32, "ac" * 20],
            "/usr/lib/libc.so.6": ["ad" * 48],
        },
        "excludes": ["boot_aggregate", "/tmp/.*", "/var/log(/.*)?$", r"^/run/lock\.d$", ".*\\.pyc"],
        "keyrings": {".ima": ["ae" * 32]},
        "ima": {"ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": None},
        "ima-buf": {"dm_table_load": ["af" * 32]},
        "verification-keys": json.dumps(
            {"meta": {"version": 1}, "pubkeys": [base64.b64encode(der).decode()], "keyids": [1]}
        ),
    }
    Path("keylime.json").write_text(json.dumps(value))
    found, policy = imported(capsys, "keylime", "keylime.json")
    rules = policy.platform.ima
    assert rules is not None
    assert rules.files == {
        b"\xab" * 32: (b"/usr/bin/bash",),
        b"\xad" * 48: (b"/usr/lib/libc.so.6",),
        b"\xae" * 32: (b".ima",),
        b"\xaf" * 32: (b"dm_table_load",),
    }
    assert set(rules.ignore) == {"/tmp/*", "/var/log", "/var/log/*", "/run/lock.d"}
    assert [key.public_numbers() for key in rules.keys] == [public.public_numbers()]
    assert found["left_out"] == [
        "1 digests that are not SHA-256, SHA-384 or SHA-512",
        "the exclude .*\\.pyc",
    ]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"digests": []}', '{"digests": {"/a": 3}}', "[" * 100_000])
def test_a_file_that_is_no_keylime_policy_is_refused(text: str) -> None:
    Path("keylime.json").write_text(text)
    assert run(["policy", "import", "keylime", "keylime.json", "--out", "list.sha256sum"]) == 2


@pytest.mark.parametrize(
    ("pattern", "globs"),
    [
        ("/tmp/.*", ("/tmp/*",)),
        ("/tmp", ("/tmp*",)),
        ("^/tmp$", ("/tmp",)),
        (r"/a\.b$", ("/a.b",)),
        ("/a.b", ()),
        ("/", ()),
        (".*", ()),
        ("/(a|b)", ()),
        ("/a+", ()),
        (r"/a\*", ()),
        (r"/a\d", ()),
    ],
)
def test_no_glob_fits_more_than_the_expression_that_it_stands_for(
    pattern: str, globs: tuple[str, ...]
) -> None:
    assert globs_of(pattern) == globs


def test_a_confidential_vm_is_refused_until_its_launch_measurement_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    vm = AloneForge()
    capsys.readouterr()
    model = f"{vm.model}={vm.weights.hex()}"
    assert run(["policy", "new", "--template", "confidential-vm", "--pin", vm.origin, "--model", model]) == 0
    text = capsys.readouterr().out.replace("alias_check = true", "alias_check = false") + ROOTS
    data, question = vm.attestation().encode(), Question(vm.body, NOW)
    with pytest.raises(Rejected, match="the measurement"):
        verify(data, question, load_policy(text.encode()))
    decided = text.replace("measurements = []", f'measurements = ["{LAUNCH}"]')
    assert verify(data, question, load_policy(decided.encode())).claim("origin_pinned") is not None
    without_remarks = re.sub(r"^# (\[\[tee|weights|registers)", r"\1", decided, flags=re.M)
    image = without_remarks.replace('"sha256:..."', f'"{vm.weights.hex()}"').replace('"..."', f'"{LAUNCH}"')
    measured = verify(data, question, load_policy(image.encode())).claim("model")
    assert measured is not None and measured.source is ClaimSource.MEASURED


def test_where_nothing_was_booted_into_pcrs_the_hint_leads_to_what_was_launched(
    capsys: pytest.CaptureFixture[str],
) -> None:
    vm = AloneForge()
    Path("body").write_bytes(vm.body)
    Path("vm.attestation").write_bytes(vm.attestation().encode())
    rules = f'[tee]\nrequired = ["sev-snp"]\n[tee.sev-snp]\ngenerations = ["genoa"]\n{ROOTS}'
    Path("p.toml").write_text(f'schema = "quotary-policy/v1"\n[[pin]]\norigin = "{vm.origin}"\n{rules}')
    assert run(["policy", "check", "vm.attestation", "--policy", "p.toml", "--at", str(NOW)]) == 3
    assert "apply [tee] to what was launched" in capsys.readouterr().err
    with Path("p.toml").open("a") as policy:
        policy.write(f'\n[platform.pcrs]\n7 = ["{"00" * 32}"]\n')
    words = ["verify", "body", "-a", "vm.attestation", "--policy", "p.toml", "--at", str(NOW)]
    assert run(words) == 1
    assert "leave out the rules on a platform" in capsys.readouterr().out
