# SPDX-License-Identifier: Apache-2.0
"""promtool, of the Prometheus project, judges the agent's figures and every query that we hand out."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from judge_tools import debian_program

from quotary_attest.metrics import Carried, Committed
from quotary_attest.prometheus import PrometheusMetrics
from quotary_attest.roots import RootGone
from quotary_verifier.wire.records import Source, State

pytestmark = pytest.mark.judge

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "attest" / "share" / "grafana" / "quotary-agent.json"
PAGE = ROOT / "docs" / "reference" / "metrics.md"


@pytest.fixture(scope="module")
def promtool() -> Path:
    return debian_program("prometheus", "promtool")


def test_promtool_has_nothing_to_say_of_the_figures(promtool: Path, tmp_path: Path) -> None:
    metrics = PrometheusMetrics()
    status = {
        "state": "running",
        "waiting": 1,
        "queued": 0,
        "size": 9,
        "commits": 3,
        "starts": 2,
        "epochs": 1,
        "boot": [1, 0],
        "certificate_expiry": 1_900_000_000,
        "boot_logs": {"tcg": {"state": "named"}, "ima": {"state": "left out"}},
        "roots": [{"identifier": "quotary/sev-snp/v1", "bound": 4, "failed": 1}],
    }
    metrics.watch(lambda: status, tmp_path)
    metrics.committed(Committed.of([(State.COMPLETE, Source.RELAYED)], whole=0.2, root=0.1, oldest=0.3))
    metrics.delivered(Carried.INBAND)
    metrics.failed(RootGone("x"))
    done = subprocess.run(
        [promtool, "check", "metrics"], input=metrics.text(), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_promtool_reads_every_query_of_the_dashboard_and_of_the_page(promtool: Path, tmp_path: Path) -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    queries += re.findall(r"^\| `([^`]*quotary_[^`]*[<>=(][^`]*)` \|", PAGE.read_text(), re.MULTILINE)
    assert len(queries) > 30
    lines = ["groups:", "- name: all", "  rules:"]
    for number, query in enumerate(queries):
        plain = query.replace("$__rate_interval", "5m").replace("$instance", "x").replace("$job", "x")
        lines += [f"  - record: query{number}", f"    expr: {json.dumps(plain)}"]
    (tmp_path / "rules.yml").write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [promtool, "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
