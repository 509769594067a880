"""What a gateway counts, as Prometheus metrics in a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_WAIT_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


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
        self.resumed = Counter(
            "paceline_api_gateway_resumed",
            "Answers that another head went on with after the one that had begun them was lost.",
            ("model",),
            registry=self.registry,
        )
        self.relayed = Counter(
            "paceline_api_gateway_relayed",
            "Requests sent to a head through another stage, as the head's own address could not be reached.",
            ("model",),
            registry=self.registry,
        )
        self.pause = Histogram(
            "paceline_api_gateway_pause_seconds",
            "Between the last event of a lost head and the first of the one that went on with the answer.",
            ("model",),
            buckets=_WAIT_BUCKETS_S,
            registry=self.registry,
        )
        self.refused = Counter(
            "paceline_api_gateway_refused",
            "Requests answered with 429, by the reason.",
            ("reason",),
            registry=self.registry,
        )
        self.affinity = Counter(
            "paceline_api_gateway_affinity",
            "Requests for a model with several instances: sent to one that knows the prompt's beginning (hit), to another as that one"
            " was too busy (overloaded), or none knew it (miss).",
            ("outcome",),
            registry=self.registry,
        )
        self.queue_wait = Histogram(
            "paceline_api_gateway_queue_wait_seconds",
            "From sending a request to a head until it left the head's queue.",
            ("model",),
            buckets=_WAIT_BUCKETS_S,
            registry=self.registry,
        )
        self.first_token = Histogram(
            "paceline_api_gateway_first_token_seconds",
            "From the request to its first token, all waiting included.",
            ("model",),
            buckets=_WAIT_BUCKETS_S,
            registry=self.registry,
        )
        self.tokens = Counter(
            "paceline_api_gateway_tokens", "Tokens by model and kind.", ("model", "kind"), registry=self.registry
        )
