# SPDX-License-Identifier: Apache-2.0
"""What endorses a vTPM's key on TDX, several devices at a time, and rules that name what an enclave launched."""

from __future__ import annotations

from datetime import timedelta

import intel_sgx
import pytest
from azure_forge import AzureForge, vtpm_public
from device_forge import DIGEST, NOW
from intel_sgx import TdxForge
from nvidia_forge import NvidiaForge

from quotary_verifier.errors import EvidenceError, MalformedError, OutOfTimeError
from quotary_verifier.evidence.tee.azure import AzureClaims, AzureTdxEndorsements
from quotary_verifier.evidence.tee.azure_support import azure_endorsements, verify_azure_ak
from quotary_verifier.evidence.tee.device_pki import PinnedRoot
from quotary_verifier.evidence.tee.lines import TeeRoots
from quotary_verifier.evidence.tee.nitro import KIND_ENCLAVE, KIND_TPM, NitroRules, names_image
from quotary_verifier.evidence.tee.nvidia import NvidiaClaims, verify_nvidia_devices
from quotary_verifier.evidence.tee.tdx import TdxClaims
from quotary_verifier.wire.tee_support import Endorsements

VM = AzureForge(kind=4)
QUOTE = TdxForge(body={0x208: VM.report_data()}).quote()
BARE = azure_endorsements(VM.report(), AzureTdxEndorsements(QUOTE))
WHOLE = azure_endorsements(VM.report(), AzureTdxEndorsements(QUOTE, intel_sgx.collateral()))


def endorsed(given: Endorsements, role: str = "ak") -> AzureClaims:
    return verify_azure_ak(given, vtpm_public(role), intel_sgx.NOW, TeeRoots(intel=intel_sgx.forged_root()))


def test_a_quote_endorses_a_vtpms_key_with_collateral_and_without() -> None:
    for given, appraised in ((BARE, False), (WHOLE, True)):
        hardware = endorsed(given).hardware
        assert isinstance(hardware, TdxClaims)
        assert (hardware.tcb is not None) is appraised
    with pytest.raises(EvidenceError, match="not the one"):
        endorsed(WHOLE, "other")
    with pytest.raises(EvidenceError):
        verify_azure_ak(WHOLE, vtpm_public(), intel_sgx.NOW)


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_no_part_of_what_endorses_a_key_may_be_missing_repeated_or_too_much(name: str) -> None:
    rest = {one: parts for one, parts in WHOLE.items() if one != name}
    more = WHOLE | {name: WHOLE[name] * 2}
    for given, message in ((rest, name), (more, name), (WHOLE | {"leaf": (b"x",)}, "leaf")):
        with pytest.raises(MalformedError, match=message):
            endorsed(given)
    if name not in BARE:
        with pytest.raises(MalformedError, match="missing or too many"):
            endorsed(BARE | {name: WHOLE[name]})


def test_devices_are_valid_while_the_paths_of_all_of_them_are() -> None:
    first = NvidiaForge(leaf={"begins": NOW - timedelta(hours=1), "lasts": timedelta(hours=9)})
    second = NvidiaForge(
        model="GB20X", number=40, leaf={"begins": NOW - timedelta(hours=2), "lasts": timedelta(hours=5)}
    )
    evidence = b"".join(len(one.report()).to_bytes(2, "big") + one.report() for one in (first, second))
    paths = [one.certificates() for one in (first, second)]

    def verified(hours: float) -> tuple[NvidiaClaims, ...]:
        at = NOW + timedelta(hours=hours)
        return verify_nvidia_devices(evidence, paths, at, nonce=DIGEST, root=PinnedRoot(first.root.der))

    assert len(verified(-1)) == len(verified(3)) == 2
    for hours in (-1.5, 3.5):
        with pytest.raises(OutOfTimeError, match="certificate path of the device") as caught:
            verified(hours)
        window = caught.value.not_before, caught.value.not_after
        assert window == (NOW - timedelta(hours=1), NOW + timedelta(hours=3))


@pytest.mark.parametrize(
    ("kinds", "indexes", "holds"),
    [
        ({KIND_ENCLAVE}, {0}, True),
        ({KIND_ENCLAVE}, {8}, True),
        ({KIND_ENCLAVE}, {1, 2, 3, 4, 7, 9}, False),
        ({KIND_ENCLAVE}, set(), False),
        ({KIND_TPM}, {4}, True),
        ({KIND_TPM}, {0, 3, 5, 8}, False),
        ({KIND_ENCLAVE, KIND_TPM}, {0, 4}, True),
        ({KIND_ENCLAVE, KIND_TPM}, {8, 4}, True),
        ({KIND_ENCLAVE, KIND_TPM}, {0, 8}, False),
        ({KIND_ENCLAVE, KIND_TPM}, {4}, False),
    ],
)
def test_rules_name_what_was_started_for_each_kind_that_they_accept(
    kinds: set[str], indexes: set[int], holds: bool
) -> None:
    pcrs = {index: frozenset({b"\x01" * 48}) for index in indexes}
    assert names_image(NitroRules(kinds=frozenset(kinds), pcrs=pcrs)) is holds
    assert names_image(NitroRules(kinds=frozenset(kinds))) is False
