# SPDX-License-Identifier: Apache-2.0
"""Measuring files that serve: hashing, model folders, signatures, fs-verity (docs/spec/workload-log.md)."""
