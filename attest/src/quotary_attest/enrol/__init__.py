# SPDX-License-Identifier: Apache-2.0
"""Enrolment: how an attestation key gets its certificate."""
