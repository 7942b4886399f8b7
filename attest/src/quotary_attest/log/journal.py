# SPDX-License-Identifier: Apache-2.0
"""The journal: what is about to be committed, on disk before the TPM hears of it (design section 4, step 1).

One file for each batch, `journal/<start>` with 20 digits, kept until the batch's rows, entries and tiles are
durable elsewhere. A file is framed, so that one which a power cut left incomplete is recognised; such a batch
never reached the TPM and counts as never staged::

    label ‖ SHA-256 of what follows ‖ u32 length of head ‖ head ‖ columns
    head     CBOR [start, first, note, before, digest, number of leaves]
    columns  u32 record lengths ‖ u64 times ‖ u8 id lengths ‖ u8 key lengths ‖ u8 alias lengths
             ‖ records ‖ ids ‖ keys ‖ aliases

The columns stand side by side because a batch is written on the critical path of its commit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate, pairwise
from pathlib import Path
from struct import pack, unpack_from
from typing import Final

from quotary_attest.log.durable import (
    TEMPORARY,
    create_file,
    make_folder,
    read_file,
    remove_file,
    replace_file,
)
from quotary_attest.log.errors import DamagedError, storage
from quotary_verifier.errors import MalformedError
from quotary_verifier.wire import cbor
from quotary_verifier.wire.limits import MAX_NOTE

_LABEL: Final = b"quotary/journal/v2\n\0"
_NAME: Final = re.compile(r"[0-9]{20}")
_BODY: Final = len(_LABEL) + 32
_MAX_JOURNAL: Final = 1 << 31


@dataclass(frozen=True, slots=True)
class StagedBatch:
    """The leaves of one commit before it is made, and what the commit is going to be.

    `start` is the index of the first leaf (the size before), `first` the index from which the commit will
    claim. `note` is the intended note: its text, or its text and the lines that software signs; the note of the
    commit must begin with it. `before` is the chain PCR before the commit and `digest` the commit's D, 32 bytes
    each; both are empty where the origin has no TPM.

    The leaves are columns of equal length: the record, the output's id (24 bytes; None for a record that is
    public: genesis, boot, statement), the time in milliseconds, the request key (32 bytes) or None, and the alias
    under which the output is known besides (32 bytes) or None; no alias at all is an empty column.
    """

    start: int
    first: int
    note: bytes
    before: bytes
    digest: bytes
    records: Sequence[bytes]
    output_ids: Sequence[bytes | None]
    times: Sequence[int]
    request_keys: Sequence[bytes | None]
    aliases: Sequence[bytes | None] = ()

    @property
    def size(self) -> int:
        """The size of the tree with this batch."""
        return self.start + len(self.records)

    def entries(self) -> list[bytes]:
        """Return the log entry SHA-256(record) of each leaf."""
        return [sha256(record).digest() for record in self.records]

    def encode(self) -> bytes:
        """Return the bytes of the journal file."""
        count = len(self.records)
        head = cbor.encode([self.start, self.first, self.note, self.before, self.digest, count])
        ids = [item or b"" for item in self.output_ids]
        keys = [item or b"" for item in self.request_keys]
        aliases = [item or b"" for item in self.aliases]
        body = b"".join(
            (
                pack(">I", len(head)),
                head,
                pack(f">{count}I", *map(len, self.records)),
                pack(f">{count}Q", *self.times),
                bytes(map(len, ids)),
                bytes(map(len, keys)),
                bytes(map(len, aliases)) or bytes(count),
                *self.records,
                *ids,
                *keys,
                *aliases,
            )
        )
        return _LABEL + sha256(body).digest() + body

    @classmethod
    def decode(cls, data: bytes) -> StagedBatch:
        """Read a journal file. Raises MalformedError for one that is incomplete or altered."""
        if not data.startswith(_LABEL) or data[len(_LABEL) : _BODY] != sha256(data[_BODY:]).digest():
            raise MalformedError("the journal is incomplete")
        (head_length,) = unpack_from(">I", data, _BODY)
        position = _BODY + 4 + head_length
        head = cbor.decode(data[_BODY + 4 : position], max_bytes=2 * MAX_NOTE, what="journal head")
        start, first, note, before, digest, count = head
        lengths = unpack_from(f">{count}I", data, position)
        times = unpack_from(f">{count}Q", data, position + 4 * count)
        position += 12 * count
        small = data[position : position + 3 * count]
        position += 3 * count
        cells = [data[begin:end] for begin, end in pairwise(accumulate((*lengths, *small), initial=position))]
        return cls(
            start,
            first,
            note,
            before,
            digest,
            cells[:count],
            [cell or None for cell in cells[count : 2 * count]],
            times,
            [cell or None for cell in cells[2 * count : 3 * count]],
            [cell or None for cell in cells[3 * count :]],
        )


class Journal:
    """The folder of the batches that are staged, or committed and not yet durable elsewhere."""

    __slots__ = ("folder",)

    def __init__(self, folder: Path) -> None:
        """Open the folder, creating it, and remove what an interrupted replacement left."""
        self.folder = folder
        make_folder(folder)
        for path in list(folder.glob("*" + TEMPORARY)):
            remove_file(path)

    def write(self, batch: StagedBatch) -> None:
        """Put a batch on disk, durable; one of the same start is replaced, whole or not at all.

        Raises StorageFull or StorageFailed; the journal is then as it was before.
        """
        path = self._path(batch.start)
        if path.exists():
            replace_file(path, batch.encode())
        else:
            create_file(path, batch.encode())

    def read(self, start: int) -> StagedBatch | None:
        """Return the batch that begins at `start`; None where there is none or it is incomplete."""
        data = read_file(self._path(start), max_bytes=_MAX_JOURNAL)
        if data is None:
            return None
        try:
            batch = StagedBatch.decode(data)
        except MalformedError:
            return None
        if batch.start != start:
            raise DamagedError(f"the journal of leaf {start} holds the batch of leaf {batch.start}")
        return batch

    def starts(self) -> list[int]:
        """Return the starts of all batches in order, of incomplete ones too. Other files are left alone."""
        with storage("list", self.folder):
            return sorted(int(path.name) for path in self.folder.iterdir() if _NAME.fullmatch(path.name))

    def remove(self, start: int) -> None:
        """Remove a batch, if it is there. Not fsynced: one that comes back is removed again."""
        remove_file(self._path(start))

    def remove_below(self, size: int) -> None:
        """Remove the batches that begin below `size`, all of whose leaves are durable elsewhere."""
        for start in self.starts():
            if start < size:
                self.remove(start)

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:020}"
