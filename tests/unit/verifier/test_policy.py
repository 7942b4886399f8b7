# SPDX-License-Identifier: Apache-2.0
"""A policy is read strictly: what is not understood is an error, and one that trusts nobody cannot be made."""

from __future__ import annotations

import pytest
from forge import Authority, Forge

from quotary_verifier import Policy, PolicyError, load_policy
from quotary_verifier.policy.load import MAX_POLICY
from quotary_verifier.wire.records import Link, State

PIN = 'schema = "quotary-policy/v1"\n[[pin]]\norigin = "h.example/' + "a" * 32 + '"\n'
ZEROS = "0" * 64


def test_the_smallest_policy_pins_an_origin_and_refuses_software_tpms() -> None:
    policy = load_policy(PIN.encode())
    assert policy.pins == {"h.example/" + "a" * 32}
    assert not policy.software_tpm
    assert not policy.unauthenticated_ak
    assert policy.states == {State.COMPLETE}


def test_every_key_is_read() -> None:
    text = PIN + (
        "[tpm]\nsoftware = true\nunauthenticated_ak = true\nsafe_clock = true\n"
        f'[platform.pcrs]\n0 = ["{ZEROS}", "sha256:{"1" * 64}"]\n'
        f'[[model]]\nname = "m"\nweights = "sha256:{ZEROS}"\nlink = "checked"\n'
        '[workload]\nopaque = false\n[output]\nstates = ["complete", "client-gone"]\n'
        "[freshness]\nnonce = true\nmax_age = 9\ntrust_host_clock = true\n"
    )
    policy = load_policy(text.encode())
    assert policy.software_tpm and policy.unauthenticated_ak and policy.safe_clock
    assert policy.pcrs == {0: {bytes(32), b"\x11" * 32}}
    assert policy.models[0].link is Link.CHECKED
    assert not policy.opaque_events
    assert policy.states == {State.COMPLETE, State.CLIENT_GONE}
    assert (policy.freshness.nonce, policy.freshness.max_age, policy.freshness.trust_host_clock) == (
        True,
        9,
        True,
    )


REFUSED = {
    "nothing at all": "",
    "no schema": PIN.split("\n", 1)[1],
    "another schema": PIN.replace("/v1", "/v2"),
    "no TOML": PIN + "= 1",
    "nobody trusted": 'schema = "quotary-policy/v1"\n',
    "an unknown key at the top": "colour = 1\n" + PIN,
    "an unknown key in a table": PIN + "[tpm]\nsoftwar = true\n",
    "an unknown key in a pin": PIN + "host = 1\n",
    "a boolean that is a number": PIN + "[tpm]\nsoftware = 1\n",
    "an origin that is none": PIN.replace("h.example", "H.example"),
    "a table where several are meant": 'schema = "quotary-policy/v1"\n[pin]\norigin = "x"\n',
    "an authority without certificates": PIN + '[[authority]]\nname = "a"\n',
    "an authority whose certificate is none": PIN + '[[authority]]\nname = "a"\ncertificates = "x"\n',
    "an authority whose CRL is none": Forge().policy('crls = ["x"]\n'),
    "a PCR that can be reset": PIN + f'[platform.pcrs]\n16 = ["{ZEROS}"]\n',
    "another PCR that can be reset": PIN + f'[platform.pcrs]\n23 = ["{ZEROS}"]\n',
    "a PCR that does not exist": PIN + f'[platform.pcrs]\n24 = ["{ZEROS}"]\n',
    "a PCR with a leading zero": PIN + f'[platform.pcrs]\n07 = ["{ZEROS}"]\n',
    "a PCR with no value": PIN + "[platform.pcrs]\n7 = []\n",
    "a digest in upper case": PIN + f'[platform.pcrs]\n7 = ["{"A" * 64}"]\n',
    "a digest of another length": PIN + '[platform.pcrs]\n7 = ["00"]\n',
    "a model that names nothing": PIN + '[[model]]\nlink = "started"\n',
    "an unknown link": PIN + '[[model]]\nname = "m"\nlink = "hoped"\n',
    "an unknown state": PIN + '[output]\nstates = ["fine"]\n',
    "no state": PIN + "[output]\nstates = []\n",
    "a nonce that is too short": PIN + '[freshness]\nexpected_nonce = "00"\n',
    "a nonce in upper case": PIN + f'[freshness]\nexpected_nonce = "{"AA" * 8}"\n',
    "an age of nothing": PIN + "[freshness]\nmax_age = 0\n",
    "a log key as a witness": PIN
    + '[witnesses]\nkeys = ["PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"]\n',
    "more witnesses than there are": PIN + "[witnesses]\nthreshold = 1\n",
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_refuses(name: str) -> None:
    with pytest.raises(PolicyError):
        load_policy(REFUSED[name].encode())


def test_it_refuses_what_is_too_long_before_it_parses() -> None:
    with pytest.raises(PolicyError, match="are allowed"):
        load_policy(b"#" * (MAX_POLICY + 1))


def test_it_refuses_what_is_not_utf8() -> None:
    with pytest.raises(PolicyError):
        load_policy(b"\xff")


def test_a_policy_cannot_be_built_without_trust() -> None:
    with pytest.raises(PolicyError, match="would accept nothing"):
        Policy(digest=bytes(32), description="", authorities=(), pins=frozenset())


def test_hosts_narrow_an_authority() -> None:
    authority = Authority()
    text = Forge(authority=authority).policy('hosts = ["*.example.net", "one.example.org"]\n')
    rule = load_policy(text.encode()).authorities[0]
    assert rule.speaks_for("a.example.net")
    assert rule.speaks_for("one.example.org")
    for host in ("example.net", "xexample.net", "two.example.org", "a.example.net.evil.example"):
        assert not rule.speaks_for(host)
