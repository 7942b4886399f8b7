# SPDX-License-Identifier: Apache-2.0
"""What may be pinned as a maker's root, and which certificates are read at all."""

from __future__ import annotations

from datetime import timedelta

import pytest
from device_forge import NOW, device_root, issue, path_of

from quotary_verifier.errors import EvidenceError, MalformedError, OutOfTimeError
from quotary_verifier.evidence.tee.device_pki import (
    PinnedRoot,
    read_certificate,
    require_common_time,
    verify_device_path,
)


def test_only_a_certificate_that_signs_itself_as_a_ca_is_a_root() -> None:
    root = device_root()
    assert PinnedRoot(root.der).subject == "CN=root"
    with pytest.raises(MalformedError, match="is no root"):
        PinnedRoot(issue("ca", 1, root).der)
    with pytest.raises(MalformedError, match="not a ca"):
        PinnedRoot(issue("leaf", 2, ca=False).der)


def test_a_certificate_has_bytes_and_not_too_many_and_no_unused_bits() -> None:
    der = device_root().der
    assert read_certificate(der, len(der)).subject == device_root().certificate.subject
    for data, most in ((b"", 10), (der, len(der) - 1)):
        with pytest.raises(MalformedError, match="are allowed"):
            read_certificate(data, most)
    bits = len(der) - len(device_root().certificate.signature) - 1
    with pytest.raises(MalformedError, match=r"whole number of bytes|cannot be read"):
        read_certificate(der[:bits] + b"\x01" + der[bits + 1 :])


def test_a_path_has_at_most_six_certificates_between_leaf_and_root() -> None:
    root = device_root()
    leaf, *others = (one.certificate for one in path_of(root))
    pinned = PinnedRoot(root.der)
    assert len(verify_device_path(leaf, others, pinned).chain) == 4
    with pytest.raises(MalformedError, match="7 certificates between"):
        verify_device_path(leaf, [*others, *others, *others, others[0]], pinned)


def test_paths_that_are_never_valid_together_are_false_at_every_time() -> None:
    root = device_root()
    pinned = PinnedRoot(root.der)
    early, late = (
        verify_device_path(
            issue(f"device {days}", 9 + days, root, ca=False, begins=begins).certificate, [], pinned
        )
        for days, begins in ((0, NOW), (9, NOW + timedelta(days=9)))
    )
    require_common_time([early], NOW)
    with pytest.raises(EvidenceError, match="at no time") as caught:
        require_common_time([early, late], NOW)
    assert not isinstance(caught.value, OutOfTimeError)
