"""Write a static web page that runs an exported file in the browser with onnxruntime-web."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlimages.core import MAX_PIXELS, InputError, require_local_path, require_writable, write_output
from mlimages.inference import (
    GRID_SIZE,
    KNOWN_THRESHOLD,
    MASK_SIDE_STEPS,
    PREDICTION_SET_LEVEL,
    OnnxBundle,
    external_data_path,
)
from mlimages.serving.openapi import DEFAULT_TOP
from mlimages.serving.page import build_page, read_asset

CDN_RUNTIME_VERSION = "1.30.0"
"""Version of onnxruntime-web that pages load from a CDN."""

_CDN_URL = "https://cdn.jsdelivr.net"
_NPM_FILE_NAMES = {"ort.js": "ort.wasm.bundle.min.mjs", "ort.wasm": "ort-wasm-simd-threaded.wasm"}
"""Files of onnxruntime-web: the name in the folder of the page, and the name in the npm package's folder `dist`.

The names differ because not all web servers know the content type of `.mjs` files.
"""

_CDN_INTEGRITY = {
    "ort.js": "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
    "ort.wasm": "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
}


@dataclass(frozen=True, slots=True)
class OrtWebFiles:
    """Files of onnxruntime-web that a page needs.

    Attributes:
        version: version of onnxruntime-web.
        urls: URLs of the files, by name (`ort.js`, `ort.wasm`), absolute or relative to the page.
        integrity: SHA-384 hashes of the files by name, in the format of the HTML attribute `integrity`.
        files: contents of the files by name, if they are copied into the page's folder.
        origin: origin from which the browser loads the files; empty if they are copied.
    """

    version: str = CDN_RUNTIME_VERSION
    urls: Mapping[str, str] = field(
        default_factory=lambda: {
            name: f"{_CDN_URL}/npm/onnxruntime-web@{CDN_RUNTIME_VERSION}/dist/{file}"
            for name, file in _NPM_FILE_NAMES.items()
        }
    )
    integrity: Mapping[str, str] = field(default_factory=lambda: _CDN_INTEGRITY)
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    origin: str = _CDN_URL

    @classmethod
    def from_npm_package(cls, package: str | os.PathLike[str]) -> OrtWebFiles:
        """Read the files of an installed npm package.

        Args:
            package: folder of the package, such as `node_modules/onnxruntime-web`.

        Raises:
            InputError: the folder is not an installed onnxruntime-web.
        """
        package = require_local_path(package)
        try:
            version = json.loads((package / "package.json").read_text(encoding="utf-8"))["version"]
            files = {name: (package / "dist" / file).read_bytes() for name, file in _NPM_FILE_NAMES.items()}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(
                f"{package} is not the folder of the npm package onnxruntime-web: run 'npm install onnxruntime-web', "
                "and pass node_modules/onnxruntime-web"
            ) from error
        return cls(version, {name: f"./{name}" for name in files}, _compute_integrity(files), files, origin="")

    def list_page_files(self, folder: Path) -> list[Path]:
        """Return the paths of all files that `write_page` writes to `folder`: those of the page, and `self.files`."""
        names = ("model.onnx", "model.json", "manifest.json", "icon.svg", "service_worker.js", "index.html")
        return [require_local_path(folder) / name for name in (*names, *self.files)]


def write_page(
    bundle: OnnxBundle, folder: str | os.PathLike[str], *, runtime: OrtWebFiles | None = None, overwrite: bool = False
) -> Path:
    """Write a static web page that runs an exported model in the browser.

    Args:
        bundle: an exported model that includes its preprocessing and has weights below 2 GB.
        folder: output folder; created if it does not exist.
        runtime: files of onnxruntime-web; by default the browser loads them from a CDN and checks their hashes.
        overwrite: replace files that mlimages did not write, or that were changed since.

    Returns:
        The path of the page, `folder/index.html`.

    Raises:
        InputError: the model cannot run in a browser, or `overwrite` is false and a file exists that mlimages did not
            write, or that was changed since.

    Example:
        >>> page = write_page(OnnxBundle.read("runs/first"), "site")  # doctest: +SKIP
    """
    if not bundle.includes_preprocessing or external_data_path(bundle.path).exists():
        requirement = "include preprocessing" if not bundle.includes_preprocessing else "be smaller than 2 GB"
        raise InputError(f"{bundle.path} cannot run in a browser: the model must {requirement}")
    runtime, folder = runtime or OrtWebFiles(), require_local_path(folder)
    require_writable(runtime.list_page_files(folder), overwrite=overwrite)
    for name, content in _build_page_files(bundle, runtime).items():
        with write_output(folder / name, overwrite=overwrite) as part:
            part.write_bytes(content)
    return folder / "index.html"


def _build_page_files(bundle: OnnxBundle, runtime: OrtWebFiles) -> dict[str, bytes]:
    """Return the contents of all files by name, with the model first and the page last."""
    model = bundle.path.read_bytes()
    name = ", ".join(bundle.class_names)[:45]
    manifest = {
        "name": f"Classify images: {name}",
        "short_name": name,
        "start_url": "./",
        "display": "standalone",
        "icons": [{"src": "icon.svg", "sizes": "any", "type": "image/svg+xml"}],
    }
    files = {
        "model.onnx": model,
        **runtime.files,
        "model.json": _encode_json(
            {**_make_model_json(bundle), "bytes": len(model), "sha256": hashlib.sha256(model).hexdigest()}
        ),
        "manifest.json": _encode_json(manifest),
        "icon.svg": read_asset("icon.svg").encode(),
    }
    page = _render_page(runtime).encode()
    remote = {url: runtime.integrity[name] for name, url in runtime.urls.items() if name not in files}
    cached = {"./": "", **_compute_integrity(files), **remote}  # no hash of the page, which some hosts alter
    version = hashlib.sha256(b"".join([*files.values(), page])).hexdigest()[:16]
    worker = read_asset("service_worker.js").replace("/* files */", json.dumps(cached))
    return {
        **files,
        "service_worker.js": worker.replace("/* version */", json.dumps(version)).encode(),
        "index.html": page,
    }


def _make_model_json(bundle: OnnxBundle) -> dict[str, object]:
    """Return the metadata that the page's script needs, and the constants that it shares with Python."""
    thresholds = bundle.prediction_sets.thresholds if bundle.prediction_sets else {}
    probe = dataclasses.asdict(bundle.parity_test_image)
    return {
        "model": bundle.model,
        "classes": bundle.class_names,
        "threshold": bundle.unknown_below,
        **({"thresholds": bundle.thresholds} if bundle.multi_label else {}),
        "known_at": KNOWN_THRESHOLD,
        "set_threshold": thresholds.get(PREDICTION_SET_LEVEL),
        "max_pixels": MAX_PIXELS,
        "top": min(DEFAULT_TOP, len(bundle.class_names)),
        "image": dataclasses.asdict(bundle.preprocessing.image),
        "probe": {**probe, "pixels": base64.b64encode(bundle.parity_test_image.pixels).decode()},
        "grid": GRID_SIZE,
        "window": MASK_SIDE_STEPS,
    }


