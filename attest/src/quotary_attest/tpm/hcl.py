# SPDX-License-Identifier: Apache-2.0
"""Finds what endorses the AK of an Azure confidential VM: the paravisor's report in the vTPM, and what vouches for it.

The latter is found by trying, as for the evidence of other roots (`quotary_attest.tee.root`): what a folder has for SNP
reports, and for TDX the quote that the host made, which stands there with its collateral.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from quotary_attest.roots import Root
from quotary_attest.tee.archive import stored
from quotary_attest.tee.errors import TeeMissing, TeeWrong
from quotary_attest.tee.root import utc_now
from quotary_attest.tpm.azure import HCL_REPORT, read_hcl_report
from quotary_attest.tpm.errors import TpmUnsupported
from quotary_attest.tpm.foreign import AZURE_AK
from quotary_attest.tpm.root import TpmRoot
from quotary_verifier.errors import QuotaryError
from quotary_verifier.evidence.tee.azure import require_endorsed
from quotary_verifier.evidence.tee.azure_hcl import SNP, HclReport, parse_hcl_report
from quotary_verifier.evidence.tee.azure_support import HCL, verify_azure_ak
from quotary_verifier.evidence.tee.lines import TeeRoots
from quotary_verifier.tlog.hardware import IDENTIFIER_SEV_SNP, IDENTIFIER_TDX
from quotary_verifier.wire.tee_support import Endorsements
from quotary_verifier.wire.tpm_public import Public

_FETCH = "run `attest tee fetch-collateral` for this machine's hcl report (`attest tee report azure FILE`)"


@dataclass(frozen=True, slots=True)
class HclEndorser:
    """Implements `quotary_attest.roots.AkEndorser` for an Azure confidential VM.

    `collateral`: a folder of `attest tee fetch-collateral`. `roots`: in place of the makers', for tests. `now`: the
    host's clock.
    """

    collateral: Path | None
    roots: TeeRoots | None = None
    now: Callable[[], datetime] = field(default=utc_now)

    def describe(self) -> str:
        """Say what it is; no I/O."""
        return f"the paravisor's report in nv index 0x{HCL_REPORT:08x}"

    async def endorse(self, root: Root, ak: Public) -> Endorsements:
        """Return verified endorsements of `ak`; see `AkEndorser.endorse`.

        Raises TpmMissing where this is no confidential VM, TeeWrong where its report is of another key or nothing that
        is stored makes it verify.
        """
        if not isinstance(root, TpmRoot):
            raise TpmUnsupported("an hcl report is in a tpm, and this root is none")
        report = await root.run(read_hcl_report)
        return await asyncio.to_thread(self.found, report, ak)

    def found(self, data: bytes, ak: Public) -> Endorsements:
        """Return verified endorsements of `ak` by an HCL report. Raises as `endorse`, but for reading the report."""
        report = parse_hcl_report(data)
        try:
            require_endorsed(report, ak)
        except QuotaryError as error:
            raise TeeWrong(
                str(error),
                hint=f"make the origin on the vtpm's key: `attest agent init --ak 0x{AZURE_AK:08x}`",
            ) from None
        first: QuotaryError | None = None
        for parts in self._stored(report):
            endorsements = {HCL: (report.encoded,), **parts}
            try:
                verify_azure_ak(endorsements, ak, self.now(), self.roots)
            except QuotaryError as error:
                first = first or error
                continue
            return endorsements
        if first is None:
            raise TeeMissing("nothing stored vouches for the hcl report", hint=_FETCH)
        raise TeeWrong(f"the hcl report does not verify: {first}", hint=f"is the clock right? else {_FETCH}")

    def _stored(self, report: HclReport) -> Iterator[Endorsements]:
        if self.collateral is None:
            return
        identifier = IDENTIFIER_SEV_SNP if report.hardware_type == SNP else IDENTIFIER_TDX
        for support in stored(self.collateral, identifier):
            yield support.endorsements
