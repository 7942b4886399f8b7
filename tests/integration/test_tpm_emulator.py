# SPDX-License-Identifier: Apache-2.0
"""The private software TPM: its life, its folder, and what it says when swtpm is missing."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509

from quotary_attest.tpm.connection import Connection
from quotary_attest.tpm.ek import read_ek_certificates
from quotary_attest.tpm.emulator import SOCKET_PATH_LIMIT, Emulator
from quotary_attest.tpm.errors import TpmConflict, TpmError, TpmGone, TpmUnsupported
from quotary_attest.tpm.keys import load_keys, make_identity
from quotary_attest.tpm.reading import read_clock


@pytest.fixture
def state(tpm_template: Path, tmp_path: Path) -> Path:
    """A manufactured state of this test alone."""
    return Path(shutil.copytree(tpm_template, tmp_path / "state"))


def test_a_new_folder_becomes_a_tpm_with_certificates_of_its_own_authority(tmp_path: Path) -> None:
    with Emulator(tmp_path / "new") as emulator, Connection(emulator.tcti) as connection:
        certificates = read_ek_certificates(connection)
        issuer = x509.load_pem_x509_certificate(emulator.ek_issuer.read_bytes())
        assert certificates
        for certificate in certificates:
            x509.load_der_x509_certificate(certificate.der).verify_directly_issued_by(issuer)
        assert emulator.ek_root.parent == tmp_path / "new" / "ca"
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "new" / "tpm").stat().st_mode) == 0o700


def test_starting_again_is_a_reboot_with_the_same_keys(state: Path) -> None:
    emulator = Emulator(state)
    with emulator, Connection(emulator.tcti) as connection:
        identity = make_identity(connection, chain_pcr=15, workload_pcr=13)
        before = read_clock(connection)
    with emulator, Connection(emulator.tcti) as connection:
        load_keys(connection, identity)
        after = read_clock(connection)
    assert after.reset_count == before.reset_count + 1
    assert after.safe


def test_after_a_power_cut_the_address_is_the_same_and_the_clock_is_not_safe(state: Path) -> None:
    with Emulator(state) as emulator:
        with Connection(emulator.tcti) as connection:
            before = read_clock(connection)
        tcti = emulator.tcti
        emulator.power_cut()
        assert not emulator.running
        with pytest.raises(TpmGone):
            Connection(tcti)
        emulator.start()
        assert emulator.tcti == tcti
        with Connection(tcti) as connection:
            after = read_clock(connection)
    assert after.reset_count == before.reset_count + 1
    assert not after.safe


def test_stopping_leaves_no_process_and_no_socket(state: Path) -> None:
    emulator = Emulator(state)
    emulator.start()
    emulator.start()
    folder = emulator.socket.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    emulator.stop()
    emulator.stop()
    assert not emulator.running
    assert not folder.exists()
    with pytest.raises(TpmGone, match="the emulator is not running"):
        _ = emulator.tcti


def test_a_deep_state_folder_does_not_make_the_socket_path_too_long(
    tmp_path: Path, tpm_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    shutil.copytree(tpm_template, deep)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    with Emulator(deep) as emulator, Connection(emulator.tcti):
        assert len(str(emulator.socket)) + len(".ctrl") <= SOCKET_PATH_LIMIT


def test_the_reset_line_leaves_a_tpm_that_waits_for_its_startup(state: Path) -> None:
    with Emulator(state) as emulator, Connection(emulator.tcti) as connection:
        emulator.init()
        with pytest.raises(TpmGone, match="not started"):
            read_clock(connection)


@pytest.mark.parametrize(("missing", "package"), [("swtpm", "swtpm"), ("swtpm_setup", "swtpm-tools")])
def test_a_missing_program_is_an_error_that_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, package: str
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in {"swtpm", "swtpm_setup", "swtpm_localca"} - {missing}:
        (programs / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(TpmUnsupported, match=f"{missing} is not installed") as caught:
        Emulator(tmp_path / "state").start()
    assert caught.value.hint == f"apt install {package}"


def test_a_state_that_swtpm_refuses_is_told_in_its_words(state: Path) -> None:
    (state / "tpm" / "tpm2-00.permall").write_bytes(b"not a tpm state")
    emulator = Emulator(state)
    with pytest.raises(TpmGone, match=r"swtpm did not start: .*libtpms") as caught:
        emulator.start()
    assert str(state / "swtpm.log") in caught.value.hint
    assert not emulator.running


def test_two_processes_do_not_share_an_emulator(state: Path) -> None:
    with Emulator(state) as emulator:
        with pytest.raises(TpmConflict, match="is used by another process"):
            Emulator(state).start()
        assert emulator.running
    with Emulator(state):
        pass


def test_what_a_killed_process_left_behind_is_ended_first(state: Path) -> None:
    script = (
        "import sys, os, signal\nfrom pathlib import Path\n"
        "from quotary_attest.tpm.emulator import Emulator\n"
        "emulator = Emulator(Path(sys.argv[1]))\nemulator.start()\n"
        "print(emulator.socket, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, state], capture_output=True, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    left = Path(killed.stdout.strip())
    orphan = int((state / "swtpm.pid").read_text())
    assert Path(f"/proc/{orphan}").exists()
    with Emulator(state) as emulator, Connection(emulator.tcti) as connection:
        assert not left.parent.exists()
        assert read_clock(connection).reset_count > 0
        assert int((state / "swtpm.pid").read_text()) != orphan


def test_a_pid_of_another_program_is_left_alone(state: Path) -> None:
    (state / "swtpm.pid").write_text(f"{os.getpid()}\n")
    with Emulator(state) as emulator:
        assert emulator.running


def test_a_set_up_that_fails_is_told_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "swtpm_setup").write_text("#!/bin/sh\necho 'no entropy today' >&2\nexit 1\n")
    (programs / "swtpm_setup").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with pytest.raises(TpmError, match="swtpm_setup failed: no entropy today"):
        Emulator(tmp_path / "state").start()


def test_a_folder_that_cannot_be_written_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(TpmError, match="cannot be used for the emulator's state"):
        Emulator(tmp_path / "file" / "state").start()
