# SPDX-License-Identifier: Apache-2.0
"""The transparency log: Merkle proofs, signed notes, checkpoints, hardware lines, tiles."""
