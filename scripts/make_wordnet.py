#!/usr/bin/env python
"""Build mlimages/gathering/data/wordnet_nouns.tsv.xz from WordNet 3.0's noun file: run by hand, once.

    apt-get install wordnet-base && .venv/bin/python scripts/make_wordnet.py

Each line is `wnid TAB parents TAB lemmas TAB definition`: a wnid is n and the synset's 8-digit offset; parents are its
hypernyms (`@`), lemmas begin with the first. Only ImageNet's synsets are kept (timm carries their list), in the order
of the noun file. The format of that file: man 5wn wndb.
"""

import lzma
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

NOUNS = Path("/usr/share/wordnet/data.noun")
TARGET = Path(__file__).parents[1] / "mlimages/gathering/data/wordnet_nouns.tsv.xz"


def imagenet_ids() -> set[str]:
    text = (files("timm.data") / "_info/imagenet_synset_to_lemma.txt").read_text()
    return {line.split()[0] for line in text.splitlines()}


def synsets(lines: list[str], wanted: set[str]) -> Iterator[str]:
    for line in lines:
        if line.startswith(" "):
            continue  # the licence
        head, _, gloss = line.partition(" | ")
        words = head.split()
        wnid, count = f"n{words[0]}", int(words[3], 16)
        if wnid not in wanted:
            continue
        lemmas = words[4 : 4 + 2 * count : 2]
        pointers = words[5 + 2 * count :]
        parents = [f"n{offset}" for symbol, offset in zip(pointers[::4], pointers[1::4], strict=False) if symbol == "@"]
        definition = gloss.split('; "')[0].strip()
        yield "\t".join((wnid, ",".join(p for p in parents if p in wanted), ",".join(lemmas), definition))


def main() -> None:
    table = "\n".join(synsets(NOUNS.read_text().splitlines(), imagenet_ids())) + "\n"
    packed = lzma.compress(table.encode(), preset=9 | lzma.PRESET_EXTREME)
    TARGET.write_bytes(packed)
    print(f"{table.count(chr(10))} synsets, {len(packed)} bytes in {TARGET}", file=sys.stderr)


if __name__ == "__main__":
    main()
