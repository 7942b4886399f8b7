# SPDX-License-Identifier: Apache-2.0
"""Reports of NVIDIA devices by the driver's library NVML, through the package nvidia-ml-py (extra `nvidia`).

All devices of the host share one line. The nonce is D: an SPDM request has room for 32 bytes, and the genesis record is
D's to name.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from quotary_attest.roots import TeeEvidence
from quotary_attest.tee.errors import TeeError, TeeMissing, TeeRefused, TeeWrong
from quotary_verifier.errors import QuotaryError
from quotary_verifier.evidence.tee.device_pki import MAX_PATH
from quotary_verifier.evidence.tee.nvidia import MAX_DEVICES
from quotary_verifier.evidence.tee.nvidia_spdm import parse_spdm_report
from quotary_verifier.tlog.hardware import IDENTIFIER_NVIDIA

_NONCE_BYTES: Final = 32
_HINT: Final = (
    "it takes a Hopper or later in confidential mode and a driver for it: see `nvidia-smi conf-compute -f`"
)


class Nvml(Protocol):
    """What is used of the package `pynvml`: its functions, by their names, and `NVMLError`."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...  # noqa: N802, D102
    def nvmlShutdown(self) -> None: ...  # noqa: N802, D102
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: N802, D102
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...  # noqa: N802, D102
    def nvmlDeviceGetConfComputeGpuAttestationReport(self, device: Any, nonce: bytes) -> Any: ...  # noqa: N802, D102
    def nvmlDeviceGetConfComputeGpuCertificate(self, device: Any) -> Any: ...  # noqa: N802, D102


def load_nvml() -> Nvml:
    """Return the package. TeeMissing where it is not installed."""
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        hint = "pip install 'quotary[nvidia]'"
        raise TeeMissing("the package nvidia-ml-py is not installed", hint=hint) from None


@contextmanager
def opened(nvml: Nvml) -> Iterator[list[Any]]:
    """Initialise the library, and give the handles of all devices. Raises TeeError."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise _error("the nvidia driver cannot be asked", error) from None
    try:
        count = nvml.nvmlDeviceGetCount()
        if not 0 < count <= MAX_DEVICES:
            raise TeeMissing(f"this host has {count} nvidia devices, 1 to {MAX_DEVICES} share a line")
        yield [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    except nvml.NVMLError as error:
        raise _error("an nvidia device made no report", error) from None
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


@dataclass(frozen=True, slots=True)
class NvidiaDevices:
    """All NVIDIA devices of this host. `nvml`: in place of the installed package."""

    nvml: Nvml | None = None

    @property
    def identifier(self) -> str:
        """The identifier of their hardware line."""
        return IDENTIFIER_NVIDIA

    def describe(self) -> str:
        """Say what it is."""
        return "nvidia devices by nvml"

    def collect(self, report_data: bytes) -> TeeEvidence:
        """Return a report of each device in NVML's order, with the device's certificates."""
        nonce = report_data[:_NONCE_BYTES]
        evidence, endorsements = b"", {}
        nvml = self.nvml or load_nvml()
        with opened(nvml) as devices:
            for number, device in enumerate(devices):
                report = _report(nvml.nvmlDeviceGetConfComputeGpuAttestationReport(device, nonce), nonce)
                evidence += len(report).to_bytes(2, "big") + report
                chain = nvml.nvmlDeviceGetConfComputeGpuCertificate(device)
                endorsements[f"device-{number}"] = _path(chain)
        return TeeEvidence(evidence, endorsements)


def _report(answer: Any, nonce: bytes) -> bytes:
    data = _leading(answer.attestationReport, answer.attestationReportSize)
    try:
        report = parse_spdm_report(data)
    except QuotaryError as error:
        raise TeeWrong(f"the report of an nvidia device cannot be used: {error}", hint=_HINT) from None
    if report.nonce != nonce:
        raise TeeWrong("an nvidia device answered another nonce than it was given")
    return data


def _path(answer: Any) -> tuple[bytes, ...]:
    """The certificates, leaf first and root left out."""
    data = _leading(answer.attestationCertChain, answer.attestationCertChainSize)
    try:
        found = x509.load_pem_x509_certificates(data.rstrip(b"\0"))
    except ValueError:
        raise TeeWrong("the certificates of an nvidia device cannot be read", hint=_HINT) from None
    if found and found[-1].subject == found[-1].issuer:
        found.pop()
    if not 0 < len(found) < MAX_PATH:
        raise TeeWrong(f"an nvidia device has {len(found)} certificates without its root")
    return tuple(one.public_bytes(Encoding.DER) for one in found)


def _leading(field: Any, size: Any) -> bytes:
    data = bytes(field)
    if not 0 < int(size) <= len(data):
        raise TeeWrong("the nvidia driver gave a length that cannot be", hint=_HINT)
    return data[: int(size)]


def _error(what: str, error: Exception) -> TeeError:
    """What an error of the library means, by its own words: its numbers have no other names in Python."""
    said = str(error).lower()
    message = f"{what}: {said}"
    if "permission" in said:
        return TeeRefused(message, hint="give the agent's user access to /dev/nvidia*")
    if "not found" in said or "not loaded" in said:
        return TeeMissing(message, hint="install and load the nvidia driver, with its library libnvidia-ml")
    return TeeError(message, hint=_HINT)
