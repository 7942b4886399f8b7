# SPDX-License-Identifier: Apache-2.0
"""Every TSS return code becomes an error that an operator understands."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import quotary_attest.tpm
from quotary_attest.roots import RootError, RootGone
from quotary_attest.tpm import errors
from quotary_attest.tpm.errors import (
    TPM_CODES,
    TSS_CODES,
    TpmAuthError,
    TpmBusy,
    TpmConflict,
    TpmError,
    TpmExhausted,
    TpmForeignKey,
    TpmGone,
    TpmLockout,
    TpmMissing,
    TpmUnsupported,
    error_for,
    may_retry,
)

PACKAGE = Path(quotary_attest.tpm.__file__).parent

KNOWN = [
    # what the TPM itself says: format 1 with the number of a parameter, session or handle
    (0x000009A2, TpmAuthError),  # wrong authorisation, session 1
    (0x0000098E, TpmAuthError),  # the same, counted
    (0x0000099D, TpmAuthError),  # policy, session 1
    (0x0000018B, TpmMissing),  # handle 1
    (0x000001DF, TpmForeignKey),  # integrity, parameter 1
    (0x000002D2, TpmUnsupported),  # scheme, parameter 2
    (0x00000185, TpmUnsupported),  # hierarchy, handle 1
    # version 1 codes and warnings
    (0x00000100, TpmGone),
    (0x00000101, TpmGone),
    (0x00000127, TpmConflict),
    (0x0000014A, TpmConflict),
    (0x0000014C, TpmConflict),
    (0x0000014B, TpmExhausted),
    (0x00000143, TpmUnsupported),
    (0x00000902, TpmExhausted),
    (0x00000903, TpmExhausted),
    (0x00000908, TpmBusy),
    (0x0000090A, TpmBusy),
    (0x00000910, TpmMissing),
    (0x00000921, TpmLockout),
    (0x00000922, TpmBusy),
    # the kernel's and tpm2-abrmd's resource managers, in the TPM's words
    (0x000B0902, TpmExhausted),
    (0x000B0143, TpmUnsupported),
    (0x000C0922, TpmBusy),
    # the software below us
    (0x000A0008, TpmGone),
    (0x000A000A, TpmGone),
    (0x000A0015, TpmUnsupported),
    (0x00070007, TpmGone),
    (0x0007001B, TpmAuthError),
    (0x00070018, TpmMissing),
    (0x00090011, TpmGone),
]


@pytest.mark.parametrize(
    ("rc", "kind"), KNOWN, ids=lambda value: f"{value:08x}" if isinstance(value, int) else ""
)
def test_a_return_code_becomes_its_error(rc: int, kind: type[TpmError]) -> None:
    error = error_for(rc, "nv_increment")
    assert type(error) is kind
    assert (error.rc, error.command) == (rc, "nv_increment")
    assert f"0x{rc:x}" in str(error)
    assert str(error).startswith("nv increment: ")


def test_every_member_of_the_family_is_reached_by_some_code() -> None:
    family = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TpmError)}
    assert {type(error_for(rc, "x")) for rc, _ in KNOWN} | {TpmError} == family


@pytest.mark.parametrize("code", sorted(TPM_CODES))
def test_a_code_of_the_tpm_means_the_same_with_any_number_and_through_any_resource_manager(code: int) -> None:
    kind, words, _ = TPM_CODES[code]
    spellings = [code, 0x000C0000 | code]
    if code & 0x80:
        spellings += [code | number for number in (0x040, 0x140, 0x100, 0x700, 0x800, 0x900, 0xF40)]
    for rc in spellings:
        error = error_for(rc, "quote")
        assert type(error) is kind
        assert words in str(error)


@pytest.mark.parametrize("code", sorted(TSS_CODES))
@pytest.mark.parametrize("layer", [0x07, 0x08, 0x09, 0x0A, 0x0B])
def test_a_code_of_the_software_means_the_same_in_each_layer(code: int, layer: int) -> None:
    assert type(error_for(layer << 16 | code, "quote")) is TSS_CODES[code][0]


@pytest.mark.parametrize("rc", [0x1, 0x0FF, 0x1FF, 0x7FFF, 0x000A00FF, 0x00FF0000, 0xFFFFFFFF])
def test_an_unknown_code_is_an_error_that_shows_its_number(rc: int) -> None:
    error = error_for(rc, "quote")
    assert type(error) is TpmError
    assert f"0x{rc:x}" in str(error)


@pytest.mark.parametrize("table", [TPM_CODES, TSS_CODES], ids=["tpm", "tss"])
def test_words_and_hints_are_lower_case_and_without_a_full_stop(
    table: dict[int, tuple[type, str, str]],
) -> None:
    for _, words, hint in table.values():
        for text in (words, hint):
            assert text
            assert text[0].islower()
            assert not text.endswith(".")


def test_a_gone_tpm_is_a_gone_root_and_every_error_is_a_root_error() -> None:
    assert issubclass(TpmGone, RootGone)
    assert issubclass(TpmError, RootError)


@pytest.mark.parametrize(
    ("rc", "again"),
    [
        *((rc, True) for rc in (0x922, 0x908, 0x90A, 0x920, 0x000B0922, 0x000C0922)),
        *((rc, False) for rc in (0x921, 0x923, 0x9A2, 0x000A0009)),
    ],
)
def test_only_a_command_that_was_not_started_is_sent_again(rc: int, again: bool) -> None:
    assert may_retry(rc) is again


def names_in(path: Path) -> set[str]:
    """Every name, attribute and imported module of a source file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case (
                ast.Name(id=name)
                | ast.Attribute(attr=name)
                | ast.ImportFrom(module=str(name))
                | ast.alias(name=name)
            ):
                names |= {name, name.partition(".")[0]}
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_every_exception_of_the_library_passes_the_one_mapping(path: Path) -> None:
    """`connection.send` alone catches TSS2_Exception, and `Connection` alone makes an ESAPI object."""
    names = names_in(path)
    assert ("ESAPI" in names) is (path.stem == "connection")
    assert ("TSS2_Exception" in names) is (path.stem in ("connection", "tss"))
    assert ("tpm2_pytss" in names) is (path.stem == "tss")


def test_the_family_can_be_caught_where_no_tpm_software_is_installed() -> None:
    tree = ast.parse((PACKAGE / "errors.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules <= {"__future__", "collections.abc", "typing", "quotary_attest.roots"}
