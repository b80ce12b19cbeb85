"""Main function of a decoding process, which verifies and resizes image files for its parent process."""

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
from mlimages.gathering.download.image_info import ImageInfo, ImageRequirements, Rejection
from mlimages.gathering.download.inspect import verify_and_resize

_MAX_MEMORY_BYTES = 2 * 2**30


def run_decoder(connection: Connection, requirements: ImageRequirements) -> None:
    """Receive JSON lists of paths and send a JSON object per file, until the parent disconnects.

    An object contains the fields of the file's `ImageInfo` or `Rejection`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    _discard_process_output()
    Image.MAX_IMAGE_PIXELS = requirements.max_pixels
    _limit_memory()
    with suppress(EOFError, ConnectionError):
        while True:
            paths = json.loads(connection.recv_bytes())
            connection.send_bytes(json.dumps([_verify_as_dict(Path(path), requirements) for path in paths]).encode())


def _verify_as_dict(path: Path, requirements: ImageRequirements) -> dict[str, object]:
    try:
        result: ImageInfo | Rejection = verify_and_resize(path, requirements)
    except (Exception, RecursionError) as error:  # a decoder may raise anything; only this image fails
        result = Rejection(Reason.DECODER, f"{type(error).__name__}: {error}"[:200])
    return {name: getattr(result, name) for name in result.__slots__}


def _discard_process_output() -> None:
    """Discard warnings and the standard output and error, to which decoders report malformed images."""
    warnings.simplefilter("ignore")
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    os.close(null)


def _limit_memory() -> None:
    with suppress(ModuleNotFoundError):  # Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
