# SPDX-License-Identifier: Apache-2.0
"""Reads what launched images serve: `[[tee.<kind>.image]]` (docs/spec/policy.md, "Models of images")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from quotary_verifier.errors import MalformedError
from quotary_verifier.policy.table import Table, sha256_digest
from quotary_verifier.policy.tee import Image
from quotary_verifier.wire.frozen import frozen


@frozen
class _Kind:
    """The registers that an image of a kind may name, of which it names one of `launched`; `sizes` in bytes.

    Only these are out of reach of whatever was launched, so that without them anybody could extend the others alike.
    """

    registers: frozenset[str]
    launched: frozenset[str]
    sizes: tuple[int, ...] = (48,)


_HEXADECIMAL: Final = frozenset("0123456789abcdef")
_KINDS: Final[Mapping[str, _Kind]] = {
    "sev-snp": _Kind(frozenset({"launch"}), frozenset({"launch"})),
    "tdx": _Kind(frozenset({"mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"}), frozenset({"mrtd"})),
    "nitro": _Kind(frozenset(f"pcr{number}" for number in range(32)), frozenset({"pcr0", "pcr4"})),
    "cca": _Kind(frozenset({"rim", "rem0", "rem1", "rem2", "rem3"}), frozenset({"rim"}), (32, 48, 64)),
}


def read_images(kind: str, table: Table) -> tuple[Image, ...]:
    """Take the images out of the table of a kind; kinds that are no whole machine have none.

    Raises:
        PolicyError: one has no weights, or names registers by which nothing is shown.
    """
    if kind not in _KINDS or "image" not in table.names():
        return ()
    return tuple(_image(kind, item) for item in table.tables("image"))


def _image(kind: str, table: Table) -> Image:
    known = _KINDS[kind]
    weights = table.convert("weights", table.take("weights", str), sha256_digest)
    registers = table.table("registers")
    found: dict[str, frozenset[bytes]] = {}
    for name in registers.names():
        if name not in known.registers:
            registers.fail(name, f"is not one of {', '.join(sorted(known.registers))}")
        values = registers.texts(name)
        if not values:
            registers.fail(name, "allows no value")
        found[name] = frozenset(
            registers.convert(name, value, lambda text: _value(text, known.sizes)) for value in values
        )
    if found.keys().isdisjoint(known.launched):
        table.fail(
            "registers", f"must name {' or '.join(sorted(known.launched))}: others can be extended by anybody"
        )
    table.finish()
    return Image(kind, weights, found)


def _value(text: str, sizes: tuple[int, ...]) -> bytes:
    value = bytes.fromhex(text) if _HEXADECIMAL.issuperset(text) and len(text) % 2 == 0 else b""
    if value.hex() != text or len(value) not in sizes:
        wanted = " or ".join(str(2 * size) for size in sizes)
        raise MalformedError(f"{wanted} lower-case hexadecimal digits are expected")
    if not any(value):
        raise MalformedError("a register that is zero measured nothing")
    return value
