"""The page at `/`, in a real browser."""

from pathlib import Path
from typing import Any

import pytest

from mlimages.inference import OnnxBundle, Predictor, explain
from tests.browser import OpenPage, Page
from tests.deploying import made_image
from tests.serving.apps import Served

pytestmark = [pytest.mark.browser, pytest.mark.train]


@pytest.fixture(scope="module")
def server(serve_with: Any) -> Served:
    return serve_with()


def url(server: Served) -> str:
    return f"http://127.0.0.1:{server.port}/"


def choose(page: Page, *paths: Path, field: str = "file") -> None:
    """Put files into the page's input, as the file dialogue does."""
    root = page.send("DOM.getDocument")["root"]["nodeId"]
    node = page.send("DOM.querySelector", nodeId=root, selector=f"#{field}")["nodeId"]
    page.send("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])


def wait_for(page: Page, condition: str) -> None:
    """Until a JavaScript expression is true in the page."""
    page.evaluate(
        f"""new Promise((done, fail) => {{
          const look = () => ({condition}) ? done(true) : setTimeout(look, 20);
          setTimeout(() => fail(new Error("waited for: " + {condition!r})), 30000);
          look();
        }})"""
    )


def drop(page: Page, kind: str, *, event: str = "drop") -> None:
    """Drop or paste an image of one colour, drawn in the page itself."""
    transfer = "dataTransfer" if event == "drop" else "clipboardData"
    page.evaluate(
        f"""new Promise(done => {{
          const canvas = Object.assign(document.createElement("canvas"), {{width: 40, height: 30}});
          canvas.getContext("2d").fillRect(0, 0, 20, 30);
          canvas.toBlob(blob => {{
            const data = new DataTransfer();
            data.items.add(new File([blob], "{kind}.png", {{type: "image/png"}}));
            const event = "{event}" === "drop" ? new DragEvent("drop", {{dataTransfer: data, cancelable: true}})
              : new ClipboardEvent("paste", {{clipboardData: data}});
            document.dispatchEvent(event);
            done(event.{transfer}.files.length);
          }});
        }})"""
    )


@pytest.mark.parametrize(("width", "dark"), [(400, False), (400, True), (1400, False)])
def test_a_chosen_image_is_answered_with_its_classes_as_bars(
    server: Served, cnn_bundle: OnnxBundle, open_page: OpenPage, tmp_path: Path, width: int, dark: bool
) -> None:
    made_image(3).save(tmp_path / "photograph.png")
    (want,) = Predictor(cnn_bundle)([tmp_path / "photograph.png"])
    page = open_page(url(server), width=width, height=900, dark=dark)
    choose(page, tmp_path / "photograph.png")
    wait_for(page, "document.querySelectorAll('li').length === 3")
    rows = page.evaluate("[...document.querySelectorAll('li')].map(row => row.innerText.split('\\n').slice(0, 2))")
    assert rows == [[score.class_name, f"{score.probability * 100:.1f} %"] for score in want.top]  # type: ignore[union-attr]
    assert page.evaluate("document.querySelector('[role=status]').textContent").startswith("photograph.png: class")
    page.evaluate("document.querySelector('figure button').click()")
    wait_for(page, "document.querySelector('figure img').src.startsWith('data:image/png')")
    found = explain(Predictor(cnn_bundle), tmp_path / "photograph.png")
    assert page.evaluate("document.querySelector('.why').textContent").startswith(str(found))
    assert not page.scrolls_sideways
    assert not page.console_errors
    assert set(page.requests) == {url(server) + path for path in ("", "predict", "healthz", "explain")}


def test_dropped_and_pasted_images_are_answered(server: Served, open_page: OpenPage) -> None:
    page = open_page(url(server), width=800, height=900)
    drop(page, "dropped")
    wait_for(page, "document.querySelectorAll('figure').length === 1")
    drop(page, "pasted", event="paste")
    wait_for(page, "document.querySelectorAll('figure').length === 2")
    names = page.evaluate("[...document.querySelectorAll('h2')].map(name => name.textContent)")
    assert names == ["pasted.png", "dropped.png"]
    assert not page.console_errors


def test_a_broken_image_is_told_in_words_and_the_next_is_answered(
    server: Served, open_page: OpenPage, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_text("<script>alert(1)</script>")
    made_image(1).save(tmp_path / "good.png")
    page = open_page(url(server), width=400, height=900)
    choose(page, tmp_path / "broken.jpg", tmp_path / "good.png")
    wait_for(page, "document.querySelectorAll('figure').length === 2")
    said = page.evaluate("document.querySelector('.bad').textContent")
    assert said == "Cannot classify this file: the file is not an image in a supported format (not-an-image)"
    wait_for(page, "document.querySelector('[role=status]').textContent.startsWith('good.png: class')")
    page.evaluate("void (window.fetch = async () => new Response('<html>Request too large</html>', {status: 413}))")
    choose(page, tmp_path / "good.png")
    refused = "Cannot classify good.png: a proxy in front of mlimages rejected the request (413)"
    wait_for(page, f"document.querySelector('[role=status]').textContent === '{refused}'")


def test_every_control_can_be_reached_by_keyboard_and_has_a_name(server: Served, open_page: OpenPage) -> None:
    page = open_page(url(server), width=400, height=900)
    reached = []
    for _ in range(2):
        for kind in ("keyDown", "keyUp"):
            page.send("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        reached.append(page.evaluate("document.activeElement.id"))
    assert reached == ["file", "camera"]
    names = page.evaluate(
        "['file', 'camera', 'token'].map(id => document.getElementById(id).labels[0].innerText.trim())"
    )
    assert all(names)
    heights = page.evaluate("[...document.querySelectorAll('label.button')].map(each => each.offsetHeight)")
    assert min(heights) >= 44


def test_the_page_asks_for_the_token_and_then_answers(serve_with: Any, open_page: OpenPage, tmp_path: Path) -> None:
    made_image(2).save(tmp_path / "a.png")
    page = open_page(url(serve_with(token="s3cret")), width=400, height=900)
    assert page.evaluate("document.getElementById('model').hidden")
    choose(page, tmp_path / "a.png")
    wait_for(page, "!document.getElementById('ask').hidden")
    page.evaluate("document.getElementById('token').value = 's3cret'; document.querySelector('#ask button').click()")
    wait_for(page, "document.querySelectorAll('li').length === 3")
    assert page.evaluate("document.getElementById('ask').hidden")
    wait_for(page, "document.getElementById('model').textContent.includes('class0, class1, class2')")
