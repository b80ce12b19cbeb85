import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from mlimages.core import BundleError, ImageProperty, InputError, Normalization, Preprocessing
from mlimages.inference import (
    InDistributionCalibration,
    MultiLabel,
    OnnxBundle,
    ParityResult,
    ParityTestImage,
    PredictionSetThresholds,
    Predictor,
    Provenance,
    SingleLabel,
    external_data_path,
    find_model_file,
    open_session,
)
from mlimages.inference.onnx_file import read_metadata
from mlimages.reports import summarize_onnx


def tiny_model(path: Path, **metadata: str) -> Path:
    """A valid ONNX file that hands a vector on."""
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "tiny", [value], [out])
    model = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def bundle_at(path: Path) -> OnnxBundle:
    return OnnxBundle(
        path=path,
        class_names=("ants", "bees & wasps", "Käfer"),
        preprocessing=Preprocessing(
            ImageProperty(5, 4, resize="position", position=(1, 2)), Normalization(1, (9.0,), (1.0,))
        ),
        model="lenet5",
        parity_test_image=ParityTestImage(2, 3, bytes(range(18)), (0.5, -1.25, 3e-9)),
        temperature=1.5,
        unknown_below=0.25,
        provenance=Provenance(
            weights_sha256="ab", split_sizes={"val": 3}, accuracy=(0.9, 0.8, 1.0), parity=ParityResult(3, 1, 1e-5)
        ),
    )


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"multi_label": True, "thresholds": (0.5, 0.25, 0.75), "temperature": 1.0},
        {
            "known": InDistributionCalibration(0.95, 40),
            "prediction_sets": PredictionSetThresholds("validation", 40, {"0.9": 0.25}),
        },
    ],
)
def test_what_a_bundle_says_is_read_back_as_it_was_written(tmp_path: Path, values: dict[str, object]) -> None:
    bundle = replace(bundle_at(tmp_path / "a.onnx"), **values)
    bundle.write(tiny_model(tmp_path / "plain.onnx"))
    read = OnnxBundle.read(tmp_path / "a.onnx")
    assert read == bundle
    assert read.task == (MultiLabel((0.5, 0.25, 0.75)) if "thresholds" in values else SingleLabel())


def test_the_metadata_of_a_file_that_was_exported_with_the_defaults(tmp_path: Path) -> None:
    bundle = bundle_at(tmp_path / "a.onnx")
    plain = OnnxBundle(bundle.path, bundle.class_names, bundle.preprocessing, bundle.model, bundle.parity_test_image)
    values = json.loads(plain.to_json())
    assert values["probe"].pop("tolerance") == 0.005
    provenance = values.pop("provenance")
    assert {key for key, value in provenance.items() if value} == {"target"}
    assert (provenance["target"], provenance["accuracy_count"]) == ("onnxruntime", 0)
    del values["probe"], values["preprocessing"]
    assert values == {
        "v": 1,
        "class_names": ["ants", "bees & wasps", "Käfer"],
        "model": "lenet5",
        "includes_preprocessing": True,
        "exact_resize": False,
        "temperature": 1.0,
        "unknown_below": 0.0,
        "known": None,
        "prediction_sets": None,
    }


def test_a_file_of_a_person_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_text("mine")
    with pytest.raises(InputError, match="not written by mlimages"):
        bundle_at(tmp_path / "a.onnx").write(tiny_model(tmp_path / "plain.onnx"))
    assert (tmp_path / "a.onnx").read_text() == "mine"


def test_a_run_folder_stands_for_its_file(tmp_path: Path) -> None:
    assert find_model_file(tmp_path / "a.onnx") == tmp_path / "a.onnx"
    assert external_data_path(tmp_path / "a.onnx") == tmp_path / "a.onnx.data"
    tiny_model(tmp_path / "model.onnx")
    assert find_model_file(tmp_path) == tmp_path / "model.onnx"


def test_writing_metadata_twice_keeps_the_network_and_one_entry_a_key(tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "a.onnx", stranger="stays not")
    for temperature in (1.0, 2.0):
        replace(bundle_at(path), temperature=temperature).write(path)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Identity"]
    keys = [entry.key for entry in model.metadata_props]
    assert sorted(keys) == sorted(set(keys))
    assert "stranger" not in keys
    assert OnnxBundle.read(path).temperature == 2.0


def test_other_tools_find_their_keys(tmp_path: Path) -> None:
    bundle_at(tmp_path / "a.onnx").write(tiny_model(tmp_path / "plain.onnx"))
    path = tmp_path / "a.onnx"
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert metadata == read_metadata(path, open_session(path))
    assert metadata["names"] == "{0: 'ants', 1: 'bees & wasps', 2: 'Käfer'}"
    assert metadata["imgsz"] == "[4, 5]"
    assert metadata["task"] == "classify"
    assert metadata["Image.BitmapPixelFormat"] == "Rgb8"


