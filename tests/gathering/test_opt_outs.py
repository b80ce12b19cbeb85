"""Opt-outs: kinds of refusal that are honoured, look-alikes that refuse nothing, and what the manifest says."""

import asyncio
import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from yarl import URL

from mlimages.core import GatherSummary, Reason
from mlimages.gathering import read_manifest
from mlimages.gathering.download.opt_outs import find_forbidding_directive, find_xmp_opt_out, path_matches
from mlimages.gathering.download.reasons import DownloadError
from mlimages.gathering.download.robots import SiteRulesCache, parse_site_rules
from tests.gathering.conftest import links, run
from tests.servers import Reply, Site, answer, cut, in_turn, photo, serve

PLUS = "http://ns.useplus.org/ldf/xmp/1.0/"


@dataclass
class Case:
    """One site with one image at /i/a.jpg."""

    headers: list[str] = field(default_factory=list)
    robots: str | None = None
    tdmrep: object = None
    image: bytes | None = None


def xmp(body: str, attributes: str = "", *, form: str = "JPEG", namespace: str = PLUS) -> bytes:
    packet = (
        '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:plus="{namespace}" {attributes}>{body}</rdf:Description></rdf:RDF>'
        '</x:xmpmeta><?xpacket end="w"?>'
    ).encode()
    image, out = Image.open(io.BytesIO(photo(77))), io.BytesIO()
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", packet.decode(), "en", "XMP", zip=form == "compressed PNG")
    image.save(out, form.split()[-1], **({"pnginfo": text} if "PNG" in form else {"xmp": packet}))
    return out.getvalue()


def term(name: str) -> str:
    return f"http://ns.useplus.org/ldf/vocab/{name}"


REFUSALS = {
    "noai": Case(["X-Robots-Tag: noai"]),
    "noai after another directive": Case(["X-Robots-Tag: max-image-preview:large, noai"]),
    "noimageai after a value": Case(["X-Robots-Tag: max-snippet:-1,noimageai"]),
    "noindex in capitals": Case(["X-Robots-Tag: NOINDEX, nofollow"]),
    "noimageindex after a date": Case(["X-Robots-Tag: unavailable_after: Wed, 25 Jun 2110 15:00:00 GMT, noimageindex"]),
    "noml in a second line": Case(["X-Robots-Tag: all", "X-Robots-Tag: noml"]),
    "for us by name": Case(["X-Robots-Tag: mlimages: noai"]),
    "for another and for us": Case(["X-Robots-Tag: otherbot: nofollow, mlimages: nosnippet, noai"]),
    "content usage": Case(["Content-Usage: train-ai=n"]),
    "content usage among others": Case(["Content-Usage: search=y , train-ai=n;x=1"]),
    "tdm header": Case(["tdm-reservation: 1", "tdm-policy: https://example.org/policy.json"]),
    "robots for everybody": Case(robots="User-agent: *\nDisallow: /i/"),
    "robots for us": Case(robots="User-agent: *\nAllow: /\n\nUser-Agent: other\nUser-agent: MLImages/2\n\nDisallow: /"),
    "robots with a pattern": Case(robots="user-agent:*\r\ndisallow:/*.jpg$ # no images\r\n"),
    "robots with the longer rule": Case(robots="User-agent: *\nAllow: /\nDisallow: /i/a"),
    "content signal": Case(robots="User-agent: *\nContent-Signal: search=yes, ai-train=no\nAllow: /"),
    "content signal in small letters": Case(robots="# c\nUser-Agent: *\ncontent-signal:ai-train=no,search=yes"),
    "content usage in robots": Case(
        robots="User-Agent: *\nAllow: /\nContent-Usage: train-ai=n\nContent-Usage: /ok/ train-ai=y"),
    "content usage of a path": Case(robots="User-Agent: *\nContent-Usage: search=y\nContent-Usage: /i/ train-ai=n"),
    "tdmrep of everything": Case(tdmrep=[{"location": "/", "tdm-reservation": 1}]),
    "tdmrep of a pattern": Case(
        tdmrep=[{"location": "/b/", "tdm-reservation": 0}, {"location": "/i/*.jpg", "tdm-reservation": 1}]),
    "xmp attribute": Case(image=xmp("", f'plus:DataMining="{term("DMI-PROHIBITED-AIMLTRAINING")}"')),
    "xmp element": Case(image=xmp(f"<plus:DataMining>{term('DMI-PROHIBITED')}</plus:DataMining>", form="PNG")),
    "xmp compressed in a PNG": Case(
        image=xmp("", f'plus:DataMining="{term("DMI-PROHIBITED-GENAIMLTRAINING")}"', form="compressed PNG")),
    "xmp with constraint": Case(image=xmp("", 'plus:DataMining="DMI-PROHIBITED-SEECONSTRAINT"', form="WEBP")),
}  # fmt: skip

