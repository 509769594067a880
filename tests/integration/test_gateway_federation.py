"""A real gateway with other servers beside its cluster: a scripted HTTP server, and another gateway."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from support.head import MODEL, GatewayProcess, ScriptedControlPlane, ScriptedHead, make_instance, run_gateway
from support.scripts_federation import ScriptedBackend

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "sk-very-secret"
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}


def write_config(home: Path, *backends: str) -> str:
    """A TOML file with these tables."""
    path = home / "gateway.toml"
    path.write_text("\n".join(f"[[backends]]\n{table}" for table in backends))
    return str(path)


@dataclass(frozen=True, slots=True)
class Federation:
    gateway: GatewayProcess
    http: httpx.AsyncClient
    vllm: ScriptedBackend
    head: ScriptedHead

    async def ask(self, path: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
        return await self.http.post(path, json={"model": "big-70b", **HELLO} | fields)


@asynccontextmanager
async def run_cluster() -> AsyncIterator[tuple[ScriptedHead, str]]:
    """A scripted head, and the address of its control plane."""
    head, control_plane = ScriptedHead(), ScriptedControlPlane()
    async with head.serve(), control_plane.serve():
        await control_plane.show(make_instance("demo-1", head.address))
        yield head, control_plane.address


async def wait_for_health(http: httpx.AsyncClient, name: str, status: str) -> dict[str, Any]:
    """What /health tells of a backend once it has that status."""
    async with asyncio.timeout(30):
        while True:
            (backend,) = [one for one in (await http.get("/health")).json()["backends"] if one["name"] == name]
            if backend["status"] == status:
                return dict(backend)
            await asyncio.sleep(0.05)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Federation]:
    home = tmp_path_factory.mktemp("federation")
    backend = ScriptedBackend(models=["big-70b", "other"])
    async with backend.serve(), run_cluster() as (head, control_plane):
        config = write_config(
            home,
            f'name = "vllm"\nurl = "{backend.address}/v1"\napi_key_env = "VLLM_KEY"\nmodels = ["big-*"]\ntimeout_s = 2.0',
            'name = "gone"\nurl = "http://127.0.0.1:9"\nmodels = ["lost"]',
        )
        settings = {"CONFIG": config, "BACKEND_HEALTH_INTERVAL_S": "0.1"}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VLLM_KEY", SECRET)
            async with (
                run_gateway(control_plane, home, settings) as gateway,
                httpx.AsyncClient(base_url=gateway.url, timeout=30) as http,
            ):
                await wait_for_health(http, "vllm", "healthy")
                yield Federation(gateway, http, backend, head)


@pytest.fixture
def federation(shared: Federation) -> Federation:
    fresh = ScriptedBackend()
    shared.vllm.received.clear()
    shared.vllm.left.clear()
    shared.head.requests.clear()
    for name in ("status", "content_type", "pieces", "pause", "models_body"):
        setattr(shared.vllm, name, getattr(fresh, name))
    return shared


async def test_request_passes_to_the_backend_byte_for_byte(federation: Federation) -> None:
    federation.vllm.pieces = [b'{"odd" :   "spacing"}\n']
    body = b'{ "model":"big-70b", "messages" : [], "unknown": 1.50 }'
    headers = {"authorization": "Bearer of-the-client", "x-custom": "kept", "content-type": "application/json"}
    answer = await federation.http.post("/v1/chat/completions?a=b", content=body, headers=headers)
    assert (answer.status_code, answer.content) == (200, b'{"odd" :   "spacing"}\n')
    assert answer.headers["x-backend"] == "yes"
    (received,) = federation.vllm.received
    assert (received.path, received.body) == ("/v1/chat/completions?a=b", body)
    assert received.headers["authorization"] == f"Bearer {SECRET}"
    assert received.headers["x-custom"] == "kept"
    assert not federation.head.requests


@pytest.mark.parametrize(
    "path",
    ["/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/messages", "/v1/messages/count_tokens"],
)
async def test_every_protocol_with_a_model_passes(federation: Federation, path: str) -> None:
    assert (await federation.ask(path)).json() == {"from": "backend"}
    assert federation.vllm.received[-1].path == path


async def test_errors_of_a_backend_are_its_own(federation: Federation) -> None:
    federation.vllm.status, federation.vllm.pieces = 418, [b'{"error": "teapot"}']
    answer = await federation.ask()
    assert (answer.status_code, answer.json()) == (418, {"error": "teapot"})


async def test_stream_comes_piece_by_piece(federation: Federation) -> None:
    backend = federation.vllm
    backend.content_type, backend.pieces = "text/event-stream", [b"data: one\n\n", b"data: two\n\n"]
    backend.pause = asyncio.Event()
    async with federation.http.stream("POST", "/v1/chat/completions", json={"model": "big-70b", **HELLO}) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        pieces = answer.aiter_raw()
        assert await anext(pieces) == b"data: one\n\n"
        backend.pause.set()
        assert b"".join([piece async for piece in pieces]) == b"data: two\n\n"


async def test_client_that_leaves_closes_the_way_to_the_backend(federation: Federation) -> None:
    backend = federation.vllm
    backend.pause = asyncio.Event()
    async with federation.http.stream("POST", "/v1/chat/completions", json={"model": "big-70b", **HELLO}) as answer:
        await anext(answer.aiter_raw())
    await asyncio.wait_for(backend.left.wait(), 10)


async def test_models_of_the_cluster_stay_in_the_cluster(federation: Federation) -> None:
    answer = await federation.ask(model=MODEL)
    assert answer.status_code == 200 and federation.head.requests and not federation.vllm.received


async def test_model_that_nobody_claims_is_not_found(federation: Federation) -> None:
    answer = await federation.ask(model="nobody")
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"


async def test_backend_that_is_down_is_named_in_the_form_of_the_protocol(federation: Federation) -> None:
    answer = await federation.ask(model="lost")
    assert answer.status_code == 503 and "'gone'" in answer.json()["error"]["message"]
    assert "retry-after" in answer.headers
    claude = await federation.ask("/v1/messages", model="lost")
    assert claude.status_code == 503 and claude.json()["error"]["type"] == "overloaded_error"


async def test_backend_that_never_answers_is_given_up(federation: Federation) -> None:
    federation.vllm.status = 0
    answer = await federation.ask()
    assert answer.status_code == 504 and "'vllm'" in answer.json()["error"]["message"]
    await asyncio.wait_for(federation.vllm.left.wait(), 10)


async def test_answer_that_breaks_off_has_no_end(federation: Federation) -> None:
    federation.vllm.pause = asyncio.Event()
    with pytest.raises(httpx.RemoteProtocolError):
        await federation.ask()
    await asyncio.wait_for(federation.vllm.left.wait(), 10)


async def test_models_of_backends_are_listed_with_their_owner(federation: Federation) -> None:
    listed = {one["id"]: one["owned_by"] for one in (await federation.http.get("/v1/models")).json()["data"]}
    assert listed == {MODEL: "paceline", "big-70b": "vllm", "lost": "gone"}
    one = (await federation.http.get("/v1/models/big-70b")).json()
    assert (one["id"], one["owned_by"]) == ("big-70b", "vllm")
    assert (await federation.http.get(f"/v1/models/{MODEL}")).json()["owned_by"] == "paceline"
    assert (await federation.http.get("/v1/models/other")).status_code == 404


async def test_health_tells_cluster_and_backends_apart(federation: Federation) -> None:
    health = (await federation.http.get("/health")).json()
    assert health["status"] == "ok" and health["cluster"]["status"] == "healthy"
    assert {one["name"]: one["status"] for one in health["backends"]} == {"vllm": "healthy", "gone": "unreachable"}
    federation.vllm.models_body = b"<html>busy</html>"
    assert "list of models" in (await wait_for_health(federation.http, "vllm", "unhealthy"))["message"]
    federation.vllm.models_body = None
    await wait_for_health(federation.http, "vllm", "healthy")


async def test_keys_are_neither_logged_nor_told(federation: Federation) -> None:
    await federation.ask()
    assert SECRET not in federation.gateway.read_log()
    assert SECRET not in (await federation.http.get("/health")).text


async def test_requests_to_backends_are_counted(federation: Federation) -> None:
    await federation.ask()
    metrics = (await federation.http.get("/metrics")).text
    assert 'paceline_api_gateway_backend_requests_total{backend="vllm",status="200"}' in metrics
    assert 'paceline_api_gateway_requests_total{route="/v1/chat/completions",status="200"}' in metrics


async def test_request_that_comes_back_is_refused(federation: Federation) -> None:
    await federation.ask()
    (received,) = federation.vllm.received
    hops = received.headers["x-paceline-hops"]
    answer = await federation.http.post(
        received.path, content=received.body, headers={"x-paceline-hops": f"far, {hops}"}
    )
    assert answer.status_code == 508 and "'vllm'" in answer.json()["error"]["message"]
    answer = await federation.http.post(received.path, content=received.body, headers={"x-paceline-hops": "a,b,c,d"})
    assert answer.status_code == 508
    answer = await federation.http.post(received.path, content=received.body, headers={"x-paceline-hops": "a"})
    assert answer.status_code == 200 and federation.vllm.received[-1].headers["x-paceline-hops"] == f"a,{hops}"


async def test_another_gateway_is_told_the_models_of_the_cluster_alone(federation: Federation) -> None:
    look = federation.vllm.looks[-1]
    assert look.headers["x-paceline-hops"] and look.headers["authorization"] == f"Bearer {SECRET}"
    listed = await federation.http.get("/v1/models", headers={"x-paceline-hops": "far"})
    assert [one["id"] for one in listed.json()["data"]] == [MODEL]


async def test_openai_client_talks_to_another_paceline_through_this_one(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    near_plane = ScriptedControlPlane()
    async with (
        run_cluster() as (head, far_plane),
        near_plane.serve(),
        run_gateway(far_plane, tmp_path / "far") as far,
    ):
        await near_plane.show(models=())
        config = write_config(tmp_path, f'name = "far"\nurl = "{far.url}"')
        settings = {"CONFIG": config, "BACKEND_HEALTH_INTERVAL_S": "0.1"}
        async with (
            run_gateway(near_plane.address, tmp_path, settings) as near,
            httpx.AsyncClient(base_url=near.url, timeout=30) as http,
            AsyncOpenAI(base_url=f"{near.url}/v1", api_key="none", max_retries=0, timeout=30) as client,
        ):
            await wait_for_health(http, "far", "healthy")
            stream = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "Hi"}], stream=True
            )
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
            assert text == "Hello world 0"
            response = await client.responses.create(model=MODEL, input="Hi")
            assert (await client.models.retrieve(MODEL)).owned_by == "far"
            with pytest.raises(openai.BadRequestError, match="temperature"):
                await client.responses.create(model=MODEL, input="Hi", temperature=9)
    assert response.output_text == "Hello world 0" and len(head.requests) == 2
