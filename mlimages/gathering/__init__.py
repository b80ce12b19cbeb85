"""From the web to folders of verified pictures and a manifest."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlimages.gathering.imagenet import ImageNet
    from mlimages.gathering.lists import read_list
    from mlimages.gathering.loop import gather, gather_async
    from mlimages.gathering.manifest import read_manifest
    from mlimages.gathering.openverse import Openverse
    from mlimages.gathering.options import GatherOptions
    from mlimages.gathering.pexels import Pexels
    from mlimages.gathering.sources import Source, UrlList

_MODULE_OF = {
    "GatherOptions": "options",
    "ImageNet": "imagenet",
    "Openverse": "openverse",
    "Pexels": "pexels",
    "Source": "sources",
    "UrlList": "sources",
    "gather": "loop",
    "gather_async": "loop",
    "read_list": "lists",
    "read_manifest": "manifest",
}

__all__ = [
    "GatherOptions",
    "ImageNet",
    "Openverse",
    "Pexels",
    "Source",
    "UrlList",
    "gather",
    "gather_async",
    "read_list",
    "read_manifest",
]


def __getattr__(name: str) -> Any:  # lazy: the decoding processes import this package without aiohttp
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
