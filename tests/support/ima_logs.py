# SPDX-License-Identifier: Apache-2.0
"""Writing entries of the kernel's IMA log."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from quotary_verifier.logs.ima_fields import boot_aggregate

SIZES = {20: "sha1", 32: "sha256", 48: "sha384", 64: "sha512"}


def ima_entry(
    data: bytes, *, pcr: int = 10, violation: bool = False, name: bytes = b"ima-ng", size: int = 20
) -> bytes:
    """One entry with `data` as its template data; `size` is that of the template hash."""
    template_hash = bytes(size) if violation else hashlib.new(SIZES[size], data).digest()
    return (
        pcr.to_bytes(4, "little")
        + template_hash
        + len(name).to_bytes(4, "little")
        + name
        + len(data).to_bytes(4, "little")
        + data
    )


def counted(*fields: bytes) -> bytes:
    """Fields of template data, each behind its length."""
    return b"".join(len(value).to_bytes(4, "little") + value for value in fields)


def ng(path: str, digest: bytes, *rest: bytes, label: bytes = b"sha256") -> bytes:
    """Template data of `ima-ng`, or with further fields of one that begins like it."""
    return counted(label + b":\0" + digest, path.encode() + b"\0", *rest)


def file_data(number: int) -> bytes:
    """Template data of the numbered file of a made-up host."""
    return ng(f"/usr/bin/program-{number}", hashlib.sha256(b"program %d" % number).digest())


def host_log(pcrs: Mapping[int, bytes], files: int) -> list[bytes]:
    """The template data of a host's log: its boot aggregate over PCR 0-9, then some files."""
    return [ng("boot_aggregate", boot_aggregate(pcrs, 9)), *map(file_data, range(files))]


def replayed(datas: Iterable[bytes], bank: str = "sha256") -> bytes:
    """What PCR 10 holds after records with this template data; an empty one stands for a violation."""
    size = hashlib.new(bank).digest_size
    value = bytes(size)
    for data in datas:
        digest = hashlib.new(bank, data).digest() if data else b"\xff" * size
        value = hashlib.new(bank, value + digest).digest()
    return value
