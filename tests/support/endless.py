"""Heads whose answers do not end by themselves, for tests of readers that are slow or leave."""

import asyncio
from collections.abc import AsyncIterator

from paceline_services.domain.generation import ChoiceDelta, GenerateRequest, GenerationEvent, GenerationStarted

WORD = "word " * 40


class Endless:
    """Says WORD for ever, as fast as it is taken, and counts how often."""

    def __init__(self) -> None:
        self.num_said = 0

    async def answer(self, request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        yield GenerationStarted(request.request_id, 1, 0)
        while True:
            yield ChoiceDelta(0, (1,), WORD, self.num_said)
            self.num_said += 1


async def stall(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
    """One token, then nothing."""
    yield GenerationStarted(request.request_id, 1, 0)
    yield ChoiceDelta(0, (1,), "first", 0)
    await asyncio.Event().wait()


async def wait_in_queue(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
    """Nothing at all."""
    await asyncio.Event().wait()
    yield GenerationStarted(request.request_id, 1, 0)
