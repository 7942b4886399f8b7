# SPDX-License-Identifier: Apache-2.0
"""Times on the command line and in what it prints."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from quotary_cli.output import ExitCode, Failure


def parse_time(text: str | None, option: str = "--at") -> int:
    """Return a time (RFC 3339, or seconds since 1970) in seconds since 1970; now where none is given."""
    if text is None:
        return int(time.time())
    try:
        moment = int(text) if text.isdecimal() else int(_rfc3339(text).timestamp())
        datetime.fromtimestamp(moment, UTC)
    except (ValueError, OverflowError, OSError):
        raise Failure(
            f"{option} {text}: not a time",
            code=ExitCode.USAGE,
            hint="for example 2026-11-23T12:00:00Z or 1795435200",
        ) from None
    return moment


def _rfc3339(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("no time zone")
    return moment


def show_time(moment: int) -> str:
    """Show seconds since 1970 as RFC 3339 in UTC, or as they are where no calendar has them."""
    try:
        return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{moment} s"
