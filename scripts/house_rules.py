# SPDX-License-Identifier: Apache-2.0
"""The house rules that no other tool checks: sizes, licence lines, host names, machine paths, links.

Looks only at files that git tracks. Prints one line for each breach, as ``path:line: what``; exits 1 if
there is one.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
MEMBERS = ("verifier", "attest", "cli")
SPDX = "SPDX-License-Identifier: Apache-2.0"

# Written in parts, or this file would break its own rule.
_PUBLIC_REGISTRIES = (
    ("pypi", "org"),
    ("pythonhosted", "org"),
    ("deb", "debian", "org"),
    ("security", "debian", "org"),
    ("snapshot", "debian", "org"),
    ("npmjs", "org"),
    ("npmjs", "com"),
)
_MACHINE_PATHS = tuple(re.compile(rf"(?<![\w.~-])/{top}/(?!\s)") for top in ("work", "root"))
_URL_HOST = re.compile(r"://(?:[^/@\s]*@)?([A-Za-z0-9.-]+)")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE_PATH = re.compile(r"`([A-Za-z0-9_.-]+/[A-Za-z0-9_./-]*)`")
_FENCE = re.compile(r"^\s*(```|~~~)")

Breach = tuple[int, str]


def tracked_files(root: Path) -> list[Path]:
    """Return every file that git tracks under ``root`` and that still exists, relative to it."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True).stdout
    return [path for name in listed.decode().split("\0") if name and (root / (path := Path(name))).is_file()]


def configured_registries() -> set[str]:
    """Return the hosts that this machine's pip, uv, npm and apt are set up to use, whatever they are."""
    texts = [
        value
        for key, value in os.environ.items()
        if key.startswith(("PIP_", "UV_", "NPM_CONFIG_", "npm_config_"))
    ]
    places = [Path("/etc/pip.conf"), Path.home() / ".config/pip/pip.conf", Path.home() / ".npmrc"]
    places += [*Path("/etc/apt").glob("sources.list"), *Path("/etc/apt").glob("sources.list.d/*")]
    for place in places:
        try:
            texts.append(place.read_text(errors="replace"))
        except OSError:
            continue
    hosts = {host.lower() for text in texts for host in _URL_HOST.findall(text)}
    return {host for host in hosts if "." in host and not re.fullmatch(r"[\d.]+", host)}


def size_breaches(text: str) -> Iterator[Breach]:
    """Yield a breach for a Python file or a function in it that has grown too long."""
    lines = text.count("\n")
    if lines > MAX_FILE_LINES:
        yield 1, f"{lines} lines, more than {MAX_FILE_LINES}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield node.lineno, f"{node.name} has {length} lines, more than {MAX_FUNCTION_LINES}"


def licence_breaches(text: str) -> Iterator[Breach]:
    """Yield a breach if the SPDX line is not the first line (the second after ``#!`` or a directive)."""
    head = text.splitlines()[:2]
    if head and head[0].startswith(("#!", "# shellcheck ")):
        head = head[1:]
    if not head or head[0] != f"# {SPDX}":
        yield 1, f"the first line is not '# {SPDX}'"


def name_breaches(text: str, hosts: set[str]) -> Iterator[Breach]:
    """Yield a breach for each line that names a registry's host or a path of one machine."""
    for number, line in enumerate(text.splitlines(), 1):
        lowered = line.lower()
        if any(host in lowered for host in hosts):
            yield number, "names a package registry's host"
        if any(pattern.search(line) for pattern in _MACHINE_PATHS):
            yield number, "names a path of one machine"


def link_breaches(path: Path, text: str, root: Path, *, code_paths: bool) -> Iterator[Breach]:
    """Yield a breach for each relative link, and each path in backticks if asked, that leads nowhere."""
    tops = {entry.name for entry in root.iterdir()}
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if _FENCE.match(line):
            fenced = not fenced
        if fenced:
            continue
        targets = [(path.parent / link.split("#")[0]) for link in _LINK.findall(line) if _is_relative(link)]
        if code_paths:
            targets += [Path(name) for name in _CODE_PATH.findall(line) if name.split("/")[0] in tops]
        for target in targets:
            if not (root / target).exists():
                yield number, f"leads nowhere: {target}"


def _is_relative(link: str) -> bool:
    return not link.startswith(("#", "mailto:")) and "://" not in link


def breaches(path: Path, root: Path, hosts: set[str]) -> Iterator[Breach]:
    """Yield every breach in one file, each with its line."""
    text = (root / path).read_bytes().decode("utf-8", errors="replace")
    yield from name_breaches(text, hosts)
    script = path.suffix == ".sh" or (path.suffix == "" and text.startswith("#!"))
    if path.suffix == ".py" or script:
        yield from licence_breaches(text)
    if path.suffix == ".py" and path.parts[0] in MEMBERS:
        yield from size_breaches(text)
    if path.suffix == ".md":
        yield from link_breaches(path, text, root, code_paths=len(path.parts) == 1)


def licence_copies(root: Path) -> Iterator[str]:
    """Yield a line for each member whose copy of the licence (a wheel needs its own) is not the root's."""
    whole = (root / "LICENSE").read_bytes()
    for member in MEMBERS:
        copy = root / member / "LICENSE"
        if not copy.is_file() or copy.read_bytes() != whole:
            yield f"{member}/LICENSE:1: is not a copy of LICENSE"


def main() -> int:
    """Check every tracked file and return the exit code."""
    root = Path(__file__).resolve().parent.parent
    hosts = configured_registries() | {".".join(parts) for parts in _PUBLIC_REGISTRIES}
    found = [
        f"{path}:{line}: {what}" for path in tracked_files(root) for line, what in breaches(path, root, hosts)
    ]
    found += licence_copies(root)
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
