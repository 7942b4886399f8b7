# SPDX-License-Identifier: Apache-2.0
"""Connections: what is loaded is flushed, what may be sent again is sent again, errors are words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tpms import CC_PCR_READ, Tpm

from dtpm import HEADER
from quotary_attest.tpm.connection import Connection, Retry
from quotary_attest.tpm.ek import activate_credential, ek_public
from quotary_attest.tpm.errors import TpmAuthError, TpmBusy, TpmError, TpmExhausted, TpmGone, TpmUnsupported
from quotary_attest.tpm.keys import load_ak, make_identity
from quotary_attest.tpm.reading import loaded_handles, read_clock, read_nv, read_pcrs
from quotary_attest.tpm.templates import pcr_selection
from quotary_attest.tpm.tss import lib

READ_CLOCK = 0x181


def test_after_fifty_failing_and_succeeding_jobs_nothing_is_left_in_the_tpm(tpm: Tpm) -> None:
    with Connection(tpm.tcti) as connection:
        identity = make_identity(connection, chain_pcr=15, workload_pcr=13)
        scheme = lib.TPMT_SIG_SCHEME(scheme=lib.TPM2_ALG.NULL)
        for step in range(50):
            with connection.scope() as scope:
                ak = scope.key(load_ak(connection, identity))
                if step % 2:
                    connection.authorize(ak, b"wrong")
                    with pytest.raises(TpmAuthError):
                        connection.commands.quote(ak, pcr_selection((0,)), bytes(32), scheme)
                else:
                    connection.commands.quote(ak, pcr_selection((0,)), bytes(32), scheme)
            assert loaded_handles(connection) == []


def test_jobs_that_need_sessions_leave_none_when_they_fail(tpm: Tpm) -> None:
    with Connection(tpm.tcti) as connection:
        identity = make_identity(connection, chain_pcr=15, workload_pcr=13)
        for kind in ("ecc-p256", "rsa-2048", "ecc-p384") * 2:
            with pytest.raises(TpmError):
                activate_credential(connection, identity, kind, id_object=b"\0", encrypted_secret=b"\0")
            assert loaded_handles(connection) == []
        ek_public(connection, "ecc-p256")
        assert loaded_handles(connection) == []


def test_a_scope_flushes_also_when_the_job_fails_in_python(tpm: Tpm) -> None:
    with Connection(tpm.tcti) as connection:
        identity = make_identity(connection, chain_pcr=15, workload_pcr=13)
        with pytest.raises(ZeroDivisionError), connection.scope() as scope:
            1 / (scope.key(load_ak(connection, identity)) and 0)
        assert loaded_handles(connection) == []


def test_a_full_tpm_says_so(tpm: Tpm) -> None:
    with Connection(tpm.tcti) as connection:
        identity = make_identity(connection, chain_pcr=15, workload_pcr=13)
        with connection.scope() as scope:
            for _ in range(2):
                scope.key(load_ak(connection, identity))
            with pytest.raises(TpmExhausted) as caught:
                scope.key(load_ak(connection, identity))
        assert "/dev/tpmrm0" in caught.value.hint


@pytest.mark.parametrize(("rc", "times"), [(0x922, 20), (0x908, 20), (0x90A, 20), (0x920, 3)])
def test_a_command_that_the_tpm_did_not_start_is_sent_again_with_growing_pauses(
    tpm: Tpm, rc: int, times: int
) -> None:
    """The library itself sends RETRY, YIELDED and TESTING again a few times, at once, before it tells us."""
    waits: list[float] = []
    with Connection(tpm.tcti, retry=Retry(attempts=6, sleep=waits.append)) as connection:
        tpm.inject(READ_CLOCK, rc, times=times)
        read_clock(connection)
    assert len(waits) > 1
    assert waits == [0.02 * 2**step for step in range(len(waits))]


def test_patience_has_an_end(tpm: Tpm) -> None:
    waits: list[float] = []
    with Connection(tpm.tcti, retry=Retry(attempts=4, sleep=waits.append)) as connection:
        tpm.inject(READ_CLOCK, 0x922, times=1000)
        with pytest.raises(TpmBusy, match="could not start the command"):
            read_clock(connection)
    assert waits == [0.02, 0.04, 0.08]


def test_pauses_are_bounded_and_outlast_a_self_test() -> None:
    delays = list(Retry().delays())
    assert max(delays) == 1.0
    assert 5 < sum(delays) < 15


def test_another_error_is_not_sent_again(tpm: Tpm) -> None:
    waits: list[float] = []
    with Connection(tpm.tcti, retry=Retry(sleep=waits.append)) as connection:
        tpm.inject(READ_CLOCK, 0x101)
        with pytest.raises(TpmGone, match="failure mode"):
            read_clock(connection)
    assert waits == []


def test_an_emulator_that_cannot_be_started_is_gone(tpm: Tpm) -> None:
    startup = 0x144
    tpm.inject(startup, 0x101)
    with pytest.raises(TpmGone, match="startup: the tpm is in failure mode"):
        Connection(tpm.tcti)
    Connection(tpm.tcti).close()


def test_a_tpm_without_an_active_sha_256_bank_is_not_supported(tpm: Tpm) -> None:
    empty = bytes.fromhex("00000000 00000001 000b 03 000000 00000000")

    def nothing(code: int, _command: bytes) -> bytes | None:
        return HEADER.pack(0x8001, HEADER.size + len(empty), 0) + empty if code == CC_PCR_READ else None

    with Connection(tpm.tcti) as connection:
        tpm.board.answer = nothing
        with pytest.raises(TpmUnsupported, match="no active sha-256 pcr bank"):
            read_pcrs(connection)


def test_pcrs_that_move_between_two_readings_are_read_again(tpm: Tpm) -> None:
    from tpms import extend_command

    with Connection(tpm.tcti) as connection:
        tpm.before(CC_PCR_READ, None, extend_command(3, b"\1" * 32))
        with tpm.counted() as codes:
            values = read_pcrs(connection)
        assert codes.count(CC_PCR_READ) == 4
        assert values == read_pcrs(connection)


def test_an_index_that_is_not_there_is_read_as_none(tpm: Tpm) -> None:
    with Connection(tpm.tcti) as connection:
        assert read_nv(connection, 0x01C0000A) is None


@pytest.mark.parametrize(
    ("tcti", "kind", "words"),
    [
        ("", TpmUnsupported, "the tcti is empty"),
        ("nonsense:x", TpmUnsupported, "there is no such tcti"),
        ("swtpm:bogus=1", TpmUnsupported, "refused a value"),
        ("swtpm:path=/nonexistent/socket", TpmGone, "cannot be reached"),
        ("swtpm:host=127.0.0.1,port=1", TpmGone, "cannot be reached"),
        ("device:/dev/there-is-no-tpm", TpmGone, "there is no /dev/there-is-no-tpm"),
        ("device:/etc/passwd", TpmUnsupported, "/etc/passwd is not a tpm device"),
    ],
)
def test_a_tcti_that_does_not_work_is_explained(tcti: str, kind: type[TpmError], words: str) -> None:
    with pytest.raises(kind) as caught:
        Connection(tcti)
    assert words in str(caught.value)
    assert caught.value.hint


def test_the_tss_does_not_write_to_stderr_unless_it_is_told_to(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import contextlib\n"
        "from quotary_attest.tpm.connection import Connection\n"
        "from quotary_attest.tpm.errors import TpmError\n"
        "with contextlib.suppress(TpmError):\n"
        "    Connection('swtpm:path=/nonexistent/socket')\n"
    )
    quiet = subprocess.run([sys.executable, script], env={}, capture_output=True, text=True, check=True)
    assert (quiet.stdout, quiet.stderr) == ("", "")
    loud = subprocess.run(
        [sys.executable, script], env={"TSS2_LOG": "all+error"}, capture_output=True, text=True, check=True
    )
    assert "ERROR" in loud.stderr


def test_a_host_without_the_library_is_told_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "tpm2_pytss").mkdir()
    (tmp_path / "tpm2_pytss" / "__init__.py").write_text(
        "raise ImportError('libtss2-esys.so.0: cannot open')\n"
    )
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from quotary_attest.tpm.errors import TpmUnsupported\n"
        "try:\n"
        "    import quotary_attest.tpm.root\n"
        "except TpmUnsupported as error:\n"
        "    print(error, error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "cannot be loaded: libtss2-esys.so.0" in done.stdout
    assert "apt install libtss2-dev" in done.stdout
