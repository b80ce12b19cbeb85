"""The page of `mlimages export --page`, on a static host, in a real browser."""

import functools
import hashlib
import http.server
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from mlimages import images
from mlimages.core import ClassScore, ImageProperty, InputError, Prediction, write_output
from mlimages.inference import Explanation, OnnxBundle, Predictor, explain, softmax, to_graph_input
from mlimages.inference.predictor import OutputRow
from mlimages.serving import OrtWebFiles, write_page
from tests.browser import OpenPage, Page
from tests.deploying import made_image
from tests.serving.test_server_page import choose, wait_for

pytestmark = [pytest.mark.browser, pytest.mark.train]

INSTALLED = Path(__file__).parents[2] / "node_modules/onnxruntime-web"
NAMES = ("<img src=x onerror=alert(1)>", "b\u00e9e", "</script>")

STAND_IN = """
export const env = {wasm: {}};
export class Tensor { constructor(type, data, dims) { Object.assign(this, {data, dims}); } }
export const InferenceSession = {create: async () => ({run: async ({image: {data}}) => {
  const sum = channel => data.reduce((sum, level, n) => n % 3 === channel ? sum + level : sum, 0);
  const logits = [0, 1, 2].map(channel => sum(channel) * 15 / data.length);
  const odds = logits.map(Math.exp), total = odds.reduce((sum, one) => sum + one);
  return {logits: {data: logits}, probabilities: {data: odds.map(one => one / total)}};
}})};
"""
"""Without onnxruntime-web: a network whose logits are five times the means of the channels."""


