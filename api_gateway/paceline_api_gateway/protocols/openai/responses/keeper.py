"""Responses that outlive their requests: those at rest, and those that are generated in the background.

A response in the background is read here for as long as it runs; its state at rest says only that it is under way, and whose it is.
"""

import asyncio
import time
from dataclasses import dataclass

from paceline_api_gateway.faults import Fault, to_fault
from paceline_api_gateway.protocols.openai.responses.errors import describe_failure, response_not_found
from paceline_api_gateway.protocols.openai.responses.schema import Json
from paceline_api_gateway.protocols.openai.responses.store import Item, ResponseStore, Stored
from paceline_api_gateway.protocols.openai.responses.translate_events import ResponseWriter
from paceline_api_gateway.serving import OpenAnswer
from paceline_services.domain.generation import GenerationStarted
from paceline_services.errors import ConflictError, InvalidRequestError, PacelineError, UnavailableError
from paceline_services.logs import get_logger

_LAST_WRITE_S = 2.0
"""What is left at a stop for writing down what became of the responses under way."""


@dataclass(frozen=True, slots=True)
class Owned:
    """Whose response it is."""

    client_id: str
    response_id: str


@dataclass(slots=True)
class _Job:
    writer: ResponseWriter
    inputs: tuple[Item, ...]
    reading: asyncio.Task[None]
    task: asyncio.Task[None] | None = None


class Keeper:
    """Keeps responses for their clients."""

    def __init__(self, store: ResponseStore) -> None:
        self.store = store
        self._jobs: dict[Owned, _Job] = {}

    async def find(self, owned: Owned) -> Stored:
        """The response as it is now. Raises NotFoundError where this client has none."""
        found = await self.look(owned)
        if found is None:
            raise response_not_found(owned.response_id)
        return found

    async def look(self, owned: Owned) -> Stored | None:
        """The response as it is now; None where this client has none."""
        if job := self._jobs.get(owned):
            response = job.writer.response
            return Stored(response, job.inputs, tuple(Item(body) for body in response["output"]))
        return await self.store.get(owned.client_id, owned.response_id) if self.store.is_on else None

    async def start(self, client_id: str, writer: ResponseWriter, inputs: tuple[Item, ...], answer: OpenAnswer) -> Json:
        """Generate in the background; the response as it is at once. Raises UnavailableError when it cannot be stored."""
        owned = Owned(client_id, writer.response_id)
        if job := self._jobs.get(owned):  # asked for twice at once, with the same idempotency key
            await answer.aclose()
            return job.writer.response
        writer.wait_in_queue()
        response = writer.response
        job = _Job(writer, inputs, asyncio.create_task(_read(answer, writer)))
        self._jobs[owned] = job
        try:
            await self.store.put(client_id, Stored(response, inputs))
        except BaseException:
            del self._jobs[owned]
            job.reading.cancel()
            await asyncio.gather(job.reading, return_exceptions=True)
            raise
        job.task = asyncio.create_task(self._follow(owned, job))
        return response

    async def cancel(self, owned: Owned) -> Json:
        """The response, which is over now. Raises NotFoundError, InvalidRequestError for one that was not in the background."""
        if job := self._jobs.get(owned):
            job.reading.cancel()
            if job.task is not None:
                await asyncio.wait({job.task})
            return job.writer.response
        response = (await self.find(owned)).response
        if not response["background"]:
            raise InvalidRequestError(
                "Only a response that was created with background true can be cancelled.", param="response_id"
            )
        if response["status"] in {"queued", "in_progress"}:
            raise ConflictError("another gateway generates this response: cancel it there", reason="ELSEWHERE")
        return response

    async def delete(self, owned: Owned) -> None:
        """Raises NotFoundError where this client has none."""
        if owned in self._jobs:
            await self.cancel(owned)
        if not self.store.is_on or not await self.store.delete(owned.client_id, owned.response_id):
            raise response_not_found(owned.response_id)

    async def close(self, timeout_s: float) -> None:
        """Responses under way get so many seconds; then they have failed."""
        tasks = {job.task for job in self._jobs.values() if job.task is not None}
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
            for job in self._jobs.values():
                job.reading.cancel()
            await asyncio.wait(tasks, timeout=_LAST_WRITE_S)
        await self.store.close()

    async def _follow(self, owned: Owned, job: _Job) -> None:
        await asyncio.wait({job.reading})
        _conclude(job)
        try:
            await self.store.put(owned.client_id, Stored(job.writer.response, job.inputs))
        except UnavailableError:
            return  # it stays to be asked for here
        del self._jobs[owned]


async def _read(answer: OpenAnswer, writer: ResponseWriter) -> None:
    try:
        async for event in answer:
            if isinstance(event, GenerationStarted):
                writer.begin()
            writer.take(event)
    finally:
        await answer.aclose()


def _conclude(job: _Job) -> None:
    """What became of it."""
    if job.reading.cancelled():
        job.writer.cancel()
        return
    error = job.reading.exception()
    if error is None:
        job.writer.end(int(time.time()))
    elif isinstance(error, PacelineError):
        job.writer.fail(describe_failure(to_fault(error)))
    else:
        get_logger().error("background_response_failed", response_id=job.writer.response_id, exc_info=error)
        job.writer.fail(describe_failure(Fault(500, "the gateway failed by a defect; its log has the traceback")))
