# SPDX-License-Identifier: Apache-2.0
"""Opening a log by what people call it: a URL, an agent's socket, a folder, or an archive file.

https://gpu-07.example.net/quotary/v1/     an agent's proxy, or any web server with the static files
unix:/var/lib/quotary/agent.sock           a running agent on this machine
/srv/logs/gpu-07                           a folder of static files
gpu-07.tar                                 an archive (docs/spec/archive.md)
"""

from __future__ import annotations

from pathlib import Path

from quotary_cli.output import ExitCode
from quotary_cli.sources.base import LogSource, OpenSource, SourceFailed, SourceMissing, SourceTooLarge

__all__ = ["LogSource", "OpenSource", "SourceFailed", "SourceMissing", "SourceTooLarge", "open_source"]


def open_source(text: str) -> OpenSource:
    """Return the source that a text names. Nothing is asked of a server yet; an archive's index is read.

    Raises:
        SourceFailed: it names none, or the archive is none.
    """
    if text.startswith(("http://", "https://")):
        from quotary_cli.sources.http import url_source

        return url_source(text)
    if text.startswith("unix:"):
        from quotary_cli.sources.http import agent_source

        return agent_source(Path(text.removeprefix("unix:")))
    path = Path(text)
    if path.is_dir():
        from quotary_cli.sources.folder import FolderSource

        return FolderSource(path)
    if path.is_file():
        from quotary_cli.sources.archive import ArchiveSource

        return ArchiveSource.open(path)
    raise SourceFailed(
        f"{text}: no log is there",
        code=ExitCode.USAGE,
        hint="name a URL (https://…), an agent's socket (unix:…), a folder, or an archive file",
    )
