# SPDX-License-Identifier: Apache-2.0
"""The commit engine: group commit into the TPM, start and recovery."""
