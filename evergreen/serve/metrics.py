"""What Prometheus reads at /metrics. Names begin with evergreen_, times are seconds."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from evergreen.engine.base import Stats
from evergreen.records import Completion

FIRST_TOKEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
REQUEST_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The server's own counts; `engines` gives each base's engine's statistics when they are read."""

    def __init__(self, engines: Callable[[], Mapping[str, Stats]]):
        disable_created_metrics()
        self.registry = CollectorRegistry()
        own = {"registry": self.registry}
        self.requests = Counter("evergreen_requests", "requests answered", ("route", "status"), **own)
        self.in_flight = Gauge("evergreen_requests_in_flight", "requests taken and not answered yet", **own)
        self.prompt_tokens = Counter("evergreen_prompt_tokens", "tokens of prompts", ("model",), **own)
        self.cached_tokens = Counter("evergreen_cached_tokens", "of these, found in the cache", ("model",), **own)
        self.tokens = Counter("evergreen_generated_tokens", "tokens generated", ("model",), **own)
        self.first_token = Histogram("evergreen_time_to_first_token_seconds", "from the engine's taking a request "
                                     "to its first token", ("model",), buckets=FIRST_TOKEN_BUCKETS, **own)  # fmt: skip
        self.per_token = Histogram("evergreen_time_per_token_seconds", "each further token", ("model",),
                                   buckets=TOKEN_BUCKETS, **own)  # fmt: skip
        self.seconds = Histogram("evergreen_request_seconds", "whole requests", ("route",), buckets=REQUEST_BUCKETS,
                                 **own)  # fmt: skip
        self.registry.register(_Engines(engines))

    def count(self, model: str, completion: Completion) -> None:
        """One answer that has ended."""
        self.prompt_tokens.labels(model).inc(completion.prompt_tokens)
        self.cached_tokens.labels(model).inc(completion.num_cached_tokens)
        self.tokens.labels(model).inc(completion.completion_tokens)
        if not completion.completion_tokens:
            return
        self.first_token.labels(model).observe(completion.first_token_seconds)
        if completion.completion_tokens > 1:
            rest = completion.latency_seconds - completion.first_token_seconds
            self.per_token.labels(model).observe(rest / (completion.completion_tokens - 1))

    def text(self) -> bytes:
        return generate_latest(self.registry)


GAUGES = {
    "num_running": ("evergreen_requests_running", "requests in the engine's batch"),
    "num_waiting": ("evergreen_requests_waiting", "requests that wait for the engine"),
    "num_blocks": ("evergreen_kv_blocks", "blocks of the KV cache"),
    "num_free_blocks": ("evergreen_kv_free_blocks", "of these, free or only cached"),
    "step_seconds": ("evergreen_step_seconds", "the last forward pass"),
}
COUNTERS = {
    "num_preemptions": ("evergreen_preemptions", "requests put back for want of blocks"),
    "num_prompt_tokens": ("evergreen_engine_prompt_tokens", "prompt tokens since the engine started"),
    "num_cached_tokens": ("evergreen_engine_cached_tokens", "of these, found in the prefix cache"),
    "num_generated_tokens": ("evergreen_engine_generated_tokens", "tokens generated since the engine started"),
}


class _Engines(Collector):
    """The engines' statistics as of now, one row a base."""

    def __init__(self, engines: Callable[[], Mapping[str, Stats]]):
        self.engines = engines

    def collect(self) -> Iterable[Metric]:
        stats = self.engines()
        for kind, names in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for field, (name, about) in names.items():
                yield _family(
                    kind(name, about, labels=("base",)), {base: getattr(s, field) for base, s in stats.items()}
                )
        shares = {base: s.num_cached_tokens / max(1, s.num_prompt_tokens) for base, s in stats.items()}
        use = {base: 1 - s.num_free_blocks / max(1, s.num_blocks) for base, s in stats.items()}
        adapters = {base: len(s.adapters) for base, s in stats.items()}
        for name, about, values in (
            ("evergreen_cache_hit_ratio", "share of prompt tokens found in the prefix cache", shares),
            ("evergreen_kv_use_ratio", "share of KV blocks in use", use),
            ("evergreen_adapters", "adapters loaded", adapters),
        ):
            yield _family(GaugeMetricFamily(name, about, labels=("base",)), values)


def _family(family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[str, float]) -> Metric:
    for base, value in values.items():
        family.add_metric([base], value)
    return family
