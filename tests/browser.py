"""A page in headless Chromium, driven by its DevTools protocol over a pair of pipes.

Protocol: https://chromedevtools.github.io/devtools-protocol/ ; messages are JSON, each ended by a zero byte.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP plain-http.test 127.0.0.1",  # unlike localhost, no secure context
    "--remote-debugging-pipe",
]

OpenPage = Callable[..., "Page"]
"""`open_page(url_or_path, width=1400, height=900, dark=False) -> Page`, the fixture of conftest."""


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are numbered from 10: 3 and 4 are to be free in the child."""
    ends = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return high[0], high[1]


class Browser:
    """One Chromium process with an empty profile."""

    def __init__(self, executable: str, profile: Path) -> None:
        commands_in, self._commands = _pipe()
        self._answers, answers_out = _pipe()
        # Chromium reads commands from file descriptor 3 and answers on 4; bash puts ours there.
        line = f'exec "$@" 3<&{commands_in} 4>&{answers_out} {commands_in}<&- {answers_out}>&-'
        self._process = subprocess.Popen(
            ["bash", "-c", line, "bash", executable, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(commands_in, answers_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(commands_in)
        os.close(answers_out)
        self._buffer = b""
        self._sent = 0
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, *, session: str = "", timeout_s: float = 60, **params: Any) -> dict[str, Any]:
        """Call one method and return its result; events that come meanwhile are kept in `events`."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": params, **({"sessionId": session} if session else {})}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        ends = time.monotonic() + timeout_s
        while (answer := self._read(ends, method)).get("id") != self._sent:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return dict(answer["result"])

    def wait_for(self, event: str, *, session: str, timeout_s: float = 60) -> dict[str, Any]:
        """The first event of this name in a session, past or coming."""
        ends = time.monotonic() + timeout_s
        seen = 0
        while True:
            for found in self.events[seen:]:
                if found["method"] == event and found.get("sessionId") == session:
                    return found
            seen = len(self.events)
            self.events.append(self._read(ends, event))

    def close(self) -> None:
        """End the process and all its children."""
        os.close(self._commands)
        os.close(self._answers)
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _read(self, ends: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._answers], [], [], max(0.0, ends - time.monotonic()))[0]:
                raise TimeoutError(f"Chromium did not answer: {what}")
            chunk = os.read(self._answers, 1 << 20)
            if not chunk:
                raise RuntimeError(f"Chromium ended (exit {self._process.wait()}): {what}")
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))


class Page:
    """One page, loaded; `send` reaches the rest of the protocol (input, files, emulation)."""

    def __init__(self, browser: Browser, url: str, *, width: int, height: int, dark: bool) -> None:
        self.url = url
        self._browser = browser
        self._target = browser.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.send("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url=url)
        browser.wait_for("Page.loadEventFired", session=self._session)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call one protocol method in this page."""
        return self._browser.send(method, session=self._session, **params)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def screenshot(self, path: Path, *, whole: bool = True) -> Path:
        """Write a PNG of the page (or of what the window shows)."""
        self.send("Page.bringToFront")  # a page behind another one may draw no frame
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))
        return path

    @property
    def console_errors(self) -> list[str]:
        """What the page has logged as errors, exceptions and refused loads included."""
        events = self._events()
        logged = [event["params"]["entry"]["text"] for event in events if event["method"] == "Log.entryAdded"
                  and event["params"]["entry"]["level"] == "error"]  # fmt: skip
        printed = [json.dumps(event["params"]["args"]) for event in events
                   if event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] == "error"]  # fmt: skip
        thrown = [json.dumps(event["params"]["exceptionDetails"]) for event in events
                  if event["method"] == "Runtime.exceptionThrown"]  # fmt: skip
        return logged + printed + thrown

    @property
    def requests(self) -> list[str]:
        """Every address that the page has asked for, itself first; `data:` and `blob:` are no requests."""
        urls = [event["params"]["request"]["url"] for event in self._events()
                if event["method"] == "Network.requestWillBeSent"]  # fmt: skip
        return [url for url in urls if not url.startswith(("data:", "blob:"))]

    @property
    def scrolls_sideways(self) -> bool:
        """True where the page is wider than its window."""
        return bool(self.evaluate("document.documentElement.scrollWidth > window.innerWidth"))

    def close(self) -> None:
        """Close the page."""
        self._browser.send("Target.closeTarget", targetId=self._target)
        self._browser.events.clear()

    def _events(self) -> list[dict[str, Any]]:
        self.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")  # what is on its way
        return [event for event in self._browser.events if event.get("sessionId") == self._session]


def chromium() -> str | None:
    """The path of the browser; None where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def as_url(url_or_path: str | Path) -> str:
    """A path as a `file:` address; an address as it is."""
    return url_or_path.resolve().as_uri() if isinstance(url_or_path, Path) else url_or_path
