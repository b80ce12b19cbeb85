"""The window through which the tests look at pages: what it must not overlook."""

from pathlib import Path

import pytest

from tests.browser import OpenPage

pytestmark = pytest.mark.browser

PAGE = """<!doctype html><html><head><meta name="viewport" content="width=device-width">
<style>p {width: 500px; color: black} @media (prefers-color-scheme: dark) {p {color: white}}</style></head>
<body><p id=p>text</p><img src="data:,"><script>%s</script></body></html>"""


def write(folder: Path, script: str) -> Path:
    page = folder / "page.html"
    page.write_text(PAGE % script)
    return page


def test_width_and_dark_mode_are_as_asked(tmp_path: Path, open_page: OpenPage) -> None:
    path = write(tmp_path, "")
    narrow, wide = open_page(path, width=400, dark=True), open_page(path, width=1400)
    assert (narrow.evaluate("innerWidth"), wide.evaluate("innerWidth")) == (400, 1400)
    assert narrow.scrolls_sideways
    assert not wide.scrolls_sideways
    colour = "getComputedStyle(document.getElementById('p')).color"
    assert (narrow.evaluate(colour), wide.evaluate(colour)) == ("rgb(255, 255, 255)", "rgb(0, 0, 0)")
    assert narrow.screenshot(tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_errors_and_outside_requests_are_seen(tmp_path: Path, open_page: OpenPage) -> None:
    page = open_page(write(tmp_path, "console.error('lost'); fetch('http://127.0.0.1:9/x'); missing()"))
    assert page.requests == [page.url, "http://127.0.0.1:9/x"]
    text = " ".join(page.console_errors)
    assert "lost" in text
    assert "missing is not defined" in text


def test_a_quiet_page_has_nothing_to_report(tmp_path: Path, open_page: OpenPage) -> None:
    page = open_page(write(tmp_path, "document.title = 'fine'"))
    assert page.console_errors == []
    assert page.requests == [page.url]
    assert page.evaluate("Promise.resolve(document.title)") == "fine"
