# SPDX-License-Identifier: Apache-2.0
"""What the process logs to standard error: lines for people, or one JSON object a line for programs.

Code says things with the standard library's `logging`; fields go into `extra`. Nothing of a request or an answer is
ever logged (docs/spec/serving.md, "Logs").
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, Final, TextIO

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_TEXT: Final = "%(levelname)s %(name)s %(message)s"


class JsonLines(logging.Formatter):
    """One JSON object a record: time (UTC), level, logger, message, the fields of `extra`, and a traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of ASCII."""
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {
            name: value for name, value in vars(record).items() if name not in _STANDARD and name not in line
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """One line a record, and a traceback below it if any. What a message repeats of others (names, errors) cannot begin
    a line of its own: characters that do not print stand as escapes."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the record's line."""
        return _printable(super().formatMessage(record))


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def set_up(form: str, level: str, stream: TextIO | None = None) -> None:
    """Send all logs of this process to `stream` (standard error) as `text` or `json`, from `level` on."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonLines() if form == "json" else TextLines(_TEXT))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.captureWarnings(True)
