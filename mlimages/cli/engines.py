"""Engines that run a command: this machine, or a Ray cluster."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Literal

import typer

from mlimages import core
from mlimages.cli.process import interrupt_on_sigterm
from mlimages.core import InputError, require_extra

Engine = Literal["local", "ray"]
ENGINE = typer.Option(
    "local", help="local: run on this machine; ray: one worker per CPU of a Ray cluster.", rich_help_panel="Options"
)
ADDRESS = typer.Option(
    None,
    metavar="HOST:PORT",
    help="Address of the Ray cluster for --engine ray; auto: the cluster to which this machine belongs.",
    show_default="start Ray on this machine",
    rich_help_panel="Options",
)


def require_engine_installed(engine: Engine) -> None:
    """Raise MissingExtraError if the engine is Ray and Ray is not installed."""
    if engine == "ray":
        require_extra("--engine ray", "ray", "ray")


@contextmanager
def open_cluster(engine: Engine, address: str | None) -> Iterator[core.RayCluster | None]:
    """Connect to the Ray cluster at an address, or start Ray on this machine; yield None if the engine is `local`.

    Ray's output goes to standard error until the context exits. SIGTERM is handled like Ctrl-C, as without Ray.

    Raises:
        InputError: there is no such cluster, or `address` is given and the engine is `local`.
        MissingExtraError: Ray is not installed.
    """
    if engine == "ray":
        with redirect_stdout(sys.stderr), core.connect_to_ray(address) as cluster:  # Ray prints errors of its workers
            interrupt_on_sigterm()
            yield cluster
    elif address:
        raise InputError("--address requires --engine ray")
    else:
        yield None
