"""A real gateway process and clients that send too much, too slowly, or what no client should: each is told so, and costs nobody else."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.head import MODEL, GatewayProcess, ScriptedControlPlane, ScriptedHead, make_instance, run_gateway
from support.raw_http import RawResponse, connect, write_request

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
PATH = "/v1/chat/completions"
BODY = json.dumps(CHAT).encode()


@dataclass(frozen=True, slots=True)
class Cluster:
    head: ScriptedHead
    gateway: GatewayProcess
    http: httpx.AsyncClient

    async def send(self, data: bytes) -> RawResponse:
        """The response to bytes sent over a connection of their own."""
        async with connect(self.gateway.url) as connection:
            await connection.send(data)
            return await connection.read_response()

    async def is_well(self) -> bool:
        """Whether an ordinary chat is answered."""
        return (await self.http.post(PATH, json=CHAT)).status_code == 200


@asynccontextmanager
async def serve(home: Path, **settings: str) -> AsyncIterator[Cluster]:
    async with ScriptedHead().serve() as head, ScriptedControlPlane().serve() as control_plane:
        await control_plane.show(make_instance("demo-1", head.address))
        async with (
            run_gateway(control_plane.address, home, settings) as gateway,
            httpx.AsyncClient(base_url=gateway.url, timeout=30) as http,
        ):
            yield Cluster(head, gateway, http)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with serve(tmp_path) as running:
        yield running


async def test_bodies_that_are_not_read_are_refused_in_the_form_of_their_protocol(cluster: Cluster) -> None:
    deep = b'{"model": "demo", "messages": ' + b"[" * 300 + b"]" * 300 + b"}"
    many = json.dumps(CHAT | {"messages": CHAT["messages"] * 4097}).encode()
    cases: list[tuple[bytes, dict[str, str], int, str]] = [
        (b"[" * (8 << 20), {}, 400, "more than 1000000 values"),
        (b"[" * (1 << 16), {}, 400, "nests deeper"),
        (deep, {}, 400, "nests deeper"),
        (many, {}, 400, "messages has 4097"),
        (b'{"model": "demo", "temperature": NaN}', {}, 400, "not valid JSON"),
        (BODY + b"x", {}, 400, "not valid JSON"),
        (b'{"model": "\xff"}', {}, 400, "not valid JSON"),
        (b'{"model": "\\udc00"}', {}, 400, "not valid JSON"),
        (b"", {}, 400, "body"),
        (BODY, {"content-type": "multipart/form-data; boundary=x"}, 415, "application/json"),
        (BODY, {"content-encoding": "gzip"}, 415, "gzip"),
        (b'"' + b"x" * (16 << 20) + b'"', {}, 413, "larger than"),
    ]
    for body, headers, status, words in cases:
        response = await cluster.http.post(PATH, content=body, headers={"content-type": "application/json"} | headers)
        error = response.json()["error"]
        assert (response.status_code, error["type"]) == (status, "invalid_request_error"), words
        assert words in error["message"] and response.headers["x-request-id"]
    claude = await cluster.http.post("/v1/messages", content=b'"' + b"x" * (16 << 20) + b'"')
    assert claude.status_code == 413 and claude.json()["error"]["type"] == "request_too_large"
    assert not cluster.head.requests and await cluster.is_well()


async def test_curl_without_a_header_and_bodies_in_parts_work(cluster: Cluster) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert (await cluster.http.post(PATH, content=BODY, headers=form)).status_code == 200
    assert (await cluster.http.post(PATH, content=b"\xef\xbb\xbf" + BODY)).status_code == 200

    async def parts() -> AsyncIterator[bytes]:
        for index in range(0, len(BODY), 10):
            yield BODY[index : index + 10]

    assert (await cluster.http.post(PATH, content=parts())).status_code == 200
    page = await cluster.http.post(PATH, content=BODY, headers=form | {"origin": "https://evil.example"})
    assert page.status_code == 415


async def test_unknown_paths_and_methods_are_told_so_whatever_the_body(cluster: Cluster) -> None:
    upload = {"content-type": "multipart/form-data; boundary=x"}
    assert (await cluster.http.post("/v1/nowhere", content=b"--x--", headers=upload)).status_code == 404
    refused = await cluster.http.put(PATH, content=b"{")
    assert refused.status_code == 405 and refused.headers["allow"] == "POST"
    options = await cluster.http.options(PATH)
    assert options.status_code == 405 and options.json()["error"]["message"]


async def test_head_is_get_without_a_body(cluster: Cluster) -> None:
    response = await cluster.http.head("/health")
    assert response.status_code == 200 and response.content == b"" and int(response.headers["content-length"]) > 0
    assert (await cluster.http.head("/nowhere")).status_code == 404


async def test_body_is_asked_for_only_when_it_will_be_read(cluster: Cluster) -> None:
    async with connect(cluster.gateway.url) as connection:
        await connection.send(write_request(PATH, BODY, expect="100-continue")[: -len(BODY)])
        assert (await connection.read_response()).status == 100
        await connection.send(BODY)
        assert b"200 OK" in await connection.reader.readuntil(b"\r\n")
    refused = await cluster.send(write_request(PATH, b"", expect="100-continue", content_length=str(1 << 30)))
    assert refused.status == 413


async def test_upgrade_to_http_2_is_passed_over(cluster: Cluster) -> None:
    # Java's HttpClient asks for it with every first request.
    headers = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2_settings": "AAEAAEAAAAIAAAAB"}
    assert (await cluster.send(write_request(PATH, BODY, **headers))).status == 200


async def test_headers_and_urls_beyond_the_limits_are_refused(cluster: Cluster) -> None:
    many = {f"x_number_{number}": "1" for number in range(200)}
    cases = [
        (write_request(PATH, BODY, x_long="x" * (65 << 10)), 431),
        (write_request(PATH, BODY, x_long="x" * (15 << 20)), 431),
        (write_request(PATH, BODY, **many), 431),
        (write_request(f"/v1/models/{'m' * (17 << 10)}", method="GET"), 414),
        (b"this is no HTTP\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ]
    for data, status in cases:
        async with connect(cluster.gateway.url) as connection:
            connection.writer.write(data)  # not drained: the other side may well stop reading
            response = await connection.read_response()
        assert (response.status, response.headers["connection"]) == (status, "close")
        assert response.json()["error"]["message"]
    ollama = await cluster.send(b"POST /api/chat HTTP/1.1\r\n" + b"x: y\r\n" * 200 + b"\r\n")
    assert ollama.status == 431 and isinstance(ollama.json()["error"], str)
    assert await cluster.is_well()


async def test_requests_that_do_not_come_to_an_end_are_given_up(tmp_path: Path) -> None:
    slow = {"HEADER_TIMEOUT_S": "0.5", "BODY_TIMEOUT_S": "0.5"}
    whole = write_request(PATH, BODY)
    async with serve(tmp_path, **slow) as cluster:
        for part in (
            whole[:20],
            whole[:-5],
            write_request(PATH, b"5\r\nab", transfer_encoding="chunked", content_length=""),
        ):
            response = await cluster.send(part.replace(b"content-length: \r\n", b""))
            assert response.status == 408 and response.headers["connection"] == "close"
            assert "within 0.5 s" in response.json()["error"]["message"]
        async with connect(cluster.gateway.url) as silent:
            assert await silent.read_to_end() == b""
        assert await cluster.is_well()


async def test_connection_serves_again_after_a_body_that_was_too_large(tmp_path: Path) -> None:
    async with serve(tmp_path, MAX_BODY_BYTES="100") as cluster, connect(cluster.gateway.url) as connection:
        await connection.send(write_request(PATH, b" " * 5000))
        assert (await connection.read_response()).status == 413
        await connection.send(write_request("/health", method="GET"))
        assert (await connection.read_response()).status == 200


async def test_stop_texts_that_are_too_long_are_refused_by_name(cluster: Cluster) -> None:
    response = await cluster.http.post(PATH, json=CHAT | {"stop": "x" * 2000})
    assert response.status_code == 400 and response.json()["error"]["param"] == "stop"


async def test_hostile_clients_cost_others_nothing(cluster: Cluster) -> None:
    """Fifty clients that stop amid their request, and bodies that only nest, while ordinary ones are answered."""
    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(send_part(cluster, write_request(PATH, BODY)[: 30 + number]))
        deep = [group.create_task(cluster.http.post(PATH, content=b"[" * (4 << 20))) for _ in range(4)]
        answers = [group.create_task(cluster.is_well()) for _ in range(20)]
    assert all(one.result() for one in answers)
    assert {one.result().status_code for one in deep} == {400}


async def send_part(cluster: Cluster, data: bytes) -> None:
    async with connect(cluster.gateway.url) as connection:
        await connection.send(data)
        assert await cluster.is_well()
