"""The table for users of 0.5: what it says of labels is run."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlimages import ImageProperty, LabeledImage, LabelFile, Normalization, TrainingData, label_dir_auto
from mlimages.labels import append, label_dir, read_class_names, write_class_names
from tests.labels.test_labels import lines, touch

TABLE = (Path(__file__).parents[2] / "docs" / "upgrading.md").read_text()
NAMES = {"append": append, "label_dir": label_dir, "label_dir_auto": label_dir_auto, "LabelFile": LabelFile,
         "read_class_names": read_class_names, "TrainingData": TrainingData, "Normalization": Normalization,
         "ImageProperty": ImageProperty, "LabeledImage": LabeledImage,
         "write_class_names": write_class_names, "Path": Path, "numpy": np}  # fmt: skip


@pytest.mark.parametrize(
    "code",
    [
        "label_dir_auto(Path(root, P)).labels.write(F)",
        "append(LabelFile(F), label_dir_auto(folder).labels, by_number=False).write(F)",
        "write_class_names(D, labels.class_names)",
        "label_dir(folder, label).write(F)",
        "dict(enumerate(read_class_names(path)))",
        'LabelFile(F, class_names=read_class_names("label_def.txt"))',
        "lf.shuffle(seed).write(lf.path)",
        "TrainingData(LabelFile(path, R), prop)",
        "TrainingData(lf, prop, normalization=Normalization(scale=255))",
        "TrainingData(lf, ImageProperty(32, gray_scale=True))",
        "[LabeledImage(item.path, item.label).convert(td.prop) for item in td.labels]",
        "td.shuffle(seed)",
        "td.data_to_image(array, label, raw=True)",
        "im.to_array(numpy, color=True)",
        "[LabeledImage(item.path, item.label).load() for item in lf]",
    ],
)
def test_a_row_of_the_table_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    assert f"`{code}`" in TABLE
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a/1.jpg", "b/2.jpg")):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "photos" / name)
    write_class_names(Path("label_def.txt"), ["a", "b"])
    lf = label_dir_auto("photos").labels.write("out.txt")
    given = {"root": ".", "P": "photos", "F": Path("out.txt"), "D": Path("def.txt"), "folder": Path("photos"),
             "labels": lf, "label": 1, "path": Path("label_def.txt"), "lf": lf, "seed": 0,
             "R": ".", "prop": ImageProperty(4), "td": TrainingData(lf, ImageProperty(4)),
             "im": LabeledImage("photos/a/1.jpg"), "array": np.zeros((3, 4, 4), np.float32)}  # fmt: skip
    result = eval(code, {**NAMES, **given})
    if isinstance(result, np.ndarray):
        assert result.dtype == np.float32
        assert result.shape in ((3, 4, 4), (3, 8, 8))
    if isinstance(result, dict):
        assert result == {0: "a", 1: "b"}
    assert len(list(LabelFile("out.txt"))) == 2


def test_a_separator_need_not_be_said(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "a.txt").write_text("1.jpg,0\n2.jpg,1\n")
    assert lines(LabelFile(tmp_path / "a.txt"), tmp_path) == ["1.jpg 0", "2.jpg 1"]
