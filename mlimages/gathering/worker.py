"""One decoding process: a JSON line of paths comes in, a JSON line of what was found goes out."""

from __future__ import annotations

import json
import signal
import sys
import warnings
from pathlib import Path

from PIL import Image

from mlimages.gathering.facts import Checks, Facts, Rejection
from mlimages.gathering.inspect import inspect_file
from mlimages.records import Reason

_MEMORY_BYTES = 2 * 2**30


def main() -> None:
    """Serve until standard input ends; the checks are the first argument, as JSON."""
    checks = Checks(**json.loads(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = checks.max_pixels
    _bound_memory()
    out = sys.stdout
    out.write("ready\n")
    out.flush()
    for line in sys.stdin:
        out.write(json.dumps([_answer(Path(path), checks) for path in json.loads(line)]) + "\n")
        out.flush()


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
