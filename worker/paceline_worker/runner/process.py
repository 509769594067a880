"""One shard's life: load, listen, connect, work, end. Effects only; what to compute is decided in pipeline."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import psutil

from paceline.generation.v1 import generation_pb2, generation_pb2_grpc
from paceline_kernels import KernelReport, use_kernels
from paceline_services.domain.runners import Precision, RunnerLoad, RunnerReport, RunnerState, ShardAssignment
from paceline_services.errors import ConfigurationError, UnavailableError
from paceline_services.lifecycle import StopSignal
from paceline_services.logs import get_logger
from paceline_services.rpc import RpcServer, serve_rpc, service_names
from paceline_worker.engine.draft_model import DraftModel
from paceline_worker.engine.stage_engine import StageEngine
from paceline_worker.model.shard import LoadedShard, load_shard
from paceline_worker.model.stage import ShardRange
from paceline_worker.model.tokenizer import load_tokenizer
from paceline_worker.pipeline.compute import ComputeThread
from paceline_worker.pipeline.guessing import Guesser
from paceline_worker.pipeline.head import Head
from paceline_worker.pipeline.memory import UNCOUNTED_TOKENS, KvMemory, count_capacity, round_up
from paceline_worker.pipeline.scheduler import Scheduler, SchedulerLimits
from paceline_worker.pipeline.stages import Ring, StageLoop
from paceline_worker.pipeline.vocabulary import Vocabulary
from paceline_worker.runner.pipe import AgentPipe, Connect, Drain, resident_bytes
from paceline_worker.runner.servicer import GenerationServicer
from paceline_worker.runner.settings import RunnerSettings
from paceline_worker.transport.grpc_link import GrpcLink, StageServicer
from paceline_worker.transport.link import FrameInbox, LinkBrokenError
from paceline_worker.weights.card import read_card

PROGRESS_STEP = 0.05
LOAD_INTERVAL_S = 2.0


class Runner:
    """The process. Reports every change of its state to the agent."""

    def __init__(self, settings: RunnerSettings, pipe: AgentPipe, shard: ShardAssignment, blas: str = "") -> None:
        self._settings = settings
        self._blas = blas
        self._pipe = pipe
        self._shard = shard
        self._compute = ComputeThread()
        self._next_address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._report = RunnerReport(
            shard.instance_id, shard.epoch, shard.stage, shard.start_layer, shard.end_layer, RunnerState.STARTING
        )

    async def run(self, stop: StopSignal) -> None:
        """Live until told to stop or until the agent is gone. Raises what keeps the shard from loading."""
        self._tell(RunnerState.LOADING)
        loading = asyncio.create_task(self._load())
        orders = asyncio.create_task(self._obey(stop))
        try:
            await asyncio.wait({loading, orders}, return_when=asyncio.FIRST_COMPLETED)
            if not orders.done():
                await self._live(loading.result(), orders)
        finally:
            loading.cancel()
            orders.cancel()
            self._compute.close()

    async def _live(self, loaded: LoadedShard, orders: asyncio.Task[float]) -> None:
        """Serve a loaded shard until the agent's orders end it."""
        shard = self._shard
        inbox = FrameInbox()
        engine = self._make_engine(loaded)
        ring = Ring(shard, engine, self._compute)
        head = await self._make_head(ring) if shard.is_head else None
        async with self._serve(inbox, head) as server:
            address = f"{self._settings.host_address}:{server.port}"
            self._tell(
                RunnerState.LOADED, address=address, loaded_bytes=loaded.loaded_bytes, read_bytes=loaded.read_bytes
            )
            loop = head if head is not None else StageLoop(shard, engine, self._compute)
            work = asyncio.create_task(self._work(loop, ring, inbox))
            reporting = asyncio.create_task(self._report_load(loop))
            await asyncio.wait({work, orders}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
                await orders
            await _drain(head, orders.result())
            for task in (work, reporting):
                task.cancel()
            await asyncio.gather(work, reporting, return_exceptions=True)

    async def _load(self) -> LoadedShard:
        shard = self._shard
        layers = ShardRange(shard.stage, shard.num_stages, shard.start_layer, shard.end_layer)
        loop = asyncio.get_running_loop()

        def on_progress(part: float) -> None:
            loop.call_soon_threadsafe(self._tell_progress, part)

        def load() -> LoadedShard:
            self._use_kernels()
            return load_shard(Path(shard.model_path), layers, on_progress, kv_bits=shard.kv_bits)

        return await self._compute.run(load)

    def _use_kernels(self) -> None:
        """Compute with Paceline's CPU kernels from now on; where there are none, exactly and with stock MLX, whatever was wanted."""
        wanted = self._shard.precision
        if self._settings.kernels == "off":
            reason = "turned off by the setting kernels"
            report = KernelReport(in_use=False, reason=reason)
        else:
            report = use_kernels(precision=wanted.value, num_threads=self._settings.count_threads())
        log_kernels(replace(report, blas=self._blas), wanted)

    def _make_engine(self, loaded: LoadedShard) -> StageEngine:
        shard, per_token = self._shard, loaded.model.kv_bytes_per_token
        wanted_bytes = shard.kv_cache_bytes or round_up(shard.context_length) * per_token
        capacity = count_capacity(wanted_bytes, psutil.virtual_memory().available, per_token)
        get_logger().info("kv_cache_sized", num_tokens=capacity, bytes_per_token=per_token, wanted_bytes=wanted_bytes)
        return StageEngine(loaded.model, is_first=shard.is_first, is_head=shard.is_head, capacity_tokens=capacity)

    async def _make_head(self, ring: Ring) -> Head:
        settings, shard = self._settings, self._shard
        tokenizer, vocab_size = await asyncio.to_thread(_read_vocabulary, Path(shard.model_path))
        limits = SchedulerLimits(settings.max_running, settings.max_waiting, settings.chunk_tokens)
        memory = KvMemory(ring.engine.capacity_tokens or UNCOUNTED_TOKENS, can_cut=ring.engine.can_cut)
        scheduler = Scheduler(limits, memory, shard.num_stages)
        draft_model = None
        if shard.draft_model_path:
            await asyncio.to_thread(_check_draft, shard, tokenizer)
            draft_model = await self._compute.run(lambda: _load_draft_model(shard))
        guesser = None
        if settings.speculation == "auto" and ring.engine.can_cut:
            guesser = Guesser(scheduler.costs, self._compute, draft_model)
        return Head(ring, Vocabulary(tokenizer, vocab_size), scheduler, shard.context_length, guesser)

    @asynccontextmanager
    async def _serve(self, inbox: FrameInbox, head: Head | None) -> AsyncIterator[RpcServer]:
        def add_services(server: grpc.aio.Server) -> None:
            StageServicer(self._shard.instance_id, self._shard.epoch, inbox).add_to(server)
            if head is not None:
                servicer = GenerationServicer(self._shard.model_id, head)
                generation_pb2_grpc.add_GenerationServiceServicer_to_server(servicer, server)

        reflected = service_names([generation_pb2.DESCRIPTOR]) if head is not None else ()
        async with serve_rpc(f"{self._settings.host_address}:0", add_services, reflected=reflected) as server:
            for service in reflected:
                await server.set_serving(service, is_serving=True)
            yield server

    async def _obey(self, stop: StopSignal) -> float:
        """Follow the agent's commands; returns, in seconds, how long running requests may still take, once it is time to end."""
        stopped = asyncio.create_task(stop.wait())
        try:
            while True:
                command = asyncio.create_task(self._pipe.next_command())
                await asyncio.wait({stopped, command}, return_when=asyncio.FIRST_COMPLETED)
                if not command.done():
                    command.cancel()
                    return self._settings.drain_timeout_s
                match command.result():
                    case None:
                        return 0.0
                    case Drain(deadline_s):
                        return deadline_s
                    case Connect(next_address) if not self._next_address.done():
                        self._next_address.set_result(next_address)
        finally:
            stopped.cancel()

    async def _work(self, loop: Head | StageLoop, ring: Ring, inbox: FrameInbox) -> None:
        """Connect and run steps until an edge breaks; then the epoch is over, which is reported and no error of ours."""
        try:
            if isinstance(loop, Head) and self._shard.num_stages == 1:
                self._tell(RunnerState.READY)
                await loop.run()
            link = await self._connect()
            try:
                ring.connect(inbox, link)
                self._tell(RunnerState.READY)
                await _first_to_end(loop.run() if isinstance(loop, Head) else loop.run(inbox, link), inbox, link)
            finally:
                await link.close()
        except LinkBrokenError as error:
            self._tell(RunnerState.BROKEN, failure_message=error.message)
            if isinstance(loop, Head):
                loop.fail_all(
                    UnavailableError(f"a part of the instance was lost: {error.message}", reason="INSTANCE_BROKEN")
                )

    async def _connect(self) -> GrpcLink:
        address = await self._next_address
        return await GrpcLink.connect(
            address, self._shard.instance_id, self._shard.epoch, self._settings.link_timeout_s
        )

    async def _report_load(self, loop: Head | StageLoop) -> None:
        """Tell how busy the runner is, as long as that changes."""
        told = RunnerLoad()
        while True:
            await asyncio.sleep(LOAD_INTERVAL_S)
            load = loop.read_load()
            if self._report.state is RunnerState.READY and load != told:
                told = load
                self._tell(RunnerState.READY, load=load)

    def _tell(self, state: RunnerState, **changed: Any) -> None:
        if state is not self._report.state:
            get_logger().info(
                "runner_state_changed", state=state.value, stage=self._shard.stage, epoch=self._shard.epoch
            )
        self._report = replace(self._report, state=state, pid=os.getpid(), resident_bytes=resident_bytes(), **changed)
        self._pipe.report(self._report)

    def _tell_progress(self, part: float) -> None:
        if self._report.state is RunnerState.LOADING and part - self._report.load_progress >= PROGRESS_STEP:
            self._tell(RunnerState.LOADING, load_progress=part)


async def _first_to_end(work: Coroutine[Any, Any, None], inbox: FrameInbox, link: GrpcLink) -> None:
    """Run the stage's work until one of its edges breaks; raises LinkBrokenError."""
    edges = [asyncio.create_task(inbox.wait_broken()), asyncio.create_task(link.wait_broken())]
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task, *edges}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        reason = next(edge.result() for edge in edges if edge.done())
        raise LinkBrokenError(reason.message)
    finally:
        for pending in (task, *edges):
            pending.cancel()
        await asyncio.gather(task, *edges, return_exceptions=True)