def _render_page(runtime: OrtWebFiles) -> str:
    script = {"script": runtime.urls["ort.js"], "wasm": runtime.urls["ort.wasm"]}
    origin = runtime.origin
    loaded = f" onnxruntime-web {runtime.version} is loaded from {html.escape(origin)}." if origin else ""
    page, _ = build_page(
        read_asset("site.js").replace(
            "/* runtime */", json.dumps({**script, "integrity": runtime.integrity["ort.wasm"]})
        ),
        privacy_note=f"Images stay on this device: the model runs in the browser.{loaded} "
        '<span id="offline" hidden>This page also works offline.</span>',
        head_html='<meta http-equiv="Content-Security-Policy" '
        "content=\"POLICY; manifest-src 'self'; worker-src 'self'\">\n"
        '<link rel="manifest" href="manifest.json">\n<link rel="icon" href="icon.svg">\n'
        f'<script type="module" src="{script["script"]}" integrity="{runtime.integrity["ort.js"]}" '
        'crossorigin="anonymous"></script>',
        extra_connect_src=origin,
        extra_script_src=f"'self' 'wasm-unsafe-eval' {origin}",
    )
    return page


def _compute_integrity(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the SHA-384 hash of each file, in the format of the HTML attribute `integrity`."""
    return {
        name: f"sha384-{base64.b64encode(hashlib.sha384(content).digest()).decode()}" for name, content in files.items()
    }


def _encode_json(values: Mapping[str, object]) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode()
