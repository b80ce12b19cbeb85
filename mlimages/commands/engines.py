"""Where a command's work is done: here, or by the workers of a cluster."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Literal

import typer

from mlimages.errors import InputError

if TYPE_CHECKING:
    from mlimages.cluster import Cluster

Engine = Literal["local", "ray"]
ENGINE = typer.Option("local", help="ray: a worker per CPU, of this machine or of a cluster.")
ADDRESS = typer.Option(None, metavar="HOST:PORT", help="With ray: this cluster; auto: the one this machine is in.")


def cluster_of(engine: Engine, address: str | None) -> AbstractContextManager[Cluster | None]:
    """The cluster, to be entered; None where the work is done here.

    Raises:
        InputError: an address, and no engine that takes one.
        MissingExtraError: Ray is not installed.
    """
    if engine == "ray":
        from mlimages.cluster import ray_cluster

        return ray_cluster(address)
    if address:
        raise InputError("--address names a Ray cluster: say --engine ray too")
    return nullcontext()
