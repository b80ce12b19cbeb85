"""Models written from file to file, against the protocol buffers that `onnx` writes and reads."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from mlimages.export.serialization import write_model


@pytest.mark.parametrize("sizes", [(), (0,), (1, 31, 32, 127, 128), (4096, 5, 70_000), (1 << 22,)])
def test_a_model_is_the_same_with_its_weights_inside(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    weights = [onnx.numpy_helper.from_array(rng.normal(size=n).astype(np.float32), f"w{n}") for n in sizes]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [], [], weights)
    expected = onnx.helper.make_model(graph, producer_name="a test")
    saved = onnx.ModelProto()
    saved.CopyFrom(expected)
    onnx.save_model(
        saved, tmp_path / "saved.onnx", save_as_external_data=True, location="saved.data", size_threshold=500
    )
    model = onnx.load(tmp_path / "saved.onnx", load_external_data=False)
    assert sum(map(onnx.external_data_helper.uses_external_data, model.graph.initializer)) == sum(
        n > 124 for n in sizes
    )

    write_model(model, tmp_path / "saved.data", tmp_path / "out.onnx")

    found = onnx.load(tmp_path / "out.onnx")
    for tensor in found.graph.initializer:
        tensor.ClearField("data_location")  # "inside", which is the default
    assert found == expected
