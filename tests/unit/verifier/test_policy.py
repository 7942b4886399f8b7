# SPDX-License-Identifier: Apache-2.0
"""A policy is read strictly: what is not understood is an error, and one that trusts nobody cannot be made."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from forge import Authority, Forge

from quotary_verifier import Policy, PolicyError, load_policy
from quotary_verifier.policy.load import MAX_POLICY
from quotary_verifier.policy.patterns import Pattern
from quotary_verifier.policy.rules import (
    AllowedEvent,
    BootRules,
    BootWindow,
    ClockRules,
    ImaRules,
    SecureBootRules,
    WorkloadRules,
)
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


def window(**values: int) -> str:
    bounds = "".join(f"{name} = {value}\n" for name, value in values.items())
    return f'[[platform.clock.boots]]\norigin = "h.example/{"a" * 32}"\n{bounds}'


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
    "a version that is none": "version = 0\n" + PIN,
    "a version that is a text": 'version = "1"\n' + PIN,
    "an end without its offset from UTC": "expires = 2027-01-01T00:00:00\n" + PIN,
    "an end that is a day": "expires = 2027-01-01\n" + PIN,
    "an end that leaves the calendar": "expires = 9999-12-31T23:59:59-12:00\n" + PIN,
    "an end before the calendar": "expires = 0001-01-01T00:00:00+12:00\n" + PIN,
    "an end that is a text": 'expires = "2027-01-01T00:00:00Z"\n' + PIN,
    "an unknown tolerance": PIN + '[platform]\ntolerate = ["everything"]\n',
    "a tolerance of another step": PIN + '[platform]\ntolerate = ["sha-1"]\n',
    "an unknown table of the platform": PIN + "[platform.tpm]\n",
    "an unknown key of Secure Boot": PIN + "[platform.secure_boot]\non = true\n",
    "an entry that is no name": PIN + f'[platform.secure_boot]\ndb = ["{ZEROS}"]\n',
    "an entry with a digest in upper case": PIN + f'[platform.secure_boot]\ndb = ["x509:{"A" * 64}"]\n',
    "boot rules that ask for nothing": PIN + "[platform.boot]\npcrs = [8]\n",
    "an application that is no digest": PIN + '[platform.boot]\napplications = ["grubx64.efi"]\n',
    "a pattern that is none": PIN + '[platform.boot]\ncommand_lines = ["("]\n',
    "a loader PCR of the firmware": PIN + '[platform.boot]\ncommand_lines = ["a"]\npcrs = [4]\n',
    "a loader PCR of IMA's list by another type": PIN + "[platform.boot]\nfiles = []\npcrs = [true]\n",
    "no loader PCR": PIN + "[platform.boot]\nfiles = []\npcrs = []\n",
    "an IMA template with SHA-1 digests": PIN + '[platform.ima]\ntemplates = ["ima"]\n',
    "an unknown IMA template": PIN + '[platform.ima]\ntemplates = ["ima-new"]\n',
    "no IMA template": PIN + "[platform.ima]\ntemplates = []\n",
    "a glob that leaves out every file": PIN + '[platform.ima]\nignore = ["/*"]\n',
    "very many globs": PIN + f"[platform.ima]\nignore = {['/a'] * 1025}\n",
    "an IMA key that is none": PIN + '[platform.ima]\nkeys = ["x"]\n',
    "a file with a SHA-1 digest": PIN + f'[[platform.ima.file]]\ndigest = "sha1:{"0" * 40}"\n',
    "a file whose digest has another length": PIN + f'[[platform.ima.file]]\ndigest = "sha512:{ZEROS}"\n',
    "a file with an unknown key": PIN + f'[[platform.ima.file]]\ndigest = "{ZEROS}"\npaths = []\n',
    "a list that is not given": PIN + f'[[platform.ima.list]]\nfile = "x"\nsha256 = "{ZEROS}"\n',
    "a list in another folder": PIN + f'[[platform.ima.list]]\nfile = "../x"\nsha256 = "{ZEROS}"\n',
    "a clock rule that asks for nothing": PIN + "[platform.clock]\n",
    "fewer restarts than none": PIN + "[platform.clock]\nrestarts = -1\n",
    "a window that ends before it begins": PIN + window(first=5, last=4),
    "two windows of one origin": PIN + window(first=5) + window(first=7),
    "a window of reset counts that do not exist": PIN + window(first=2**32),
    "a reference set without a name": PIN + f'[[reference]]\n[reference.pcrs]\n0 = ["{ZEROS}"]\n',
    "a reference set that fits every host": PIN
    + '[[reference]]\nname = "a"\n[reference.clock]\nrestarts = 0\n',
    "two reference sets with one name": PIN
    + 2 * f'[[reference]]\nname = "a"\n[reference.pcrs]\n0 = ["{ZEROS}"]\n',
    "an unknown key in a reference set": PIN
    + f'[[reference]]\nname = "a"\nx = 1\n[reference.pcrs]\n0 = ["{ZEROS}"]\n',
    "a warning for no rule": PIN + '[[warn]]\nrule = "platform.imaa"\nuntil = 2027-01-01T00:00:00Z\n',
    "a warning for everything": PIN + '[[warn]]\nrule = "platform"\nuntil = 2027-01-01T00:00:00Z\n',
    "a warning without end": PIN + '[[warn]]\nrule = "platform.ima"\n',
    "two dates of one warning": PIN + 2 * '[[warn]]\nrule = "platform.ima"\nuntil = 2027-01-01T00:00:00Z\n',
    "no type of workload events": PIN + "[workload]\ntypes = []\n",
    "a workload event without a type": PIN + '[[workload.event]]\nname = "a"\n',
    "an unknown key of a workload event": PIN + '[[workload.event]]\ntype = "a"\nversion = "1"\n',
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_refuses(name: str) -> None:
    with pytest.raises(PolicyError):
        load_policy(REFUSED[name].encode())


RULES = (
    "version = 7\nexpires = 2027-06-01T00:00:00+02:00\n"
    + PIN
    + '[platform]\ntolerate = ["no-calling-action"]\n'
    + f'[platform.secure_boot]\nenabled = false\npk = ["x509:{ZEROS}"]\nkek = []\ndb = ["sha256:{ZEROS}"]\n'
    + f'dbx = ["sha256:{ZEROS}"]\nauthorities = ["event:{ZEROS}"]\n'
    + f'[platform.boot]\napplications = ["sha256:{ZEROS}"]\nfiles = ["{ZEROS}"]\ncommand_lines = ["ro"]\npcrs = [5]\n'
    + '[platform.ima]\nignore = ["/proc/*"]\nviolations = true\ntemplates = ["ima-ng"]\nboot_aggregate = false\n'
    + "[platform.clock]\nrestarts = 2\n"
    + window(first=1, last=2)
    + f'[[reference]]\nname = "a"\n[reference.pcrs]\n7 = ["{ZEROS}"]\n[reference.boot]\nfiles = []\n'
    + '[[warn]]\nrule = "platform.ima"\nuntil = 1970-01-01T00:00:09Z\n'
    + f'[workload]\ntypes = ["engine"]\nonly_models = true\n[[workload.event]]\ntype = "engine"\ndigest = "{ZEROS}"\n'
)


def test_every_rule_is_read() -> None:
    policy = load_policy(RULES.encode())
    assert (policy.version, policy.expires) == (7, 1_811_800_800)
    rules = policy.platform
    assert rules.secure_boot == SecureBootRules(
        False,
        frozenset({f"x509:{ZEROS}"}),
        frozenset(),
        frozenset({f"sha256:{ZEROS}"}),
        frozenset({f"sha256:{ZEROS}"}),
        frozenset({f"event:{ZEROS}"}),
    )
    zero = frozenset({bytes(32)})
    assert rules.boot == BootRules(zero, zero, (Pattern("ro"),), frozenset({5}))
    assert rules.ima == ImaRules({}, ("/proc/*",), (), True, frozenset({"ima-ng"}), False)
    assert rules.clock == ClockRules(2, (BootWindow("h.example/" + "a" * 32, 1, 2),))
    assert rules.tolerate == {"no-calling-action"}
    (reference,) = policy.references
    assert (reference.name, reference.rules.pcrs) == ("a", {7: zero})
    assert reference.rules.boot == BootRules(None, frozenset(), None, frozenset({9}))
    assert policy.warnings == {"platform.ima": 9}
    events = (AllowedEvent("engine", None, bytes(32)),)
    assert policy.workload == WorkloadRules(frozenset({"engine"}), events, True)


def test_the_loader_pcrs_are_those_that_there_is_a_rule_for() -> None:
    texts = {
        "files = []": {9},
        'command_lines = ["a"]': {8, 12},
        'files = []\ncommand_lines = ["a"]': {8, 9, 12},
    }
    for text, pcrs in texts.items():
        boot = load_policy((PIN + f"[platform.boot]\n{text}\n").encode()).platform.boot
        assert boot is not None
        assert boot.pcrs == pcrs


def test_a_policy_on_pcr_values_alone_loads_none_of_the_code_for_other_rules() -> None:
    text = PIN + f'[platform.pcrs]\n0 = ["{ZEROS}"]\n[workload]\nopaque = false\n'
    program = (
        "import sys, quotary_verifier\n"
        f"quotary_verifier.load_policy({text!r}.encode())\n"
        "wrong = [name for name in sys.modules if name.startswith('quotary_verifier.policy.')]\n"
        "assert 'quotary_verifier.policy.rules' not in wrong, wrong\n"
        "assert 'quotary_verifier.logs.tcg' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_keys_for_file_signatures_may_stand_in_certificates() -> None:
    small = rsa.generate_private_key(65537, 1024).public_key()
    for key, fits in ((ec.generate_private_key(ec.SECP256R1()).public_key(), True), (small, False)):
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        text = (PIN + f'[platform.ima]\nkeys = ["""\n{pem}"""]\n').encode()
        if fits:
            assert load_policy(text).platform.ima is not None
        else:
            with pytest.raises(PolicyError, match="2048 bits or more"):
                load_policy(text)
    certificate = Forge().authority.pem
    ima = load_policy((PIN + f'[platform.ima]\nkeys = ["""\n{certificate}"""]\n').encode()).platform.ima
    assert ima is not None
    assert len(ima.keys) == 1


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
