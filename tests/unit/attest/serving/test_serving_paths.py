# SPDX-License-Identifier: Apache-2.0
"""Which API a path speaks."""

from __future__ import annotations

import pytest

from quotary_attest.serving.paths import DEFAULT_PATHS, Api, PathTable


@pytest.mark.parametrize(("path", "api"), DEFAULT_PATHS.items())
def test_only_post_to_a_known_path_is_attested(path: str, api: Api) -> None:
    table = PathTable()
    assert table.api_of("POST", path) is api
    for method in ("GET", "HEAD", "PUT", "DELETE", "post"):
        assert table.api_of(method, path) is Api.NONE


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "/v1/models",
        "/v1/chat/completions/",
        "/v1//chat/completions",
        "/v1/chat/%63ompletions",
        "/V1/messages",
    ],
)
def test_a_path_spelled_in_another_way_is_not_attested(path: str) -> None:
    assert PathTable({"/x/*": Api.OPAQUE}).api_of("POST", path) is Api.NONE


def test_operators_add_and_override_paths() -> None:
    table = PathTable({"/chat/completions": Api.CHAT, "/api/chat": Api.CHAT, "/v1/embeddings": Api.NONE})
    assert table.api_of("POST", "/chat/completions") is Api.CHAT
    assert table.api_of("POST", "/api/chat") is Api.CHAT
    assert table.api_of("POST", "/v1/embeddings") is Api.NONE
    assert table.api_of("POST", "/v1/messages") is Api.MESSAGES


def test_a_star_stands_for_one_segment_and_the_rule_that_names_more_counts() -> None:
    table = PathTable({"/d/*/*": Api.OPAQUE, "/d/*/chat": Api.CHAT, "/d/own/chat": Api.NONE})
    assert table.api_of("POST", "/d/llama/chat") is Api.CHAT
    assert table.api_of("POST", "/d/llama/other") is Api.OPAQUE
    assert table.api_of("POST", "/d/own/chat") is Api.NONE
    assert table.api_of("POST", "/d/llama/chat/more") is Api.NONE
    assert table.api_of("POST", "/d//chat") is Api.NONE


@pytest.mark.parametrize(
    "path",
    ["", "v1/chat", "/v1//chat", "/v1/chat/", "/v1/chat?x=1", "/é", "/a b", "/quotary", "/quotary/v1/x"],
)
def test_a_rule_for_no_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        PathTable({path: Api.CHAT})
