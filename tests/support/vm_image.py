# SPDX-License-Identifier: Apache-2.0
"""The measured guest's disk, kernel and initramfs, kept by the content that they are made of.

The root disk is an ext4 image with Debian's Python, libtss2 and busybox, our packages and what they need. These come
from the environment that runs the tests: what is built for it, Debian's Python of the same minor version loads too.
"""

from __future__ import annotations

import compileall
import hashlib
import importlib.metadata
import os
import py_compile
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fcntl import LOCK_EX, flock
from pathlib import Path

from vm_packages import Packages, find_program, guest_packages, run

REPOSITORY = Path(__file__).resolve().parents[2]
GUEST = REPOSITORY / "tests" / "vm" / "guest"
ENGINE = REPOSITORY / "tests" / "support" / "small_engine.py"
FIRMWARE = Path("/usr/share/OVMF")
BOOT_LOADER = Path("/usr/lib/systemd/boot/efi")
_CACHE = Path(os.environ.get("QUOTARY_VM_CACHE", REPOSITORY / ".cache" / "vm"))
_PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "swtpm": "swtpm",
    "swtpm_setup": "swtpm-tools",
    "mcopy": "mtools",
    "mkfs.vfat": "dosfstools",
    "sfdisk": "fdisk",
    "mke2fs": "e2fsprogs",
    "objcopy": "binutils",
    "dpkg-deb": "dpkg",
}
_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "ext4", "tcp_diag")
"""Drivers, and what tells the agent which process is at the other end of a connection."""
_BUILD_ONLY = {"setuptools", "setuptools-scm", "vcs-versioning", "pkgconfig", "packaging"}
_MEMBERS = {"verifier": "quotary-verifier", "attest": "quotary-attest", "cli": "quotary"}
_UNUSED = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "usr/share/bash-completion",
)
_UNUSED_PYTHON = (
    *("curses", "dbm", "distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "unittest", "venv"),
    *("xmlrpc", "encodings/cp[0-9]*", "encodings/iso2022*", "encodings/koi8*", "encodings/mac_*"),
)
"""What the agent never imports: each file less is one that IMA measures less, at each boot."""
_FOLDERS = ("dev", "proc", "sys", "run", "tmp", "root", "opt/quotary", "var/lib/quotary", "etc")
_UUID = "6e1f2c1a-6f0e-4c36-9a55-7a0f3d2b9c11"


@dataclass(frozen=True)
class Image:
    """What every guest boots from."""

    folder: Path

    @property
    def root(self) -> Path:
        """The root disk, for reading only."""
        return self.folder / "root.ext4"

    @property
    def kernel(self) -> Path:
        """Debian's kernel, as its package has it."""
        return self.folder / "kernel"

    @property
    def initrd(self) -> Path:
        """The initramfs."""
        return self.folder / "initrd"


def why_not() -> str | None:
    """Why no guest can be made on this machine, None where it can."""
    absent = {package for program, package in _PROGRAMS.items() if find_program(program) is None}
    absent |= {"ovmf"} if not (FIRMWARE / "OVMF_CODE_4M.fd").exists() else set()
    absent |= {"systemd-boot-efi"} if not (BOOT_LOADER / "systemd-bootx64.efi").exists() else set()
    if absent:
        return f"packages are not installed: {' '.join(sorted(absent))}"
    asked = ["/usr/bin/python3", "-c", "import sys; print(*sys.version_info[:2])"]
    debian = subprocess.run(asked, check=False, capture_output=True, text=True).stdout.split()
    if debian != [str(part) for part in sys.version_info[:2]]:
        return (
            f"the guest would have python {'.'.join(debian)}, which this environment's packages are not for"
        )
    return None


def make_image() -> Image:
    """The image for the tree as it is now; made where the cache does not have it."""
    with guest_packages() as packages:
        scripts = [Path(__file__), Path(__file__).with_name("vm_packages.py")]
        wanted = [*packages.files(), *_digests(scripts)]
        system = kept("system", wanted, lambda to: _make_system(packages, to))
        sources = [REPOSITORY / member / "src" for member in _MEMBERS]
        content = [
            system.name,
            *_digests([*sources, GUEST, ENGINE]),
            *(f"{one}" for one, _ in _distributions()),
        ]
        return Image(kept("image", content, lambda to: _make_image(system, to)))


def kept(kind: str, inputs: Iterable[str], make: Callable[[Path], None]) -> Path:
    """The cached folder that `make` fills out of these inputs. Of older ones of its kind the last is left."""
    digest = hashlib.sha256("\n".join(inputs).encode()).hexdigest()
    target = _CACHE / f"{kind}-{digest[:16]}"
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / f"lock-{kind}").open("w") as lock:
        flock(lock, LOCK_EX)  # two workers may ask at once
        if target.exists():
            return target
        known = sorted(_CACHE.glob(f"{kind}-*"), key=lambda path: path.stat().st_mtime)
        for stale in known[:-1]:  # somebody may still use the last one
            shutil.rmtree(stale)
        with tempfile.TemporaryDirectory(dir=_CACHE, prefix="making-") as folder:
            making = Path(folder) / "made"
            making.mkdir()
            make(making)
            making.rename(target)
    return target


