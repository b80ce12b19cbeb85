"""Base class of the sources that search a provider's API, and the parser of their queries (`CLASS=QUERY`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable, Sequence

from mlimages.core import ImageRef, InputError
from mlimages.gathering.sources.search_api import SearchApi
from mlimages.labels import normalize_class_name


class SearchSource(ABC):
    """Source with a search query per class; pages of results are requested until the class has enough images.

    Subclasses implement `_read_pages`, and `_count_results` if the provider reports the number of results.
    """

    lookahead = 0

    def __init__(self, queries: Sequence[str], api: SearchApi) -> None:
        self._queries = parse_queries(queries)
        self._api = api
        self._full_classes: set[str] = set()

    def skip_class(self, label: str) -> None:
        """Request no further pages of this class, and yield no further images."""
        self._full_classes.add(label)

    async def count_links_by_class(self) -> dict[str, int | None]:
        """Return how many results the provider reports for each class; None if it does not report their number."""
        async with self._api:
            return {label: await self._count_results(query) for label, query in self._queries.items()}

    async def __aiter__(self) -> AsyncGenerator[ImageRef]:
        async with self._api:
            await self._prepare_search()
            for label, query in self._queries.items():
                pages = self._read_pages(label, query)
                while label not in self._full_classes and (page := await anext(pages, None)) is not None:
                    for image_ref in page:
                        if image_ref.label not in self._full_classes:
                            yield image_ref

    async def _prepare_search(self) -> None:  # noqa: B027  # most sources have nothing to prepare
        """Do what is needed before the first request for a page, such as looking up ids or telling the user limits."""

    async def _count_results(self, query: str) -> int | None:
        """Return the number of results; None if the provider does not report it."""
        return None

    @abstractmethod
    def _read_pages(self, label: str, query: str) -> AsyncIterator[list[ImageRef]]:
        """Request page after page of the results of a query; yield the images of each page, with this label."""


def require_allowed(option: str, values: Iterable[object], allowed_values: Collection[object]) -> None:
    """Raise InputError if one of the values of an option is not allowed."""
    for value in values:
        if value not in allowed_values:
            raise InputError(f"{option} is {value!r}: expected one of {', '.join(map(str, allowed_values))}")


def parse_queries(query_texts: Sequence[str]) -> dict[str, str]:
    """Parse texts `CLASS=QUERY`, or `QUERY` if it is also the class; return the queries by class.

    Raises:
        InputError: a query or class is empty, or two classes are equal or differ only in case.
    """
    classes: dict[str, str] = {}
    spellings: dict[str, str] = {}
    for text in query_texts:
        label, equals, query = (part.strip() for part in text.partition("="))
        if not label or (equals and not query):
            raise InputError(f"cannot search for {text!r}: expected QUERY or CLASS=QUERY")
        name = normalize_class_name(label)
        if name in classes:
            raise InputError(f"the class {name!r} appears twice: name each class once, as CLASS=QUERY")
        if (other := spellings.setdefault(name.casefold(), name)) != name:
            raise InputError(f"the classes {other!r} and {name!r} differ only in case: name each class once")
        classes[name] = query or label
    return classes
