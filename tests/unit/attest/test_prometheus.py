# SPDX-License-Identifier: Apache-2.0
"""The agent's figures: names, labels and numbers; the page and the dashboard that name them."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from quotary_attest.bootlogs import BOOT_LOG_STATES
from quotary_attest.log.errors import StorageFailed
from quotary_attest.metrics import NO_METRICS, Carried, Committed, Tally, Unattested, count_sums
from quotary_attest.prometheus import REFUSALS, STATES, PrometheusMetrics
from quotary_attest.roots import ForeignExtend, RequiredRootFailed, RootError, RootGone
from quotary_verifier.wire.records import Source, State

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "reference" / "metrics.md"
DASHBOARD = ROOT / "attest" / "share" / "grafana" / "quotary-agent.json"
STATUS: dict[str, Any] = {
    "state": "running",
    "waiting": 7,
    "queued": 3,
    "size": 1000,
    "commits": 12,
    "starts": 4,
    "epochs": 2,
    "boot": [5, 6],
    "certificate_expiry": 1_900_000_000,
    "boot_logs": {"tcg": {"state": "named"}, "ima": {"state": "left out"}},
    "roots": [{"identifier": "quotary/sev-snp/v1", "bound": 4, "failed": 1}],
}


@pytest.fixture
def metrics(tmp_path: Path) -> PrometheusMetrics:
    made = PrometheusMetrics()
    made.watch(lambda: STATUS, tmp_path)
    return made


def samples(metrics: PrometheusMetrics) -> dict[str, float]:
    """Every sample, by name and label values."""
    return {
        " ".join([sample.name, *sorted(sample.labels.values())]): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def families(metrics: PrometheusMetrics) -> dict[str, tuple[str, set[str]]]:
    """Kind and label names of every family of our own, by the name that queries use."""
    found = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[name] = (family.type, labels)
    return {name: kind for name, kind in found.items() if name.startswith("quotary_")}


def commit(*kinds: tuple[State, Source]) -> Committed:
    return Committed.of(kinds, whole=0.16, root=0.12, oldest=0.2)


def test_a_commit_counts_its_outputs_by_state_and_source_and_its_size_and_times_once(
    metrics: PrometheusMetrics,
) -> None:
    relayed, cut = (State.COMPLETE, Source.RELAYED), (State.ENGINE_TRUNCATED, Source.MIDDLEWARE)
    metrics.committed(commit(relayed, relayed, cut))
    metrics.committed(commit(relayed))
    found = samples(metrics)
    assert found["quotary_outputs_total complete relayed"] == 3
    assert found["quotary_outputs_total engine-truncated reported"] == 1
    assert (found["quotary_commit_outputs_sum"], found["quotary_commit_outputs_count"]) == (4, 2)
    assert found["quotary_commit_outputs_bucket 1.0"] == 1
    assert found["quotary_tpm_seconds_sum"] == pytest.approx(0.24)
    assert found["quotary_commit_seconds_bucket 0.2"] == 2
    assert found["quotary_commit_wait_seconds_sum"] == pytest.approx(0.4)


def test_failures_are_counted_by_what_failed(metrics: PrometheusMetrics) -> None:
    for error in (
        RootGone("x"),
        RootGone("x"),
        ForeignExtend(15, b"", b""),
        RequiredRootFailed("x"),
        RootError("x"),
        StorageFailed("x"),
    ):
        metrics.failed(error)
    metrics.failed(RuntimeError("a start that an operator must look at"))
    found = samples(metrics)
    kinds = ("gone", "foreign-extend", "root", "command")
    assert [found[f"quotary_tpm_errors_total {kind}"] for kind in kinds] == [2, 1, 1, 1]
    assert (found["quotary_storage_errors_total"], found["quotary_refused_starts_total"]) == (1, 1)


def test_gauges_show_the_agent_as_it_is_when_somebody_asks(
    metrics: PrometheusMetrics, tmp_path: Path
) -> None:
    found = samples(metrics)
    assert found["quotary_waiting_outputs"] == 7
    assert found["quotary_queue_outputs"] == 3
    assert found["quotary_certificate_expiry_timestamp_seconds"] == 1_900_000_000
    assert (found["quotary_tpm_resets"], found["quotary_tpm_restarts"]) == (5, 6)
    assert found["quotary_disk_free_bytes"] > 0
    assert [found[f"quotary_state {word}"] for word in STATES] == [0, 1, 0, 0, 0]
    words = [" ".join(sorted(("ima", word))) for word in BOOT_LOG_STATES]
    assert [found[f"quotary_boot_log {word}"] for word in words] == [0, 0, 0, 1]
    assert found["quotary_boot_log named tcg"] == 1
    assert found["quotary_root_commits_total bound sev-snp"] == 4
    assert found["quotary_root_commits_total failed sev-snp"] == 1
    assert "process_resident_memory_bytes" in found


def test_an_agent_without_a_certificate_has_no_expiry(tmp_path: Path) -> None:
    made = PrometheusMetrics()
    made.watch(lambda: {**STATUS, "certificate_expiry": None}, tmp_path)
    assert "quotary_certificate_expiry_timestamp_seconds" not in samples(made)


def test_the_number_of_series_does_not_grow_by_what_is_counted(metrics: PrometheusMetrics) -> None:
    before = set(samples(metrics))
    for state, source in itertools.product(State, Source):
        metrics.committed(commit((state, source)))
    for how in Carried:
        metrics.delivered(how)
    for why in Unattested:
        metrics.unattested(why)
    for number in range(1000):
        metrics.refused(f"code_{number}")
    assert set(samples(metrics)) == before
    assert samples(metrics)["quotary_refusals_total other"] == 1000


def test_every_code_of_a_refusal_has_a_series() -> None:
    sources = (ROOT / "attest" / "src" / "quotary_attest" / "serving").rglob("*.py")
    codes = {code for file in sources for code in re.findall(r'\b[45]\d\d,\s*"(\w+)"', file.read_text())}
    assert codes == set(REFUSALS), sorted(codes ^ set(REFUSALS))


def test_sums_of_another_process_are_counted_as_if_they_were_counted_here(metrics: PrometheusMetrics) -> None:
    tally = Tally()
    for _ in range(3):
        tally.delivered(Carried.INBAND)
    tally.refused("overloaded")
    tally.unattested(Unattested.PATH, 2)
    count_sums(metrics, tally.take())
    assert tally.take() == []
    found = samples(metrics)
    assert found["quotary_deliveries_total inband"] == 3
    assert found["quotary_refusals_total overloaded"] == 1
    assert found["quotary_unattested_total path"] == 2
    for sums in ([("stolen", "x", 1)], [("delivered", "x", 1)]):
        with pytest.raises(ValueError):
            count_sums(metrics, sums)


def test_counting_costs_less_than_a_microsecond_an_output(metrics: PrometheusMetrics) -> None:
    kinds = [(State.COMPLETE, Source.RELAYED)] * 1000
    best = 1.0
    for _ in range(20):
        started = time.process_time()
        metrics.committed(Committed.of(kinds, whole=0.1, root=0.1, oldest=0.1))
        best = min(best, time.process_time() - started)
    assert best / len(kinds) < 1e-6


def test_counting_nothing_does_nothing() -> None:
    NO_METRICS.committed(commit((State.COMPLETE, Source.RELAYED)))
    NO_METRICS.failed(RootGone("x"))
    NO_METRICS.delivered(Carried.INBAND)
    NO_METRICS.refused("x")
    NO_METRICS.unattested(Unattested.PATH)


def test_the_page_has_every_figure_with_its_kind_and_labels_and_no_other(metrics: PrometheusMetrics) -> None:
    rows = re.findall(r"^\| `(quotary_\w+)` \| (\w+) \| (.*?) \|", PAGE.read_text(), re.MULTILINE)
    page = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert page == families(metrics)
    assert [name for name, count in Counter(name for name, _, _ in rows).items() if count > 1] == []


def test_the_page_has_every_word_that_a_label_may_be(metrics: PrometheusMetrics) -> None:
    text = PAGE.read_text()
    for family in text_string_to_metric_families(metrics.text().decode()):
        if family.name.startswith("quotary_") and family.name not in (
            "quotary_build_info",
            "quotary_refusals",
        ):
            words = {
                value for sample in family.samples for key, value in sample.labels.items() if key != "le"
            }
            assert not [word for word in words if f"`{word}`" not in text]


def queries() -> list[tuple[str, str]]:
    """Title of the panel and expression of every query of the dashboard."""
    dashboard = json.loads(DASHBOARD.read_text())
    return [
        (panel["title"], target["expr"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]


@pytest.mark.parametrize(
    ("title", "query"), queries() if DASHBOARD.exists() else [], ids=lambda text: text[:40]
)
def test_a_query_of_the_dashboard_asks_for_figures_and_labels_that_there_are(
    metrics: PrometheusMetrics, title: str, query: str
) -> None:
    known = families(metrics)
    names = re.findall(r"\b(quotary_\w+|process_\w+)", query)
    assert names, title
    for name in names:
        base = re.sub(r"_(bucket|sum|count|info)$", "", name)
        assert name in known or base in known or f" {name} " in metrics.text().decode(), name
    for label in re.findall(r"by \(([^)]*)\)", query):
        words = {word.strip() for word in label.split(",")} - {"le", "instance", ""}
        assert words <= set().union(*(known[name][1] for name in names if name in known)), query


def test_the_dashboard_shows_every_figure(metrics: PrometheusMetrics) -> None:
    text = " ".join(query for _, query in queries())
    assert not [name for name in families(metrics) if name not in text]
