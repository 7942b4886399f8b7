# SPDX-License-Identifier: Apache-2.0
"""The rules on TEE lines that `[[warn]]` may name (docs/spec/policy.md, "Roll-out and end").

Signatures, dates and what evidence binds are no rules. Neither is here what no key of a policy accepts: a TCB that
nobody appraised, a TD under debug, versions that contradict each other, a platform that is not secured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_RULES: Final[Mapping[str, str]] = {
    "sev-snp": "generation version signing-key alias-check smt revocation provisional reported-tcb committed-tcb"
    " launch-tcb debug migration-agent vmpl guest-svn measurement host-data id-key author-key chip-id device provider",
    "tdx": "tcb-status advisories evaluation sept-ve-disable migratable service-td mrtd rtmr0 rtmr1 rtmr2 rtmr3 mrseam"
    " mrconfigid mrowner mrownerconfig device platform",
    "nitro": "kind debug pcr module age",
    "nvidia": "architecture driver vbios measurement device firmware",
    "azure": "secure-boot console vm",
    "cca": "debug profile hash component rim rem0 rem1 rem2 rem3 personalization implementation device",
}

WARNABLE: Final = frozenset(f"tee.{kind}.{rule}" for kind, rules in _RULES.items() for rule in rules.split())
"""Codes of single rules."""

TEE_RULES: Final = WARNABLE | {f"tee.{kind}" for kind in _RULES}
"""What `[[warn]]` may name: a rule, or all of a kind's that may be warned of."""
