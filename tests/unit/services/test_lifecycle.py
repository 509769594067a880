"""Stopping: one request may come as several signals at once."""

import signal

from paceline_services.lifecycle import StopSignal


async def test_signals_that_come_together_are_one_request() -> None:
    stop = StopSignal()
    stop.install()
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    await stop.wait()
    assert stop.is_requested()