LOOK_ALIKES = {
    "all": Case(["X-Robots-Tag: all"]),
    "preview": Case(["X-Robots-Tag: max-image-preview:large, nosnippet, nofollow"]),
    "no preview": Case(["X-Robots-Tag: max-image-preview: none"]),
    "other words": Case(["X-Robots-Tag: noarchive, noaim, nonoai, index"]),
    "another's": Case(["X-Robots-Tag: otherbot: noai"]),
    "another's and what follows": Case(["X-Robots-Tag: googlebot: noindex, noimageai"]),
    "a date": Case(["X-Robots-Tag: unavailable_after: 25 Jun 2110 15:00:00 PST"]),
    "another field": Case(["X-Robots: noai", "Robots: noindex"]),
    "content usage allows": Case(["Content-Usage: train-ai=y, search=n"]),
    "content usage of another kind": Case(["Content-Usage: xtrain-ai=n, train-ai=no"]),
    "tdm 0": Case(["tdm-reservation: 0"]),
    "tdm policy alone": Case(["tdm-policy: https://example.org/1"]),
    "robots for another": Case(
        robots="User-agent: GPTBot\nUser-agent: ml\nDisallow: /\n\nUser-agent: *\nDisallow: /admin/"),
    "robots with an exception": Case(robots="User-agent: *\nDisallow: /\nAllow: /i/"),
    "robots for all but us": Case(robots="User-agent: *\nDisallow: /\n\nUser-agent: mlimages\nDisallow:"),
    "robots commented out": Case(robots="User-agent: *\n# Disallow: /\nDisallow: /i/b\nDisallow: /*.jpg$x"),
    "robots that is a page": Case(robots="<!DOCTYPE html><html><body>Disallow: /</body></html>"),
    "content signal allows": Case(robots="User-agent: *\nContent-Signal: search=no, ai-input=no, ai-train=yes"),
    "content signal for another": Case(
        robots="User-agent: Bytespider\nContent-Signal: ai-train=no\nUser-agent: *\nAllow: /"),
    "content usage elsewhere": Case(robots="User-agent: *\nContent-Usage: train-ai=n\nContent-Usage: /i/ train-ai=y"),
    "tdmrep elsewhere": Case(
        tdmrep=[{"location": "/i/", "tdm-reservation": 0}, {"location": "/", "tdm-reservation": 1}]),
    "tdmrep that is none": Case(tdmrep={"location": "/", "tdm-reservation": 1}),
    "xmp allows": Case(image=xmp("DMI-PROHIBITED", f'plus:DataMining="{term("DMI-ALLOWED")}"')),
    "compressed xmp allows": Case(
        image=xmp("DMI-PROHIBITED", f'plus:DataMining="{term("DMI-ALLOWED")}"', form="compressed PNG")),
    "xmp of another": Case(image=xmp("", f'plus:DataMining="{term("DMI-PROHIBITED")}"', namespace="http://example.org/")),
}  # fmt: skip


def reply(case: Case, number: int) -> Reply:
    body = case.image or photo(number)
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *case.headers]
    return lambda connection, request: connection.send("\r\n".join([*lines, "", ""]).encode() + body) and None


@contextlib.contextmanager
def sites(cases: dict[str, Case]) -> Iterator[dict[str, Site]]:
    with contextlib.ExitStack() as stack:
        found = {}
        for number, (name, case) in enumerate(cases.items()):
            site = found[name] = stack.enter_context(serve())
            site.routes["/i/a.jpg"] = reply(case, number)
            if case.robots is not None:
                site.routes["/robots.txt"] = answer(case.robots.encode(), Content_Type="text/plain")
            if case.tdmrep is not None:
                site.routes["/.well-known/tdmrep.json"] = answer(json.dumps(case.tdmrep).encode())
        yield found


def gather_links(tmp_path: Path, *urls: str, **options: object) -> GatherSummary:
    return run(links(tmp_path, *urls), tmp_path / "out", timeout_s=30.0, **options)


def gather_from(tmp_path: Path, running: dict[str, Site], **options: object) -> tuple[GatherSummary, dict[str, Any]]:
    """The summary of gathering the image of each site, and the rows by the name of the site."""
    names = {site.url("/i/a.jpg"): name for name, site in running.items()}
    summary = gather_links(tmp_path, *names, keep_duplicates=True, **options)
    return summary, {names[row.url]: row for row in read_manifest(tmp_path / "out")}


def test_every_refusal_is_honoured_and_named_in_the_manifest(tmp_path: Path) -> None:
    with sites(REFUSALS) as running:
        summary, rows = gather_from(tmp_path, running)
    assert [name for name, row in rows.items() if row.reason is not Reason.OPT_OUT] == []
    assert (summary.ok, len(rows)) == (0, len(REFUSALS))
    assert all(row.final and row.detail for row in rows.values())
    assert rows["content signal"].detail == "robots.txt: Content-Signal: ai-train=no"
    assert rows["xmp element"].detail == "XMP plus:DataMining: DMI-PROHIBITED"


