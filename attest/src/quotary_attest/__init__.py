# SPDX-License-Identifier: Apache-2.0
"""The host side of Quotary: roots of trust, log, commit engine, serving and enrolment."""
