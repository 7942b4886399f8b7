# SPDX-License-Identifier: Apache-2.0
"""Lists beside a policy: what `sha256sum` writes is read as it reads it, and nothing else is."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from appraising import HEAD, digest

from quotary_verifier import MalformedError, PolicyError, load_policy
from quotary_verifier.policy import lists, load
from quotary_verifier.policy.lists import ListName, check_file, parse_list
from quotary_verifier.policy.load import policy_lists
from quotary_verifier.policy.rules import ImaRules

NAMES = [
    "plain",
    "two words",
    " leading",
    "*star",
    "back\\slash",
    "new\nline",
    "return\rhere",
    "ünicode",
    "#hash",
]


@pytest.mark.parametrize("option", ["--text", "--binary"])
@pytest.mark.parametrize("tool", ["sha256sum", "sha384sum", "sha512sum"])
def test_what_the_tool_writes_of_any_name_is_read(tmp_path: Path, tool: str, option: str) -> None:
    for name in NAMES:
        (tmp_path / name).write_text(name)
    command = [tool, option, *[f"./{name}" for name in NAMES]]
    written = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, timeout=60).stdout
    made = {hashlib.new(tool[:-3], name.encode()).digest(): [f"./{name}".encode()] for name in NAMES}
    assert parse_list(written, "x") == made


def test_a_digest_may_lie_at_several_paths_and_remarks_are_passed_over() -> None:
    one = digest(b"1")
    text = f"# made on Monday\n{one.hex()}  /a\n{one.hex()}  /b"
    assert parse_list(text.encode(), "x") == {one: [b"/a", b"/b"]}


@pytest.mark.parametrize(
    "line",
    [
        "", "x", "0" * 64, "0" * 64 + "  ", "0" * 64 + " /a", "0" * 63 + "  /a", "0" * 40 + "  /a", "A" * 64 + "  /a",
        "0" * 62 + "0g  /a", "0 " * 32 + "  /a", "0" * 64 + "  /a\0b", "0" * 64 + " */a\0b", "0" * 64 + "\t /a",
        "\\" + "0" * 64 + "  /a\\b", "\\" + "0" * 64 + "  /a\\", "SHA256 (/a) = " + "0" * 64, "0" * 64 + "  /a\n\n",
    ],
)  # fmt: skip
def test_another_line_is_refused_with_its_number(line: str) -> None:
    text = f"{'0' * 64}  /first\n{line}\n"
    with pytest.raises(PolicyError, match=r"line [23] is none that sha256sum writes"):
        parse_list(text.encode(), "x")


def test_a_list_is_bounded_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "MAX_LIST", 1000)
    monkeypatch.setattr(lists, "MAX_LISTED", 3)
    with pytest.raises(PolicyError, match="1000 are allowed"):
        parse_list(b"#" * 1001, "x")
    with pytest.raises(PolicyError, match="more than 3 lines"):
        parse_list(b"#\n" * 4, "x")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", ".hidden", "", "x\n", "x" * 129, "a\\b"])
def test_the_name_of_a_list_leaves_no_folder(name: str) -> None:
    with pytest.raises(MalformedError):
        check_file(name)


LIST = f"{digest(b'ls').hex()}  /bin/ls\n{digest(b'sh').hex()} */bin/sh\n".encode()


def with_list(data: bytes = LIST, more: str = "") -> bytes:
    name = hashlib.sha256(data).hexdigest()
    return (HEAD + f'[[platform.ima.list]]\nfile = "debian.sha256sum"\nsha256 = "{name}"\n{more}').encode()


def loaded(text: bytes, data: bytes = LIST) -> ImaRules:
    rules = load_policy(text, {digest(data): data}).platform.ima
    assert rules is not None
    return rules


def test_a_policy_tells_which_lists_it_needs_and_takes_them_by_their_digest() -> None:
    other = '[[reference]]\nname = "r"\n[[reference.ima.list]]\nfile = "b"\nsha256 = "' + "1" * 64 + '"\n'
    names = policy_lists(with_list(more=other + with_list().decode().removeprefix(HEAD)))
    assert names == (ListName("debian.sha256sum", digest(LIST)), ListName("b", b"\x11" * 32))
    assert loaded(with_list()).files == {digest(b"ls"): (b"/bin/ls",), digest(b"sh"): (b"/bin/sh",)}


def test_a_list_can_stand_for_its_digests_at_any_path() -> None:
    assert loaded(with_list(more="paths = false\n")).files == {digest(b"ls"): None, digest(b"sh"): None}


def test_a_missing_list_or_one_of_other_bytes_is_an_error_and_never_an_empty_rule() -> None:
    with pytest.raises(PolicyError, match=r"debian\.sha256sum was not given"):
        load_policy(with_list())
    with pytest.raises(PolicyError, match="other bytes"):
        load_policy(with_list(), {digest(LIST): LIST + b"#\n"})


def test_a_list_with_relative_paths_is_refused_unless_its_paths_do_not_count() -> None:
    data = f"{digest(b'ls').hex()}  ./bin/ls\n".encode()
    with pytest.raises(PolicyError, match="do not begin at the root"):
        loaded(with_list(data), data)
    assert loaded(with_list(data, "paths = false\n"), data).files == {digest(b"ls"): None}


def test_files_named_one_by_one_join_those_of_lists() -> None:
    more = f'[[platform.ima.file]]\ndigest = "sha256:{digest(b"ls").hex()}"\npath = "/usr/bin/ls"\n'
    more += f'[[platform.ima.file]]\ndigest = "{digest(b"sh").hex()}"\n'
    more += f'[[platform.ima.file]]\ndigest = "sha512:{"0" * 128}"\npath = "/x"\n'
    files = loaded(with_list(more=more)).files
    assert set(files[digest(b"ls")] or ()) == {b"/bin/ls", b"/usr/bin/ls"}
    assert files[digest(b"sh")] is None
    assert files[bytes(64)] == (b"/x",)


def test_a_policy_cannot_have_one_list_read_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    named = with_list().decode().removeprefix(HEAD)
    with pytest.raises(PolicyError, match=r"names debian\.sha256sum twice"):
        loaded(with_list(more=named))
    sets = "".join(
        f'[[reference]]\nname = "{name}"\n{named.replace("platform", "reference")}' for name in "abc"
    )
    assert len(load_policy((HEAD + sets).encode(), {digest(LIST): LIST}).references) == 3
    monkeypatch.setattr(load, "_MAX_DIGESTS", 5)
    with pytest.raises(PolicyError, match="more digests than all reference sets may have"):
        load_policy((HEAD + sets).encode(), {digest(LIST): LIST})


def test_many_paths_of_one_digest_are_kept_all() -> None:
    data = "".join(f"{digest(b'').hex()}  /empty/{number}\n" for number in range(1000)).encode()
    assert len(loaded(with_list(data), data).files[digest(b"")] or ()) == 1000
