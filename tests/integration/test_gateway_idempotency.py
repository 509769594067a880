"""Real gateway processes and a client that sends its request again, to another one."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from support.head import MODEL, ScriptedControlPlane, ScriptedHead, make_instance, run_gateway

PATH = "/v1/chat/completions"
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
KEY = {"Idempotency-Key": "order-66"}


async def test_same_key_and_body_are_the_same_request_at_every_gateway(tmp_path: Path) -> None:
    homes = [tmp_path / "one", tmp_path / "two"]
    ids = []
    async with ScriptedHead().serve() as head, ScriptedControlPlane().serve() as control_plane:
        await control_plane.show(make_instance("demo-1", head.address))
        for home in homes:
            home.mkdir()
            async with run_gateway(control_plane.address, home) as gateway:
                async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as http:
                    answer = await http.post(PATH, json=CHAT, headers=KEY)
                    ids.append((answer.json()["id"], answer.headers["x-request-id"]))
                gateway.process.kill()
    first, second = head.requests
    assert first == second and first.sampling.seed is not None
    assert ids[0] == ids[1] and ids[0][1] == first.request_id


async def test_key_changes_nothing_but_what_the_client_left_open(tmp_path: Path) -> None:
    async with ScriptedHead().serve() as head, ScriptedControlPlane().serve() as control_plane:
        await control_plane.show(make_instance("demo-1", head.address))
        async with (
            run_gateway(control_plane.address, tmp_path) as gateway,
            httpx.AsyncClient(base_url=gateway.url, timeout=30) as http,
        ):
            for change in ({"stream": False}, {"stream": True}, {"seed": 7}, {"temperature": 0.5}):
                assert (await http.post(PATH, json=CHAT | change, headers=KEY)).status_code == 200
            named = await http.post(PATH, json=CHAT, headers=KEY | {"X-Request-Id": "mine"})
    whole, streamed, seeded, warmer, last = head.requests
    assert whole == streamed and seeded.sampling.seed == 7
    assert warmer.sampling.seed != whole.sampling.seed and warmer.request_id != whole.request_id
    assert named.headers["x-request-id"] == last.request_id == "mine" and last.sampling == whole.sampling


@pytest.mark.parametrize("key", [b"", b"x" * 256, "schlüssel".encode("latin-1")])
async def test_unusable_key_is_400(tmp_path: Path, key: bytes) -> None:
    async with (
        run_gateway("127.0.0.1:1", tmp_path) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=30) as http,
    ):
        answer = await http.post(PATH, json=CHAT, headers=[(b"Idempotency-Key", key)])
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "Idempotency-Key"
