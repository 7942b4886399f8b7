# SPDX-License-Identifier: Apache-2.0
"""What makers of confidential-computing hardware publish about it, fetched on demand and verified before it is kept."""
