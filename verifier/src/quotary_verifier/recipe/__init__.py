# SPDX-License-Identifier: Apache-2.0
"""The numbered verification steps, and the verdict that only they can construct."""
