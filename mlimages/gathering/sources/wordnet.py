"""The synsets of ImageNet and their hierarchy, from WordNet."""

from __future__ import annotations

import lzma
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from mlimages.core import InputError

_WNID_PATTERN = re.compile(r"n\d{8}")


@dataclass(frozen=True, slots=True)
class Synset:
    """A synset of WordNet.

    Attributes:
        wnid: WordNet id.
        parent_wnids: WordNet ids of the synset's hypernyms.
        lemmas: words of the synset; the first is its name.
        definition: the definition in WordNet.
    """

    wnid: str
    parent_wnids: tuple[str, ...]
    lemmas: tuple[str, ...]
    definition: str


@cache
def load_synsets() -> dict[str, Synset]:
    """Return all synsets of nouns by WordNet id, in WordNet's order."""
    packed = (files("mlimages.gathering") / "data/wordnet_nouns.tsv.xz").read_bytes()
    rows = (line.split("\t") for line in lzma.decompress(packed).decode().splitlines())
    return {
        wnid: Synset(wnid, tuple(filter(None, parents.split(","))), tuple(lemmas.split(",")), definition)
        for wnid, parents, lemmas, definition in rows
    }


@cache
def _load_child_wnids() -> dict[str, list[str]]:
    children: dict[str, list[str]] = {}
    for synset in load_synsets().values():
        for parent in synset.parent_wnids:
            children.setdefault(parent, []).append(synset.wnid)
    return children


def find_synset(text: str) -> Synset:
    """Return the synset with the WordNet id `text`, or the only synset that contains the word `text`.

    Raises:
        InputError: no synset matches, or several do, which the message lists with their definitions.
    """
    if _WNID_PATTERN.fullmatch(wnid := text.strip().lower()):
        if wnid not in load_synsets():
            raise InputError(f"{text} is not an ImageNet synset: use a word, or an id such as n02121808")
        return load_synsets()[wnid]
    word = "_".join(text.lower().split())
    found = [synset for synset in load_synsets().values() if word in map(str.lower, synset.lemmas)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(f"no ImageNet synset has the word {text!r}: try another word, or an id such as n02121808")
    meanings = "; ".join(f"{s.wnid} ({', '.join(s.lemmas).replace('_', ' ')}: {s.definition})" for s in found)
    raise InputError(f"{text!r} is ambiguous; use one of these ids: {meanings}")


def assign_folders(roots: Sequence[Synset], *, with_subtree: bool = False) -> dict[str, str]:
    """Return the folder for the images of each of `roots`, and with `with_subtree` of their descendants, by WordNet id.

    The folder of a descendant is in the folder of one of its parents, such as `domestic_cat/persian_cat`. Of several
    synsets with the same folder, the first keeps it; the WordNet id is appended to the others: `crane_n03126707`.
    """
    folders: dict[str, str] = {}
    taken: set[str] = set()
    for root in roots:
        waiting = [(root.wnid, "")]
        for wnid, parent_folder in waiting:
            if wnid in folders:
                continue
            folder = parent_folder + load_synsets()[wnid].lemmas[0].lower().replace("/", "_")
            folders[wnid] = folder if folder not in taken else f"{folder}_{wnid}"
            taken.add(folders[wnid])
            if with_subtree:
                waiting += [(child, f"{folders[wnid]}/") for child in sorted(_load_child_wnids().get(wnid, []))]
    return folders
