"""What the server counts, for Prometheus, under vLLM's names and in vLLM's units, so that its dashboards read it.

Counters and gauges are the scheduler's own, copied when asked for; latencies are what the HTTP side saw.
"""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from serve.requests import Stats, Timing

SHORT = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)  # seconds, of a token
LONG = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)  # seconds, of a request
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
LABELS = ("model_name", "engine")
HISTOGRAMS = {
    "time_to_first_token_seconds": ("from the request to its first token", LONG),
    "inter_token_latency_seconds": ("between tokens: a delivery's wait, shared by the tokens it brought", SHORT),
    "e2e_request_latency_seconds": ("from the request to its last token", LONG),
    "request_queue_time_seconds": ("waiting for a row", LONG),
    "request_prefill_time_seconds": ("reading the prompt", LONG),
    "request_decode_time_seconds": ("writing the answer", LONG),
    "request_prompt_tokens": ("tokens of a request's prompt", TOKENS),
    "request_generation_tokens": ("tokens of an answer", TOKENS),
}
COUNTERS = {  # vLLM's name: the field of `Stats`, what it counts
    "spec_decode_num_drafts": ("drafts", "steps that drafted"),
    "spec_decode_num_draft_tokens": ("draft_tokens", "drafted tokens"),
    "spec_decode_num_accepted_tokens": ("accepted_tokens", "drafted tokens that were accepted"),
    "prompt_tokens": ("prompt_tokens", "tokens of prompts"),
    "generation_tokens": ("generation_tokens", "tokens written"),
    "prefix_cache_queries": ("prefix_queries", "prompt tokens looked up in the prefix cache"),
    "prefix_cache_hits": ("prefix_hits", "prompt tokens found there"),
    "num_preemptions": ("preemptions", "rows that gave up their pages and were recomputed"),
}
REASONS = {"eos": "stop", "stop": "stop", "length": "length", "cancelled": "abort", "fault": "error"}  # vLLM's words


class Metrics(Collector):
    """Everything /metrics says."""

    def __init__(self, model: str, stats: Callable[[], Stats]):
        self.labels, self.stats = (model, "0"), stats
        self.ends = dict.fromkeys(REASONS.values(), 0)
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self.histograms = {
            name: Histogram(f"vllm:{name}", text, LABELS, buckets=buckets, registry=self.registry).labels(*self.labels)
            for name, (text, buckets) in HISTOGRAMS.items()
        }

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def first_came(self, seconds: float) -> None:
        self.histograms["time_to_first_token_seconds"].observe(seconds)

    def tokens_came(self, count: int, seconds: float) -> None:
        for _ in range(count):
            self.histograms["inter_token_latency_seconds"].observe(seconds / count)

    def ended(self, how: str) -> None:
        self.ends[REASONS[how]] += 1

    def answered(self, prompt: int, written: int, timing: Timing | None, seconds: float) -> None:
        """A whole answer: tokens of its prompt and its own, and how long it took."""
        values = {
            "e2e_request_latency_seconds": seconds,
            "request_prompt_tokens": prompt,
            "request_generation_tokens": written,
        }
        if timing is not None:
            values |= {
                "request_queue_time_seconds": timing.queued_s,
                "request_prefill_time_seconds": timing.prefill_s,
                "request_decode_time_seconds": timing.decode_s,
            }
        for name, value in values.items():
            self.histograms[name].observe(value)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing beforehand: registering must not ask the scheduler."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        stats = self.stats()
        gauges = {
            "num_requests_running": (stats.running, "requests that have a row"),
            "num_requests_waiting": (stats.waiting, "requests that wait for one"),
            "kv_cache_usage_perc": (1 - stats.free_pages / stats.pages, "share of the target's cache in use, 0 to 1"),
        }
        for name, (value, text) in gauges.items():
            gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=LABELS)
            gauge.add_metric(self.labels, value)
            yield gauge
        for name, (field, text) in COUNTERS.items():
            counter = CounterMetricFamily(f"vllm:{name}", text, labels=LABELS)
            counter.add_metric(self.labels, getattr(stats, field))
            yield counter
        positions = CounterMetricFamily(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "drafted tokens accepted at a position of their draft",
            labels=(*LABELS, "position"),
        )
        for position, accepted in enumerate(stats.accepted_per_position):
            positions.add_metric((*self.labels, str(position)), float(accepted))
        yield positions
        ends = CounterMetricFamily(
            "vllm:request_success", "answers by how they ended", labels=(*LABELS, "finished_reason")
        )
        for reason, count in self.ends.items():
            ends.add_metric((*self.labels, reason), count)
        yield ends
