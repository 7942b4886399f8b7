# SPDX-License-Identifier: Apache-2.0
"""What a relying party asks of TEE lines (docs/spec/policy.md, "Rules on TEEs"), and how their claims are held to it.

Loaded only where a note has such a line, or a policy asks for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from quotary_verifier.errors import PolicyError
from quotary_verifier.evidence.tee.lines import TeeRoots
from quotary_verifier.evidence.tee.nitro import NitroClaims, NitroRules, appraise_nitro
from quotary_verifier.evidence.tee.nvidia import NvidiaClaims, NvidiaRules, appraise_nvidia
from quotary_verifier.evidence.tee.shape import Finding, TeeClaims
from quotary_verifier.evidence.tee.snp import SnpClaims
from quotary_verifier.evidence.tee.snp_rules import SnpRules, appraise_snp
from quotary_verifier.evidence.tee.tdx import TdxClaims
from quotary_verifier.evidence.tee.tdx_rules import TdxRules, appraise_tdx
from quotary_verifier.tlog.hardware import TEE_IDENTIFIERS, tee_name
from quotary_verifier.wire.frozen import frozen

TEE_NAMES: Final[Mapping[str, str]] = {identifier: tee_name(identifier) for identifier in TEE_IDENTIFIERS}
"""Every identifier that this verifier knows, and the name that policies and verdicts have for it."""


@frozen
class TeeRules:
    """The table `[tee]`. `required` has the names of the lines that every note must have; each needs rules.

    A kind without rules is verified and not appraised. `roots` stand in place of the makers' own.

    Raises:
        PolicyError: on construction, if a line is required of which nothing is asked.
    """

    required: frozenset[str] = frozenset()
    snp: SnpRules | None = None
    tdx: TdxRules | None = None
    nitro: NitroRules | None = None
    nvidia: NvidiaRules | None = None
    roots: TeeRoots = TeeRoots()

    def __post_init__(self) -> None:
        for name in sorted(self.required):
            if not self.has_rules(name):
                raise PolicyError(
                    f"policy: tee.required names {name}, and there is no table tee.{name} that says which is accepted"
                )

    def has_rules(self, name: str) -> bool:
        """Whether the policy says which evidence of this kind is accepted."""
        rules = {"sev-snp": self.snp, "tdx": self.tdx, "nitro": self.nitro, "nvidia": self.nvidia}
        return rules.get(name) is not None

    def own_root(self, name: str) -> bool:
        """Whether evidence of this kind is verified under a root of the policy's own."""
        roots = self.roots
        own = {"sev-snp": roots.amd, "tdx": roots.intel, "nitro": roots.nitro, "nvidia": roots.nvidia}
        return own.get(name) is not None


def appraise_tee(claims: TeeClaims, rules: TeeRules) -> tuple[Finding, ...]:
    """Return every rule that the claims break; none where the policy has no rules for their kind."""
    if isinstance(claims, SnpClaims) and rules.snp is not None:
        return appraise_snp(claims, rules.snp)
    if isinstance(claims, TdxClaims) and rules.tdx is not None:
        return appraise_tdx(claims, rules.tdx)
    if isinstance(claims, NitroClaims) and rules.nitro is not None:
        return appraise_nitro(claims, rules.nitro)
    if isinstance(claims, NvidiaClaims) and rules.nvidia is not None:
        return appraise_nvidia(claims, rules.nvidia)
    return ()
