# SPDX-License-Identifier: Apache-2.0
"""Hardware evidence: what a TPM signed, and by which key."""
