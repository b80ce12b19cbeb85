"""Build the HTML page of the server or of an exported model, and its Content-Security-Policy."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources


def read_asset(name: str) -> str:
    """Return the text of a source file of the page, such as `page.js`."""
    return resources.files("mlimages.serving").joinpath("assets", name).read_text(encoding="utf-8")


def build_page(
    script: str, *, privacy_note: str, head_html: str = "", extra_connect_src: str = "", extra_script_src: str = ""
) -> tuple[str, str]:
    """Return the HTML of the page, and its Content-Security-Policy.

    The policy allows only the page's own script and style, and the extra sources that are passed.

    Args:
        script: JavaScript to append to `page.js`.
        privacy_note: HTML that says where images are sent.
        head_html: HTML for the head, in which `POLICY` is replaced by the Content-Security-Policy.
        extra_connect_src: additional sources of the policy's `connect-src`.
        extra_script_src: additional sources of the policy's `script-src`.
    """
    style, script = f"\n{read_asset('page.css')}", f"\n{read_asset('page.js')}{script}"
    policy = (
        f"default-src 'none'; script-src {_compute_csp_hash(script)} {extra_script_src}; "
        f"style-src {_compute_csp_hash(style)}; img-src 'self' blob: data:; "
        f"connect-src 'self' {extra_connect_src}; base-uri 'none'; form-action 'none'"
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
def build_server_page() -> tuple[str, str]:
    """Return the HTML of the server's page and its Content-Security-Policy."""
    page, policy = build_page(
        read_asset("serve.js"),
        privacy_note="Images are sent only to this server and are not stored.",
        head_html='<link rel="icon" href="data:,">',
    )
    return page, f"{policy}; frame-ancestors 'none'"


def _compute_csp_hash(text: str) -> str:
    """Return the hash of an inline script or style, in the format of a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
