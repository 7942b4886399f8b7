# SPDX-License-Identifier: Apache-2.0
"""The agent's figures in Prometheus' text format (docs/reference/metrics.md). Needs the extra [serve].

Counters and histograms are filled as things happen; gauges are read when somebody asks. Label values come from fixed
lists, so the number of series has a bound that no client can move.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from quotary_attest.bootlogs import BOOT_LOG_STATES
from quotary_attest.log.errors import StoreError
from quotary_attest.metrics import Carried, Committed, Unattested
from quotary_attest.roots import ForeignExtend, PlatformReset, RequiredRootFailed, RootError, RootGone
from quotary_verifier.wire.records import Source, State

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Media type of `PrometheusMetrics.text`."""

STATES: Final = ("starting", "running", "unavailable", "stopped", "closed")
"""What the agent's state may be."""

REFUSALS: Final = (
    "attestation_failed", "attestation_unavailable", "bad_delivery", "bad_header", "bad_logs", "bad_nonce",
    "bad_output_id", "http_error", "internal_error", "invalid_request_error", "invalid_signing_algo",
    "log_unavailable", "malformed_request", "model_not_measured", "model_not_served", "no_statement",
    "no_such_file", "not_found", "not_quotable", "not_yet", "overloaded", "peer_not_allowed", "request_too_large",
    "swap_running", "unknown_output", "upstream_coding", "upstream_failed", "upstream_unreachable",
)  # fmt: skip
"""Codes of refusals that have a series of their own; others count as `other`."""

disable_created_metrics()  # type: ignore[no-untyped-call] # else every counter has a second series that says when it was made

_OTHER: Final = "other"
_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 65536)
_TIMES: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 120.0)
_STATE_WORDS: Final = {
    State.COMPLETE: "complete",
    State.ENGINE_ERROR: "engine-error",
    State.ENGINE_TRUNCATED: "engine-truncated",
    State.CLIENT_GONE: "client-gone",
}
_SOURCE_WORDS: Final = {
    Source.RELAYED: "relayed",
    Source.MIDDLEWARE: "reported",
    Source.SUBMITTED: "submitted",
}
_FAILURES: Final[tuple[tuple[type[Exception], str], ...]] = (
    (RootGone, "gone"),
    (ForeignExtend, "foreign-extend"),
    (PlatformReset, "platform-reset"),
    (RequiredRootFailed, "root"),
    (RootError, "command"),
)

Status = Callable[[], Mapping[str, Any]]
"""What the gauges are read from: `quotary_attest.agent.Agent.status`."""


class PrometheusMetrics:
    """Implements `quotary_attest.metrics.Metrics` on a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, label: str = "") -> Counter:
            return Counter(name, text, (label,) if label else (), registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, buckets=buckets, registry=self.registry)

        outputs = Counter(
            "quotary_outputs",
            "Outputs attested: their commit is on disk.",
            ("state", "source"),
            registry=self.registry,
        )
        self._outputs = {
            (state, source): outputs.labels(state_word, source_word)
            for state, state_word in _STATE_WORDS.items()
            for source, source_word in _SOURCE_WORDS.items()
        }
        delivered = counter(
            "quotary_deliveries", "Attested answers, by how the client gets the attestation.", "delivery"
        )
        self._delivered = {how: delivered.labels(how.value) for how in Carried}
        refused = counter(
            "quotary_refusals", "Answers of the agent's own that are errors, by their code.", "code"
        )
        self._refused = {code: refused.labels(code) for code in (*REFUSALS, _OTHER)}
        unattested = counter(
            "quotary_unattested", "Answers passed on without an attestation, by reason.", "reason"
        )
        self._unattested = {why: unattested.labels(why.value) for why in Unattested}
        failures = counter("quotary_tpm_errors", "Failures of the TPM that the engine met, by kind.", "kind")
        self._failures = {word: failures.labels(word) for _, word in _FAILURES}
        self._disk = counter("quotary_storage_errors", "Failures of the disk that the engine met.")
        self._starts = counter(
            "quotary_refused_starts", "Times that the agent found a state an operator must look at."
        )
        self._size = histogram("quotary_commit_outputs", "Outputs in a commit.", _SIZES)
        self._whole = histogram(
            "quotary_commit_seconds", "From a commit's begin until it is on disk.", _TIMES
        )
        self._root = histogram(
            "quotary_tpm_seconds", "Extend and quote of a commit, or what binds one without a TPM.", _TIMES
        )
        self._oldest = histogram(
            "quotary_commit_wait_seconds",
            "How long the output that waited longest for a commit had waited.",
            _TIMES,
        )
        ProcessCollector(registry=self.registry)

    def watch(self, status: Status, folder: Path) -> None:
        """Show an agent's gauges from now on; `folder` lies on the disk whose free space counts."""
        self.registry.register(_Gauges(status, folder))

    def text(self) -> bytes:
        """Return all figures in the text format, version 0.0.4."""
        return generate_latest(self.registry)

    def committed(self, commit: Committed) -> None:
        """Count a commit; see `Metrics`."""
        for kind, count in commit.outputs.items():
            self._outputs[kind].inc(count)
        self._size.observe(commit.outputs.total())
        self._whole.observe(commit.whole)
        self._root.observe(commit.root)
        self._oldest.observe(commit.oldest)

    def failed(self, error: Exception) -> None:
        """Count a failure; see `Metrics`."""
        if isinstance(error, StoreError):
            self._disk.inc()
            return
        word = next((word for kind, word in _FAILURES if isinstance(error, kind)), None)
        if word is None:
            self._starts.inc()
        else:
            self._failures[word].inc()

    def delivered(self, how: Carried, count: int = 1) -> None:
        """Count attested answers; see `ServingMetrics`."""
        self._delivered[how].inc(count)

    def refused(self, code: str, count: int = 1) -> None:
        """Count refusals; see `ServingMetrics`."""
        self._refused.get(code, self._refused[_OTHER]).inc(count)

    def unattested(self, why: Unattested, count: int = 1) -> None:
        """Count answers without an attestation; see `ServingMetrics`."""
        self._unattested[why].inc(count)


