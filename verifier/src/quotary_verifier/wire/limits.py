# SPDX-License-Identifier: Apache-2.0
"""Size limits, checked before anything is parsed. docs/spec/limits.md gives the reason for each."""

from __future__ import annotations

MAX_RECORD = 16 * 1024
"""Bytes of one record (genesis, output, boot, statement)."""

MAX_ATTESTATION = 32 * 1024 * 1024
"""Bytes of an attestation; all but a few kilobytes can only be boot logs."""

MAX_COMMIT = 256 * 1024
"""Bytes of one commit in the history."""

MAX_NOTE = 64 * 1024
"""Bytes of a signed note with all its lines."""

MAX_CERTIFICATE = 16 * 1024
"""Bytes of one DER certificate."""

MAX_CERTIFICATES = 8
"""Certificates of one AK path, leaf included."""

MAX_EVENT = 64 * 1024
"""Bytes of the content of one workload event."""

MAX_EVENTS = 16 * 1024
"""Events of one workload log."""

MAX_EVIDENCE = 8 * 1024
"""Bytes of `u16 || TPMS_ATTEST || u16 || TPMT_SIGNATURE`."""

MAX_PATH = 63 * 32
"""Bytes of an inclusion path: a log has fewer than 2^63 leaves."""

MAX_SUPPORTS = 8
MAX_LATER_CHECKPOINTS = 16
MAX_BOOT_LOGS = 8
MAX_BOOT_LOG = 16 * 1024 * 1024
"""Bytes of a boot log that stands in an attestation."""

MAX_NAMED_BOOT_LOG = 64 * 1024 * 1024
"""Bytes of a boot log that travels apart from it."""

MAX_OUTPUT_DIGESTS = 256
"""Entries in the output digests of one record."""

MAX_CONTEXT_ENTRIES = 32
MAX_TEXT = 4096
"""UTF-8 bytes of a text in a record or event, unless a field says less."""

MIN_NONCE = 8
MAX_NONCE = 64

MAX_HOST = 222
"""Characters of a host name: with '/' and 32 characters of digest an origin stays within 255."""

MAX_ENROLMENT = 64 * 1024
"""Bytes of an enrolment file."""
