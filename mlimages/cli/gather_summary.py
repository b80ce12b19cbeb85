"""The printed summary of a `gather` command, with advice."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping

from mlimages.core import GatherSummary, Reason, escape_unprintable, pluralize
from mlimages.labels import describe_renamed_folders

_MAX_SHOWN_ROWS = 15
_ADVICE_BY_REASON = {
    Reason.OPT_OUT: "use --ignore-opt-out to download images whose site or metadata opts out",
    Reason.HTML: "the hosts returned web pages instead of images; they may require a login or block the requests",
    Reason.FORBIDDEN: "the hosts refuse the requests; use --retry-failed forbidden together with --contact, or with "
    "--header to send a Referer",
    Reason.NAME_SERVER: "no name server responds; check the network connection",
    Reason.UNREACHABLE: "check the network connection",
    Reason.PROXY: "the HTTP proxy does not respond or refuses the connection; see --proxy",
    Reason.TOO_SMALL: "--min-size sets the minimum length of the shorter side",
}
"""Advice by the most frequent reason of failure; given if more links failed than yielded an image."""
_UNFINISHED_ADVICE = {
    Reason.PRIVATE_ADDRESS: "the address is private; add --allow-private",
    Reason.UNKNOWN_HOST: "the host name does not exist; correct the link",
}
"""Advice by reason of failure for unfinished links. The same command requests these links again, but without following
the advice they would fail again."""
_RERUN_ADVICE = "run the same command again"
NO_LINKS_MESSAGE = "the source has no links"
"""Message if no image was gathered because there is no link."""


def explain_why_no_images(summary: GatherSummary) -> str:
    """Return the reason why a run gathered no image, and advice."""
    if summary.removed and not summary.failed:
        subject = "the only image was" if summary.removed == 1 else f"all {summary.removed:,} images were"
        return f"{subject} deleted by hand and therefore not downloaded again; use --restore-deleted to download them"
    if not summary.failed:
        return NO_LINKS_MESSAGE
    advice = [*_advise_on_failures(summary), *(_advise_on_unfinished_links(summary) if summary.open else [])]
    if summary.open == summary.failed:
        subject = "the only link" if summary.open == 1 else f"all {summary.open} links"
        return f"{subject} could not be downloaded yet: {'; '.join(advice)}"
    return "; ".join([*advice, f"see {summary.out}/manifest.jsonl for the reason of each link"])


def _advise_on_failures(summary: GatherSummary) -> list[str]:
    """If more links failed than yielded an image, return advice about the most frequent reason; else an empty list."""
    reason = next(iter(summary.reasons), "") if summary.failed > summary.ok else ""
    return [_ADVICE_BY_REASON[Reason(reason)]] if reason in _ADVICE_BY_REASON else []


def _advise_on_unfinished_links(summary: GatherSummary) -> list[str]:
    """Return advice about unfinished links: those that the same command requests again; `summary.open` is their number.

    The last item is to run the same command again, unless that cannot help.
    """
    counts = {reason: summary.reasons.get(reason, 0) for reason in _UNFINISHED_ADVICE}
    found = [f"{_UNFINISHED_ADVICE[reason]} ({pluralize(count, 'link')})" for reason, count in counts.items() if count]
    return found + [_RERUN_ADVICE] * (summary.open > sum(counts.values()) or not found)


def format_summary(summary: GatherSummary, *, ends_with_error: bool, keep_duplicates: bool = False) -> Iterator[str]:
    """Yield the lines of the summary.

    Args:
        summary: result of the run.
        ends_with_error: whether an error message follows the summary. It contains the advice about failed and
            unfinished links, so the summary does not.
        keep_duplicates: whether the run had the option --keep-duplicates.
    """
    if summary.failed > summary.ok and summary.reasons:
        reason, count = next(iter(summary.reasons.items()))
        hint = "" if ends_with_error else "".join(f" ({hint})" for hint in _advise_on_failures(summary))
        links = summary.failed + summary.ok + summary.duplicate
        yield f"{summary.failed} of {links} links failed; {reason}: {count}{hint}\n"
    yield from _format_counts("images by class", summary.classes)
    yield from _format_counts("failed links by reason", summary.reasons)
    yield from _format_counts("failed links by host", summary.hosts)
    near = f" ({summary.near_duplicate} of them near-duplicates)" if summary.near_duplicate else ""
    duplicates = pluralize(summary.duplicate, "duplicate")
    images, failed = pluralize(summary.ok, "image"), pluralize(summary.failed, "failed link")
    yield f"{images}{near}, {duplicates}, {failed} in {summary.out}"
    if summary.ok and not summary.fetched and not summary.open:
        yield "nothing to download: earlier runs finished every link"
    if summary.open:
        remedies = [] if ends_with_error else _advise_on_unfinished_links(summary)
        advice = f": {'; '.join(remedies)}" if remedies else ""
        yield f"{_pluralize_with_verb(summary.open, 'link', 'is', 'are')} unfinished{advice}"
        if _RERUN_ADVICE in remedies:
            yield f"  mlimages {shlex.join(arg for arg in sys.argv[1:] if arg != '--no-retry')}"
    for host, pause_s in summary.waits_s.items():
        pause = f"{pause_s:.0f} s" if pause_s < 120 else f"{pause_s / 60:.0f} minutes"
        yield f"{host} limits the rate of requests: the next one is possible in {pause}, longer than --max-wait"
    if summary.conflicting:
        have = _pluralize_with_verb(summary.conflicting, "duplicate", "has", "have")
        yield f"{have} a different class from the image that was kept: see `same_as` in manifest.jsonl"
    if count := summary.reasons.get(Reason.PLACEHOLDER, 0):
        subject = pluralize(count, "link")
        yield f"{subject} returned a placeholder image; --retry-failed placeholder --keep-duplicates keeps such images"
    if summary.changed:
        yield f"{pluralize(summary.changed, 'file')} edited since the download and kept"
    if summary.moved:
        yield f"{pluralize(summary.moved, 'image')} moved, since the list now gives another class"
    if summary.unmoved:
        were = _pluralize_with_verb(summary.unmoved, "image", "was", "were")
        yield f"{were} edited or moved by hand and therefore left in place, although the list now gives another class"
    yield from map(escape_unprintable, describe_renamed_folders(list(summary.renamed), list(summary.renamed.values())))
    if keep_duplicates and summary.duplicate:
        are = _pluralize_with_verb(summary.duplicate, "earlier duplicate", "is", "are")
        yield f"{are} not downloaded again: --keep-duplicates only applies to new links; to keep all, use a new folder"
    if summary.removed and (summary.failed or not ends_with_error):
        yield f"{pluralize(summary.removed, 'image')} deleted by hand and not downloaded again (see --restore-deleted)"


def _pluralize_with_verb(count: int, noun: str, singular_verb: str, plural_verb: str) -> str:
    """Return a count, a noun and a verb, such as `1 link is` or `2 links are`."""
    return f"{pluralize(count, noun)} {singular_verb if count == 1 else plural_verb}"


def _format_counts(title: str, counts: Mapping[str, int]) -> Iterator[str]:
    if not counts:
        return
    rows = list(counts.items())
    shown, rest = rows[:_MAX_SHOWN_ROWS], rows[_MAX_SHOWN_ROWS:]
    yield title
    yield from (f"  {escape_unprintable(name[:48]):<48} {count:8}" for name, count in shown)
    if rest:
        yield f"  {f'{len(rest)} more':<48} {sum(count for _, count in rest):8}"
    yield ""
