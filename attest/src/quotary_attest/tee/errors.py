# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N818 - each name says the state of the device, and reads so where it is caught
"""What can go wrong between this host and its confidential-computing hardware."""

from __future__ import annotations

from quotary_attest.roots import RootError, RootGone


class TeeError(RootError):
    """The hardware did not make evidence that can be used."""


class TeeMissing(TeeError):
    """The device, its driver, or something that must stand beside its evidence is not there."""


class TeeRefused(TeeError):
    """This process may not use the device."""


class TeeBusy(TeeError):
    """The device went on asking to try again until patience ended."""


class TeeGone(TeeError, RootGone):
    """The device does not answer."""


class TeeWrong(TeeError):
    """The device answered, but not with evidence of this very request that a verifier would take."""