def test_no_look_alike_is_refused(tmp_path: Path) -> None:
    with sites(LOOK_ALIKES) as running:
        summary, rows = gather_from(tmp_path, running)
    assert [(name, row.detail) for name, row in rows.items() if row.status != "ok"] == []
    assert summary.ok == len(LOOK_ALIKES)


def test_what_is_ignored_on_request_is_noted_in_the_manifest(tmp_path: Path) -> None:
    with sites(REFUSALS) as running:
        summary, rows = gather_from(tmp_path, running, ignore_opt_out=True)
    details = [row.detail for row in rows.values()]
    assert summary.ok == len(REFUSALS)
    assert all(detail.startswith("ignored opt-out: ") for detail in details), details


def test_a_site_is_asked_once_for_its_rules_by_our_name(site: Site, tmp_path: Path) -> None:
    site.routes = {f"/{n}.jpg": answer(photo(n)) for n in range(30)}
    urls = list(map(site.url, site.routes))
    site.routes["/robots.txt"] = answer(b"User-agent: *\nDisallow: /1")
    assert gather_links(tmp_path, *urls).ok == 19
    assert [request.path for request in site.rule_requests] == ["/robots.txt", "/.well-known/tdmrep.json"]
    assert all(request.headers["user-agent"].startswith("mlimages/") for request in site.rule_requests)


def test_only_a_robots_txt_that_does_not_exist_allows_everything(tmp_path: Path) -> None:
    allowing = answer(b"Disallow: /", 404), answer(b"", 403), answer(b"", 302, Location="/robots.txt")
    short = cut(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nUser")
    unanswered = answer(b"", 503), answer(b"", 500), cut(b""), short
    with sites({str(number): Case() for number in range(7)}) as running:
        for site, robots in zip(running.values(), (*allowing, *unanswered), strict=True):
            site.routes["/robots.txt"] = robots
        summary, _ = gather_from(tmp_path, running)
        assert (summary.ok, summary.open) == (3, 4), "links of a site whose robots.txt is not answered stay open"
        for site in list(running.values())[3:]:
            assert not site.requests
            site.routes["/robots.txt"] = answer(b"")
        assert gather_from(tmp_path, running)[0].ok == 7


def test_a_robots_txt_that_is_not_answered_is_requested_again_in_the_same_run_but_not_at_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlimages.gathering.download.robots._MIN_RETRY_INTERVAL_S", 0.5)
    site.routes["/robots.txt"] = in_turn(answer(b"", 503), answer(b"User-agent: *\nDisallow: /"))

    async def find_opt_out() -> str | None:
        async with aiohttp.ClientSession() as session:
            rules = SiteRulesCache(session, timeout_s=10)
            for _ in range(2):
                with pytest.raises(DownloadError, match="HTTP 503"):
                    await rules.find_opt_out(URL(site.url("/a.jpg")))
            assert len(site.rule_requests) == 1
            await asyncio.sleep(0.6)
            return await rules.find_opt_out(URL(site.url("/a.jpg")))

    assert asyncio.run(find_opt_out()) == "robots.txt: Disallow"


def test_the_site_to_which_a_redirect_leads_is_asked_too(site: Site, tmp_path: Path) -> None:
    with serve() as other:
        site.routes = {"/a.jpg": answer(b"", 302, Location=other.url("/b.jpg"))}
        other.routes = {"/b.jpg": answer(photo(1)), "/robots.txt": answer(b"User-agent: *\nDisallow: /b")}
        assert gather_links(tmp_path, site.url("/a.jpg")).reasons == {"opt-out": 1}


@pytest.mark.parametrize("value", ["", ",", ":", "noai:", "a:b:noai", "mlimages", "max-snippet", "\x00", ", ,:,noaı"])
def test_odd_robots_tags_forbid_nothing(value: str) -> None:
    assert find_forbidding_directive(value) is None


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("/", "/a", True),
        ("/a", "/b/a", False),
        ("/a*c", "/abbc/d", True),
        ("/a$", "/ab", False),
        ("/*.jpg$", "/a.jpg?x", False),
        ("/(", "/(", True),
    ],
)
def test_patterns_of_paths(pattern: str, path: str, matches: bool) -> None:
    assert path_matches(pattern, path) is matches


@pytest.mark.parametrize("packet", [
    b"<x:xmpmeta>DataMining", b"<x:xmpmeta >DataMining</x:xmpmeta>", b"DataMining" * 1000,
    b'<!DOCTYPE a [<!ENTITY b "c">]><rdf:RDF xmlns:rdf="r" xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/"'
    b' plus:DataMining="&b;"></rdf:RDF>'])  # fmt: skip
def test_broken_xmp_forbids_nothing(packet: bytes) -> None:
    assert find_xmp_opt_out(packet) is None


def test_noise_in_the_files_of_a_site_forbids_nothing() -> None:
    for robots, tdmrep in (
        ("\x00\xff: :\n:", "[[[["),
        ("User-agent\nDisallow", '[1, {}, {"location": 3}]'),
        ("", "[" * 9999),
    ):
        assert parse_site_rules(robots, tdmrep).find_opt_out(URL("http://x/a.jpg")) is None
