# SPDX-License-Identifier: Apache-2.0
"""Event logs that replay to a PCR: the workload log and the boot logs."""
