"""python -m paceline_worker.runner: started by an agent, never by hand."""

import os
import sys
from typing import NoReturn

# Set before grpc is imported: runners never fork, and its fork handlers only warn.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from paceline_kernels import preload_fallback
from paceline_services.errors import InvalidRequestError
from paceline_services.lifecycle import StopSignal, run_service
from paceline_services.logs import configure_logs
from paceline_services.settings import read_settings
from paceline_worker.runner.pipe import AgentPipe, Start
from paceline_worker.runner.settings import RunnerSettings
from paceline_worker.stamps import open_stamps


async def run_runner(stop: StopSignal) -> None:
    """Take the first command, which must be the shard, and live with it."""
    settings = read_settings(RunnerSettings)
    stamps = open_stamps()
    configure_logs(service="runner", level=settings.log_level, log_format=settings.log_format)
    blas = preload_fallback(settings.count_threads()) if settings.kernels == "auto" else ""
    # Imports mlx, which computes with the BLAS that is loaded by then.
    from paceline_worker.runner.process import Runner

    pipe = await AgentPipe.open()
    command = await pipe.next_command()
    if command is None:
        return  # a spare one whose agent has ended
    if not isinstance(command, Start):
        raise InvalidRequestError(
            "a runner is started by an agent, which tells it its shard first; run `paceline up` instead"
        )
    await Runner(settings, pipe, command.shard, stamps, blas).run(stop)


def main() -> int:
    return run_service(run_runner)


def leave(code: int) -> NoReturn:
    """End the process without taking the interpreter apart.

    MLX's destructors of the compute thread ask for the GIL after Python counts the thread as ended; when the interpreter is being taken
    apart by then, the process aborts.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main())
