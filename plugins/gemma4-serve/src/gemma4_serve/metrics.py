"""What is measured, in Prometheus' form: vLLM's names (docs/design/metrics.md) under our own prefix."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from gemma4_serve.engine.contract import EngineClient
from gemma4_serve.outcome import Outcomes

PREFIX = "gemma4:"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
TOKENS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0)
NAMES = {
    "time_to_first_token_seconds": ("From a request's arrival to its first token.", SECONDS),
    "inter_token_latency_seconds": ("Between two tokens of an answer.", SECONDS),
    "e2e_request_latency_seconds": ("From a request's arrival to its end.", SECONDS),
    "request_queue_time_seconds": ("From a request's arrival to its slot.", SECONDS),
    "request_prefill_time_seconds": ("From a request's slot to its first token.", SECONDS),
    "request_decode_time_seconds": ("From a request's first token to its end.", SECONDS),
    "request_prompt_tokens": ("Tokens of a prompt.", TOKENS),
    "request_generation_tokens": ("Tokens of an answer.", TOKENS),
}


class Histogram:
    """Counts of values by bucket. Cheap enough for every token; one thread writes, others read."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound."""
        found, below = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            below += count
            found.append((bound, float(below)))
        return found


class Metrics:
    """Counts of finished requests, and the engine's own figures when they are asked for."""

    def __init__(self, engine: EngineClient) -> None:
        self.engine = engine
        self.histograms = {name: Histogram(bounds) for name, (_, bounds) in NAMES.items()}
        self.finished: dict[str, int] = dict.fromkeys(("stop", "length", "tool_call", "cancelled"), 0)
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def ended(self, outcomes: Outcomes) -> None:
        """Count a request that has ended."""
        for answer in outcomes.answers:
            reason = answer.finish_reason or "cancelled"
            self.finished[reason] = self.finished.get(reason, 0) + 1
        stats, observe = outcomes.stats, self._observe
        observe("request_prompt_tokens", outcomes.stream.prompt_tokens)
        observe("request_generation_tokens", outcomes.completion_tokens)
        if stats is not None:
            first = stats.queue_seconds + stats.prompt_seconds
            observe("time_to_first_token_seconds", first)
            observe("e2e_request_latency_seconds", first + stats.generation_seconds)
            observe("request_queue_time_seconds", stats.queue_seconds)
            observe("request_prefill_time_seconds", stats.prompt_seconds)
            observe("request_decode_time_seconds", stats.generation_seconds)

    def token_gap(self, seconds: float) -> None:
        """Count the time between two tokens of an answer."""
        self.histograms["inter_token_latency_seconds"].observe(seconds)

    def _observe(self, name: str, value: float) -> None:
        self.histograms[name].observe(value)

    def collect(self) -> Iterator[Metric]:
        """All figures, for ``prometheus_client``."""
        stats = self.engine.stats()
        gauges = {
            "num_requests_running": ("Requests that run.", stats.running),
            "num_requests_waiting": ("Requests that wait.", stats.waiting),
            "kv_cache_usage_perc": ("The part of the slots that is in use, 0 to 1.", stats.slots_used / stats.slots),
        }
        counters = {
            "prefix_cache_queries": ("Prompts looked up among beginnings.", stats.prefix_hits + stats.prefix_misses),
            "prefix_cache_hits": ("Prompts that went on from a beginning.", stats.prefix_hits),
            "prefix_cached_tokens": ("Prompt tokens that were not run again.", stats.reused_tokens),
            "prompt_tokens": ("Prompt tokens that were run.", stats.prompt_tokens),
            "generation_tokens": ("Tokens generated.", stats.generated_tokens),
            "steps": ("Steps of the model that decoded.", stats.steps),
            "step_rows": ("Rows in those steps.", stats.decoded_rows),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(PREFIX + name, text, value)
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(PREFIX + name, text, value)
        success = CounterMetricFamily(PREFIX + "request_success", "Answers that ended.", labels=["finished_reason"])
        for reason, count in self.finished.items():
            success.add_metric([reason], count)
        yield success
        for name, histogram in self.histograms.items():
            yield HistogramMetricFamily(PREFIX + name, NAMES[name][0], histogram.buckets(), histogram.total)

    def text(self) -> tuple[bytes, str]:
        """All figures as text, and its media type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
