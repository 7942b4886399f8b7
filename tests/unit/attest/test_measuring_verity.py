# SPDX-License-Identifier: Apache-2.0
"""fs-verity: the kernel's structure and errors, and digests that need not be computed again.

The kernels and file systems of test machines rarely have fs-verity: where this one lacks it, the kernel's answer stands
in as the bytes that linux/fsverity.h defines, and its refusal is the real one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from pathlib import Path

import pytest

from quotary_attest.measuring import files as files_module
from quotary_attest.measuring.files import hash_file
from quotary_attest.measuring.verity import FS_IOC_MEASURE_VERITY, KnownDigests, verity_digest

DIGEST = bytes(range(32))
NAME = f"sha256:{DIGEST.hex()}"


def kernel(algorithm: int = 1, digest: bytes = DIGEST) -> object:
    """What the kernel does where a file has fs-verity (struct fsverity_digest)."""

    def ioctl(_descriptor: int, request: int, buffer: bytearray) -> int:
        assert request == FS_IOC_MEASURE_VERITY
        _, room = struct.unpack_from("=HH", buffer)
        assert room >= len(digest)
        buffer[: 4 + len(digest)] = struct.pack("=HH", algorithm, len(digest)) + digest
        return 0

    return ioctl


def test_the_request_is_the_one_of_the_kernels_header() -> None:
    read_and_write, size = 3, 4
    number = read_and_write << 30 | size << 16 | ord("f") << 8 | 134
    assert number == FS_IOC_MEASURE_VERITY


def test_the_kernels_answer_is_read_by_algorithm_and_length() -> None:
    assert verity_digest(0, kernel()) == NAME  # type: ignore[arg-type]
    long = bytes(range(64))
    assert verity_digest(0, kernel(2, long)) == f"sha512:{long.hex()}"  # type: ignore[arg-type]
    assert verity_digest(0, kernel(1, long)) is None  # type: ignore[arg-type]
    assert verity_digest(0, kernel(7)) is None  # type: ignore[arg-type]
    assert verity_digest(0, kernel(1, b"")) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [errno.ENODATA, errno.ENOTTY, errno.EOPNOTSUPP])
def test_a_file_without_it_has_none_and_other_failures_are_errors(number: int) -> None:
    def refuses(*_: object) -> None:
        raise OSError(number, "refused")

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    assert verity_digest(0, refuses) is None
    with pytest.raises(OSError, match="broken"):
        verity_digest(0, fails)


def test_this_machines_kernel_is_asked_and_a_plain_file_has_no_digest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert verity_digest(descriptor) is None
    finally:
        os.close(descriptor)
    assert hash_file(path).verity == ""


def test_a_known_digest_saves_reading_the_file_and_outlives_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "verity_digest", lambda _descriptor: NAME)
    path = tmp_path / "weights"
    path.write_bytes(b"content")
    known = KnownDigests(tmp_path / "known")
    first = hash_file(path, known=known)
    assert (first.digest, first.verity) == (hashlib.sha256(b"content").digest(), NAME)
    known.save()
    assert (tmp_path / "known").stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(files_module, "_read_all", lambda *_: pytest.fail("it was read again"))
    seen: list[int] = []
    again = hash_file(path, seen.append, known=KnownDigests(tmp_path / "known"))
    assert again.digest == first.digest
    assert seen == [7]


def test_a_file_without_fs_verity_is_read_whatever_is_known(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"content")
    known = KnownDigests(tmp_path / "known")
    known.add("", bytes(32))
    assert hash_file(path, known=known).digest == hashlib.sha256(b"content").digest()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": "other", "sha256": {}}', '{"schema": "quotary-verity-digests/v1"}',
             '{"schema": "quotary-verity-digests/v1", "sha256": {"sha256:00": "zz"}}',
             '{"schema": "quotary-verity-digests/v1", "sha256": {"sha256:00": "00"}}'],
)  # fmt: skip
def test_a_damaged_cache_counts_as_empty(tmp_path: Path, text: str) -> None:
    (tmp_path / "known").write_text(text)
    assert KnownDigests(tmp_path / "known").get("sha256:00") is None
