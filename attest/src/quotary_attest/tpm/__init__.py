# SPDX-License-Identifier: Apache-2.0
"""The TPM as a root of trust: the only code here that speaks to one."""
