"""Ray as the engine: workers on this machine, or on the machines of a cluster that runs already."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from mlimages.core.errors import InputError, MissingExtraError
from mlimages.core.parallel import AHEAD, Item, Result, in_order

try:
    import ray
    from ray.exceptions import RayTaskError, WorkerCrashedError
except ImportError as error:
    raise MissingExtraError("the engine ray", "ray") from error


@ray.remote
def _apply(folder: str, function: Callable[[Any], Any], item: Any) -> Any:
    with suppress(OSError):
        os.chdir(folder)
    return function(item)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Machines on which Ray runs our work, a process per CPU; a `pools.Pool`."""

    workers: int
    at_once: int = 64

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`function` of each item, in order; the files that it reads must be there under the same names.

        Raises:
            InputError: an item costs each process that works on it its life.
        """
        folder = os.getcwd()  # noqa: PTH109
        try:
            for result in in_order(lambda item: _apply.remote(folder, function, item), items, AHEAD * self.workers):
                yield ray.get(result)
        except RayTaskError as error:
            raise error.cause from None
        except WorkerCrashedError as error:
            raise InputError(
                "processes died again and again over the same pictures: try without --engine ray"
            ) from error

    def start(self, worker: type, *args: object) -> Any:
        """A `worker(*args)` in a process of its own: a handle whose methods have `remote`."""
        return ray.remote(num_cpus=1)(worker).remote(*args)


@contextmanager
def ray_cluster(address: str | None = None) -> Iterator[Cluster]:
    """Ray on this machine's CPUs, or the cluster at `address` ("auto": the one that this machine belongs to).

    Raises:
        InputError: no cluster is there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report home
    is_ours = not ray.is_initialized()
    if is_ours:
        try:
            if address and address != "auto":
                _demand_answer(address)
            ray.init(address or "local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError) as error:
            advice = "`ray start --head` starts one; where it asks for a token, RAY_AUTH_TOKEN_PATH names its file"
            raise InputError(f"no Ray cluster lets us in at {address}: {error}; {advice}") from error
    try:
        yield Cluster(int(ray.cluster_resources()["CPU"]))  # type: ignore[no-untyped-call]
    finally:
        if is_ours:
            ray.shutdown()


def _demand_answer(address: str) -> None:
    """Raise at once where Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10):
        pass
