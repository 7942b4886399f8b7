# SPDX-License-Identifier: Apache-2.0
"""The table `[tee]` of a policy: every key becomes its rule, and what cannot be had is an error."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cca_tokens import RAK, pem_key, platform_key
from forge import Forge
from tee_defects import AMD, RULES, pem

from quotary_verifier import PolicyError, load_policy
from quotary_verifier.evidence.tee.amd_certs import Generation, SigningKey
from quotary_verifier.evidence.tee.cca import CcaRules
from quotary_verifier.evidence.tee.cca_token import LEGACY_PROFILE
from quotary_verifier.evidence.tee.nitro import KIND_ENCLAVE, KIND_TPM, NitroRules
from quotary_verifier.evidence.tee.nvidia import Architecture, NvidiaRules
from quotary_verifier.evidence.tee.snp_report import Tcb
from quotary_verifier.evidence.tee.snp_rules import SnpRules
from quotary_verifier.evidence.tee.tdx_rules import TdxRules
from quotary_verifier.policy.tee import TeeRules

FORGE = Forge()
A, B = "aa" * 48, "bb" * 32


def rules(text: str) -> TeeRules:
    tee = load_policy(FORGE.policy(text).encode()).tee
    assert tee is not None
    return tee


def some(*digests: str) -> frozenset[bytes]:
    return frozenset(bytes.fromhex(digest) for digest in digests)


def test_a_policy_without_the_table_asks_nothing() -> None:
    assert load_policy(FORGE.policy().encode()).tee is None


def test_the_defaults_are_those_of_the_kinds() -> None:
    found = rules(
        '[tee.sev-snp]\ngenerations = ["genoa"]\n[tee.tdx]\n[tee.nitro]\n[tee.nvidia]\narchitectures = ["hopper"]\n'
    )
    assert found.required == frozenset()
    assert found.snp == SnpRules(frozenset({Generation.GENOA}))
    assert found.tdx == TdxRules()
    assert found.nitro == NitroRules()
    assert found.nvidia == NvidiaRules(frozenset({Architecture.HOPPER}))


def test_every_key_of_amd_becomes_its_rule() -> None:
    found = rules(
        '[tee]\nrequired = ["sev-snp"]\n[tee.sev-snp]\ngenerations = ["milan", "turin"]\nversions = [2, 5]\n'
        'signing_keys = ["vlek"]\ndebug = true\nmigration_agent = true\nvmpls = [0, 3]\nmasked_chip = true\n'
        "provisional = true\nalias_check = true\nrevocation = true\nsmt = false\n"
        f'measurements = ["{A}"]\nhost_data = ["{B}"]\nid_keys = ["{A}"]\nauthor_keys = []\ndevices = ["{"cc" * 8}"]\n'
        'providers = ["cloud.example"]\nguest_svn = 4\n[tee.sev-snp.reported.milan]\nsnp = 22\n'
        "[tee.sev-snp.committed.turin]\nfmc = 1\nmicrocode = 70\n[tee.sev-snp.launch.turin]\nbootloader = 3\ntee = 1\n"
    )
    assert found.required == {"sev-snp"}
    assert found.snp == SnpRules(
        generations=frozenset({Generation.MILAN, Generation.TURIN}),
        versions=frozenset({2, 5}),
        signing_keys=frozenset({SigningKey.VLEK}),
        debug=True,
        migration_agent=True,
        vmpls=frozenset({0, 3}),
        masked_chip=True,
        provisional=True,
        alias_check=True,
        revocation=True,
        smt=False,
        measurements=some(A),
        host_data=some(B),
        id_keys=some(A),
        author_keys=frozenset(),
        devices=some("cc" * 8),
        providers=frozenset({"cloud.example"}),
        guest_svn=4,
        reported={Generation.MILAN: Tcb(0, 0, 22, 0)},
        committed={Generation.TURIN: Tcb(0, 0, 0, 70, 1)},
        launch={Generation.TURIN: Tcb(3, 1, 0, 0, 0)},
    )


def test_every_key_of_intel_amazon_and_nvidia_becomes_its_rule() -> None:
    found = rules(
        '[tee.tdx]\nstatuses = ["UpToDate", "OutOfDate"]\nadvisories = ["INTEL-SA-00837"]\nevaluation = 17\n'
        f'sept_ve_disable = false\nmigratable = true\nservice_tds = []\nmrtd = ["{A}"]\nmrseam = ["{A}"]\n'
        f'mrconfigid = ["{A}"]\nmrowner = ["{A}"]\nmrownerconfig = ["{A}"]\ndevices = ["{"11" * 16}"]\n'
        f'platforms = ["{"22" * 6}"]\n[tee.tdx.rtmr]\n0 = ["{A}"]\n3 = ["{A}"]\n'
        f'[tee.nitro]\nkinds = ["enclave", "nitro-tpm"]\ndebug = true\nmodules = ["i-1-enc2"]\nmax_age = 60\n'
        f'[tee.nitro.pcrs]\n0 = ["{A}"]\n[tee.nvidia]\narchitectures = ["blackwell", "nvswitch"]\n'
        f'drivers = ["550.90.07"]\nvbioses = ["96"]\ndevices = ["{B}"]\nfirmware = true\n'
        f'[tee.nvidia.measurements]\n1 = ["{A}"]\n'
    )
    assert found.tdx == TdxRules(
        statuses=frozenset({"UpToDate", "OutOfDate"}),
        advisories=frozenset({"INTEL-SA-00837"}),
        evaluation=17,
        sept_ve_disable=False,
        migratable=True,
        service_tds=frozenset(),
        mr_tds=some(A),
        rtmrs={0: some(A), 3: some(A)},
        mr_seams=some(A),
        mr_config_ids=some(A),
        mr_owners=some(A),
        mr_owner_configs=some(A),
        devices=some("11" * 16),
        platforms=some("22" * 6),
    )
    assert found.nitro == NitroRules(
        kinds=frozenset({KIND_ENCLAVE, KIND_TPM}),
        debug=True,
        pcrs={0: some(A)},
        modules=frozenset({"i-1-enc2"}),
        max_age=timedelta(seconds=60),
    )
    assert found.nvidia == NvidiaRules(
        architectures=frozenset({Architecture.BLACKWELL, Architecture.NVSWITCH}),
        drivers=frozenset({"550.90.07"}),
        vbioses=frozenset({"96"}),
        measurements={1: some(A)},
        devices=some(B),
        firmware=True,
    )


CCA = f'[tee.cca]\nkeys = ["""{pem_key()}"""]\n'
SNP = '[tee.sev-snp]\ngenerations = ["genoa"]\n'


def test_every_key_of_arm_becomes_its_rule_and_its_keys_become_roots() -> None:
    found = rules(
        f'[tee]\nrequired = ["cca"]\n[tee.cca]\nkeys = ["""{pem_key()}""", """\n{pem_key(RAK)}"""]\n'
        f'debug = true\nprofiles = ["{LEGACY_PROFILE}"]\nhashes = ["sha-512"]\nrim = ["{B}"]\n'
        f'personalizations = ["{"22" * 64}"]\nimplementations = ["{B}"]\ndevices = ["{"01" * 33}"]\n'
        f'components = ["{B}", "{A}"]\n[tee.cca.rem]\n1 = ["{"33" * 64}"]\n'
    )
    assert [key.sha256 for key in found.roots.cca] == [platform_key().sha256, platform_key(RAK).sha256]
    assert found.cca == CcaRules(
        debug=True,
        profiles=frozenset({LEGACY_PROFILE}),
        hashes=frozenset({"sha-512"}),
        rims=some(B),
        rems={1: some("33" * 64)},
        personalizations=some("22" * 64),
        implementations=some(B),
        devices=some("01" * 33),
        components=some(A, B),
    )
    assert rules(CCA).cca == CcaRules()
    assert rules(CCA).required == frozenset()
    assert load_policy(FORGE.policy(SNP).encode()).tee.roots.cca == ()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('[tee]\nrequired = ["sev-snp"]\n', "there is no table tee.sev-snp"),
        ('[tee]\nrequired = ["tpm"]\n', "tee.required must be among sev-snp, tdx, nitro, nvidia, cca"),
        ("[tee]\nrequired = []\n", "tee.required is empty"),
        ("[tee]\nreqired = []\n", "tee.reqired is not a key"),
        ("[tee.sev_snp]\n", "tee.sev_snp is not a key"),
        ("[tee.cca]\n", "tee.cca.keys must bring the public keys of platforms"),
        ("[tee.cca]\nkeys = []\n", "tee.cca.keys must bring the public keys of platforms"),
        ('[tee.tdx]\nmrtd = ["zz"]\n', "tee.tdx.mrtd cannot be used: 96 lower-case hexadecimal digits"),
        ('[tee.cca]\nkeys = ["x"]\n', "tee.cca.keys cannot be used: a public key is one block of pem"),
        (CCA.replace("-----\n", "-----\n!"), "tee.cca.keys cannot be used: a public key is one block of pem"),
        (CCA.replace("-----\n", "-----\nA"), "tee.cca.keys cannot be used"),
        (f'[tee.cca]\nkeys = ["""{pem_key()}""", """{pem_key()}"""]\n', "tee.cca.keys names one key twice"),
        (f'[tee.cca]\nkeys = ["""{pem_key()}{pem_key(RAK)}"""]\n', "tee.cca.keys cannot be used: a public key is one"),
        (CCA + f'rim = ["{"11" * 31}"]\n', "tee.cca.rim cannot be used: 64 or 96 or 128 lower-case"),
        (CCA + f'[tee.cca.rem]\n4 = ["{A}"]\n', "tee.cca.rem.4 is not a number from 0 to 3"),
        (CCA + f'devices = ["{B}"]\n', "tee.cca.devices cannot be used: 66 lower-case"),
        (CCA + 'hashes = ["sha-1"]\n', "tee.cca.hashes must be among sha-256, sha-384, sha-512"),
        (CCA + 'profiles = ["x"]\n', "tee.cca.profiles must be among http://arm.com/CCA-SSD/1.0.0, tag:arm.com,2023"),
        (CCA + "lifecycle = 12288\n", "tee.cca.lifecycle is not a key"),
        ("[tee.sev-snp]\n", "tee.sev-snp.generations must name some of milan, genoa, turin"),
        ("[tee.sev-snp]\ngenerations = []\n", "generations is empty"),
        ('[tee.sev-snp]\ngenerations = ["Genoa"]\n', "generations must be among milan, genoa, turin"),
        (SNP + "versions = [1]\n", "versions must be a list of some of 2, 3, 4, 5"),
        (SNP + "versions = [true]\n", "versions must be a list"),
        (SNP + "vmpls = []\n", "vmpls must be a list"),
        (SNP + "vmpls = [4]\n", "vmpls must be a list"),
        (SNP + 'debug = "no"\n', "debug must be of type bool"),
        (SNP + f'measurements = ["{B}"]\n', "measurements cannot be used: 96 lower-case hexadecimal digits"),
        (SNP + f'measurements = ["{A.upper()}"]\n', "measurements cannot be used"),
        (SNP + f'measurements = "{A}"\n', "measurements must be of type list"),
        (SNP + f'devices = ["{B}"]\n', "devices cannot be used: 16 or 128"),
        (SNP + "guest_svn = -1\n", "guest_svn must be between 0 and"),
        (SNP + "[tee.sev-snp.committed.rome]\nsnp = 1\n", "committed.rome is not one of milan, genoa, turin"),
        (SNP + "[tee.sev-snp.committed.genoa]\n", "committed.genoa names no component"),
        (SNP + "[tee.sev-snp.committed.genoa]\nfmc = 1\n", "committed.genoa.fmc is not a key"),
        (SNP + "[tee.sev-snp.launch.genoa]\nsnp = 256\n", "launch.genoa.snp must be between 0 and 255"),
        ('[tee.tdx]\nstatuses = ["Revoked"]\n', "tee.tdx.statuses must be among"),
        ("[tee.tdx]\nstatuses = []\n", "tee.tdx.statuses is empty"),
        (f'[tee.tdx.rtmr]\n4 = ["{A}"]\n', "tee.tdx.rtmr.4 is not a number from 0 to 3"),
        (f'[tee.tdx.rtmr]\n01 = ["{A}"]\n', "tee.tdx.rtmr.01 is not a number"),
        ("[tee.tdx.rtmr]\n0 = []\n", "tee.tdx.rtmr.0 allows no value"),
        ("[tee.tdx]\ndebug = true\n", "tee.tdx.debug is not a key"),
        ('[tee.nitro]\nkinds = ["vm"]\n', "tee.nitro.kinds must be among enclave, nitro-tpm"),
        ("[tee.nitro]\nmax_age = 0\n", "tee.nitro.max_age must be a positive number"),
        ("[tee.nitro.pcrs]\n32 = []\n", "tee.nitro.pcrs.32 is not a number from 0 to 31"),
        ("[tee.nvidia]\n", "tee.nvidia.architectures must name some of hopper, blackwell, nvswitch"),
        ('[tee.roots]\nintel = "none"\n', "tee.roots.intel cannot be used: there is no certificate"),
        ('[tee.roots]\narm = "x"\n', "tee.roots.arm is not a key"),
        ('[tee.roots.amd]\nrome = "x"\n', "tee.roots.amd.rome is not one of"),
        (f'[tee.roots]\nnitro = """\n{pem(AMD.ark()) * 2}"""\n', "one certificate is expected, and there are 2"),
        (f'[tee.roots.amd]\ngenoa = """\n{pem(AMD.leaf())}"""\n', "tee.roots.amd. cannot be used: SEV-VCEK is no root"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_an_error(text: str, why: str) -> None:
    with pytest.raises(PolicyError) as error:
        load_policy(FORGE.policy(text).encode())
    assert why in str(error.value)


def test_roots_of_the_policys_own_stand_for_the_makers_only_where_they_are_named() -> None:
    found = rules(RULES + f'[tee.roots.amd]\ngenoa = """\n{pem(AMD.ark())}"""\n')
    assert found.roots.amd is not None
    assert set(found.roots.amd.arks) == {Generation.GENOA}
    assert found.own_root("sev-snp")
    assert not any(found.own_root(name) for name in ("tdx", "nitro", "nvidia"))
