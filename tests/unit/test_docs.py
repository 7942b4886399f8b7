# SPDX-License-Identifier: Apache-2.0
"""What README and docs say of the code is so: paths, commands, snippets, codes, names and known answers."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from forge import Authority

from quotary_attest.engine.host import CRASH_POINTS
from quotary_cli.main import cli
from quotary_cli.output import ExitCode
from quotary_verifier.logs.cel import content_digest
from quotary_verifier.logs.workload import secret_commitment
from quotary_verifier.policy.load import load_policy
from quotary_verifier.policy.rules import RULES
from quotary_verifier.recipe.steps import Step
from quotary_verifier.tlog.checkpoint import Checkpoint
from quotary_verifier.tlog.hardware import IDENTIFIER_TPM2_QUOTE, hardware_key_id
from quotary_verifier.tlog.merkle import leaf_hash
from quotary_verifier.tlog.note import TYPE_COSIGNATURE, TYPE_ED25519, VerifierKey, key_id
from quotary_verifier.wire.bindings import (
    ZERO,
    chain_extend,
    commit_digest,
    fresh_digest,
    request_commitment,
    start_digest,
    token_ids_commitment,
)
from quotary_verifier.wire.names import origin_of
from quotary_verifier.wire.records import Genesis, entry_of

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
VECTORS = ROOT / "tests" / "vectors" / "attestation"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"`([a-z0-9]+(?:_[a-z0-9]+)+)`")


def tracked(pattern: str) -> list[Path]:
    """Files that git tracks, below the repository."""
    names = subprocess.run(["git", "ls-files", pattern], cwd=ROOT, check=True, capture_output=True, text=True)
    return [path for name in names.stdout.split() if (path := ROOT / name).is_file()]


def fences(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return [body for kind, body in FENCE.findall(page.read_text()) if kind == language]


def commands() -> Iterator[tuple[str, str]]:
    """Every command line of `attest` in a code block, with its page."""
    for page in PAGES:
        for block in (*fences(page, ""), *fences(page, "ini")):
            for line in block.replace("\\\n", " ").splitlines():
                found = re.match(r"(?:ExecStart=\S*/)?(attest .*)", line)
                if found:
                    yield page.name, found[1]


def test_every_page_that_code_or_pages_name_exists() -> None:
    named = {
        path.rstrip(".")
        for file in (*tracked("*.py"), *tracked("*.md"), *tracked("*.cddl"), *PAGES)
        if "test_house_rules" not in file.name
        for path in re.findall(r"docs/[a-z0-9/-]+\.(?:md|cddl)", file.read_text())
    }
    assert len(named) > 15
    assert not [path for path in named if not (ROOT / path).is_file()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", FENCE.sub("", page.read_text()))
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


@pytest.mark.parametrize(("page", "line"), sorted(set(commands())), ids=lambda text: text[:60])
def test_a_command_line_of_the_docs_parses(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command: click.Command = cli
    context = click.Context(cli, info_name="attest")
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        assert found is not None, f"{page}: no command {words[0]}"
        context = click.Context(found, parent=context, info_name=words.pop(0))
        command = found
    given, _, _ = command.make_parser(context).parse_args(words)
    missing = [item.name for item in command.params if item.required and not given.get(str(item.name))]
    assert not missing, f"{page}: {line}"
    shown = CliRunner().invoke(command, ["--help"])
    assert shown.exit_code == 0


def test_the_docs_show_every_command() -> None:
    shown = {" ".join(re.findall(r"[a-z]+", line)[:4]) for _, line in commands()}
    for words in (
        "verify",
        "inspect",
        "agent init",
        "agent run",
        "agent sign",
        "agent enroll request",
        "ca init",
    ):
        assert any(line.startswith(f"attest {words}") for line in shown), words


def test_the_snippet_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vector = json.loads((VECTORS / "pinned_origin_without_certificate.json").read_text())
    (tmp_path / "answer.json").write_bytes(base64.b64decode(vector["output"]))
    (tmp_path / "answer.attestation").write_bytes(base64.b64decode(vector["attestation"]))
    (tmp_path / "policy.toml").write_text(vector["policy"])
    monkeypatch.chdir(tmp_path)
    (snippet,) = (text for text in fences(ROOT / "README.md", "python") if "quotary.openai" not in text)
    exec(compile(snippet, "README.md", "exec"), {})
    assert "name='host', value='gpu-07.example.net'" in capsys.readouterr().out


def test_the_readme_has_every_exit_code() -> None:
    text = (ROOT / "README.md").read_text()
    assert all(f"\n| {int(code)} | " in text for code in ExitCode)


@pytest.mark.parametrize("page", ["threat-model.md", *(f"adr/{path.name}" for path in DOCS.glob("adr/*.md"))])
def test_every_test_and_vector_that_a_page_names_exists(page: str) -> None:
    tests = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    for name in NAME.findall((DOCS / page).read_text()):
        if name.startswith("test_"):
            assert f"def {name}(" in tests, name
        elif page == "threat-model.md":
            assert (VECTORS / f"{name}.json").is_file(), name


def test_every_row_of_the_engines_behaviours_names_tests_that_exist() -> None:
    tests = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    text = (DOCS / "reference" / "upstream-behaviour.md").read_text()
    tables = re.findall(r"^\|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    rows = [row for table in tables for row in table.splitlines()]
    assert len(rows) > 40, "the pattern finds nothing any more"
    for row in rows:
        names = [name for name in NAME.findall(row.split("|")[-2]) if name.startswith("test_")]
        assert names, f"no test: {row}"
        assert not [name for name in names if f"def {name}(" not in tests], row


def test_every_decision_is_in_the_index() -> None:
    index = (DOCS / "adr" / "README.md").read_text()
    pages = sorted(path.name for path in DOCS.glob("adr/[0-9]*.md"))
    assert [name[:4] for name in pages] == [f"{number:04}" for number in range(1, len(pages) + 1)]
    assert all(f"({name})" in index for name in pages)


def test_the_steps_of_the_specification_are_those_of_the_recipe() -> None:
    text = (DOCS / "spec" / "verification.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `([a-z.-]+)` \|", text, re.MULTILINE)
    assert rows == [(str(number), str(step)) for number, step in enumerate(Step, start=1)]


@pytest.mark.parametrize(
    ("page", "sources", "pattern"),
    [
        ("verification.md", "verifier/src/quotary_verifier/recipe/claims.py", r'Claim\(\s*"(\w+)"'),
        (
            "policy.md",
            "verifier/src/quotary_verifier/policy/load*.py",
            r'(?:(?:take|maybe|texts|tables?|moment)\(|(?:_set|_among|_optional)\(\w+, )"(\w+)"',
        ),
        ("serving.md", "attest/src/quotary_attest/serving/*.py", r'\(\s*[45]\d\d,\s*"(\w+)"'),
    ],
)
def test_a_page_has_every_name_that_the_code_has(page: str, sources: str, pattern: str) -> None:
    names = {name for file in ROOT.glob(sources) for name in re.findall(pattern, file.read_text())}
    text = (DOCS / "spec" / page).read_text()
    assert len(names) > 5, "the pattern finds nothing any more"
    assert not [name for name in names if name not in text]


def test_the_page_of_policies_has_the_code_of_every_rule() -> None:
    text = (DOCS / "spec" / "policy.md").read_text()
    for rule in RULES:
        whole, _, last = rule.rpartition(".")
        code = "platform.pcrs.N" if last.isdecimal() else rule
        assert f"`{code}`" in text or f"`.{last}`" in text, whole


def test_the_policy_of_the_specification_can_be_read() -> None:
    (text,) = fences(DOCS / "spec" / "policy.md", "toml")
    listed = b"# nothing\n"
    for shown, meant in (
        ("-----BEGIN CERTIFICATE-----\n…\n-----END CERTIFICATE-----\n", Authority().pem),
        ('"""…"""', ""),
        ("…64 hexadecimal digits…", "0" * 64),
        ("…96 hexadecimal digits…", "1" * 96),
        ("witness.example.org+b8a2cf20+BF…", VerifierKey("w.example", TYPE_COSIGNATURE, bytes(32)).encode()),
        ('sha256 = "…"', f'sha256 = "{hashlib.sha256(listed).hexdigest()}"'),
        ("…", "0" * 64),
    ):
        assert shown in text
        text = text.replace(shown, meant)
    policy = load_policy(text.encode(), {hashlib.sha256(listed).digest(): listed})
    assert all(
        (
            policy.platform.boot,
            policy.platform.ima,
            policy.references,
            policy.warnings,
            policy.workload,
            policy.tee,
        )
    )


def test_the_crash_points_are_those_of_the_engine() -> None:
    text = (DOCS / "reference" / "crash-points.md").read_text()
    assert tuple(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE)) == CRASH_POINTS


def test_the_known_answers_of_the_bindings_are_right() -> None:
    text = (DOCS / "spec" / "bindings.md").read_text()
    stated = dict(re.findall(r"^\| ([^|`]+?)(?:, `[^|]*)? \| `([0-9a-f]+)` \|$", text, re.MULTILINE))
    origin = "h.example/" + 32 * "a"
    digest = commit_digest(origin, 1, Checkpoint(origin, 2, ZERO).text)
    computed = {
        "D": digest,
        "chain PCR": chain_extend(ZERO, digest),
        "start digest": start_digest(origin, ZERO, bytes(16)),
        "fresh digest": fresh_digest(origin, bytes(range(8))),
        "request commitment": request_commitment(bytes(32), b"{}"),
        "commitment to token ids": token_ids_commitment(bytes(32), "prompt_token_ids", (1, 2)),
        "event digest": content_digest(b"\xa0"),
        "secret commitment": secret_commitment(bytes(16), b"x"),
        "key id of a note key": key_id(origin, TYPE_ED25519, bytes(32)),
        "key id of a hardware line": hardware_key_id(origin, IDENTIFIER_TPM2_QUOTE, b""),
    }
    assert stated == {name: value.hex() for name, value in computed.items()}
    record = Genesis(bytes(16), 0, "h.example", bytes(32), None).encode()
    entry = entry_of(record)
    for value in (record.hex(), origin_of("h.example", record), entry.hex(), leaf_hash(entry).hex()):
        assert f"`{value}`" in text
