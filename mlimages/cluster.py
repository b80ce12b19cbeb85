"""Ray as the engine: workers on this machine, or on the machines of a cluster that runs already."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mlimages.errors import InputError, MissingExtraError

try:
    import ray
except ImportError as error:
    raise MissingExtraError("the engine ray", "ray") from error


@dataclass(frozen=True, slots=True)
class Cluster:
    """Machines on which Ray starts our workers, one per CPU."""

    cpus: int

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
            ray.init(address or "local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as error:
            raise InputError(f"no Ray cluster at {address}: start one with `ray start --head` ({error})") from error
    try:
        yield Cluster(int(ray.cluster_resources()["CPU"]))  # type: ignore[no-untyped-call]
    finally:
        if is_ours:
            ray.shutdown()
