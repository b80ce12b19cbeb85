"""Imports: of a package's public names on first access, of extras, and of libraries without their telemetry."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lazy_loader import attach_stub

from mlimages.core.errors import MissingExtraError


def attach(
    package: str, file: str, *, extra: str = ""
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` for a package whose modules are imported on first access.

    Args:
        package: `__name__` of the package.
        file: `__file__` of the package, beside which `__init__.pyi` lies.
        extra: the extra that some modules of the package need. If it is not installed, access to a name of these
            modules raises MissingExtraError.
    """
    load, names, exported = attach_stub(package, file)

    def import_or_raise_missing_extra(name: str) -> Any:
        """Return the public object `name` of the package, importing the module that defines it."""
        try:
            return load(name)
        except ModuleNotFoundError as error:
            if not extra or (error.name or "").startswith("mlimages"):
                raise
            raise MissingExtraError(package.removeprefix("mlimages."), extra) from error

    return import_or_raise_missing_extra, names, exported


def require_extra(feature: str, extra: str, *modules: str) -> None:
    """Raise `MissingExtraError(feature, extra)` unless all modules are installed; none is imported."""
    if not all(map(importlib.util.find_spec, modules)):
        raise MissingExtraError(feature, extra)


@contextmanager
def disable_telemetry(env_variable: str, value: str) -> Iterator[None]:
    """Context manager: set an environment variable that disables a library's telemetry, and remove it at the end.

    A value that the user has set is kept.
    """
    is_decided = env_variable in os.environ
    os.environ.setdefault(env_variable, value)
    try:
        yield
    finally:
        if not is_decided:
            del os.environ[env_variable]
