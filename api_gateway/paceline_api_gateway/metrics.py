"""What a gateway counts, as Prometheus metrics in a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class GatewayMetrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "paceline_api_gateway_requests",
            "HTTP requests by route and status.",
            ("route", "status"),
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "paceline_api_gateway_generations_in_flight", "Generations under way.", registry=self.registry
        )
        self.retries = Counter(
            "paceline_api_gateway_retries",
            "Requests sent to a head again before they had an answer.",
            ("model",),
            registry=self.registry,
        )
        self.first_token = Histogram(
            "paceline_api_gateway_first_token_seconds",
            "From admission to the first token.",
            ("model",),
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
            registry=self.registry,
        )
        self.tokens = Counter(
            "paceline_api_gateway_tokens", "Tokens by model and kind.", ("model", "kind"), registry=self.registry
        )
