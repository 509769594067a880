"""Web pages and the gateway: none may call it unless its origin was named."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.head import MODEL, ScriptedControlPlane, ScriptedHead, make_instance, run_gateway

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
PATH = "/v1/chat/completions"
PAGE, OTHER = "https://chat.example", "https://evil.example"
HEADERS = "authorization, content-type, x-stainless-lang"


@asynccontextmanager
async def serve(home: Path, origins: str) -> AsyncIterator[httpx.AsyncClient]:
    async with ScriptedHead().serve() as head, ScriptedControlPlane().serve() as control_plane:
        await control_plane.show(make_instance("demo-1", head.address))
        async with (
            run_gateway(control_plane.address, home, {"CORS_ORIGINS": origins}) as gateway,
            httpx.AsyncClient(base_url=gateway.url, timeout=30) as http,
        ):
            yield http


async def ask_leave(http: httpx.AsyncClient, origin: str, method: str = "POST") -> httpx.Response:
    """What a browser asks before a page's own request."""
    headers = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": HEADERS}
    return await http.options(PATH, headers=headers)


async def test_no_page_may_call_unless_told(tmp_path: Path) -> None:
    async with serve(tmp_path, "") as http:
        leave = await ask_leave(http, PAGE)
        assert leave.status_code == 405 and "access-control-allow-origin" not in leave.headers
        answer = await http.post(PATH, json=CHAT, headers={"Origin": PAGE})
        assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers


async def test_named_pages_may_call_and_read_what_clients_need(tmp_path: Path) -> None:
    async with serve(tmp_path, f"{PAGE}, http://localhost:3000") as http:
        leave = await ask_leave(http, PAGE)
        assert leave.status_code == 200 and leave.headers["access-control-allow-origin"] == PAGE
        assert leave.headers["access-control-allow-headers"] == HEADERS
        assert "POST" in leave.headers["access-control-allow-methods"] and leave.headers["access-control-max-age"]
        assert "access-control-allow-credentials" not in leave.headers
        for stream in (False, True):
            answer = await http.post(PATH, json=CHAT | {"stream": stream}, headers={"Origin": PAGE})
            assert answer.headers["access-control-allow-origin"] == PAGE and "Origin" in answer.headers["vary"]
            exposed = answer.headers["access-control-expose-headers"].lower()
            assert "x-request-id" in exposed and "retry-after" in exposed
        refused = await http.post(PATH, content=b"{", headers={"Origin": PAGE})
        assert refused.status_code == 400 and refused.headers["access-control-allow-origin"] == PAGE


async def test_other_pages_are_refused(tmp_path: Path) -> None:
    async with serve(tmp_path, PAGE) as http:
        leave = await ask_leave(http, OTHER)
        assert leave.status_code == 400 and "access-control-allow-origin" not in leave.headers
        answer = await http.post(PATH, json=CHAT, headers={"Origin": OTHER})
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_every_page_may_call_without_credentials_where_all_are_named(tmp_path: Path, method: str) -> None:
    async with serve(tmp_path, "*") as http:
        leave = await ask_leave(http, OTHER, method)
        assert leave.status_code == 200 and leave.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in leave.headers
        answer = await http.post(PATH, json=CHAT, headers={"Origin": OTHER, "Cookie": "a=b"})
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers
