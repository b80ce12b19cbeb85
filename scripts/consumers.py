#!/usr/bin/env python
"""Compare five programs that run an exported file with `mlimages predict`: the table of docs/concepts/parity.md.

    .venv/bin/python scripts/consumers.py RUN IMAGES [--count 100] [--ort-web node_modules/onnxruntime-web]

RUN is a run folder, IMAGES a folder. ONNX Runtime, onnxruntime-web (in node), OpenVINO, OpenCV and Triton's client
against `mlimages serve` each compute the probabilities of the images, in a file exported for them. Printed is the
largest difference of a probability from the Predictor's: on prepared pixels, and on images of any size, which the file
itself resizes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mlimages.core import TargetRuntime
from mlimages.export import ExportOptions, import_openvino
from mlimages.images import find_images, load_rgb, to_network_input
from mlimages.inference import INPUT, PROBABILITIES, OnnxBundle, Predictor, open_session, to_graph_input
from mlimages.training import export_run

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Compute = Callable[[Sequence[Pixels]], list[Any]]
"""From images `(H, W, 3)` to the probabilities of each, `(classes,)`."""

NODE = """
import {readFileSync} from "node:fs";
const [, entry, model, folder] = process.argv;
const ort = await import(entry);
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(readFileSync(model));
const found = [];
for (const [n, [h, w]] of JSON.parse(readFileSync(folder + "/shapes.json")).entries()) {
  const pixels = new Uint8Array(readFileSync(folder + "/" + n + ".rgb"));
  const outputs = await session.run({image: new ort.Tensor("uint8", pixels, [1, h, w, 3])});
  found.push([...outputs.probabilities.data]);
}
console.log(JSON.stringify(found));
"""


def onnxruntime(bundle: OnnxBundle) -> Compute:
    session = open_session(bundle.path)
    return lambda arrays: [session.run([PROBABILITIES], {INPUT: one[None]})[0][0] for one in arrays]


def onnxruntime_web(bundle: OnnxBundle, package: Path) -> Compute:
    def compute(arrays: Sequence[Pixels]) -> list[Any]:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "shapes.json").write_text(json.dumps([one.shape[:2] for one in arrays]))
            for n, one in enumerate(arrays):
                Path(folder, f"{n}.rgb").write_bytes(one.tobytes())
            entry = (package / "dist/ort.node.min.mjs").resolve().as_uri()
            words = ["node", "--input-type=module", "-e", NODE, entry, str(bundle.path), folder]
            return list(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))

    return compute


def openvino(bundle: OnnxBundle) -> Compute:
    model = import_openvino().Core().compile_model(str(bundle.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda arrays: [np.array(model({INPUT: one[None]})[PROBABILITIES])[0] for one in arrays]


def opencv(bundle: OnnxBundle) -> Compute:
    import cv2

    network, preprocessing = cv2.dnn.readNetFromONNX(str(bundle.path)), bundle.preprocessing

    def one(pixels: Pixels) -> Any:
        network.setInput(to_network_input(pixels[None], preprocessing.normalization), INPUT)
        return network.forward(PROBABILITIES)[0]

    return lambda arrays: [one(pixels) for pixels in arrays]


@contextmanager
def tritonclient(bundle: OnnxBundle) -> Iterator[Compute]:
    from tritonclient import http

    words = [sys.executable, "-m", "mlimages", "serve", str(bundle.path), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        client = http.InferenceServerClient(server.stdout.readline().strip().removeprefix("http://").rstrip("/"))

        def one(pixels: Pixels) -> Any:
            tensor = http.InferInput(INPUT, [1, *pixels.shape], "UINT8")
            tensor.set_data_from_numpy(pixels[None])
            return client.infer(bundle.path.stem, [tensor]).as_numpy(PROBABILITIES)[0]

        yield lambda arrays: [one(pixels) for pixels in arrays]
        client.close()
        server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--ort-web", type=Path, default=Path("node_modules/onnxruntime-web"))
    asked = parser.parse_args()
    paths = list(find_images([asked.images]))
    raw = [np.asarray(load_rgb(Path(path))) for path in paths[:: max(1, len(paths) // asked.count)][: asked.count]]
    with tempfile.TemporaryDirectory() as folder:

        def export(target: TargetRuntime) -> OnnxBundle:
            return export_run(asked.run, Path(folder, f"{target}.onnx"), options=ExportOptions(target=target))

        plain, portable, bare = export("onnxruntime"), export("openvino"), export("opencv")
        predictor, prop = Predictor(plain), plain.preprocessing.image
        pixels = [predictor.decode(one)[0] for one in raw]
        want = predictor.compute_probabilities(pixels)  # (N, classes)
        frames = list(to_graph_input(pixels, prop))
        print(f"{len(raw)} images, {plain.model}\n")
        print("| program | file | prepared pixels | images of any size |\n|---|---|---|---|")

        def row(name: str, version: str, file: str, compute: Compute, *, is_bare: bool = False) -> None:
            given = [pixels if is_bare else frames, None if is_bare else raw]
            worst = [np.abs(np.array(compute(each)) - want).max() if each else None for each in given]
            cells = ["not taken" if each is None else f"{each:.1e}" for each in worst]
            print(f"| {name} {version} | {file} | {cells[0]} | {cells[1]} |", flush=True)

        version = importlib.metadata.version
        row("ONNX Runtime", version("onnxruntime"), "default", onnxruntime(plain))
        web = json.loads((asked.ort_web / "package.json").read_text())["version"]
        row("onnxruntime-web", web, "default", onnxruntime_web(plain, asked.ort_web))
        row("OpenVINO", version("openvino"), "`--target openvino`", openvino(portable))
        row("OpenCV", version("opencv-python-headless"), "`--target opencv`", opencv(bare), is_bare=True)
        with tritonclient(plain) as compute:
            row("tritonclient", f"{version('tritonclient')}, `mlimages serve`", "default", compute)


if __name__ == "__main__":
    main()
