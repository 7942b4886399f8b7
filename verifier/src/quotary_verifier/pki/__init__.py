# SPDX-License-Identifier: Apache-2.0
"""Certificate paths to the roots that a relying party trusts."""
