"""Real agents and real runners that share a stage: ranks of a tiny model over a ring on loopback, answering, killed, stopped and replaced."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from paceline_services.domain.runners import RunnerState
from paceline_services.errors import UnavailableError
from paceline_services.ids import Epoch, InstanceId
from paceline_worker.transport.grpc_link import GrpcLink
from paceline_worker.transport.link import LinkBrokenError
from support.models import make_tiny_model
from support.nodes import CONTEXT, MODEL, NUM_LAYERS, NUM_TOKENS, Node, Stream, open_node, place, place_ranks

TOLD_LIMIT_S = 2.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("model") / MODEL
    make_tiny_model("llama", path, num_hidden_layers=NUM_LAYERS, max_position_embeddings=CONTEXT)
    return path


@asynccontextmanager
async def open_nodes(home: Path, model: Path, number: int) -> AsyncIterator[Sequence[Node]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_node(home / f"n{index}", model)) for index in range(number)]


async def test_two_ranks_answer_like_one_runner(model: Path, tmp_path: Path) -> None:
    async with open_nodes(tmp_path, model, 2) as (one, two):
        (alone,) = await place(1, [one], [])
        expected = await Stream().read(alone.address)
        head, other = await place_ranks(2, [[one, two]])
        assert head.loaded_bytes + other.loaded_bytes < 1.1 * alone.loaded_bytes
        assert await Stream().read(head.address) == expected
        assert len(expected) == NUM_TOKENS
        with pytest.raises(UnavailableError) as refused:
            await Stream().read(other.address)
        assert refused.value.reason == "INSTANCE_BROKEN"
