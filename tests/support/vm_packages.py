# SPDX-License-Identifier: Apache-2.0
"""Debian packages for the measured guest, unpacked without privileges and without running any of their scripts.

apt says which packages and from where, as it is configured on this machine.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tpm2_pytss

_WANTED = (
    *("dash", "coreutils", "findutils", "busybox-static", "python3-minimal", "libpython3-stdlib"),
    "linux-image-amd64",
)
_FOR_SCRIPTS = re.compile(
    r"(adduser|ca-certificates|cpio|debconf|debianutils|dpkg|initramfs-tools|klibc-utils|libklibc|kmod|linux-base"
    r"|logsave|openssl|passwd|tar|tpm-udev|udev|linux-image-amd64)[_-]"
)
"""Packages that only maintainer scripts need: what they would do, the image has already."""
_MERGED = ("bin", "sbin", "lib", "lib64")
_SEARCH = "/usr/sbin:/sbin"


def find_program(name: str) -> str | None:
    """Its path, also where a plain user's PATH does not reach."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_SEARCH}")


def run(*command: str | Path, given: str | None = None) -> str:
    """Run a program, `given` its standard input, and return its output; an assertion fails with its messages."""
    program = find_program(str(command[0]))
    assert program is not None, f"{command[0]} is not installed"
    done = subprocess.run(
        [program, *command[1:]], input=given or "", check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command[0]} failed: {done.stderr[-2000:]}"
    return done.stdout


@dataclass(frozen=True)
class Packages:
    """What apt would install on an empty system, and how to get it."""

    options: tuple[str, ...]
    names: tuple[str, ...]

    def files(self) -> list[str]:
        """File names of all packages, which hold their versions."""
        try:
            listed = self._install("--print-uris")
        except AssertionError:
            run("apt-get", "-qq", "update")  # a new machine has no package lists
            listed = self._install("--print-uris")
        return sorted(line.split()[1] for line in listed.splitlines())

    def unpack(self, tree: Path, kernel: Path) -> None:
        """Download them all; unpack the kernel into one folder and the rest into another."""
        with tempfile.TemporaryDirectory(dir=tree.parent) as folder:
            (Path(folder) / "partial").mkdir()
            self._install("--download-only", "-o", f"Dir::Cache::archives={folder}")
            for name in _MERGED:
                (tree / "usr" / name).mkdir(parents=True)
                (tree / name).symlink_to(f"usr/{name}")
            for archive in sorted(Path(folder).glob("*.deb")):
                if archive.name.startswith("linux-image-") and not _FOR_SCRIPTS.match(archive.name):
                    _unpack(archive, kernel)
                elif not _FOR_SCRIPTS.match(archive.name):
                    _unpack(archive, tree)

    def _install(self, *options: str) -> str:
        return run("apt-get", *self.options, *options, "-qq", "-y", "install", *self.names)


def _unpack(archive: Path, tree: Path) -> None:
    """Unpack one, through the links that merge /bin into /usr/bin."""
    tree.mkdir(exist_ok=True)
    command = ["tar", "-x", "--keep-directory-symlink", "--no-same-owner", "-C", str(tree)]
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as reader:
        subprocess.run(command, check=True, stdin=reader.stdout)
    assert reader.returncode == 0, f"{archive.name} is damaged"


@contextmanager
def guest_packages() -> Iterator[Packages]:
    """The guest's packages, as apt would choose them now."""
    with tempfile.TemporaryDirectory(prefix="quotary-vm-apt-") as folder:
        status = Path(folder) / "status"
        status.touch()
        settings = {
            "Dir::State::status": status,
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "Debug::NoLocking": "1",
            "APT::Sandbox::User": "",
            "APT::Install-Recommends": "false",
        }
        options = tuple(part for name, value in settings.items() for part in ("-o", f"{name}={value}"))
        yield Packages(options, (*_WANTED, *_tss_packages()))


def _tss_packages() -> list[str]:
    """Those that hold the libraries which the TPM binding here is linked with; their names change with each Debian."""
    extension = next(Path(tpm2_pytss.__file__).parent.glob("_libtpm2_pytss*.so"))
    linked = re.findall(r"=> (\S+/libtss2\S+)", run("ldd", extension))
    device = Path(linked[0]).parent / "libtss2-tcti-device.so.0"
    owners = run("dpkg", "-S", *{str(Path(os.path.realpath(library))) for library in [*linked, str(device)]})
    return sorted({line.partition(":")[0] for line in owners.splitlines()})
