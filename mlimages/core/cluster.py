"""Run work on Ray: on this machine, or on a running cluster."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from mlimages.core.errors import GatherError, InputError, MissingExtraError
from mlimages.core.lazy import disable_telemetry
from mlimages.core.parallel import MAX_CRASHES, POLL_INTERVAL_S, PREFETCH_FACTOR, Item, Result, submit_ahead

logger = logging.getLogger(__name__)

try:
    import ray
    from ray.exceptions import RayError, RayTaskError, WorkerCrashedError
except ModuleNotFoundError as error:
    raise MissingExtraError("--engine ray", "ray") from error


@ray.remote
def _run_task(working_folder: str, function: Callable[[Any], Any], item: Any) -> Any:
    """Return `function(item)`, called in `working_folder` if the folder exists on this machine."""
    with suppress(OSError):
        os.chdir(working_folder)
    return function(item)


@dataclass(frozen=True, slots=True)
class RayCluster:
    """A Ray cluster with one worker process per CPU; implements `parallel.Pool`, which describes the attributes."""

    workers: int
    chunk_size: int = 64

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Apply `function` to each item, and yield the results in order.

        Files that `function` reads must have the same paths on every machine.

        Raises:
            InputError: the worker processes crashed repeatedly on the same item.
        """
        try:
            submit = partial(_run_task.remote, os.getcwd(), function)  # noqa: PTH109
            for result in submit_ahead(submit, items, PREFETCH_FACTOR * self.workers):
                yield ray.get(result)
        except RayTaskError as error:
            raise error.cause from None
        except WorkerCrashedError as error:
            raise InputError(
                "workers crashed repeatedly on the same images: run the command without --engine ray"
            ) from error

    def map_as_completed(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[list[Result]]:
        """Apply `function` to each item; yield lists with the results of the tasks that finished since the last list.

        A list, which may be empty, is yielded at least once a second. Tasks whose process crashed are retried.

        Raises:
            GatherError: the process of a task crashed repeatedly.
        """
        submit = partial(_run_task.options(max_retries=MAX_CRASHES - 1).remote, os.getcwd(), function)  # noqa: PTH109
        running = [submit(item) for item in items]
        try:
            while running:
                ended, running = ray.wait(running, num_returns=len(running), timeout=POLL_INTERVAL_S)
                yield ray.get(ended)
        except RayTaskError as error:
            raise error.cause from None
        except WorkerCrashedError as error:
            detail = str(error).strip().splitlines()[-1]
            raise GatherError(f"a worker crashed {MAX_CRASHES} times on the same links: {detail}") from error
        finally:
            for one in running:
                ray.cancel(one, force=True)


@contextmanager
def connect_to_ray(address: str | None = None) -> Iterator[RayCluster]:
    """Context manager: start Ray on this machine or, given an `address`, connect to a cluster.

    If this process has already started Ray or connected to a cluster, that cluster is used.

    Args:
        address: address of the cluster; "auto" is a running cluster of this machine.

    Raises:
        InputError: there is no such cluster, it has no CPU, or Ray cannot be started.
    """
    is_ours = not ray.is_initialized()
    if is_ours:
        try:
            if address and address != "auto":
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), timeout=10).close()  # Ray would retry for minutes
            with disable_telemetry("RAY_USAGE_STATS_ENABLED", "0"):
                ray.init(address or "local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError, RayError) as error:
            reason = str(error).partition(". ")[0]
            if not address:
                raise InputError(f"cannot start Ray on this machine: {reason}") from error
            advice = (
                "`ray start --head --disable-usage-stats` starts one; if it requires a token, set RAY_AUTH_MODE=token "
                "and RAY_AUTH_TOKEN_PATH to the token file"
            )
            raise InputError(f"cannot connect to a Ray cluster at {address}: {reason}; {advice}") from error
    try:
        count = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
        if count < 1:
            where = f" at {address}" if address else ""
            raise InputError(f"the Ray cluster{where} has no CPU: start it with --num-cpus")
        if ray.available_resources().get("CPU", 0) < 1:  # type: ignore[no-untyped-call]
            logger.warning("all %s CPUs of the Ray cluster are in use: waiting for a free CPU", count)
        yield RayCluster(count)
    finally:
        if is_ours:
            ray.shutdown()
