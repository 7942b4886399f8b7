# SPDX-License-Identifier: Apache-2.0
"""What every source has in common: paths are checked first, and a partial file may be cut from the whole one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self

from quotary_cli.output import ExitCode, Failure
from quotary_cli.sources.paths import LogPath, cut, parse_path, wider
from quotary_verifier.errors import MalformedError


class SourceFailed(Failure):
    """A source could not be read: it does not answer, or answers what nobody may rely on."""

    def __init__(self, message: str, *, code: ExitCode = ExitCode.FAILURE, hint: str = "") -> None:
        super().__init__(message, code=code, hint=hint)


class SourceTooLarge(SourceFailed):
    """What stands at a path has more bytes than may stand there."""

    def __init__(self, name: str, path: str, most: int) -> None:
        super().__init__(f"{name}: {path} has more than {most} bytes", code=ExitCode.REJECTED)
        self.path = path


EXPECTED = (
    "every log has its newest checkpoint in a file of that name: name the address or folder right above it (of an"
    " agent's proxy https://HOST/quotary/v1/), an agent's socket (unix:…), or an archive"
)
"""What to do where something was named that is no log."""


class SourceMissing(Failure):
    """Nothing stands at a path. The path is in `path`."""

    def __init__(self, path: str, name: str = "") -> None:
        where = f"{name}: " if name else ""
        hint = EXPECTED if path == "checkpoint" else ""
        super().__init__(f"{where}there is no {path}", code=ExitCode.NOT_CHECKED, hint=hint)
        self.path = path


class LogSource(Protocol):
    """Where an auditor reads a log; any number of threads may do so at once."""

    def read(self, path: str, most: int) -> bytes:
        """Return what stands at a path of docs/spec/log.md or docs/spec/archive.md.

        Raises:
            SourceMissing: nothing does.
            SourceTooLarge: it has more than `most` bytes.
            SourceFailed: it could not be read.
            MalformedError: nothing ever has this path.
        """
        ...


class OpenSource(LogSource, Protocol):
    """A source as `open_source` gives it: named for people, and to be closed."""

    @property
    def name(self) -> str:
        """How people named it."""
        ...

    def paths(self, head: str) -> Iterator[str] | None:
        """Yield, in order, the paths that begin with `head` and `/`; None where a source cannot list any."""
        ...

    def close(self) -> None:
        """Let go of connections and files."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Source:
    """The base of all sources. `_get` answers for one path exactly."""

    name: str
    threads = 1
    """How many threads should read at once."""

    def read(self, path: str, most: int) -> bytes:
        """As LogSource says. A partial tile or history file that is not there is cut from the whole one."""
        wanted = parse_path(path)
        try:
            return self._get(wanted, min(most, wanted.most))
        except SourceMissing:
            whole = wider(wanted)
            if whole is None:
                raise
        data = self._part(wanted, self._get(whole, whole.most))
        if len(data) > most:
            raise SourceTooLarge(self.name, path, most)
        return data

    def paths(self, head: str) -> Iterator[str] | None:  # noqa: ARG002
        """List nothing."""
        return None

    def close(self) -> None:
        """Let go of connections and files."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def _get(self, path: LogPath, most: int) -> bytes:
        """Return what stands at exactly this path. Raises as `read`."""

    def _part(self, wanted: LogPath, whole: bytes) -> bytes:
        try:
            data = cut(wanted, whole)
        except MalformedError as error:
            raise SourceFailed(f"{self.name}: {wanted.text}: {error}", code=ExitCode.REJECTED) from None
        if data is None:
            raise SourceMissing(wanted.text, self.name)
        return data
