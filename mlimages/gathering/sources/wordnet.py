"""The synsets of ImageNet and their hierarchy, from WordNet."""

from __future__ import annotations

import lzma
import re
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

    @property
    def folder_name(self) -> str:
        """Name of the folder for the images of the synset."""
        return self.lemmas[0].lower().replace("/", "_")


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


def assign_subtree_folders(root: Synset) -> dict[str, str]:
    """Return the folder for the images of `root`, and of each of its descendants, by WordNet id.

    The folder of a descendant is in the folder of one of its parents, such as `domestic_cat/persian_cat`.
    """
    folders = {root.wnid: root.folder_name}
    taken = {root.folder_name}
    waiting = [root.wnid]
    for wnid in waiting:
        for child in sorted(_load_child_wnids().get(wnid, [])):
            if child in folders:
                continue
            folder = f"{folders[wnid]}/{load_synsets()[child].folder_name}"
            folders[child] = folder if folder not in taken else f"{folder}_{child}"
            taken.add(folders[child])
            waiting.append(child)
    return folders
