"""Run a coroutine from synchronous code, also in a notebook."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

_T = TypeVar("_T")


def run_blocking(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine and return its result; in another thread if the current thread has a running event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    started: Future[asyncio.Task[Any] | None] = Future()

    async def run() -> _T:
        started.set_result(asyncio.current_task())
        return await coroutine

    with ThreadPoolExecutor(1, "gather") as pool:
        result = pool.submit(asyncio.run, run())
        try:
            return result.result()
        except KeyboardInterrupt:  # "interrupt the kernel": stop at once, like Ctrl-C elsewhere
            if task := started.result():
                task.get_loop().call_soon_threadsafe(task.cancel)
            raise
