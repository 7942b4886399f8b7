# SPDX-License-Identifier: Apache-2.0
"""Archives have one permitted form: whatever else calls itself a tar is refused before anything is read of it."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from quotary_cli.logsource import SourceFailed, SourceMissing, SourceTooLarge, open_source
from quotary_cli.output import ExitCode
from quotary_cli.sources.archive import END, ArchiveSource, header, padding
from quotary_cli.sources.writer import ArchiveWriter, unfinished

FILES = {"checkpoint": b"note", "history/000": b"x" * 600, "tile/entries/000.p/2": bytes(68)}
MOST = 1 << 20


def member(name: str, data: bytes, size: int | None = None) -> bytes:
    return header(name, len(data) if size is None else size) + data + bytes(padding(len(data)))


def archive_of(files: dict[str, bytes]) -> bytes:
    return b"".join(member(name, data) for name, data in files.items()) + END


def opened(data: bytes, folder: Path) -> ArchiveSource:
    (folder / "a.tar").write_bytes(data)
    return ArchiveSource.open(folder / "a.tar")


def python_tar(change: Callable[[tarfile.TarInfo], None], form: int = tarfile.USTAR_FORMAT) -> bytes:
    """An archive of one file by Python's tarfile, with one thing changed."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        info = tarfile.TarInfo("checkpoint")
        info.size = 4
        change(info)
        tar.addfile(info, io.BytesIO(b"note"))
    return out.getvalue()


def changed(**fields: object) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        for name, value in fields.items():
            setattr(info, name, value)

    return change


def test_what_was_written_is_read_and_other_programs_read_it_too(tmp_path: Path) -> None:
    writer = ArchiveWriter.begin(tmp_path / "a.tar")
    for path, data in FILES.items():
        writer.add(path, data)
    assert not (tmp_path / "a.tar").exists(), "an archive is there before it is whole"
    writer.finish()
    assert (tmp_path / "a.tar").read_bytes() == archive_of(FILES)
    with open_source(str(tmp_path / "a.tar")) as source:
        for path, data in FILES.items():
            assert source.read(path, MOST) == data
        assert source.read("tile/entries/000.p/2", 68) == bytes(68)
        with pytest.raises(SourceMissing, match="there is no tile/0/000"):
            source.read("tile/0/000", MOST)
        with pytest.raises(SourceTooLarge):
            source.read("history/000", 599)
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {item.name: tar.extractfile(item).read() for item in tar} == FILES  # type: ignore[union-attr]
    listed = subprocess.run(["tar", "tf", tmp_path / "a.tar"], check=True, capture_output=True, text=True)
    assert (listed.stdout.split(), listed.stderr) == (list(FILES), "")


