# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N818 - each name says the state of the TPM, and reads so where it is caught
"""The family of TPM errors, and the one function that turns a TSS return code into one of them.

A return code has a layer in bits 16-23 and a code below (TSS 2.0 Overview, section 6; TPM 2.0 Library part 2,
section 6.6). Codes of the TPM itself are either "format 1" (bit 7 set; they carry the number of the handle,
parameter or session that is at fault) or version-1 codes and warnings. The tables below name the ones an
operator can meet; every other code becomes a plain `TpmError` that shows its number.

This module does not import tpm2_pytss, so that the family can be caught where no TPM software is installed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from quotary_attest.roots import RootError, RootGone


class TpmError(RootError):
    """A TPM command failed. `rc` is the TSS return code, 0 where no command was sent; `command` names it."""

    def __init__(self, message: str, *, hint: str = "", rc: int = 0, command: str = "") -> None:
        super().__init__(message, hint=hint)
        self.rc = rc
        self.command = command


class TpmGone(TpmError, RootGone):
    """The transport failed, the TPM does not answer, or it refuses all work until it is started again."""


class TpmAuthError(TpmError):
    """The authorisation value or policy was wrong or missing."""


class TpmLockout(TpmError):
    """The TPM is in dictionary-attack lockout."""


class TpmConflict(TpmError):
    """A PCR or NV index is not free, not there, or not as it was left."""


class TpmExhausted(TpmError):
    """No room is left for objects, sessions or NV indices."""


class TpmBusy(TpmError):
    """The TPM asked to try again, and went on asking until patience ended."""


class TpmMissing(TpmError):
    """The handle names nothing: an object was unloaded or an NV index is not defined."""


class TpmForeignKey(TpmError):
    """The stored key is not this TPM's: it was cleared or replaced, or the file is another host's."""


class TpmUnsupported(TpmError):
    """The TPM, its firmware settings or the installed software cannot do what is needed."""


_Entry = tuple[type[TpmError], str, str]

_HINT_RM = "use /dev/tpmrm0 or tpm2-abrmd, so that other programs' objects do not fill the tpm"
_HINT_CLEAR = "the tpm was cleared or replaced; this state needs `attest agent init` and a new origin"
_HINT_THERE = "is the tpm there, and may this user open it? see `ls -l /dev/tpm*`"
_HINT_GONE = (
    "see that the tpm device, swtpm or tpm2-abrmd is there and that this user may open it (group tss)"
)
_HINT_REBOOT = "restart the host; if it stays, the tpm or its firmware is broken"
_HINT_FIRMWARE = "enable the tpm and its endorsement hierarchy in the firmware's setup"
_HINT_LOCK = (
    "wait until the lockout ends, or clear it with the lockout authorisation (tpm2_dictionarylockout)"
)
_HINT_OWNER = "give the owner or endorsement authorisation if this host has set one"


def _rows(kind: type[TpmError], hint: str, rows: Iterable[tuple[int, str]]) -> dict[int, _Entry]:
    return {code: (kind, words, hint) for code, words in rows}


TPM_CODES: Final[dict[int, _Entry]] = {
    **_rows(
        TpmGone,
        _HINT_REBOOT,
        [
            (0x100, "the tpm is not started"),
            (0x101, "the tpm is in failure mode"),
            (0x12D, "the tpm is in field upgrade mode"),
            (0x130, "the tpm must be restarted before it works again"),
        ],
    ),
    **_rows(
        TpmAuthError,
        _HINT_OWNER,
        [
            (0x08E, "the authorisation failed and was counted against dictionary attacks"),
            (0x090, "physical presence is required"),
            (0x09D, "a policy check failed"),
            (0x0A2, "the authorisation is wrong"),
            (0x0A3, "the policy has expired"),
            (0x0A4, "the policy is for another command"),
            (0x124, "this kind of authorisation is not allowed here"),
            (0x125, "an authorisation is missing"),
            (0x12F, "this authorisation is not available now"),
            (0x145, "an authorisation was given where none is allowed"),
            (0x149, "this authorisation does not open the nv index"),
        ],
    ),
    **_rows(TpmLockout, _HINT_LOCK, [(0x921, "the tpm is in lockout after wrong authorisations")]),
    **_rows(
        TpmConflict,
        _HINT_THERE,
        [
            (0x127, "this pcr cannot be used so"),
            (0x128, "the pcrs have changed since they were looked at"),
            (0x146, "the nv index is smaller than what was asked for"),
            (0x147, "the nv index has a size the tpm does not accept"),
            (0x148, "the nv index is locked"),
            (0x14A, "the nv index was never written"),
            (0x14C, "the nv index exists already"),
        ],
    ),
    **_rows(
        TpmExhausted,
        _HINT_RM,
        [
            (0x14B, "no nv space is left"),
            (0x901, "the gap between saved contexts is full"),
            (0x902, "no room for another object"),
            (0x903, "no room for another session"),
            (0x904, "the tpm is out of memory"),
            (0x905, "no session handle is free"),
            (0x906, "no object handle is free"),
        ],
    ),
    **_rows(
        TpmBusy,
        "try again; if it stays, another program keeps the tpm busy",
        [
            (0x153, "the tpm has not tested what is needed"),
            (0x908, "the tpm yielded"),
            (0x909, "the command was cancelled"),
            (0x90A, "the tpm is testing itself"),
            (0x920, "the tpm limits the rate of nv writes"),
            (0x922, "the tpm could not start the command"),
            (0x923, "nv storage is not available now"),
        ],
    ),
    **_rows(
        TpmMissing,
        _HINT_THERE,
        [
            (0x08B, "the handle is not known to the tpm"),
            *((code, "the object is no longer loaded") for code in range(0x910, 0x917)),
            *((code, "the session is no longer loaded") for code in range(0x918, 0x91F)),
        ],
    ),
    **_rows(
        TpmForeignKey,
        _HINT_CLEAR,
        [
            (0x09F, "the key or credential does not belong to this tpm"),
            (0x0A5, "public and private part of the key do not belong together"),
        ],
    ),
    **_rows(
        TpmUnsupported,
        _HINT_FIRMWARE,
        [(0x085, "the hierarchy is not usable"), (0x120, "the command is disabled")],
    ),
    **_rows(
        TpmUnsupported,
        "the tpm must be a tpm 2.0 with ecc p-256, ecdsa, aes-128-cfb and an active sha-256 pcr bank",
        [
            (0x081, "the tpm does not know this kind of key"),
            (0x083, "the tpm does not know this hash, or has no pcr bank for it"),
            (0x087, "the tpm does not know this key size"),
            (0x089, "the tpm does not know this mode"),
            (0x08C, "the tpm does not know this key derivation"),
            (0x092, "the tpm does not know this signature scheme"),
            (0x096, "the tpm does not know this cipher"),
            (0x0A6, "the tpm does not know this curve"),
            (0x107, "the command is not allowed from this locality"),
            (0x143, "the tpm does not know this command"),
            (0x907, "the command is not allowed from this locality"),
        ],
    ),
}
"""Codes of the TPM itself: format-1 codes without their handle, parameter or session number."""

TSS_CODES: Final[dict[int, _Entry]] = {
    **_rows(
        TpmGone,
        _HINT_GONE,
        [
            (0x07, "the connection to the tpm was lost in the middle of a command"),
            (0x08, "there is no connection to the tpm"),
            (0x09, "the tpm did not answer in time"),
            (0x0A, "the tpm cannot be reached"),
            (0x11, "the answer of the tpm is malformed"),
            (0x12, "the connection to the tpm is not usable"),
            (0x13, "the answer of the tpm is too short"),
        ],
    ),
    **_rows(
        TpmAuthError,
        "something between this program and the tpm changes answers",
        [(0x1B, "the answer is not authentic")],
    ),
    **_rows(
        TpmUnsupported,
        "check the tcti: device:/dev/tpmrm0, swtpm:path=SOCKET, swtpm:host=H,port=P or tabrmd: "
        "(apt install libtss2-tcti-tabrmd0)",
        [
            (0x02, "the tss library does not have this function"),
            (0x04, "the tss libraries do not fit each other"),
            (0x0B, "the tss library refused a value"),
            (0x14, "the tcti library does not fit"),
            (0x15, "there is no such tcti"),
            (0x16, "the tcti library is broken"),
        ],
    ),
    **_rows(TpmMissing, _HINT_THERE, [(0x18, "the object is not known to the tss library")]),
    **_rows(TpmExhausted, "free memory on this host", [(0x17, "the tss library is out of memory")]),
}
"""Codes of the software layers (TCTI, SYS, ESAPI, marshalling, resource manager)."""

_TPM_LAYERS = frozenset({0x00, 0x0B, 0x0C})
"""The TPM itself, and resource managers that answer in its place with its own codes."""

RETRY_CODES = frozenset({0x908, 0x90A, 0x920, 0x922})
"""YIELDED, TESTING, NV_RATE, RETRY: the command was not started and may be sent again."""


def bare_code(rc: int) -> tuple[bool, int]:
    """Split a return code: (whether the TPM's own tables apply, the code without layer and numbers)."""
    layer, code = (rc >> 16) & 0xFF, rc & 0xFFFF
    if layer not in _TPM_LAYERS:
        return False, code
    if layer == 0x0B and code < 0x80:
        return False, code
    return True, 0x080 | (code & 0x3F) if code & 0x80 else code


def may_retry(rc: int) -> bool:
    """Whether the TPM says that it did not start the command and it may be sent again."""
    of_tpm, code = bare_code(rc)
    return of_tpm and code in RETRY_CODES


def error_for(rc: int, command: str) -> TpmError:
    """Turn a TSS return code into the error to raise. `command` is the ESAPI function that failed."""
    of_tpm, code = bare_code(rc)
    entry = (TPM_CODES if of_tpm else TSS_CODES).get(code)
    kind, words, hint = entry or (TpmError, "the tpm refused", _HINT_THERE)
    return kind(f"{command.replace('_', ' ')}: {words} (rc 0x{rc:x})", hint=hint, rc=rc, command=command)
