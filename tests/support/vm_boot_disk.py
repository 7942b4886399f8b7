# SPDX-License-Identifier: Apache-2.0
"""The measured guest's boot disk and firmware variables: systemd-boot with an entry or a unified kernel image, and
Secure Boot under keys of the test's own."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from vm_image import BOOT_LOADER, FIRMWARE, REPOSITORY, Image, kept
from vm_packages import run

COMMAND_LINE = "console=ttyS0 panic=-1 no_timer_check ima_policy=tcb ima_hash=sha256 quiet"
"""`no_timer_check`: an emulator that gets little of a busy processor fails the kernel's check of its timer."""
OWNER = "4e5f1d0a-54c8-4b6c-9f0e-5d1b4c8f2a11"
_DISK = "6e1f2c1a-6f0e-4c36-9a55-7a0f3d2b9c12"
_PARTITION = "6e1f2c1a-6f0e-4c36-9a55-7a0f3d2b9c13"
_ESP_TYPE = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
_MEBIBYTE = 1 << 20
_SIZE = 64


@dataclass(frozen=True)
class Boot:
    """What a guest boots, and how: the parts that an attacker changes."""

    kernel: Path
    initrd: Path
    command_line: str = COMMAND_LINE
    unified: bool = False
    keys: Keys | None = None
    """Sign what is booted, with the keys that the firmware has enrolled. None: no Secure Boot."""

    @classmethod
    def of(cls, image: Image) -> Boot:
        """What the image has, by an entry of the boot loader, without Secure Boot."""
        return cls(image.kernel, image.initrd)

    def changed(self, **parts: object) -> Boot:
        """The same with some parts exchanged."""
        return replace(self, **parts)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Keys:
    """Secure Boot keys in a folder: PK, KEK and db, each a certificate and its key."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Keys:
        """Make three new ones."""
        folder.mkdir()
        for name in ("PK", "KEK", "db"):
            run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "36500", "-subj",
                f"/CN=guest {name}", "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem")  # fmt: skip
        return cls(folder)

    def sign(self, program: Path) -> None:
        """Sign a PE image by db, in place; signatures that it has are removed."""
        while "signature 1" in run("sbverify", "--list", program):
            run("sbattach", "--remove", program)
        run(
            "sbsign",
            "--key",
            self.folder / "db.key",
            "--cert",
            self.folder / "db.pem",
            "--output",
            program,
            program,
        )


def write_boot_disk(boot: Boot, target: Path) -> None:
    """Write a GPT disk with one EFI system partition."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        tree = Path(folder) / "esp"
        loader = tree / "EFI/BOOT/BOOTX64.EFI"
        loader.parent.mkdir(parents=True)
        shutil.copy(BOOT_LOADER / "systemd-bootx64.efi", loader)
        (tree / "loader/entries").mkdir(parents=True)
        if boot.unified:
            program = tree / "EFI/Linux/guest.efi"
            program.parent.mkdir()
            _write_unified(boot, program, Path(folder))
        else:
            program = tree / "guest/linux"
            program.parent.mkdir()
            shutil.copy(boot.kernel, program)
            shutil.copy(boot.initrd, tree / "guest/initrd")
            (tree / "loader/entries/guest.conf").write_text(
                f"title guest\nlinux /guest/linux\ninitrd /guest/initrd\noptions {boot.command_line}\n"
            )
        (tree / "loader/loader.conf").write_text(
            f"timeout 0\ndefault guest.{'efi' if boot.unified else 'conf'}\n"
        )
        if boot.keys is not None:
            boot.keys.sign(loader)
            boot.keys.sign(program)
        _write_disk(tree, target)


def _write_disk(tree: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    with target.open("wb") as disk:
        disk.truncate((_SIZE + 2) * _MEBIBYTE)
    table = (
        f"label: gpt\nlabel-id: {_DISK}\nstart=2048, size={_SIZE}MiB, type={_ESP_TYPE}, uuid={_PARTITION}\n"
    )
    run("sfdisk", "--quiet", target, given=table)
    run("mkfs.vfat", "-F", "32", "-i", "51545259", "--offset", "2048", target, str(_SIZE * 1024))
    run("mcopy", "-s", "-Q", "-i", f"{target}@@{_MEBIBYTE}", *sorted(tree.iterdir()), "::/")


def _write_unified(boot: Boot, target: Path, folder: Path) -> None:
    """systemd's stub with the sections that it measures, each behind the one before."""
    (folder / "cmdline").write_text(boot.command_line)
    (folder / "osrel").write_text('ID=guest\nNAME=guest\nPRETTY_NAME="guest"\nVERSION_ID=1\n')
    sections = {
        ".osrel": folder / "osrel",
        ".cmdline": folder / "cmdline",
        ".linux": boot.kernel,
        ".initrd": boot.initrd,
    }
    stub = BOOT_LOADER / "linuxx64.efi.stub"
    heads = re.findall(r"^ +\d+ \S+ +([0-9a-f]{8}) +([0-9a-f]{16})", run("objdump", "-h", stub), re.MULTILINE)
    at = max(int(size, 16) + int(address, 16) for size, address in heads)
    arguments: list[str | Path] = []
    for name, file in sections.items():
        at = -(-at // _MEBIBYTE) * _MEBIBYTE
        arguments += ["--add-section", f"{name}={file}", "--change-section-vma", f"{name}={at:#x}"]
        at += file.stat().st_size
    run("objcopy", *arguments, stub, target)


def write_variables(keys: Keys | None, target: Path) -> None:
    """The firmware's variables before its first boot: empty, or with Secure Boot on under these keys."""
    template = FIRMWARE / "OVMF_VARS_4M.fd"
    if keys is None:
        shutil.copy(template, target)
        return
    enrolled = []
    for option, name in (("--set-pk", "PK"), ("--add-kek", "KEK"), ("--add-db", "db")):
        enrolled += [option, OWNER, str(keys.folder / f"{name}.pem")]
    _edit_variables("--input", template, "--output", target, "--secure-boot", *enrolled)


def switch_secure_boot_off(variables: Path) -> None:
    """What the switch in the firmware's setup does: the keys stay."""
    _edit_variables("--inplace", variables, "--set-false", "SecureBootEnable")


def _edit_variables(*arguments: str | Path) -> None:
    tool = "import sys; sys.path.insert(0, sys.argv.pop(1)); from virt.firmware.vars import main; sys.exit(main())"
    run(sys.executable, "-I", "-c", tool, _virt_firmware(), *arguments)


def _virt_firmware() -> Path:
    """The folder of virt-firmware, which writes variables; installed beside the images, once for each lock."""
    lock = REPOSITORY / "requirements-vm.lock"
    return kept("virt-firmware", [sys.version, lock.read_text()], lambda to: _install(lock, to))


def _install(lock: Path, to: Path) -> None:
    options = [
        "--require-hashes",
        "--only-binary",
        ":all:",
        "--disable-pip-version-check",
        "--root-user-action",
        "ignore",
    ]
    run(sys.executable, "-m", "pip", "install", "-q", *options, "--target", to, "-r", lock)
