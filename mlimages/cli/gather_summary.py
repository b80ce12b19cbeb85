"""The summary of a `gather` command, and its advice."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping

from mlimages.core import GatherSummary, Reason, pluralize

_ROWS = 15
_HINTS = {
    Reason.OPT_OUT: "--ignore-opt-out downloads images whose site or metadata opts out",
    Reason.HTML: "the hosts returned web pages instead of images: they require a login or block the requests",
    Reason.FORBIDDEN: "the hosts refuse the requests: use --contact, or --header for a Referer, and --retry-failed "
    "forbidden",
    Reason.NAME_SERVER: "no name server responds: is the network up?",
    Reason.UNREACHABLE: "is the network up?",
    Reason.PROXY: "the HTTP proxy does not respond, or refuses: see --proxy",
    Reason.TOO_SMALL: "--min-size sets the minimum length of the shorter side",
}
"""Advice if most links fail for this reason."""
_REMEDIES = {
    Reason.PRIVATE_ADDRESS: "the address is private: add --allow-private",
    Reason.UNKNOWN_HOST: "the host name does not exist: correct the link",
}
"""Advice for unfinished links for which the same command would fail again."""
_AGAIN = "run the same command again"
NO_LINKS = "the source has no links"
"""Why no image was gathered, or is planned."""


def no_images_reason(summary: GatherSummary) -> str:
    """Return why a run gathered no image, and what to do."""
    if not summary.failed:
        return _deleted_reason(summary.removed) if summary.removed else NO_LINKS
    advice = [*_hints(summary), *(_remedies(summary) if summary.open else [])]
    if summary.open == summary.failed:
        which = "the only link is" if summary.open == 1 else f"all {summary.open} links are"
        return f"{which} unfinished: {'; '.join(advice)}"
    return "; ".join([*advice, f"see {summary.out}/manifest.jsonl for the reason of each link"])


def _deleted_reason(num_images: int) -> str:
    which = "the only image was" if num_images == 1 else f"all {num_images:,} images were"
    return f"{which} deleted by hand and not downloaded again: --restore-deleted downloads what was deleted"


def _hints(summary: GatherSummary) -> list[str]:
    """Return the advice for the most frequent reason if most links failed."""
    reason = next(iter(summary.reasons), "") if summary.failed > summary.ok else ""
    return [_HINTS[Reason(reason)]] if reason in _HINTS else []


def _remedies(summary: GatherSummary) -> list[str]:
    """Return what to do about the unfinished links; running the same command again, if it helps, comes last."""
    counts = {reason: summary.reasons.get(reason, 0) for reason in _REMEDIES}
    found = [f"{_REMEDIES[reason]} ({pluralize(count, 'link')})" for reason, count in counts.items() if count]
    return found + [_AGAIN] * (summary.open > sum(counts.values()) or not found)


def summary_lines(summary: GatherSummary, *, ends_with_error: bool, keep_duplicates: bool = False) -> Iterator[str]:
    """Yield the lines of the summary; an error that follows has the advice about failed links.

    Args:
        keep_duplicates: the option of the run.
    """
    if summary.failed > summary.ok and summary.reasons:
        reason, count = next(iter(summary.reasons.items()))
        hint = "" if ends_with_error else "".join(f" ({hint})" for hint in _hints(summary))
        links = summary.failed + summary.ok + summary.duplicate
        yield f"{summary.failed} of {links} links failed; {reason}: {count}{hint}\n"
    yield from _count_lines("images by class", summary.classes)
    yield from _count_lines("failed links by reason", summary.reasons)
    yield from _count_lines("failed links by host", summary.hosts)
    near = f" ({summary.near_duplicate} of them near-duplicates)" if summary.near_duplicate else ""
    again = pluralize(summary.duplicate, "duplicate")
    yield f"{summary.ok} good{near}, {again}, {summary.failed} failed in {summary.out}"
    if summary.ok and not summary.fetched and not summary.open:
        yield "nothing was left to download: an earlier run finished every link"
    if summary.open:
        are_open = "1 link is" if summary.open == 1 else f"{summary.open:,} links are"
        remedies = [] if ends_with_error else _remedies(summary)
        yield ": ".join([f"{are_open} unfinished", *filter(None, ["; ".join(remedies)])])
        if _AGAIN in remedies:
            yield f"  mlimages {shlex.join(arg for arg in sys.argv[1:] if arg != '--no-retry')}"
    for host, pause_s in summary.waits_s.items():
        pause = f"{pause_s:.0f} s" if pause_s < 120 else f"{pause_s / 60:.0f} minutes"
        yield f"{host} asks to wait {pause}, longer than --max-wait"
    if summary.conflicting:
        has = "1 duplicate has" if summary.conflicting == 1 else f"{summary.conflicting} duplicates have"
        yield f"{has} a different class from the image that was kept: see `same_as` in manifest.jsonl"
    if count := summary.reasons.get(Reason.PLACEHOLDER, 0):
        returned = "1 link returned" if count == 1 else f"{count} links returned"
        yield f"{returned} a host's placeholder: --retry-failed placeholder --keep-duplicates keeps such images"
    if summary.changed:
        yield f"{pluralize(summary.changed, 'file')} kept although changed since the download"
    if summary.moved:
        names = "it" if summary.moved == 1 else "them"
        yield f"{pluralize(summary.moved, 'image')} moved to the class that the list now gives {names}"
    if summary.unmoved:
        were = "1 image was" if summary.unmoved == 1 else f"{summary.unmoved} images were"
        yield f"{were} edited or moved by hand: kept, although the list now gives another class"
    if keep_duplicates and summary.duplicate:
        are = (
            "1 duplicate of an earlier run is"
            if summary.duplicate == 1
            else (f"{summary.duplicate:,} duplicates of earlier runs are")
        )
        yield f"{are} not downloaded again: --keep-duplicates applies to new links; another folder keeps all of them"
    if summary.removed and (summary.failed or not ends_with_error):
        yield f"{pluralize(summary.removed, 'image')} deleted by hand: not downloaded again (see --restore-deleted)"


def _count_lines(title: str, counts: Mapping[str, int]) -> Iterator[str]:
    if not counts:
        return
    rows = list(counts.items())
    shown, rest = rows[:_ROWS], rows[_ROWS:]
    yield title
    yield from (f"  {name[:48]:<48} {count:8}" for name, count in shown)
    if rest:
        yield f"  {f'{len(rest)} more':<48} {sum(count for _, count in rest):8}"
    yield ""
