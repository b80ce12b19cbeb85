"""Every bound and choice of an options class is enforced, and its docstring lists every field."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import numpy as np
import pytest

from mlimages.checks import Thresholds, check, split_labels
from mlimages.core import MAX_SEED, ImageProperty, InputError, Normalization, OptionField, option_fields
from mlimages.dataset import TrainingData, augment
from mlimages.export import ExportOptions, quantize
from mlimages.gathering import GatherOptions
from mlimages.inference import Predictor, explain
from mlimages.labels import LabelFile, LabelOptions, make_label_files, split
from mlimages.labels.splitting import sample_per_class
from mlimages.networks import build_model, summarize_model
from mlimages.reports import draw_contact_sheet
from mlimages.serving import ServerSettings
from mlimages.training import FineTuneConfig, probe_layers, probe_models
from mlimages.training.config import (
    parse_duration,
    parse_learning_rate,
    parse_numbers,
    parse_scale,
    validate_schedule,
)

CONFIG = FineTuneConfig(Path("labels.txt"), Path("run"))
FIELDS = {field.name: field for field in option_fields(FineTuneConfig)}
BOUNDED = [field for field in FIELDS.values() if field.option.min is not None or field.option.max is not None]
CHOICES = [field for field in FIELDS.values() if get_origin(field.type) is Literal]


def step(field: OptionField) -> float:
    return 1 if field.type is int else 1e-6


@pytest.mark.parametrize("field", BOUNDED, ids=lambda field: field.name)
def test_a_number_is_taken_at_its_bounds_and_refused_beyond(field: OptionField) -> None:
    for bound, beyond in ((field.option.min, -step(field)), (field.option.max, step(field))):
        if bound is None:
            continue
        replace(CONFIG, **{field.name: bound})
        for wrong in (bound + beyond, float("nan")):
            with pytest.raises(InputError, match=f"^{field.name} is .*: it must be"):
                replace(CONFIG, **{field.name: wrong})


@pytest.mark.parametrize("field", CHOICES, ids=lambda field: field.name)
def test_a_choice_is_one_of_its_values(field: OptionField) -> None:
    for value in get_args(field.type):
        replace(CONFIG, **{field.name: value})
    wrong: dict[str, Any] = {field.name: "else"}
    with pytest.raises(InputError, match=f"^{field.name} is 'else': it must be one of"):
        replace(CONFIG, **wrong)


def test_the_docstring_lists_every_field_with_its_help() -> None:
    text = " ".join((FineTuneConfig.__doc__ or "").split())
    for field in FIELDS.values():
        assert f"{field.name}: {field.option.help}" in text


def test_a_field_without_an_option_is_a_mistake_of_ours() -> None:
    @dataclass
    class Wrong:
        size: int = 1

    with pytest.raises((StopIteration, AttributeError, RuntimeError)):
        list(option_fields(Wrong))


OPTIONS: list[Any] = [CONFIG, GatherOptions(), ServerSettings(), Thresholds()]
WRONG: dict[type, list[object]] = {
    int: ["3", 1.5, True, None, float("nan")],
    float: ["0.5", "auto", True, None, [0.5]],
    bool: ["no", 1, None],
    str: [1, None, ["a"]],
    tuple: ["example.org", 0.5, None],
}
TYPED = [
    pytest.param(options, field, value, id=f"{field.name}={value!r}")
    for options in OPTIONS
    for field in option_fields(type(options))
    for value in WRONG.get(get_origin(field.type) or field.type, [])
    if not (value is None and field.is_optional) and field.name not in ("weights", "mean")  # converted from paths
]


@pytest.mark.parametrize(("options", "field", "value"), TYPED)
def test_a_value_of_another_type_is_refused(options: Any, field: OptionField, value: object) -> None:
    with pytest.raises(InputError, match=rf"^{field.name} is {re.escape(repr(value))}: it must be "):
        replace(options, **{field.name: value})


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: type(options).__name__)
def test_numpy_numbers_become_those_of_python_which_can_be_written_as_json(options: Any) -> None:
    same = {int: np.int64, float: np.float32, bool: np.bool_, tuple: list}
    for field in option_fields(type(options)):
        kind, value = same.get(get_origin(field.type) or field.type), getattr(options, field.name)
        if kind and value is not None:
            stored = getattr(replace(options, **{field.name: kind(value)}), field.name)
            assert json.loads(json.dumps(stored)) == pytest.approx(kind(value))


def test_a_named_tuple_is_a_tuple() -> None:
    class Size(NamedTuple):
        width: int
        height: int

    assert replace(CONFIG, size=Size(40, 24)).size == (40, 24)


def test_numpy_numbers_in_preprocessing_become_those_of_python() -> None:
    image = ImageProperty(np.int64(28), gray_scale=np.True_)  # type: ignore[arg-type]
    normalization = Normalization(scale=np.float32(2), mean=(np.float32(0.5),), bgr=np.True_)  # type: ignore[arg-type]
    assert json.dumps([asdict(image), asdict(normalization)])


NUMBERS = {
    "workers": lambda value: Predictor("model.onnx", workers=value),
    "max_pixels": lambda value: Predictor("model.onnx", max_pixels=value),
    "workers of check": lambda value: check("labels.txt", workers=value),
    "workers of explain": lambda value: explain("model.onnx", "a.png", workers=value),
    "grid": lambda value: explain("model.onnx", "a.png", grid_size=value),
    "max_images": lambda value: probe_layers("labels.txt", max_images=value),
    "max_images of probe_models": lambda value: probe_models("labels.txt", "lenet5", max_images=value),
    "per_class": lambda value: draw_contact_sheet(
        "labels.txt", "sheet.png", image_property=ImageProperty(8), per_class=value
    ),
    "num_classes": lambda value: summarize_model("lenet5", num_classes=value),
    "max_drop": lambda value: quantize("model.onnx", "labels.txt", "quantized.onnx", max_drop=value - 1),
    "known_share": lambda value: ExportOptions(known_share=value - 1),
}


@pytest.mark.parametrize("value", [0, -1, float("nan")])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_argument_below_its_bound_is_refused_before_any_file_is_read(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"^{name.partition(' ')[0]} is .*: it must be "):
        NUMBERS[name](value)


SEEDED: dict[str, Callable[[Any], object]] = {
    "FineTuneConfig": lambda seed: replace(CONFIG, seed=seed),
    "make_label_files": lambda seed: make_label_files(LabelOptions(Path("photos"), seed=seed), split=lambda *_: ()),
    "build_model": lambda seed: build_model("lenet5", num_classes=2, weights="none", seed=seed),
    "probe_layers": lambda seed: probe_layers("labels.txt", seed=seed),
    "probe_models": lambda seed: probe_models("labels.txt", "lenet5", seed=seed),
    "split_labels": lambda seed: split_labels("labels.txt", (0.5, 0.5), seed),
    "split": lambda seed: split([], (0.5, 0.5), seed=seed),
    "sample_per_class": lambda seed: sample_per_class([], 1, seed=seed),
    "LabelFile.shuffle": lambda seed: LabelFile("labels.txt").shuffle(seed),
    "TrainingData.shuffle": lambda seed: TrainingData(LabelFile("labels.txt"), ImageProperty(8)).shuffle(seed),
    "draw_contact_sheet": lambda seed: draw_contact_sheet(
        "labels.txt", "sheet.png", image_property=ImageProperty(8), seed=seed
    ),
    "augment": lambda seed: augment("labels.txt", "arrays.npz", image_property=ImageProperty(8), seed=seed),
}


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, 2**63 - 1, 2**64, 0.5, True, float("nan")])
@pytest.mark.parametrize("name", SEEDED)
def test_a_seed_out_of_range_is_refused_before_any_file_is_read_or_written(
    name: str, seed: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"^seed is {re.escape(str(seed))}: it must be "):
        SEEDED[name](seed)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", [0, MAX_SEED, np.int64(3)])
def test_a_seed_in_range_is_accepted_by_every_generator(seed: int, tmp_path: Path) -> None:
    replace(CONFIG, seed=seed)
    assert build_model("lenet5", num_classes=2, weights="none", seed=seed)
    assert split([], (0.5, 0.5), seed=seed) == [[], []]
    (tmp_path / "labels.txt").write_text("a.png 0\nb.png 1\n")
    assert len(list(LabelFile(tmp_path / "labels.txt").shuffle(seed))) == 2


@pytest.mark.parametrize("text", ["-5", "nan", "inf", "-1h", "soon", "1h30m", "90ms", "10 min", ""])
def test_a_time_budget_is_a_duration(text: str) -> None:
    with pytest.raises(
        InputError, match=f"^'{text}' is not a duration: use seconds, or a value such as 90s, 10m or 2h$"
    ):
        parse_duration(text)


@pytest.mark.parametrize(
    ("parse", "message"),
    [
        (parse_learning_rate, "the learning rate must be a number greater than 0, or auto, not {}"),
        (parse_scale, "the scale must be a number greater than 0, not {}"),
        (parse_numbers, "'{}' is not a list of numbers: use one number, or several such as "),
        (validate_schedule, "unknown schedule '{}': use cosine, exponential:0.97, "),
    ],
)
@pytest.mark.parametrize("text", ["fast", "nan", "0.1,x", "step:5:x"])
def test_a_value_that_is_no_number_is_quoted_whole_with_what_the_option_takes(
    parse: Callable[[str], object], message: str, text: str
) -> None:
    with pytest.raises(InputError, match="^" + re.escape(message.format(text))):
        parse(text)