@pytest.mark.parametrize(
    ("change", "form"),
    [
        (changed(type=tarfile.SYMTYPE, linkname="/etc/passwd", size=0), tarfile.USTAR_FORMAT),
        (changed(type=tarfile.LNKTYPE, linkname="checkpoint", size=0), tarfile.USTAR_FORMAT),
        (changed(type=tarfile.CHRTYPE, size=0), tarfile.USTAR_FORMAT),
        (changed(type=tarfile.FIFOTYPE, size=0), tarfile.USTAR_FORMAT),
        (changed(type=tarfile.DIRTYPE, size=0), tarfile.USTAR_FORMAT),
        (changed(type=tarfile.CONTTYPE), tarfile.USTAR_FORMAT),
        (changed(type=tarfile.GNUTYPE_SPARSE), tarfile.GNU_FORMAT),
        (changed(type=b"x"), tarfile.USTAR_FORMAT),
        (changed(type=b"g"), tarfile.USTAR_FORMAT),
        (changed(type=b"L"), tarfile.USTAR_FORMAT),
        (changed(name="../checkpoint"), tarfile.USTAR_FORMAT),
        (changed(name="/checkpoint"), tarfile.USTAR_FORMAT),
        (changed(name="./checkpoint"), tarfile.USTAR_FORMAT),
        (changed(name="checkpoint/../../x"), tarfile.USTAR_FORMAT),
        (changed(name="a" * 60 + "/" + "b" * 90), tarfile.USTAR_FORMAT),
        (changed(name="blob/" + "b" * 200), tarfile.PAX_FORMAT),
        (changed(name="blob/" + "b" * 200), tarfile.GNU_FORMAT),
        (changed(name="checkpöint"), tarfile.GNU_FORMAT),
        (changed(mode=0o755), tarfile.USTAR_FORMAT),
        (changed(mode=0o4755), tarfile.USTAR_FORMAT),
        (changed(uid=1), tarfile.USTAR_FORMAT),
        (changed(mtime=1), tarfile.USTAR_FORMAT),
        (changed(uname="root"), tarfile.USTAR_FORMAT),
        (changed(), tarfile.GNU_FORMAT),
    ],
)
def test_a_tar_of_any_other_form_is_refused(
    change: Callable[[tarfile.TarInfo], None], form: int, tmp_path: Path
) -> None:
    with pytest.raises(SourceFailed, match="not an archive of a log") as refused:
        opened(python_tar(change, form), tmp_path)
    assert (refused.value.code, "attest log export" in refused.value.hint) == (ExitCode.REJECTED, True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bytes(512), "does not end with two blocks of zeros"),
        (archive_of(FILES)[:-512], "does not end with two blocks of zeros"),
        (archive_of(FILES) + b"\0", "something stands behind"),
        (archive_of(FILES) + bytes(8192), "something stands behind"),
        (archive_of(FILES) + archive_of(FILES), "something stands behind"),
        (archive_of(FILES)[:600], "byte 0|ends within checkpoint"),
        (archive_of(FILES)[:1100], "it ends within a header"),
        (archive_of(FILES)[:1600], "ends within history/000"),
        (2 * member("checkpoint", b"note") + END, "checkpoint stands twice or out of order"),
        (member("history/000", b"") + member("checkpoint", b"") + END, "out of order"),
        (member("tile/0/x001/000", b"") + member("tile/0/999", b"") + END, "out of order"),
        (member("checkpoint", b"note", 8**11 - 1) + END, "has more than 65536 bytes"),
        (member("checkpoint", b"note", 5000) + END, "ends within checkpoint"),
        (member("checkpoint", b"n" * 65537) + END, "has more than 65536 bytes"),
    ],
)
def test_an_archive_that_is_cut_doubled_or_too_large_is_refused(
    data: bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceFailed, match=message):
        opened(data, tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"\x1f\x8b\x08" + bytes(2000), "it is no tar"),
        (b"short", "it is no tar"),
        (b"not a tar at all, but long enough".ljust(600, b"."), "it is no tar"),
    ],
)
def test_a_file_that_never_was_an_archive_is_a_slip_and_no_evidence(
    data: bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceFailed, match=f"not an archive of a log: {message}") as refused:
        opened(data, tmp_path)
    assert (refused.value.code, "attest log export" in refused.value.hint) == (ExitCode.USAGE, True)


@pytest.mark.parametrize("byte", range(0, 512, 3))
def test_no_byte_of_a_header_may_be_another(byte: int, tmp_path: Path) -> None:
    whole = bytearray(archive_of({"checkpoint": b"note"}))
    whole[byte] ^= 1
    with pytest.raises(SourceFailed):
        opened(bytes(whole), tmp_path)


def test_nothing_hides_behind_a_file(tmp_path: Path) -> None:
    whole = bytearray(archive_of({"checkpoint": b"note"}))
    whole[512 + 100] = 1
    with opened(bytes(whole), tmp_path) as source, pytest.raises(SourceFailed, match="not followed by zeros"):
        source.read("checkpoint", MOST)


def test_an_archive_of_more_files_than_memory_is_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quotary_cli.sources.archive.MAX_FILES", 2)
    with pytest.raises(SourceFailed, match="more than 2 files"):
        opened(archive_of(FILES), tmp_path)


def test_an_archive_that_was_cut_off_goes_on_behind_its_last_whole_file(tmp_path: Path) -> None:
    whole = archive_of({**FILES, "policy/p.toml": b"old"})
    for end in range(0, len(whole), 97):
        unfinished(tmp_path / "a.tar").write_bytes(whole[:end])
        writer = ArchiveWriter.go_on(tmp_path / "a.tar")
        for path, data in list(FILES.items())[writer.files :]:
            writer.add(path, data)
        writer.add("policy/p.toml", b"new")
        writer.finish()
        assert (tmp_path / "a.tar").read_bytes() == archive_of({**FILES, "policy/p.toml": b"new"})


def test_files_are_written_in_the_one_order_only(tmp_path: Path) -> None:
    writer = ArchiveWriter.begin(tmp_path / "a.tar")
    writer.add("history/000", b"")
    for path in ("checkpoint", "history/000"):
        with pytest.raises(ValueError, match="comes too late"):
            writer.add(path, b"")
    writer.close()
