# SPDX-License-Identifier: Apache-2.0
"""The ACPI table that says where a confidential VM's event log lies (ACPI 6.5, section 5.2.34, CCEL).

The log itself is one of `quotary_verifier.logs.tcg`, with `Registers.CC`: 1 to 4 are RTMR 0 to 3.
"""

from __future__ import annotations

from typing import Final

from quotary_verifier.errors import MalformedError
from quotary_verifier.logs.little import Reader
from quotary_verifier.wire.frozen import frozen

CC_TYPES: Final = {1: "SEV", 2: "TDX"}
_TABLE = 56
_HEAD = 36


@frozen
class CcelTable:
    """What the table says: the kind of confidential VM, and the log area's size and physical address."""

    cc_type: int
    cc_subtype: int
    minimum_length: int
    address: int

    @property
    def name(self) -> str:
        """The name of the kind of confidential VM, or its number."""
        return CC_TYPES.get(self.cc_type, str(self.cc_type))


def parse_ccel_table(data: bytes) -> CcelTable:
    """Read a CCEL table.

    Raises:
        MalformedError: it is none, or its checksum is wrong.
    """
    if len(data) != _TABLE or data[:4] != b"CCEL" or int.from_bytes(data[4:8], "little") != _TABLE:
        raise MalformedError("the file is no CCEL table")
    if sum(data) % 256:
        raise MalformedError("the checksum of the CCEL table is wrong")
    reader = Reader(data, "the CCEL table")
    reader.take(_HEAD)
    kind, subtype, _ = reader.number(1), reader.number(1), reader.number(2)
    return CcelTable(kind, subtype, reader.number(8), reader.number(8))