def _digests(places: Iterable[Path]) -> Iterator[str]:
    for place in places:
        for file in [place] if place.is_file() else sorted(place.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                yield f"{file.relative_to(REPOSITORY)} {hashlib.sha256(file.read_bytes()).hexdigest()}"


# -- Debian's part


def _make_system(packages: Packages, to: Path) -> None:
    """`tree` (the guest's files), `kernel`, `modules` in the order in which they are loaded, and `busybox`."""
    tree, kernel = to / "tree", to / "unpacked"
    packages.unpack(tree, kernel)
    for folder in _UNUSED:
        shutil.rmtree(tree / folder, ignore_errors=True)
    for folder in _FOLDERS:
        (tree / folder).mkdir(parents=True, exist_ok=True)
    (tree / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nquotary:x:1000:1000::/run/quotary:/bin/sh\n")
    (tree / "etc/group").write_text("root:x:0:\nquotary:x:1000:\n")
    if not (tree / "usr/bin/python3").exists():  # made by a script of its package in some releases
        (tree / "usr/bin/python3").symlink_to(f"python3.{sys.version_info[1]}")
    library = tree / f"usr/lib/python3.{sys.version_info[1]}"
    for unused in (place for pattern in _UNUSED_PYTHON for place in list(library.glob(pattern))):
        shutil.rmtree(unused) if unused.is_dir() else unused.unlink()
    _compile(library, tree)
    shutil.copy(next((kernel / "boot").glob("vmlinuz-*")), to / "kernel")
    modules = to / "modules"
    modules.mkdir()
    order = _in_order({file.name.partition(".")[0]: file for file in kernel.rglob("*.ko")})
    for file in order:
        shutil.copy(file, modules / file.name)
    (modules / "order").write_text("".join(f"{file.name}\n" for file in order))
    shutil.rmtree(kernel)


def _in_order(available: dict[str, Path]) -> list[Path]:
    """The modules that the guest needs, each after those that it depends on, as their own `depends=` says."""
    order: list[Path] = []
    known = {name.replace("-", "_"): file for name, file in available.items()}

    def add(name: str) -> None:
        file = known.get(name.replace("-", "_"))
        if file is None or file in order:  # None: built in
            return
        needed = re.search(rb"\0depends=([^\0]*)\0", file.read_bytes())
        soft = re.search(rb"\0softdep=pre: ([^\0]*)\0", file.read_bytes())
        for other in (needed[1].decode().split(",") if needed else []) + (
            soft[1].decode().split() if soft else []
        ):
            add(other)
        order.append(file)

    for name in ("crc32c_generic", *_MODULES):
        add(name)
    return order


def _compile(folder: Path, tree: Path) -> None:
    """Byte code beside the sources, that never looks at them. What does not compile is found where it is imported."""
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(folder, quiet=2, stripdir=str(tree), workers=2, invalidation_mode=mode)


# -- our part


def _make_image(system: Path, to: Path) -> None:
    with tempfile.TemporaryDirectory(dir=to) as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(system / "tree", tree, symlinks=True, copy_function=os.link)
        packages = tree / "usr/lib/python3/dist-packages"
        packages.mkdir(parents=True, exist_ok=True)
        for _, distribution in _distributions():
            _copy_distribution(distribution, packages)
        for member, name in _MEMBERS.items():
            _copy_member(REPOSITORY / member / "src", name, packages)
        shutil.copy(ENGINE, tree / "opt/quotary/small_engine.py")
        _compile(packages, tree)
        shutil.copy(GUEST / "init.sh", tree / "usr/sbin/init")
        (tree / "usr/sbin/init").chmod(0o755)
        run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-U", _UUID, "-E", f"hash_seed={_UUID},root_owner=0:0",
            "-m", "0", "-d", tree, to / "root.ext4", f"{_mebibytes(tree)}M")  # fmt: skip
    shutil.copy(system / "kernel", to / "kernel")
    (to / "initrd").write_bytes(_initrd(system))


def _distributions() -> list[tuple[str, importlib.metadata.Distribution]]:
    """What the agent needs in Python, by its lock: name and version, and where it is installed here."""
    lock = (REPOSITORY / "requirements-agent.lock").read_text()
    found = []
    for name in re.findall(r"^([a-z0-9.-]+)==", lock, re.MULTILINE):
        if name not in _BUILD_ONLY:
            distribution = importlib.metadata.distribution(name)
            found.append((f"{name}=={distribution.version}", distribution))
    return found


def _copy_distribution(distribution: importlib.metadata.Distribution, to: Path) -> None:
    for file in distribution.files or []:
        if ".." not in file.parts and file.suffix != ".pyc":
            (to / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(distribution.locate_file(file)), to / file)


def _copy_member(source: Path, name: str, to: Path) -> None:
    """One of our own as its wheel would have it: the packages as they are now, and what its metadata says."""
    for package in sorted(source.iterdir()):
        shutil.copytree(package, to / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    distribution = importlib.metadata.distribution(name)
    about = to / f"{name.replace('-', '_')}-{distribution.version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(distribution.read_text("METADATA") or "")


def _mebibytes(tree: Path) -> int:
    """The size of a disk for a tree: whole blocks, inodes, and a little more."""
    sizes = [-(-entry.lstat().st_size // 4096) * 4096 + 512 for entry in tree.rglob("*")]
    return sum(sizes) * 11 // 10 // (1 << 20) + 8


def _initrd(system: Path) -> bytes:
    """An initramfs (cpio, "newc"), the same bytes every time."""
    folders = ("bin", "dev", "proc", "system", "modules")
    entries = [(name, 0o040755, b"") for name in folders]
    entries.append(("init", 0o100755, (GUEST / "initramfs.sh").read_bytes()))
    entries.append(("bin/busybox", 0o100755, (system / "tree/bin/busybox").read_bytes()))
    for file in sorted((system / "modules").iterdir()):
        entries.append((f"modules/{file.name}", 0o100644, file.read_bytes()))
    entries.append(("TRAILER!!!", 0, b""))
    archive = b"".join(_cpio(number, *entry) for number, entry in enumerate(entries, 1))
    return archive + bytes(-len(archive) % 512)


def _cpio(number: int, name: str, mode: int, content: bytes) -> bytes:
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)
