"""Which pictures look nearly alike, by their difference hashes."""

from __future__ import annotations

_BANDS = ((0, 22), (22, 21), (43, 21))
"""Three parts of 64 bits: two hashes at most two bits apart agree in one of them."""

_MOST_BITS_APART = 2
_PLAIN_BITS = 8


class LikenessIndex:
    """Finds an earlier picture whose hash is at most two bits away."""

    def __init__(self) -> None:
        self._buckets: dict[int, list[tuple[int, str]]] = {}

    def find(self, dhash: str) -> str | None:
        """The path of the nearest such picture."""
        value = int(dhash, 16)
        found = (entry for key in _keys(value) for entry in self._buckets.get(key, ()))
        near = min(found, key=lambda entry: (entry[0] ^ value).bit_count(), default=None)
        return near[1] if near and (near[0] ^ value).bit_count() <= _MOST_BITS_APART else None

    def add(self, dhash: str, path: str) -> None:
        """Remember a picture; plain ones (sky, paper, a gradient) would be near to each other and are left out."""
        value = int(dhash, 16)
        if _PLAIN_BITS <= value.bit_count() <= 64 - _PLAIN_BITS:
            entry = (value, path)
            for key in _keys(value):
                self._buckets.setdefault(key, []).append(entry)


def _keys(value: int) -> list[int]:
    return [shift << 32 | (value >> shift & ((1 << width) - 1)) for shift, width in _BANDS]
