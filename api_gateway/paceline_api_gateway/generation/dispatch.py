"""From a canonical request to the events of some head."""

from collections.abc import AsyncGenerator

from paceline_api_gateway.metrics import GatewayMetrics
from paceline_api_gateway.routing.table import RouteTable
from paceline_services.clients import GenerationClient
from paceline_services.domain.generation import ChoiceFinished, GenerateRequest, GenerationCompleted, GenerationEvent
from paceline_services.domain.instances import Instance
from paceline_services.logs import get_logger


class Dispatcher:
    """Sends requests to heads. A head's channel is kept as long as the head is some instance's."""

    def __init__(self, table: RouteTable, metrics: GatewayMetrics, request_timeout_s: float) -> None:
        self._table = table
        self._metrics = metrics
        self._request_timeout_s = request_timeout_s
        self._clients: dict[str, GenerationClient] = {}

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerationEvent, None]:
        """Events of the request. Closing the generator cancels it on every stage. Raises PacelineError subclasses."""
        instance = await self._table.find(request.model_id)
        client = await self._client(instance)
        reasons: list[str] = []
        with self._table.count(instance), self._metrics.in_flight.track_inprogress():
            events = client.generate(request, self._request_timeout_s)
            try:
                async for event in events:
                    if isinstance(event, ChoiceFinished):
                        reasons.append(event.finish_reason.value)
                    elif isinstance(event, GenerationCompleted):
                        self._record(request, event, reasons)
                    yield event
            finally:
                await events.aclose()

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()

    async def _client(self, instance: Instance) -> GenerationClient:
        heads = {one.head_address for one in self._table.state.instances}
        for address in [address for address in self._clients if address not in heads]:
            await self._clients.pop(address).close()
        address = instance.head_address
        if address not in self._clients:
            self._clients[address] = GenerationClient(address)
        return self._clients[address]

    def _record(self, request: GenerateRequest, event: GenerationCompleted, reasons: list[str]) -> None:
        self._metrics.first_token.labels(request.model_id).observe(event.time_to_first_token_ms / 1e3)
        self._metrics.tokens.labels(request.model_id, "prompt").inc(event.num_prompt_tokens)
        self._metrics.tokens.labels(request.model_id, "completion").inc(event.num_completion_tokens)
        decode_s = max(event.total_duration_ms - event.time_to_first_token_ms, 1e-3) / 1e3
        get_logger().info(
            "request_completed",
            request_id=request.request_id,
            model_id=request.model_id,
            num_prompt_tokens=event.num_prompt_tokens,
            num_tokens=event.num_completion_tokens,
            ttft_ms=round(event.time_to_first_token_ms, 1),
            tokens_per_s=round(max(0, event.num_completion_tokens - 1) / decode_s, 2),
            duration_ms=round(event.total_duration_ms, 1),
            finish_reason=reasons,
        )