class StandInPredictor(Predictor):
    """A predictor that computes as `STAND_IN` does."""

    def compute_probabilities(self, pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        framed = to_graph_input(pixels, self.bundle.preprocessing.image)
        return softmax((framed.mean(axis=(1, 2)) * 5).astype(np.float32))

    def compute_output_rows(self, pixels: Sequence[NDArray[np.uint8]]) -> list[OutputRow]:
        return [OutputRow(one, np.log(one)) for one in self.compute_probabilities(pixels)]


@dataclass(frozen=True, slots=True)
class Site:
    folder: Path
    bundle: OnnxBundle
    predictor: Predictor
    runtime: OrtWebFiles


@pytest.fixture(scope="module")
def site(cnn_bundle: OnnxBundle, tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder, bundle = tmp_path_factory.mktemp("page"), replace(cnn_bundle, class_names=NAMES)
    if INSTALLED.exists():
        return Site(folder, bundle, Predictor(bundle), OrtWebFiles.from_npm_package(INSTALLED))
    package = folder / "package"
    (package / "dist").mkdir(parents=True)
    (package / "package.json").write_text('{"version": "1.0"}')
    (package / "dist/ort.wasm.bundle.min.mjs").write_text(STAND_IN)
    (package / "dist/ort-wasm-simd-threaded.wasm").write_bytes(b"\0asm")
    probe = np.frombuffer(bundle.parity_test_image.pixels, np.uint8).reshape(-1, 3).mean(axis=0) * 5
    stood_in = replace(bundle, parity_test_image=replace(bundle.parity_test_image, logits=tuple(probe.tolist())))
    return Site(folder, stood_in, StandInPredictor(bundle), OrtWebFiles.from_npm_package(package))


class Host(http.server.ThreadingHTTPServer):
    """A static host; `stop` takes it off the network."""

    def __init__(self, folder: Path) -> None:
        handler = functools.partial(QuietHandler, directory=str(folder))
        super().__init__(("127.0.0.1", 0), handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://localhost:{self.server_port}/site/"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def host(site: Site) -> Iterator[Host]:
    write_page(site.bundle, site.folder / "site", runtime=site.runtime)
    started = Host(site.folder)
    yield started
    started.stop()


def odd_images(folder: Path) -> list[Path]:
    """PNGs of which browsers and Pillow may disagree: turned, transparent, with a gamma, gray, with a palette."""
    folder.mkdir()
    paths = [folder / f"{n}.png" for n in range(5)]
    turned, gamma = Image.Exif(), PngImagePlugin.PngInfo()
    turned[0x112] = 6
    gamma.add(b"gAMA", (20000).to_bytes(4, "big"))
    clear = made_image(1)
    clear.putalpha(Image.fromarray(np.linspace(0, 255, clear.width).astype(np.uint8)[None].repeat(clear.height, 0)))
    made_image(0).save(paths[0], exif=turned)
    clear.save(paths[1])
    made_image(2).save(paths[2], pnginfo=gamma)
    made_image(3).convert("L").save(paths[3])
    made_image(4).convert("P").save(paths[4], transparency=7)
    return paths


def pixels_of(page: Page, path: Path, then: str = "image") -> str:
    """The SHA-256 of the pixels that the page decodes."""
    return str(
        page.evaluate(
            f"""(async () => {{
              await ready;
              const image = await decode(await (await fetch("../odd/{path.name}")).blob());
              const hash = await crypto.subtle.digest("SHA-256", ({then}).pixels);
              return [...new Uint8Array(hash)].map(one => one.toString(16).padStart(2, "0")).join("");
            }})()"""
        )
    )


def status_after_loading(page: Page) -> str:
    return str(page.evaluate("ready.catch(() => 0).then(() => document.getElementById('status').textContent)"))


def test_the_page_prepares_the_pixels_that_python_prepares(host: Host, site: Site, open_page: OpenPage) -> None:
    paths = odd_images(site.folder / "odd")
    page = open_page(host.url)
    for path in paths:
        want = np.asarray(images.load_rgb(path)).tobytes()
        assert pixels_of(page, path) == hashlib.sha256(want).hexdigest(), path
    for prop in (
        ImageProperty(24, 31, shorter_px=41, interpolation="bicubic"),
        ImageProperty(64, 20, resize="squash", gray_scale=True),
        ImageProperty(100, 100, resize="letterbox"),
        ImageProperty(33, 20, resize="downscale"),
        ImageProperty(75, 95, resize="crop"),
        ImageProperty(40, 40, resize="position", position=(70, 5)),
    ):
        values = {name: getattr(prop, name) for name in ("width", "height", "resize", "shorter_px", "position",
                                                         "interpolation", "gray_scale")}  # fmt: skip
        page.evaluate(f"model.image = {json.dumps(values)}, 0")
        want = np.repeat(images.load_pixels(paths[0], prop), 3 if prop.gray_scale else 1, axis=2).tobytes()
        assert pixels_of(page, paths[0], "prepare(image)") == hashlib.sha256(want).hexdigest(), prop


def test_the_page_predicts_and_explains_as_python_and_works_offline(
    host: Host, site: Site, open_page: OpenPage, tmp_path: Path
) -> None:
    made_image(5, 120, 90).save(tmp_path / "photograph.png")
    alone = Host(site.folder)
    page = open_page(alone.url, width=400, dark=True)
    wait_for(page, "!document.getElementById('offline').hidden")
    assert page.send("Page.getInstallabilityErrors")["installabilityErrors"] == []
    alone.stop()
    page = open_page(alone.url, width=400, dark=True)
    choose(page, tmp_path / "photograph.png")
    wait_for(page, "document.querySelectorAll('li').length === 3")
    (want,) = site.predictor([tmp_path / "photograph.png"])
    found = explain(site.predictor, tmp_path / "photograph.png")
    assert isinstance(want, Prediction)
    assert isinstance(found, Explanation)
    names = page.evaluate("[...document.querySelectorAll('li span:first-child')].map(each => each.textContent)")
    assert names == [score.class_name for score in want.top]
    shown = page.evaluate("[...document.querySelectorAll('li span + span')].map(each => each.textContent)")
    assert shown == [f"{score.probability * 100:.1f} %" for score in want.top]
    page.evaluate("document.querySelector('figure button').click()")
    wait_for(page, "document.querySelector('figure img').alt")
    told = page.evaluate("document.querySelector('.why').textContent")
    assert told.startswith(str(found))
    assert not page.scrolls_sideways
    assert not page.console_errors
    assert all(request.startswith(alone.url) for request in page.requests)


def test_the_pages_list_all_labels_above_their_thresholds(
    site: Site, cnn_bundle: OnnxBundle, serve_with: Any, open_page: OpenPage, tmp_path: Path
) -> None:
    made_image(5, 120, 90).save(tmp_path / "photograph.png")
    ranked = site.predictor([tmp_path / "photograph.png"])[0].top  # type: ignore[union-attr]
    served = Predictor(cnn_bundle)([tmp_path / "photograph.png"])[0].top  # type: ignore[union-attr]

    def with_thresholds(bundle: OnnxBundle, top: tuple[ClassScore, ...], reached: int) -> OnnxBundle:
        above = {score.label for score in top[:reached]}
        return replace(bundle, multi_label=True, thresholds=tuple(0.0 if n in above else 1.1 for n in range(3)))

    for number, reached in enumerate((2, 0)):
        write_page(with_thresholds(site.bundle, ranked, reached), site.folder / f"{number}/site", runtime=site.runtime)
        alone = Host(site.folder / str(number))
        server = serve_with(Predictor(with_thresholds(cnn_bundle, served, reached), workers=1))
        for url, top in ((alone.url, ranked), (f"http://127.0.0.1:{server.port}/", served)):
            page = open_page(url)
            choose(page, tmp_path / "photograph.png")
            wait_for(page, f"document.querySelectorAll('li').length === {reached or 3}")
            names = page.evaluate("[...document.querySelectorAll('li span:first-child')].map(each => each.textContent)")
            assert names == [score.class_name for score in top[: reached or 3]]
            status = page.evaluate("document.querySelector('[role=status]').textContent")
            assert ("none of these" in status) == (reached == 0)
            assert not page.console_errors
        alone.stop()


def test_a_page_that_cannot_work_says_why(site: Site, open_page: OpenPage) -> None:
    other = {**site.runtime.integrity, "ort.wasm": OrtWebFiles().integrity["ort.js"]}
    write_page(site.bundle, site.folder / "damaged/site", runtime=replace(site.runtime, integrity=other))
    opened = open_page(site.folder / "damaged/site/index.html")
    assert "for example: python3 -m http.server" in opened.evaluate("document.getElementById('status').textContent")
    damaged = Host(site.folder / "damaged")
    page = open_page(damaged.url)
    wait_for(page, "document.getElementById('status').className === 'bad'")
    assert "ort.wasm could not be loaded" in page.evaluate("document.getElementById('status').textContent")
    damaged.stop()


@pytest.mark.parametrize("name", ["model.json", "model.onnx", "ort.js", "ort.wasm"])
def test_a_page_names_a_file_that_is_missing_or_cannot_be_reached(
    site: Site, open_page: OpenPage, tmp_path: Path, name: str
) -> None:
    file = write_page(site.bundle, tmp_path / "site", runtime=site.runtime).with_name(name)
    host = Host(tmp_path)
    file.unlink()
    status = status_after_loading(open_page(host.url))
    assert f"{name} could not be loaded" in status
    assert status.endswith("). Check the connection, or upload the whole folder again")
    host.stop()


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5010495\n"
WEB_PAGE = b"\n<!doctype html>\n<title>This page does not exist</title>"


EXPORT = "or from another export than"


def first_half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def upload(path: Path, content: bytes, *, day: int) -> None:
    """Write a file with a time of modification long ago, so that browsers keep it in their cache."""
    path.write_bytes(content)
    os.utime(path, (day * 86400, day * 86400))


@pytest.mark.parametrize(
    ("name", "damage", "problem"),
    [
        ("model.onnx", first_half, f"the file is incomplete, {EXPORT} model.json ("),
        ("model.onnx", lambda _: b"", f"the file is incomplete, {EXPORT} model.json (0 bytes, expected "),
        ("model.onnx", lambda content: content + b"1", f"the file is damaged, {EXPORT} model.json ("),
        ("model.onnx", lambda content: content[:-1] + b"1", f"the file is damaged, {EXPORT} model.json (different SHA"),
        ("model.onnx", lambda _: LFS_POINTER, "the host returned a Git LFS pointer. Run 'git lfs pull'"),
        ("model.onnx", lambda _: WEB_PAGE, "the host returned a web page, perhaps because the file is missing"),
        ("model.json", first_half, f"the file is incomplete, {EXPORT} the page"),
        ("model.json", lambda _: b'{"error": "not found"}', f"the file is incomplete, {EXPORT} the page"),
        ("model.json", lambda _: LFS_POINTER, "the host returned a Git LFS pointer. Run 'git lfs pull'"),
        ("model.json", lambda _: WEB_PAGE, "the host returned a web page, perhaps because the file is missing"),
    ],
)
def test_a_page_beside_a_file_that_is_not_the_exported_one_names_the_file(
    site: Site, open_page: OpenPage, tmp_path: Path, name: str, damage: Callable[[bytes], bytes], problem: str
) -> None:
    file = write_page(site.bundle, tmp_path / "site", runtime=site.runtime).with_name(name)
    exported = file.read_bytes()
    upload(file, damage(exported), day=1)
    host = Host(tmp_path)
    status = status_after_loading(open_page(host.url))
    assert status.startswith(f"This page cannot run the model: {name}: {problem}")
    upload(file, exported, day=2)
    assert status_after_loading(open_page(host.url)) == ""
    host.stop()


def test_a_page_over_plain_http_compares_the_size_of_the_model(site: Site, open_page: OpenPage, tmp_path: Path) -> None:
    file = write_page(site.bundle, tmp_path / "site", runtime=site.runtime).with_name("model.onnx")
    host = Host(tmp_path)
    upload(file, exported := file.read_bytes(), day=1)
    url = host.url.replace("localhost", "plain-http.test")
    page = open_page(url)
    assert not page.evaluate("isSecureContext")
    assert status_after_loading(page) == ""
    upload(file, first_half(exported), day=2)
    assert "model.onnx: the file is incomplete" in status_after_loading(open_page(url))
    host.stop()


def test_an_incomplete_upload_does_not_replace_the_version_that_works_offline(
    site: Site, open_page: OpenPage, tmp_path: Path
) -> None:
    def export(class_name: str, *, day: int) -> Path:
        bundle = replace(site.bundle, class_names=(class_name, "b", "c"))
        page = write_page(bundle, tmp_path / "site", runtime=site.runtime)
        for path in page.parent.iterdir():
            upload(path, path.read_bytes(), day=day)
        return page.with_name("model.onnx")

    def first_class_after_update(page: Page) -> str:
        wait_for(page, "!document.getElementById('offline').hidden")
        page.evaluate(
            """(async () => {
              const registration = await navigator.serviceWorker.ready;
              await registration.update();
              while (registration.installing || registration.waiting) await new Promise(done => setTimeout(done, 20));
            })()"""
        )
        return str(open_page(host.url).evaluate("ready.then(() => model.classes[0])"))

    export("previous", day=1)
    host = Host(tmp_path)
    assert first_class_after_update(open_page(host.url)) == "previous"
    file = export("next", day=3)
    exported = file.read_bytes()
    upload(file, first_half(exported), day=2)
    assert first_class_after_update(open_page(host.url)) == "previous"
    upload(file, exported, day=3)
    assert first_class_after_update(open_page(host.url)) == "next"
    host.stop()


@pytest.mark.parametrize("name", ["photograph.tiff", "photograph.heic", "cut.jpg", "cut.png", "text.jpg"])
def test_a_file_that_the_browser_cannot_decode_may_be_damaged_or_in_another_format(
    host: Host, open_page: OpenPage, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    if name.endswith("heic"):
        pytest.importorskip("pillow_heif").from_pillow(made_image(1)).save(path)
    else:
        made_image(1).save(path)
    if name.startswith("cut"):
        path.write_bytes(first_half(path.read_bytes()))
    if name.startswith("text"):
        path.write_text("not an image")
    page = open_page(host.url, width=400)
    choose(page, path)
    wait_for(page, "document.querySelector('figure .bad')")
    reason = "this browser cannot decode it. It may be damaged, too large, or in a format that browsers do not read"
    assert page.evaluate("document.querySelector('figure .bad').textContent").startswith(
        f"Cannot classify this file: {reason}"
    )
    status = page.evaluate("document.getElementById('status').textContent")
    assert status.startswith(f"Cannot classify {name}: {reason}")
    assert status.endswith("such as HEIC or TIFF: use JPEG or PNG")
    assert not page.scrolls_sideways


def test_files_that_cannot_run_in_a_page_and_files_of_a_person_are_refused(site: Site, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="preprocessing"):
        write_page(replace(site.bundle, includes_preprocessing=False), tmp_path, runtime=site.runtime)
    with pytest.raises(InputError, match="npm install onnxruntime-web"):
        OrtWebFiles.from_npm_package(tmp_path)
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(InputError, match="not written by mlimages"):
        write_page(site.bundle, tmp_path, runtime=site.runtime)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_a_page_that_was_not_finished_is_written_by_the_same_call(site: Site, tmp_path: Path) -> None:
    def stop_at_the_end(path: Path, *, overwrite: bool) -> AbstractContextManager[Path]:
        if path.name == "index.html":
            raise KeyboardInterrupt
        return write_output(path, overwrite=overwrite)

    with mock.patch("mlimages.serving.static_page.write_output", stop_at_the_end), pytest.raises(KeyboardInterrupt):
        write_page(site.bundle, tmp_path, runtime=site.runtime)
    assert write_page(site.bundle, tmp_path, runtime=site.runtime).exists()
    assert {*tmp_path.iterdir()} == {*site.runtime.list_page_files(tmp_path), tmp_path / ".mlimages-written"}
