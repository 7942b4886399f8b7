# SPDX-License-Identifier: Apache-2.0
"""The configuration file: what it may say, and how it is told that something is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from quotary_attest.config import AgentConfig, ConfigError, claimed_model, load_config, missing_files
from quotary_attest.config.keys import REQUIRED, describe
from quotary_attest.config.rules import Address, parse_address

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "configuration.md"
STATE = '[state]\nfolder = "/var/lib/quotary/origin"\n'
SECRET = "hunter2-secret"


def problems(text: str, **overrides: Any) -> list[str]:
    """What is wrong with a configuration."""
    with pytest.raises(ConfigError) as caught:
        load_config(text, overrides)
    return [str(problem) for problem in caught.value.problems]


def test_a_configuration_with_a_state_folder_alone_has_all_defaults() -> None:
    config = load_config(STATE)
    assert config.local_path == Path("/var/lib/quotary/origin/agent.sock")
    assert (config.model, config.proxy, config.metrics.listen) == ((), (), None)
    assert config.stop.grace_seconds == 30.0


def test_every_error_of_a_file_is_reported_at_once() -> None:
    found = problems(
        'unknown = 1\n[tpm]\ntcti = 5\n[[model]]\nname = ""\n[[model]]\nfiles = ["relative"]\n'
        '[[proxy]]\nupstream = "ftp://x"\nlisten = "nowhere"\nmax_held = -1\n'
        '[retention]\nkeep_days = true\n[log]\nformat = "xml"\n'
    )
    paths = [line.split(":")[0] for line in found]
    assert paths == [
        "unknown",
        "state.folder",
        "tpm.tcti",
        "model[0].name",
        "model[0].files",
        "model[1].name",
        "model[1].files",
        "proxy[0].upstream",
        "proxy[0].listen",
        "proxy[0].max_held",
        "retention.keep_days",
        "log.format",
    ]
    assert all("allowed: " in line for line in found)


def test_what_keys_say_together_is_checked_beside_wrong_keys() -> None:
    found = problems(STATE + '[tpm]\nemulator = true\ntcti = "x"\n[stop]\ngrace = 5\n')
    assert [line.split(":")[0] for line in found] == ["stop.grace", "tpm"]


def test_a_wrong_address_is_not_reported_as_a_missing_one_too() -> None:
    found = problems(STATE + '[[proxy]]\nupstream = "http://a"\nlisten = "nowhere"\n')
    assert found == ['proxy[0].listen: is not HOST:PORT; allowed: "HOST:PORT"']


def test_an_unknown_key_is_an_error_that_names_the_nearest_one() -> None:
    (found,) = problems(STATE + "[retention]\nkeep_day = 5\n")
    assert (
        found
        == "retention.keep_day: is no key of the configuration, did you mean keep_days?; allowed: keep_days"
    )


def test_no_value_stands_in_a_message() -> None:
    found = problems(
        f'[state]\nfolder = "{SECRET}"\n[engine]\narguments = ["--api-key", 5]\nname = ["{SECRET}"]\n'
        f'[[proxy]]\nupstream = "http://user:{SECRET}@host"\nlisten = "{SECRET}"\n[log]\nformat = "{SECRET}"\n'
        f'[tpm]\nendorsement_auth_credential = "{SECRET}/"\n'
    )
    assert len(found) == 7
    assert not [line for line in found if SECRET in line]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('[tpm]\nendorsement_auth_file = "/a"\nendorsement_auth_credential = "b"\n', "tpm"),
        ('[[model]]\nname = "a"\nfiles = ["/a"]\n[[model]]\nname = "a"\nfiles = ["/b"]\n', "model[1].name"),
        ('[engine]\narguments = ["-c"]\n', "engine.arguments"),
        ('[[proxy]]\nupstream = "http://a"\nlisten = "h:1"\nmodel = "a"\n', "proxy[0].model"),
        ('[[proxy]]\nupstream = "http://a"\n', "proxy[0]"),
        ('[[proxy]]\nupstream = "http://a"\nlisten = "h:1"\nsocket = "s"\n', "proxy[0]"),
        ('[metrics]\nlisten = "h:1"\npath = "/x"\n', "metrics"),
        (
            '[[proxy]]\nupstream = "http://a"\nlisten = "h:1"\n[proxy.paths]\n"v1/x" = "chat"\n',
            'proxy[0].paths."v1/x"',
        ),
        (
            '[[proxy]]\nupstream = "http://a"\nlisten = "h:1"\n[proxy.paths]\n"/v1/x" = "talk"\n',
            'proxy[0].paths."/v1/x"',
        ),
        ("[local]\nallow_uids = [5]\n", "local.path"),
        ('[local]\nallow_gids = [5]\npath = "/var/lib/quotary/origin/x"\n', "local.path"),
        (
            '[[proxy]]\nupstream = "http://a"\nlisten = "h:1"\n[metrics]\nlisten = "h:1"\n',
            "metrics.listen",
        ),
        (
            '[[proxy]]\nupstream = "http://a"\nsocket = "s"\n[[proxy]]\nupstream = "http://b"\nsocket = "s"\n',
            "proxy[1].socket",
        ),
        ('[[root]]\nkind = "tdx"\nrequired = true\nevery = 2\n', "root[0].every"),
        ('[[root]]\nkind = "tdx"\nprivlevel = 1\n', "root[0].privlevel"),
        ('[[root]]\nkind = "nvidia"\ndevice = "/dev/nvidia0"\n', "root[0].device"),
        ('[[root]]\nkind = "nitro"\n[[root]]\nkind = "nitro-tpm"\n', "root[1].kind"),
    ],
)
def test_keys_that_do_not_fit_each_other_are_errors(text: str, path: str) -> None:
    assert [line.split(":")[0] for line in problems(STATE + text)] == [path]


def test_several_models_make_every_proxy_say_which_is_its() -> None:
    text = STATE + "".join(f'[[model]]\nname = "{name}"\nfiles = ["/{name}"]\n' for name in "ab")
    door = '[[proxy]]\nupstream = "http://a"\nlisten = "h:0"\n'
    assert problems(text + door) == [
        'proxy[0].model: is missing where there are several models; allowed: a, b, ""'
    ]
    config = load_config(text + door + 'model = "b"\n' + door + 'model = ""\n')
    assert [claimed_model(config, proxy) for proxy in config.proxy] == ["b", None]


def test_one_model_is_claimed_unless_the_proxy_says_otherwise() -> None:
    text = STATE + '[[model]]\nname = "a"\nfiles = ["/a"]\n[[proxy]]\nupstream = "http://a"\nlisten = "h:0"\n'
    for extra, claimed in (("", "a"), ('model = ""\n', None)):
        config = load_config(text + extra)
        assert claimed_model(config, config.proxy[0]) == claimed


def test_options_stand_above_the_file_key_by_key_and_arrays_as_a_whole() -> None:
    text = STATE + '[engine]\nname = "x"\nbinary = "/x"\n[[model]]\nname = "a"\nfiles = ["/a"]\n'
    config = load_config(
        text,
        {"engine": {"binary": "/y"}, "model": [{"name": "b", "files": ["/b"]}], "state": {"folder": "/s"}},
    )
    assert (config.engine.name, config.engine.binary) == ("x", Path("/y"))
    assert [model.name for model in config.model] == ["b"]
    assert config.state.folder == Path("/s")


@pytest.mark.parametrize("text", ["[state", "a = 1\na = 2", "\0", 1024 * "#" * 1025], ids=repr)
def test_a_file_that_is_no_toml_is_one_error(text: str) -> None:
    assert len(problems(text[: 2 << 20])) == 1


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", Address("127.0.0.1", 80)),
        ("[::1]:0", Address("::1", 0)),
        ("host.example:65535", Address("host.example", 65535)),
    ],
)
def test_an_address_has_host_and_port(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["", "h", ":1", "h:", "h:65536", "h:1x", "h:-1", "[h]:1", "::1:1", "h:\u0661", "h h:1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_address(text)


def test_files_that_are_not_there_are_named_with_their_keys(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    text = f'[[model]]\nname = "a"\nfiles = ["{tmp_path}/there", "{tmp_path}/gone"]\n[engine]\nbinary = "{tmp_path}"\n'
    found = missing_files(load_config(STATE + text))
    assert [(each.path, each.what) for each in found] == [
        ("model[0].files[1]", f"{tmp_path}/gone: no such file"),
        ("engine.binary", f"{tmp_path}: no such file"),
    ]


def rows() -> dict[str, tuple[str, str]]:
    """Key, default and what is allowed, of every row of the page's tables."""
    found = re.findall(r"^\| `([^`]+)` \| (.*?) \| (.*?) \|", PAGE.read_text(), re.MULTILINE)
    return {name: (default, allowed) for name, default, allowed in found}


def shown(default: object) -> str:
    """A default as the page writes it."""
    if default is REQUIRED:
        return "required"
    if default in (None, (), {}):
        return ""
    return (
        str(default).lower()
        if isinstance(default, bool)
        else f"{default:g}"
        if isinstance(default, float)
        else str(default)
    )


def test_the_page_has_every_key_with_its_default_and_no_other() -> None:
    keys = {
        name: (shown(default), allowed.replace("|", "\\|"))
        for name, allowed, default in describe(AgentConfig)
    }
    page = rows()
    assert list(page) == list(keys)
    assert {name: default.strip("`") for name, (default, _) in page.items()} == {
        name: default for name, (default, _) in keys.items()
    }
    assert {name: allowed for name, (_, allowed) in page.items()} == {
        name: allowed for name, (_, allowed) in keys.items()
    }


@pytest.mark.parametrize(
    "number", range(len(re.findall(r"```toml", PAGE.read_text())) if PAGE.exists() else 0)
)
def test_an_example_of_the_page_can_be_used(number: int) -> None:
    examples = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    load_config(examples[number])
