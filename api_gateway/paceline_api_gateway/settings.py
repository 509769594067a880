"""Settings of a gateway."""

from pydantic import Field

from paceline_api_gateway.federation.settings import Backends
from paceline_services.settings import ServiceSettings, split_list


class GatewaySettings(ServiceSettings):
    listen: str = Field("127.0.0.1:52415", description="Address host:port of the HTTP API; port 0 takes any free one.")
    control_plane: str = Field("127.0.0.1:52410", description="Control plane addresses host:port, separated by commas.")
    place_on_demand: bool = Field(
        default=True, description="Place a known model that has no instance when a request names it."
    )
    placement_wait_s: float = Field(
        120.0, gt=0, description="Seconds that a request waits for its model to become ACTIVE."
    )
    recovery_wait_s: float = Field(
        30.0,
        ge=0,
        description="Seconds that an answer under way waits for a model that cannot run any more, and requests for one that the cluster"
        " lost together with its state.",
    )
    request_timeout_s: float = Field(
        600.0,
        gt=0,
        description="Seconds after which a generation is given up; the most that a client may ask for with X-Request-Timeout.",
    )
    max_open_requests: int = Field(1024, gt=0, description="Generations under way at once; more are refused with 429.")
    max_open_requests_per_client: int = Field(
        256, gt=0, description="Generations under way at once for one API key, or for one address without a key."
    )
    drain_timeout_s: float = Field(5.0, ge=0, description="Seconds that running responses get to finish at a stop.")
    keep_alive_s: float = Field(
        5.0,
        gt=0,
        description="Seconds without an event after which a stream is sent a comment, which tells that it is alive.",
    )
    max_body_bytes: int = Field(16 << 20, gt=0, description="Largest request body in bytes.")
    stored_responses_max_bytes: int = Field(
        1 << 30,
        ge=0,
        description="Bytes that stored responses of the Responses API may take in <home>/responses; the oldest go first; 0 stores none.",
    )
    stored_responses_max_age_s: float = Field(
        30 * 24 * 3600.0, gt=0, description="Seconds for which a response of the Responses API is stored at most."
    )
    backends: Backends = Field(
        (),
        description="Other OpenAI-compatible servers that requests are passed to, as [[backends]] tables of the TOML file:"
        " see [federation](federation.md).",
    )
    backend_health_interval_s: float = Field(10.0, gt=0, description="Seconds between two looks at a backend.")
    max_held_bytes: int = Field(
        256 << 20, gt=0, description="Most bytes of bodies that are still coming, of all requests together."
    )
    body_timeout_s: float = Field(
        60.0, gt=0, description="Seconds within which a request's body must have come; the connection is closed then."
    )
    max_json_depth: int = Field(
        128, gt=0, le=512, description="Deepest nesting of arrays and objects in a body of JSON."
    )
    max_json_values: int = Field(
        1_000_000, gt=0, description="Most values (elements, members, token ids) in a body of JSON."
    )
    max_messages: int = Field(4096, gt=0, description="Most messages of one conversation.")
    max_tools: int = Field(512, gt=0, description="Most tools of one request.")
    max_stop_length: int = Field(1024, gt=0, description="Longest stop text in characters.")
    max_url_bytes: int = Field(16 << 10, gt=0, description="Longest URL of a request in bytes.")
    max_header_bytes: int = Field(
        64 << 10, gt=0, description="Most bytes in the headers of a request, names and values."
    )
    max_headers: int = Field(128, gt=0, description="Most headers of a request.")
    header_timeout_s: float = Field(
        30.0, gt=0, description="Seconds within which a new connection must have sent a request's headers."
    )
    idle_timeout_s: float = Field(
        75.0, gt=0, description="Seconds that a connection is kept for the next request after an answer."
    )
    write_timeout_s: float = Field(
        60.0,
        gt=0,
        description="Seconds after which a client that takes no byte of its answer is given up: its connection is closed, its generation"
        " cancelled.",
    )
    cors_origins: str = Field(
        "",
        description="Origins of web pages that may call the API, such as https://chat.example, separated by commas; * for every one."
        " Empty: none.",
    )

    @property
    def control_plane_addresses(self) -> tuple[str, ...]:
        return split_list(self.control_plane)

    @property
    def cors_origin_list(self) -> tuple[str, ...]:
        return split_list(self.cors_origins)
