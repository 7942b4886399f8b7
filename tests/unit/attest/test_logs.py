# SPDX-License-Identifier: Apache-2.0
"""What the process logs: one line, or one JSON object, for each record."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator

import pytest

from quotary_attest.logs import set_up


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)


def logged(form: str, level: str = "info") -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    set_up(form, level, stream)
    return logging.getLogger("quotary.test"), stream


def test_an_object_has_time_level_logger_message_and_the_fields_that_were_given() -> None:
    logger, stream = logged("json")
    logger.warning("output %s\nis late", "out_1", extra={"seconds": 3, "message_id": "é"})
    (line,) = stream.getvalue().splitlines()
    found = json.loads(line)
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "warning",
        "logger": "quotary.test",
        "message": "output out_1\nis late",
        "seconds": 3,
        "message_id": "é",
    }


def test_a_traceback_stands_in_its_object() -> None:
    logger, stream = logged("json")
    try:
        raise ValueError("wrong")
    except ValueError:
        logger.exception("failed")
    found = json.loads(stream.getvalue())
    assert found["traceback"].endswith("ValueError: wrong\n")


def test_lines_for_people_have_level_and_logger() -> None:
    logger, stream = logged("text")
    logger.info("ready")
    assert stream.getvalue() == "INFO quotary.test ready\n"


def test_what_is_below_the_level_is_not_logged() -> None:
    logger, stream = logged("text", "error")
    logger.warning("not this")
    assert stream.getvalue() == ""


def test_warnings_of_libraries_are_logged_too() -> None:
    _, stream = logged("json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert json.loads(stream.getvalue())["logger"] == "py.warnings"


def test_what_a_message_repeats_cannot_begin_a_line_of_its_own() -> None:
    logger, stream = logged("text")
    logger.info("no model %s", "x\nERROR quotary.engine \x1b[31mforged\r\u2028é")
    assert stream.getvalue() == (
        "INFO quotary.test no model x\\nERROR quotary.engine \\x1b[31mforged\\r\\u2028é\n"
    )


def test_a_traceback_stands_below_its_line() -> None:
    logger, stream = logged("text")
    try:
        raise ValueError("wrong")
    except ValueError:
        logger.exception("failed")
    assert stream.getvalue().startswith("ERROR quotary.test failed\nTraceback")