def damaged(path: Path, how: str) -> Path:
    whole = bundle_at(path)
    whole.write(tiny_model(path))
    data = path.read_bytes()
    if how == "cut":
        path.write_bytes(data[:-20])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "not onnx":
        path.write_bytes(b"\xff\xd8\xff\xe0 an image")
    elif how == "endless integer":
        path.write_bytes(b"\xff" * 64)
    elif how == "stranger's":
        tiny_model(path, names="{}")
    elif how == "not UTF-8":
        path.write_bytes(data.replace(b"classify", b"\xff" * 8))
    elif how in ("newer ONNX", "unknown operator"):
        model = onnx.load(path)
        if how == "newer ONNX":
            model.ir_version = 99
        else:
            model.graph.node[0].domain = "stranger"
        onnx.save(model, path)
    elif how == "other version":
        path.write_bytes(data.replace(b'"v": 1', b'"v": 9'))
    elif how == "not json":
        path.write_bytes(data.replace(b'"class_names": ', b'"class_names"  '))
    elif how == "a field short":
        path.write_bytes(data.replace(b'"class_names": ', b'"class_nemes": '))
    elif how == "another probe":
        path.write_bytes(data.replace(b'"height": 3', b'"height": 1'))
    elif how == "a probe of negative size":
        replace(whole, parity_test_image=replace(whole.parity_test_image, width=-2, height=-3)).write(
            path, overwrite=True
        )
    elif how == "a threshold short":
        replace(whole, multi_label=True, thresholds=(0.5, 0.5)).write(path, overwrite=True)
    return path


@pytest.mark.parametrize(
    "how",
    [
        "cut",
        "empty",
        "not onnx",
        "endless integer",
        "stranger's",
        "not UTF-8",
        "newer ONNX",
        "unknown operator",
        "other version",
        "not json",
        "a field short",
        "another probe",
        "a probe of negative size",
        "a threshold short",
    ],
)
def test_a_file_that_is_no_bundle_is_one_clear_error(tmp_path: Path, how: str) -> None:
    path = damaged(tmp_path / "a.onnx", how)
    with pytest.raises(BundleError, match=r"a\.onnx") as caught:
        OnnxBundle.read(path)
    assert not re.search(r"ONNXRuntimeError|\.cc:", str(caught.value))


INCOMPLETE = "is incomplete or damaged: copy or download it again, or export it again"
NOT_ONNX = "is not an ONNX file: "
USE_A_MODEL = "use MODEL.onnx or a run folder of `mlimages finetune`"
CONTENTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "half of it": (lambda whole: whole[: len(whole) // 2], INCOMPLETE),
    "all but its end": (lambda whole: whole[:-20], INCOMPLETE),
    "its first field": (lambda whole: whole[:2], INCOMPLETE),
    "nothing": (lambda whole: b"", INCOMPLETE),
    "zeros": (lambda whole: bytes(len(whole)), f"{NOT_ONNX}{USE_A_MODEL}"),
    "an image": (lambda whole: b"\x89PNG\r\n\x1a\n", f"{NOT_ONNX}{USE_A_MODEL}"),
    "a Git LFS pointer": (
        lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        f"{NOT_ONNX}the file is a Git LFS pointer; fetch the file with `git lfs pull`",
    ),
    "a web page": (
        lambda whole: b"<!DOCTYPE html><html>",
        f"{NOT_ONNX}the file is a web page; download the image or model file instead",
    ),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("read", [OnnxBundle.read, Predictor, summarize_onnx])
def test_each_reader_says_what_a_file_is_instead_of_a_model(
    content: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    bundle_at(tmp_path / "a.onnx").write(path := tiny_model(tmp_path / "a.onnx"))
    change, message = CONTENTS[content]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(BundleError) as caught:
        read(path)
    assert str(caught.value) == f"{path} {message}"


@pytest.mark.parametrize("name", ["none.onnx", "runs/my first/model.onnx", "runs/none", "none.pt"])
@pytest.mark.parametrize("read", [OnnxBundle.read, Predictor, summarize_onnx])
def test_a_missing_file_says_how_to_make_one_or_what_to_pass(
    name: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    with pytest.raises(BundleError) as caught:
        read(path := tmp_path / name)
    command = f"no file at {path}: create it with `mlimages export RUN -o {shlex.quote(str(path))}`"
    advice = command if name.endswith(".onnx") else f"no file or folder at {path}: {USE_A_MODEL}"
    assert str(caught.value) == advice


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is a folder without"):
        OnnxBundle.read(tmp_path)


def test_weights_in_place_of_a_model_name_the_run_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=f"contains weights, not an exported model: use the run folder {tmp_path}"):
        OnnxBundle.read(tmp_path / "best.safetensors")


def test_a_graph_that_loops_without_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper, types = onnx.helper, onnx.TensorProto
    body = helper.make_graph(
        [helper.make_node("Identity", ["go on"], ["goes on"]), helper.make_node("Sin", ["x"], ["sin"])],
        "body",
        [
            helper.make_tensor_value_info("step", types.INT64, []),
            helper.make_tensor_value_info("go on", types.BOOL, []),
            helper.make_tensor_value_info("x", types.FLOAT, [1, 3]),
        ],
        [
            helper.make_tensor_value_info("goes on", types.BOOL, []),
            helper.make_tensor_value_info("sin", types.FLOAT, [1, 3]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Loop", ["", "true", "zeros"], ["logits"], body=body),
            helper.make_node("Identity", ["logits"], ["probabilities"]),
        ],
        "endless",
        [helper.make_tensor_value_info("image", types.UINT8, [1, "h", "w", 3])],
        [helper.make_tensor_value_info(name, types.FLOAT, [1, 3]) for name in ("logits", "probabilities")],
        [
            helper.make_tensor("true", types.BOOL, [], [True]),
            helper.make_tensor("zeros", types.FLOAT, [1, 3], [0.0] * 3),
        ],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "endless.onnx"
    )
    bundle = bundle_at(tmp_path / "bundle.onnx")
    bundle.write(tmp_path / "endless.onnx")
    monkeypatch.setattr("mlimages.inference.session.PARITY_TIMEOUT_S", 0.1)
    with pytest.raises(BundleError, match=r"bundle\.onnx cannot be run: it took longer than 0 s"):
        Predictor(bundle.path)
