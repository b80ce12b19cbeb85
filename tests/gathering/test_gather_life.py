"""A gathered folder over its life, against a reference model: servers fail and recover, runs stop, the person edits.

`MLIMAGES_STATEFUL_EXAMPLES` (6) makes it try more sequences.
"""

import os
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Literal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlimages import UrlList, gather
from mlimages.core import FetchResult, GatherError, GatherSummary, NoProgress, Reason
from mlimages.gathering import read_manifest
from mlimages.gathering.partition import choose_shard
from tests.gathering.conftest import contents
from tests.servers import Connection, Request, Site, answer, photo, reset, serve, urls_in

LABELS = ("cats", "dogs", "ants")
FAST = {"allow_private": True, "retries": 0, "max_wait_s": 0.0, "decoders": 1, "parallel": 1}
BROKEN = {"gone": answer(b"no", 404), "garbage": answer(b"\x01\x02 no image")}
OUTAGES = {"reset": reset(), "overloaded": answer(b"", 503)}
MOST_COPIES = 4  # paths of a host; five make a placeholder

Key = tuple[str, str]
Status = Literal["ok", "removed", "duplicate", "failed", "open"]
KNOWN = ("ok", "removed")
"""These bytes are known: another link with them is a duplicate."""


@dataclass(frozen=True)
class Link:
    """What the folder knows of a link: `data` are the bytes that were gathered, `path` is where they lie.

    A new image has no path yet; one that `moves` gets a new one in the folder of its class.
    """

    status: Status
    data: bytes = b""
    path: str = ""
    moves: bool = False


Links = dict[Key, Link]


class StoppedError(Exception):
    """What a run meets in its midst."""


class StopsAt(NoProgress):
    """Stops a run when it reports its N-th link."""

    def __init__(self, number: int) -> None:
        self.left = number

    def advance(self, count: int = 1, **figures: object) -> None:
        self.left -= count
        if self.left < 0:
            raise StoppedError


