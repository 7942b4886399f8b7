# SPDX-License-Identifier: Apache-2.0
"""What hardware has to say of the AK itself, found at each start and carried by every quote until the next.

It is of the key and binds no commit, so it has no line: it stands in the TPM's support. One that is false would spoil
every attestation that carries it, so it is verified here, by the verifier's own code, before any does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from quotary_attest.roots import AkEndorser, RequiredRootFailed, Root, RootError, RootGone
from quotary_verifier.errors import QuotaryError
from quotary_verifier.evidence.tee.azure_support import verify_azure_ak
from quotary_verifier.evidence.tee.lines import TeeRoots
from quotary_verifier.wire.tee_support import Endorsements
from quotary_verifier.wire.tpm_public import Public

_LOG = logging.getLogger("quotary.agent")
_NOTHING: Final[Endorsements] = {}


@dataclass(frozen=True, slots=True)
class Endorsing:
    """What finds the endorsements of an AK. A start that finds none fails where they are `required`."""

    endorser: AkEndorser
    required: bool = False


class AkEndorsements:
    """The endorsements of one origin's AK. `parts` are the bytes, `names` the digests of their blobs."""

    def __init__(
        self,
        endorsing: Endorsing | None = None,
        now: Callable[[], int] = lambda: 0,
        trusted: TeeRoots | None = None,
    ) -> None:
        """`now` is the wall clock in milliseconds; `trusted` replaces the makers' roots, as the verifier takes them."""
        self._endorsing, self._now, self._trusted = endorsing, now, trusted
        self._error: RootError | None = None
        self.parts = self.names = _NOTHING

    async def find(self, root: Root, ak: Public, put: Callable[[bytes], bytes]) -> None:
        """Look for what vouches for `ak` in this boot, at a start; `put` stores a blob and returns its SHA-256.

        Raises:
            RequiredRootFailed: there is nothing that a verifier would take, and it is required.
            RootGone: the TPM does not answer.
            StoreError: the disk failed.
        """
        if self._endorsing is None:
            return
        self.parts = self.names = _NOTHING
        try:
            await self.renew(root, ak, put)
        except RootGone:
            raise
        except RootError as error:
            self._fail(self._endorsing, error)

    async def renew(self, root: Root, ak: Public, put: Callable[[bytes], bytes]) -> None:
        """Look again, between two commits; where nothing is found, all stays as it is. Raises RootError, StoreError."""
        if self._endorsing is None:
            return
        found = await self._found(self._endorsing.endorser, root, ak)
        names = await asyncio.to_thread(
            lambda: {name: tuple(map(put, parts)) for name, parts in found.items()}
        )
        self.parts, self.names, self._error = found, names, None

    async def _found(self, endorser: AkEndorser, root: Root, ak: Public) -> Endorsements:
        found = await endorser.endorse(root, ak)
        at = datetime.fromtimestamp(self._now() / 1000, UTC)
        try:
            await asyncio.to_thread(verify_azure_ak, found, ak, at, self._trusted)
        except QuotaryError as error:
            raise RootError(
                f"what endorses the attestation key would not verify: {error}",
                hint="see whether the stored collateral is new, and whether the host's clock is right",
            ) from error
        return found

    def _fail(self, endorsing: Endorsing, error: RootError) -> None:
        known, self._error = self._error, error
        if endorsing.required:
            raise RequiredRootFailed(
                f"azure, which has to endorse the attestation key: {error}", hint=error.hint
            ) from error
        if str(known) != str(error):
            _LOG.warning("attestations go without what endorses the attestation key: %s", error)

    def status(self) -> dict[str, Any] | None:
        """Return what an operator wants to see, as JSON can hold it; None where none is configured."""
        if self._endorsing is None:
            return None
        return {
            "what": self._endorsing.endorser.describe(),
            "required": self._endorsing.required,
            "bytes": sum(len(part) for parts in self.parts.values() for part in parts),
            "error": "" if self._error is None else str(self._error),
            "hint": "" if self._error is None else self._error.hint,
        }