class _Gauges(Collector):
    """What is read when somebody asks."""

    def __init__(self, status: Status, folder: Path) -> None:
        self._status = status
        self._folder = folder

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges as they are now."""
        status = self._status()
        yield InfoMetricFamily(
            "quotary_build", "The agent's version.", {"version": version("quotary-attest")}
        )
        state = GaugeMetricFamily("quotary_state", "1 for the state that the agent is in.", labels=["state"])
        for word in STATES:
            state.add_metric([word], float(status["state"] == word))
        yield state
        for name, text, key in _GAUGES:
            if (value := status.get(key)) is not None:
                yield GaugeMetricFamily(name, text, float(value))
        if status["boot"] is not None:
            resets, restarts = status["boot"]
            yield GaugeMetricFamily("quotary_tpm_resets", "The TPM's reset count.", resets)
            yield GaugeMetricFamily("quotary_tpm_restarts", "The TPM's restart count.", restarts)
        yield CounterMetricFamily(
            "quotary_epochs", "Epochs begun since the process started.", status["epochs"]
        )
        yield GaugeMetricFamily(
            "quotary_ready", "1 if outputs can be attested now.", float(status["state"] == "running")
        )
        logs = GaugeMetricFamily(
            "quotary_boot_log", "1 for what became of each log of the boot.", labels=["log", "state"]
        )
        for name, log in status["boot_logs"].items():
            for word in BOOT_LOG_STATES:
                logs.add_metric([name, word], float(log["state"] == word))
        yield logs
        yield _root_commits(status["roots"])
        yield GaugeMetricFamily(
            "quotary_disk_free_bytes",
            "Free space where the state folder lies.",
            shutil.disk_usage(self._folder).free,
        )

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: registering must not ask the agent."""
        return iter(())


def _root_commits(roots: Iterable[Mapping[str, Any]]) -> Metric:
    """Count what became of commits that TEEs and GPUs were asked to bind."""
    counted = CounterMetricFamily(
        "quotary_root_commits",
        "Commits that a TEE or a GPU was asked to bind.",
        labels=["root", "outcome"],
    )
    for root in roots:
        for outcome in ("bound", "failed"):
            counted.add_metric([root["identifier"].split("/")[1], outcome], root[outcome])
    return counted


_GAUGES: Final = (
    ("quotary_waiting_outputs", "Outputs handed in whose commit is not on disk.", "waiting"),
    ("quotary_queue_outputs", "Outputs that wait for the next commit.", "queued"),
    ("quotary_log_leaves", "Leaves of the log.", "size"),
    ("quotary_log_commits", "Commits in the history.", "commits"),
    ("quotary_starts", "The start counter: starts of this origin so far.", "starts"),
    (
        "quotary_certificate_expiry_timestamp_seconds",
        "When the AK certificate runs out.",
        "certificate_expiry",
    ),
)