async def _drain(head: Head | None, deadline_s: float) -> None:
    """Let running requests finish within the deadline; new ones are refused."""
    if head is None:
        return
    head.refuse(UnavailableError("this instance is stopping: try again", reason="DRAINING"))
    with suppress(TimeoutError):
        async with asyncio.timeout(deadline_s):
            await head.wait_idle()
    head.fail_all(UnavailableError("this instance was stopped", reason="DRAINING"))


def log_kernels(report: KernelReport, wanted: Precision) -> None:
    """Say what the shard computes with. Without kernels it is exact, whatever was wanted."""
    log = get_logger(wanted=wanted.value, blas=report.blas)
    if report.in_use:
        log.info(
            "kernels_in_use",
            instruction_set=report.instruction_set,
            num_threads=report.num_threads,
            precision=wanted.value,
        )
    else:
        log.info("kernels_absent", reason=report.reason, precision=Precision.EXACT.value)


def _check_draft(shard: ShardAssignment, tokenizer: Any) -> None:
    """Raise ConfigurationError when the draft model does not speak of the same tokens."""
    draft_tokenizer = load_tokenizer(Path(shard.draft_model_path))
    if draft_tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ConfigurationError(
            f"{shard.draft_model_id} cannot draft for {shard.model_id}: their vocabularies differ; choose a smaller model of the "
            "same family, or place it without --draft"
        )


def _load_draft_model(shard: ShardAssignment) -> DraftModel:
    folder = Path(shard.draft_model_path)
    num_layers = read_card(folder, shard.draft_model_id).num_layers
    loaded = load_shard(folder, ShardRange(0, 1, 0, num_layers), lambda _: None)
    if not loaded.model.can_cut:
        raise ConfigurationError(
            f"{shard.draft_model_id} cannot draft: its KV cache cannot be cut back to the tokens that were right"
        )
    return DraftModel(loaded.model, shard.context_length)


def _read_vocabulary(folder: Path) -> tuple[Any, int]:
    tokenizer = load_tokenizer(folder)
    config = json.loads((folder / "config.json").read_text())
    vocab_size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size") or len(tokenizer)
    return tokenizer, int(vocab_size)