class GatheredFolderLife(RuleBasedStateMachine):
    """The model: the list, what the servers answer, what is known of each link, and every file in the folder."""

    def __init__(self) -> None:
        super().__init__()
        self._open = ExitStack()
        self.root = Path(self._open.enter_context(tempfile.TemporaryDirectory())).resolve()
        self.out = self.root / "out"
        self.sites: list[Site] = [self._open.enter_context(serve()) for _ in range(2)]
        self.answers: dict[str, int | str] = {}
        self.served: dict[int, set[str]] = {}
        self.outages: dict[str, str] = {}
        self.list: dict[str, str] = {}
        self.links: dict[Key, Link] = {}
        self.disk: dict[str, bytes] = {}
        self.was_killed = False
        self.bases = [next(urls_in(site, n + 1, 2)).rsplit("/", 3)[0] for n, site in enumerate(self.sites)]
        for number, site in enumerate(self.sites):
            site.fallback = partial(self.reply, number)

    def teardown(self) -> None:
        self._open.close()

    # The servers and the list

    def reply(self, number: int, connection: Connection, request: Request) -> None:
        found = self.answers[self.bases[number] + request.path]
        outage = self.outages.get(self.bases[number])
        sent = OUTAGES[outage] if outage else BROKEN[found] if isinstance(found, str) else answer(image(found))
        sent(connection, request)

    @initialize()
    def first_links(self) -> None:
        for label in LABELS[:2]:
            self.add_links(label, 4)

    @precondition(lambda self: len(self.list) < 30)  # larger hosts are spread over shards
    @rule(label=st.sampled_from(LABELS), count=st.integers(1, 3))
    def add_links(self, label: str, count: int) -> None:
        for _ in range(count):
            number = len(self.list)
            url = f"{self.bases[number % 2]}/{number}.jpg"
            self.list[url] = label
            self.answers[url] = number
            self.served.setdefault(number, set()).add(url)
        self.write_list()

    @rule(data=st.data())
    def change_an_answer(self, data: st.DataObject) -> None:
        url = data.draw(st.sampled_from(list(self.list)))
        images = [number for number, urls in self.served.items() if url in urls or len(urls) < MOST_COPIES]
        found = data.draw(st.sampled_from([*BROKEN, *images, len(self.served)]))
        self.answers[url] = found
        if isinstance(found, int):
            self.served.setdefault(found, set()).add(url)

    @rule(number=st.integers(0, 1), outage=st.sampled_from([None, *OUTAGES]))
    def go_away_or_come_back(self, number: int, outage: str | None) -> None:
        self.outages.pop(self.bases[number], None)
        if outage:
            self.outages[self.bases[number]] = outage

    @rule(data=st.data(), label=st.sampled_from(LABELS))
    def relabel(self, data: st.DataObject, label: str) -> None:
        self.list[data.draw(st.sampled_from(list(self.list)))] = label
        self.write_list()

    def write_list(self) -> None:
        (self.root / "list.tsv").write_text("".join(f"{label}\t{url}\n" for url, label in self.list.items()))

    # The person

    @property
    def images(self) -> list[str]:
        return sorted(self.disk)

    @precondition(lambda self: self.disk and not self.was_killed)
    @rule(data=st.data(), seed=st.integers(1000, 1003))
    def edit(self, data: st.DataObject, seed: int) -> None:
        self.keep(data.draw(st.sampled_from(self.images)), photo(seed, (24, 16)) if seed > 1000 else b"")

    @precondition(lambda self: self.disk and not self.was_killed)
    @rule(data=st.data(), count=st.integers(1, 3))
    def delete(self, data: st.DataObject, count: int) -> None:
        for _ in range(min(count, len(self.disk))):
            path = data.draw(st.sampled_from(self.images))
            del self.disk[path]
            (self.out / path).unlink()

    @precondition(lambda self: self.disk and not self.was_killed)
    @rule(data=st.data(), folder=st.sampled_from([*LABELS, "own/deep"]), is_copy=st.booleans())
    def move_or_copy(self, data: st.DataObject, folder: str, is_copy: bool) -> None:
        path = data.draw(st.sampled_from(self.images))
        target = f"{folder}/own-{len(self.disk)}-{PurePosixPath(path).name}"
        if target not in self.disk:
            self.keep(target, self.disk[path])
            if not is_copy:
                del self.disk[path]
                (self.out / path).unlink()

    @precondition(lambda self: self.disk and not self.was_killed)
    @rule(data=st.data())
    def put_back(self, data: st.DataObject) -> None:
        removed = [link for link in self.links.values() if link.status == "removed" and link.path not in self.disk]
        if removed:
            link = data.draw(st.sampled_from(removed))
            self.keep(link.path, link.data)

    def keep(self, path: str, data: bytes) -> None:
        (self.out / path).parent.mkdir(parents=True, exist_ok=True)
        (self.out / path).write_bytes(data)
        self.disk[path] = data

    # Runs

    @rule(deleted=st.sampled_from(["plain", "keep", "restore"]), retry=st.booleans())
    def gather(self, deleted: str, retry: bool) -> None:
        options = self.options(deleted, retry=retry)
        known = self.reconciled(deleted)
        if known is None:
            self.require_refusal(**options)
            return
        expected, requested = self.fetched(*self.corrected(known), deleted=deleted, retry=retry)
        self.learn(expected, self.run(**options), requested)

    @precondition(lambda self: not self.is_correcting)
    @rule(retry=st.booleans())
    def gather_in_shards(self, retry: bool) -> None:
        known = self.reconciled("keep")
        assert known is not None
        expected, requested = self.fetched_in_shards(known, retry=retry)
        options = self.options("keep", retry=retry)
        for number in (1, 2):
            self.run(**options, shard=(number, 2))
        self.learn(expected, self.run(keep_deleted=True, no_retry=True), requested)

    @rule(number=st.integers(0, 6), lost=st.floats(0, 1) | st.none())
    def gather_and_stop(self, number: int, lost: float | None) -> None:
        """Stop a run; with `lost`, as if it was killed: so much of what it wrote to the manifest is lost."""
        known = self.reconciled("plain")
        if known is None:
            return
        expected, requested = self.fetched(*self.corrected(known), deleted="plain", retry=False)
        manifest = self.out / "manifest.jsonl"
        before = manifest.read_bytes() if manifest.exists() else b""
        try:
            summary = self.run(progress=StopsAt(number), **self.options("plain", retry=False))
        except StoppedError:
            after = manifest.read_bytes()
            if lost is not None and after.startswith(before):
                manifest.write_bytes(after[: len(after) - int(lost * (len(after) - len(before)))])
                self.was_killed = True
            self.learn_some(expected, known)
        else:
            self.learn(expected, summary, requested)

    def options(self, deleted: str, *, retry: bool) -> dict[str, object]:
        for site in self.sites:
            site.requests.clear()
        failed = frozenset(Reason) if retry else frozenset()
        return {"keep_deleted": deleted == "keep", "restore_deleted": deleted == "restore", "retry_failed": failed}

    def run(self, **options: object) -> GatherSummary:
        return gather(UrlList(self.root / "list.tsv"), self.out, **{**FAST, **options})  # type: ignore[arg-type]

    def require_refusal(self, **options: object) -> None:
        manifest = (self.out / "manifest.jsonl").read_bytes()
        with pytest.raises(GatherError, match=r"gathered images? missing"):
            self.run(**options)
        assert (self.out / "manifest.jsonl").read_bytes() == manifest

    # What is to be expected

    @property
    def is_correcting(self) -> bool:
        """Whether the list names the link of an image for another class: shards would gather it once more."""
        return any(self.list[url] != label for (label, url), link in self.links.items() if link.status in KNOWN)

    def reconciled(self, deleted: str) -> Links | None:
        """The links once the run has seen which images were deleted, moved or put back; None if it refuses to go on."""
        links = dict(self.links)
        listed = {link.path for link in links.values()}
        strays = [path for path in self.images if path not in listed]
        totals, gone = Counter[str](), Counter[str]()
        for key, link in links.items():
            if link.status == "removed" and self.disk.get(link.path) == link.data:
                links[key] = replace(link, status="ok")
            elif link.status == "ok":
                folder = str(PurePosixPath(link.path).parent)
                totals[folder] += 1
                if link.path not in self.disk:
                    if found := [path for path in strays if self.disk[path] == link.data]:
                        strays.remove(found[-1])
                        links[key] = replace(link, path=found[-1])
                    elif deleted != "restore":
                        gone[folder] += 1
                        links[key] = replace(link, status="removed")
        is_much = any(count == totals[folder] or count > max(1, totals[folder] / 10) for folder, count in gone.items())
        return None if is_much and deleted == "plain" else links

    def corrected(self, links: Links) -> tuple[Links, set[str]]:
        """The links with the images that move to the class that the list names now, and those that cannot move."""
        links, staying = dict(links), set()
        for url, label in self.list.items():
            old = [key for key, link in links.items() if key[1] == url and self.has_image(link) and key[0] != label]
            own = links.get((label, url))
            if len(old) != 1 or (own and own.status in KNOWN):
                continue
            link = links[old[0]]
            folder = str(PurePosixPath(link.path).parent)
            if folder == label:  # moved there by hand
                links[label, url] = links.pop(old[0])
            elif folder == old[0][0] and self.disk[link.path] == link.data:
                links[label, url] = replace(links.pop(old[0]), moves=True)
            else:
                staying.add(url)
        return links, staying

    def has_image(self, link: Link) -> bool:
        return link.status == "ok" and link.path in self.disk

    def is_needed(self, link: Link | None, *, deleted: str, retry: bool) -> bool:
        if link is None or link.status == "open" or (link.status == "failed" and retry):
            return True
        return deleted == "restore" and link.status in KNOWN and not self.has_image(link)

    def answered(self, url: str) -> Link:
        """What a request gives."""
        if any(url.startswith(base) for base in self.outages):
            return Link("open")
        found = self.answers[url]
        return Link("failed") if isinstance(found, str) else Link("ok", image(found))

    def fetched(self, links: Links, staying: set[str], *, deleted: str, retry: bool) -> tuple[Links, list[str]]:
        """The links once the run has requested what it needs, and what it requested."""
        needed = {key for key, link in links.items() if self.is_needed(link, deleted=deleted, retry=retry)}
        known = {link.data for key, link in links.items() if link.status in KNOWN and key not in needed}
        links, requested = dict(links), []
        for url, label in self.list.items():
            old = links.get((label, url))
            if url in staying or not self.is_needed(old, deleted=deleted, retry=retry):
                continue
            requested.append(url)
            new = self.answered(url)
            if new.status == "ok" and new.data in known:
                new = Link("duplicate")
            if new.status == "ok":
                known.add(new.data)
            if new.status not in ("failed", "open") or old is None or old.status != "removed":
                links[label, url] = new
        return links, requested

    def fetched_in_shards(self, links: Links, *, retry: bool) -> tuple[Links, list[str]]:
        """Each shard knows its own images only; joined, further copies of an image that is unchanged are removed.

        That an image was deleted is not known to other shards: its bytes come back by another link.
        """
        links, requested = dict(links), []
        unchanged = {
            link.data: self.disk[link.path] == link.data for link in reversed(links.values()) if self.has_image(link)
        }
        for number in (1, 2):
            own = set[bytes]()
            for url, label in self.list.items():
                if choose_shard(url, 2) != number or not self.is_needed(
                    links.get((label, url)), deleted="keep", retry=retry
                ):
                    continue
                requested.append(url)
                new = self.answered(url)
                if new.status == "ok" and (new.data in own or unchanged.get(new.data)):
                    new = Link("duplicate")
                elif new.status == "ok":
                    own.add(new.data)
                    unchanged.setdefault(new.data, True)
                links[label, url] = new
        return links, requested

    # What is learned of a run

    def learn(self, expected: Links, summary: GatherSummary, requested: list[str]) -> None:
        rows = list(read_manifest(self.out))
        by_key = {(row.label, row.url): row for row in rows}
        assert len(by_key) == len(rows)
        assert {key: status_of(row) for key, row in by_key.items()} == {k: link.status for k, link in expected.items()}
        self.links = {key: self.placed(link, by_key[key]) for key, link in expected.items()}
        counts = Counter(link.status for link in self.links.values())
        assert (summary.ok, summary.duplicate) == (sum(map(self.has_image, self.links.values())), counts["duplicate"])
        assert (summary.removed, summary.open) == (counts["removed"], counts["open"])
        assert summary.failed == counts["failed"] + counts["open"]
        asked = [
            base + request.path for base, site in zip(self.bases, self.sites, strict=True) for request in site.requests
        ]
        assert set(asked) <= set(requested)
        assert sorted(url for url in asked if self.answered(url).status != "open") == sorted(
            url for url in requested if self.answered(url).status != "open"
        )
        self.was_killed = False

    def learn_some(self, expected: Links, known: Links) -> None:
        """Of a run that stopped, any part may have been done."""
        order = {"ok": 2, "removed": 1, "duplicate": 1, "failed": 0, "open": 0}
        rows = {
            (row.label, row.url): row for row in sorted(read_manifest(self.out), key=lambda row: order[status_of(row)])
        }
        links = {}
        for key, row in rows.items():
            states = [found[key] for found in (expected, known, self.links) if key in found and not found[key].moves]
            (link, *_) = (link for link in states if link.status == status_of(row) and link.path in ("", row.path))
            links[key] = self.placed(link, row)
        assert self.links.keys() <= links.keys()
        self.links = links
        for path, data in contents(self.out).items():
            if self.was_killed and path not in self.disk:  # its row is lost
                assert data in [image(found) for found in self.answers.values() if isinstance(found, int)]
                self.disk[path] = data

    def placed(self, link: Link, row: FetchResult) -> Link:
        """The link with the path that its row names; a new image lies there."""
        if link.status == "ok" and (link.moves or not link.path):
            assert row.path is not None
            assert str(PurePosixPath(row.path).parent) == row.label
            assert self.disk.get(row.path, link.data) == link.data
            self.disk.pop(link.path, None)
            self.disk[row.path] = link.data
            return replace(link, path=row.path, moves=False)
        assert row.path == (link.path or None)
        return link

    @invariant()
    def every_file_is_as_it_should_be(self) -> None:
        assert contents(self.out) == self.disk


image = cache(photo)


def status_of(row: FetchResult) -> str:
    if row.removed:
        return "removed"
    return "open" if row.status == "failed" and not row.final else row.status


TestGatheredFolderLife = GatheredFolderLife.TestCase
TestGatheredFolderLife.settings = settings(
    max_examples=int(os.environ.get("MLIMAGES_STATEFUL_EXAMPLES", "6")), stateful_step_count=15, deadline=None
)
