# SPDX-License-Identifier: Apache-2.0
"""Each house rule fires on what breaks it and on nothing else."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]
SPDX = "# SPDX-License-Identifier: Apache-2.0\n"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rules = _load("house_rules")


def _whats(found: object) -> list[str]:
    return [what for _, what in found]  # type: ignore[attr-defined]


def test_a_file_of_400_lines_may_stand_and_one_of_401_may_not() -> None:
    assert _whats(rules.size_breaches("x = 1\n" * 400)) == []
    assert _whats(rules.size_breaches("x = 1\n" * 401)) == ["401 lines, more than 400"]


@pytest.mark.parametrize("keyword", ["def", "async def"])
def test_a_function_of_80_lines_may_stand_and_one_of_81_may_not(keyword: str) -> None:
    assert _whats(rules.size_breaches(f"{keyword} f():\n" + "    x = 1\n" * 79)) == []
    assert list(rules.size_breaches(f"\n{keyword} f():\n" + "    x = 1\n" * 80)) == [
        (2, "f has 81 lines, more than 80")
    ]


def test_a_method_is_a_function_too() -> None:
    assert _whats(rules.size_breaches("class C:\n    def f(self):\n" + "        x = 1\n" * 80)) != []


@pytest.mark.parametrize("head", [SPDX, "#!/usr/bin/env bash\n" + SPDX, "# shellcheck shell=bash\n" + SPDX])
def test_the_licence_line_may_follow_only_a_directive(head: str) -> None:
    assert list(rules.licence_breaches(head + "x = 1\n")) == []


@pytest.mark.parametrize(
    "text", ["", "x = 1\n", "\n" + SPDX, "x = 1\n" + SPDX, SPDX.replace("Apache-2.0", "MIT")]
)
def test_a_missing_late_or_other_licence_line_is_a_breach(text: str) -> None:
    assert len(list(rules.licence_breaches(text))) == 1


def test_a_registry_host_is_found_in_any_case_and_in_the_middle_of_a_line() -> None:
    hosts = {"registry.example"}
    assert list(rules.name_breaches("a\nsee HTTPS://Registry.Example/simple\n", hosts)) == [
        (2, "names a package registry's host")
    ]
    assert list(rules.name_breaches("the registry of an example\n", hosts)) == []


def test_a_configured_registry_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:word@mirror.example:8080/simple")
    monkeypatch.setenv("UV_FIND_LINKS", "http://127.0.0.1/x")
    found = rules.configured_registries()
    assert "mirror.example" in found
    assert not any(host.startswith("127.") for host in found)


@pytest.mark.parametrize("top", ["work", "root"])
def test_a_machine_path_is_a_breach_and_a_relative_path_is_none(top: str) -> None:
    assert _whats(rules.name_breaches(f"cd /{top}/main\n", set())) == ["names a path of one machine"]
    assert _whats(rules.name_breaches(f"tests/{top}/x ../{top}/y home{top}/\n", set())) == []


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a small repository with a document, a licence and its three copies."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("a\n")
    (tmp_path / "LICENSE").write_text("licence\n")
    for member in rules.MEMBERS:
        (tmp_path / member).mkdir()
        (tmp_path / member / "LICENSE").write_text("licence\n")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run(["git", "-C", tmp_path, "add", "."], check=True)
    return tmp_path


def test_a_relative_link_must_lead_somewhere(tree: Path) -> None:
    text = "[good](docs/a.md#part) [web](https://example.com/) [here](#x)\n[bad](docs/b.md)\n"
    assert list(rules.link_breaches(Path("README.md"), text, tree, code_paths=False)) == [
        (2, "leads nowhere: docs/b.md")
    ]


def test_a_link_is_read_from_the_folder_of_its_page(tree: Path) -> None:
    page = Path("docs/b.md")
    assert list(rules.link_breaches(page, "[good](a.md) [up](../LICENSE)\n", tree, code_paths=False)) == []
    assert len(list(rules.link_breaches(page, "[bad](docs/a.md)\n", tree, code_paths=False))) == 1


def test_a_path_in_backticks_must_exist_if_its_first_part_does(tree: Path) -> None:
    text = "`docs/a.md` `docs/b.md` `application/cbor`\n"
    assert _whats(rules.link_breaches(Path("README.md"), text, tree, code_paths=True)) == [
        "leads nowhere: docs/b.md"
    ]


def test_links_inside_a_code_block_are_not_links(tree: Path) -> None:
    text = "```\n[bad](docs/b.md)\n```\n"
    assert list(rules.link_breaches(Path("README.md"), text, tree, code_paths=False)) == []


def test_a_licence_copy_that_differs_or_is_absent_is_a_breach(tree: Path) -> None:
    assert list(rules.licence_copies(tree)) == []
    (tree / "verifier" / "LICENSE").write_text("another\n")
    (tree / "cli" / "LICENSE").unlink()
    assert len(list(rules.licence_copies(tree))) == 2


def test_only_what_git_tracks_is_looked_at(tree: Path) -> None:
    (tree / "untracked.py").write_text("x = 1\n")
    (tree / "docs" / "a.md").unlink()
    assert Path("LICENSE") in rules.tracked_files(tree)
    assert not {Path("untracked.py"), Path("docs/a.md")} & set(rules.tracked_files(tree))


def test_sizes_are_checked_in_the_members_only(tree: Path) -> None:
    long = SPDX + "x = 1\n" * 400
    (tree / "verifier" / "a.py").write_text(long)
    (tree / "docs" / "a.py").write_text(long)
    assert len(list(rules.breaches(Path("verifier/a.py"), tree, set()))) == 1
    assert list(rules.breaches(Path("docs/a.py"), tree, set())) == []
