# SPDX-License-Identifier: Apache-2.0
"""What an agent states of its proxies is what they do, path by path."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quotary_attest.serving.exchange import ProxyConfig
from quotary_attest.serving.paths import DEFAULT_PATHS, Api, PathTable
from quotary_attest.serving.promise import declaration_of
from quotary_verifier.wire.declaration import CODED, UNAVAILABLE, Declaration

URL = "http://127.0.0.1:1"
SEGMENT = st.sampled_from(["a", "b", "*", "v1"])
PATH = st.lists(SEGMENT, min_size=1, max_size=3).map(lambda segments: "/" + "/".join(segments))
RULES = st.dictionaries(PATH, st.sampled_from([Api.CHAT, Api.OPAQUE, Api.NONE]), max_size=6)


def told(*tables: dict[str, Api], **config: str) -> Declaration:
    return declaration_of(ProxyConfig(URL, paths=PathTable(rules), **config) for rules in tables)  # type: ignore[arg-type]


@given(RULES, st.one_of(PATH, st.sampled_from(sorted(DEFAULT_PATHS))))
def test_a_path_is_promised_exactly_where_the_proxy_attests_it(rules: dict[str, Api], path: str) -> None:
    (service,) = Declaration.parse(told(rules).text).services
    attested = PathTable(rules).api_of("POST", path) is not Api.NONE
    assert service.covers(path) is attested


def test_the_exceptions_are_those_that_the_proxy_makes() -> None:
    (strict,) = told({}).services
    (lenient,) = told({}, when_unavailable="pass").services
    assert (strict.unless, lenient.unless) == ((), (CODED, UNAVAILABLE))


def test_equal_doors_are_one_service_and_a_door_that_attests_nothing_ends_every_promise() -> None:
    nothing = dict.fromkeys(DEFAULT_PATHS, Api.NONE)
    assert len(told({}, {}).services) == 1
    assert len(told({}, {"/x": Api.OPAQUE}).services) == 2
    assert told({}, nothing).services == ()
    assert declaration_of([]).services == ()
