"""The page of the server and of an exported model: one HTML file, and its Content-Security-Policy."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources


def read_asset(name: str) -> str:
    """Return the text of one of the page's source files, such as `page.js`."""
    return resources.files("mlimages.serving").joinpath("assets", name).read_text(encoding="utf-8")


def build_page(
    script: str, *, privacy_note: str, head_html: str = "", connect_sources: str = "", script_sources: str = ""
) -> tuple[str, str]:
    """Return the page, and a Content-Security-Policy that allows only its own script and style.

    Args:
        script: JavaScript appended to `page.js`.
        privacy_note: note on where images are sent, as HTML.
        head_html: HTML of the head, in which `POLICY` is replaced by the Content-Security-Policy.
        connect_sources: additional sources of the policy's `connect-src`.
        script_sources: additional sources of the policy's `script-src`.
    """
    style, script = f"\n{read_asset('page.css')}", f"\n{read_asset('page.js')}{script}"
    policy = (
        f"default-src 'none'; script-src {_csp_hash(script)} {script_sources}; "
        f"style-src {_csp_hash(style)}; img-src 'self' blob: data:; "
        f"connect-src 'self' {connect_sources}; base-uri 'none'; form-action 'none'"
    )
    page = read_asset("page.html")
    parts = {
        "<!-- head -->": head_html.replace("POLICY", policy),
        "<!-- privacy -->": privacy_note,
        "\n/* style */\n": style,
        "\n/* script */\n": script,
    }
    for placeholder, text in parts.items():
        page = page.replace(placeholder, text)
    return page, policy


@cache
def server_page() -> tuple[str, str]:
    """Return the HTML of the server's page and its Content-Security-Policy."""
    page, policy = build_page(
        read_asset("serve.js"),
        privacy_note="Images are sent to this server only and are not stored.",
        head_html='<link rel="icon" href="data:,">',
    )
    return page, f"{policy}; frame-ancestors 'none'"


def _csp_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
