"""mlimages: from class names, a folder of images or a list of links to a deployed image classifier."""

from __future__ import annotations

import sys
from typing import Any

from mlimages.core.errors import MissingExtraAttributeError, MissingExtraError
from mlimages.core.lazy import attach

__version__ = "1.0.0"

_load, _, _public = attach(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__all__":  # what `from mlimages import *` and `help` list: the names whose extras are installed
        return [public for public in _public if hasattr(sys.modules[__name__], public)]
    try:
        return _load(name)
    except MissingExtraError as error:
        # `from mlimages import name` asks `hasattr` first, and would replace an AttributeError by "cannot import name".
        if sys._getframe(1).f_code.co_name == "_handle_fromlist":
            raise
        raise MissingExtraAttributeError(str(error)) from error


def __dir__() -> list[str]:
    return [*_public, "__version__"]
