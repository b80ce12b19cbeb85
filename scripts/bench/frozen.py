"""CPU time of the frozen part on one core: PyTorch and OpenVINO in float32 and bfloat16, ONNX Runtime in float32.

Random weights; medians of interleaved rounds. The columns of PyTorch and OpenVINO are the table in
mlimages/training/compute_backend.py.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import onnxruntime as ort
import torch

from mlimages.networks import build_model, freeze, split_network
from mlimages.training.compute_backend import CPU_TIMES
from mlimages.training.feature_extractor import FrozenFeatureExtractor

Run = Callable[[torch.Tensor], object]


def cpu_s(run: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a call, and its CPU seconds."""
    start = time.process_time()
    result = run()
    return result, time.process_time() - start


def onnx_runtime(lower: torch.nn.Module, x: torch.Tensor) -> Run:
    """The frozen part in ONNX Runtime."""
    shapes = ({0: torch.export.Dim("N")},)
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(lower, (x[:2],), dynamo=True, dynamic_shapes=shapes, verbose=False)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(program.model_proto.SerializeToString(), options)  # type: ignore[union-attr]
    (name,) = [value.name for value in session.get_inputs()]
    return lambda x: session.run(None, {name: x.numpy()})


def measure(name: str, *, images: int, rounds: int) -> dict[str, float]:
    """Return seconds to convert, and ms per image by library and precision."""
    model = build_model(name, num_classes=2, weights="none")
    x = torch.rand(images, *model.preprocessing.image.shape)
    split = split_network(model.network, freeze(model, "head"), x[:2])
    assert split is not None
    runs: dict[str, Run] = {}
    conversion = 0.0
    for library in ("torch", "openvino"):
        for precision in ("fp32", "bf16"):
            extractor = FrozenFeatureExtractor(split.lower_part, library, torch.device("cpu"))  # type: ignore[arg-type]
            run = lambda x, extractor=extractor, precision=precision: extractor(x, precision)  # noqa: E731
            _, first = cpu_s(lambda run=run: run(x[:1]))
            runs[f"{library} {precision}"] = run
            if library == "openvino":
                conversion = first
    runs["onnxruntime fp32"] = onnx_runtime(split.lower_part, x)
    costs: dict[str, list[float]] = {way: [] for way in runs}
    for _ in range(rounds):
        for way, run in runs.items():
            costs[way].append(cpu_s(lambda run=run: run(x))[1] / images * 1e3)
    return {"conversion s": conversion} | {way: statistics.median(values[1:]) for way, values in costs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="lenet5, 2 images, 2 rounds")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4, help="the first is left out")
    parser.add_argument("--only", default="", metavar="TEXT", help="only networks with this in their names")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # OpenVINO and torch.onnx use deprecated parts of torch
    names = ["lenet5"] if asked.tiny else [name for name in CPU_TIMES if asked.only in name]
    with torch.inference_mode():
        for name in names:
            values = measure(name, images=2 if asked.tiny else asked.images, rounds=2 if asked.tiny else asked.rounds)
            print(name, *(f"{way}: {value:.1f}" for way, value in values.items()), sep="   ", flush=True)


if __name__ == "__main__":
    main()
