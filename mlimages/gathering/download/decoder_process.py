"""One decoding process: a JSON line of paths comes in, a JSON line of what was found goes out."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import warnings
from contextlib import suppress
from pathlib import Path

from PIL import Image

from mlimages.core import Reason
from mlimages.gathering.download.image_facts import Checks, Facts, Rejection
from mlimages.gathering.download.inspect import inspect_file

_MEMORY_BYTES = 2 * 2**30


def main() -> None:
    """Serve until standard input ends; the first argument is the checks, as JSON, the second asks for forks that do."""
    checks = Checks(**json.loads(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = checks.max_pixels
    _bound_memory()
    if "forks" in sys.argv[2:]:
        if checks.resize:
            import mlimages.gathering.download.downscale  # noqa: F401 - numpy, once for all forks
        _fork_when_asked()
    out = sys.stdout
    out.write(f"ready {os.getpid()}\n")
    out.flush()
    for line in sys.stdin:
        out.write(json.dumps([_answer(Path(path), checks) for path in json.loads(line)]) + "\n")
        out.flush()


def _fork_when_asked() -> None:
    """Return in each fork, the stream that came for it being its standard input and output."""
    Image.preinit()
    gc.freeze()  # else the first look for garbage would copy every page
    asked = socket.socket(fileno=0)
    while streams := socket.recv_fds(asked, 1, 1)[1]:
        if os.fork() == 0:
            os.dup2(streams[0], asked.detach())
            os.dup2(streams[0], 1)
            os.close(streams[0])
            return
        os.close(streams[0])
        _bury(os.WNOHANG)
    _bury(0)
    os._exit(0)


def _bury(options: int) -> None:
    """Take note of forks that have ended, so that their CPU time counts and none stays a zombie."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, options)[0]:
            pass


def _answer(path: Path, checks: Checks) -> dict[str, object]:
    try:
        found: Facts | Rejection = inspect_file(path, checks)
    except (Exception, RecursionError) as error:  # a decoder may raise anything; it costs this picture alone
        found = Rejection(Reason.DECODER, f"{type(error).__name__}: {error}"[:200])
    return {name: getattr(found, name) for name in found.__slots__}


def _bound_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    main()
