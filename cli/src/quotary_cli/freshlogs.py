# SPDX-License-Identifier: Apache-2.0
"""A fresh quote and the boot logs that somebody has beside it: the quote names none, so those that replay are taken."""

from __future__ import annotations

from quotary_cli.bootlogs import BootLogFiles
from quotary_cli.logkinds import boot_log_name
from quotary_verifier import NotChecked, Policy, Rejected, Report, verify_fresh
from quotary_verifier.recipe.steps import Step


def judge_fresh(quote: bytes, nonce: bytes, at: int, policy: Policy, files: BootLogFiles) -> Report:
    """Verify a fresh quote with at most one log of each name: the first that replays to it, else the last there is.

    Raises Failure where a file cannot be read.
    """
    chosen: dict[str, bytes] = {}
    left: dict[str, bytes] = {}
    for log in files.all():
        name = boot_log_name(log)
        if name is not None and name not in chosen:
            if _judge(quote, nonce, at, policy, {name: log}).failing is not Step.BOOT_LOGS:
                chosen[name] = log
            else:
                left[name] = log
    return _judge(quote, nonce, at, policy, left | chosen)


def _judge(quote: bytes, nonce: bytes, at: int, policy: Policy, logs: dict[str, bytes]) -> Report:
    try:
        return verify_fresh(quote, nonce, at, policy, logs).report
    except (Rejected, NotChecked) as outcome:
        return outcome.report
