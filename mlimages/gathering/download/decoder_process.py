"""The decoding process: it receives paths through a pipe and sends back the results of inspecting the files."""

from __future__ import annotations

import json
import os
import signal
import warnings
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from PIL import Image

from mlimages.core import Reason
from mlimages.gathering.download.image_facts import ImageFacts, ImageRequirements, Rejection
from mlimages.gathering.download.inspect import inspect_file

_MEMORY_BYTES = 2 * 2**30


def serve(jobs: Connection, requirements: ImageRequirements) -> None:
    """Answer each JSON list of paths with a JSON list of results, until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    _discard_output()
    Image.MAX_IMAGE_PIXELS = requirements.max_pixels
    _limit_memory()
    with suppress(EOFError, ConnectionError):
        while True:
            paths = json.loads(jobs.recv_bytes())
            jobs.send_bytes(json.dumps([_inspect(Path(path), requirements) for path in paths]).encode())


def _inspect(path: Path, requirements: ImageRequirements) -> dict[str, object]:
    try:
        found: ImageFacts | Rejection = inspect_file(path, requirements)
    except (Exception, RecursionError) as error:  # a decoder may raise anything; only this image fails
        found = Rejection(Reason.DECODER, f"{type(error).__name__}: {error}"[:200])
    return {name: getattr(found, name) for name in found.__slots__}


def _discard_output() -> None:
    """Discard warnings of Python and of the decoders' libraries about malformed images."""
    warnings.simplefilter("ignore")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)


def _limit_memory() -> None:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
