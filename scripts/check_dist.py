# SPDX-License-Identifier: Apache-2.0
"""Check what `scripts/build` made: every distribution is there, and holds what it should and nothing else."""

from __future__ import annotations

import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

# Member folder -> the top-level packages that its wheel may hold.
ALLOWED = {
    "verifier": {"quotary_verifier"},
    "attest": {"quotary_attest"},
    "cli": {"quotary_cli", "quotary"},
}
ROOT = Path(__file__).resolve().parent.parent


def source_packages(member: str) -> set[str]:
    """Return the names of the packages in the member's source folder."""
    return {path.parent.name for path in (ROOT / member / "src").glob("*/__init__.py")}


def shared_files(member: str, info: str) -> set[str]:
    """Return the names in the wheel of the member's files for operators: units, dashboard, container file."""
    folder = ROOT / member / "share"
    data = f"{info.removesuffix('.dist-info')}.data/data/share/quotary"
    return {f"{data}/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*") if path.is_file()}


def wheel_problems(wheel: Path, member: str, info: str) -> list[str]:
    """Return what is wrong with the wheel; ``info`` is the name of its ``.dist-info`` folder."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    packages = source_packages(member)
    problems = [f"holds {top}, which is no package of {member}" for top in sorted(packages - ALLOWED[member])]
    tops = {PurePosixPath(name).parts[0] for name in names}
    shared = shared_files(member, info)
    allowed = packages | {info} | {PurePosixPath(name).parts[0] for name in shared}
    if tops != allowed:
        problems.append(f"top level is {sorted(tops)}, not {sorted(allowed)}")
    wanted = shared | {f"{info}/licenses/LICENSE", *(f"{package}/py.typed" for package in packages)}
    sources = {
        path.relative_to(ROOT / member / "src").as_posix()
        for package in packages
        for path in (ROOT / member / "src" / package).rglob("*.py")
    }
    return problems + [f"lacks {name}" for name in sorted((wanted | sources) - names)]


def sdist_problems(sdist: Path, top: str, member: str) -> list[str]:
    """Return what is wrong with the sdist; ``top`` is the one folder that it unpacks to."""
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    names = {entry.name for entry in members}
    problems = [
        f"lies outside {top}: {name}" for name in sorted(names) if PurePosixPath(name).parts[0] != top
    ]
    problems += [
        f"is not a plain file: {entry.name}" for entry in members if not entry.isreg() and not entry.isdir()
    ]
    wanted = {f"{top}/{name}" for name in ("LICENSE", "README.md", "pyproject.toml", "PKG-INFO")}
    wanted |= {f"{top}/src/{package}/py.typed" for package in source_packages(member)}
    return problems + [f"lacks {name}" for name in sorted(wanted - names)]


def main(dist: Path) -> int:
    """Check the folder ``dist`` and return the exit code: 0, or 1 if something is wrong."""
    expected: set[str] = set()
    failed = False
    for member in ALLOWED:
        project = tomllib.loads((ROOT / member / "pyproject.toml").read_text())["project"]
        stem = f"{project['name'].replace('-', '_')}-{project['version']}"
        wheel, sdist = dist / f"{stem}-py3-none-any.whl", dist / f"{stem}.tar.gz"
        expected |= {wheel.name, sdist.name}
        for path in (wheel, sdist):
            if not path.is_file():
                problems = ["was not built"]
            elif path == wheel:
                problems = wheel_problems(wheel, member, f"{stem}.dist-info")
            else:
                problems = sdist_problems(sdist, stem, member)
            print(f"{path.name}: {'; '.join(problems) or 'good'}")
            failed |= bool(problems)
    strangers = {path.name for path in dist.iterdir()} - expected - {".gitignore"}
    for name in sorted(strangers):
        print(f"{name}: was not expected")
    return 1 if failed or strangers else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
