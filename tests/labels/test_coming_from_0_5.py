"""The table for users of 0.5: what it says of labels is run."""

from pathlib import Path

import pytest

from mlimages import LabelFile, label_dir_auto
from mlimages.labels import append, label_dir, read_class_names, write_class_names
from tests.labels.test_labels import lines, touch

TABLE = (Path(__file__).parents[2] / "docs" / "upgrading.md").read_text()
NAMES = {"append": append, "label_dir": label_dir, "label_dir_auto": label_dir_auto, "LabelFile": LabelFile,
         "read_class_names": read_class_names, "write_class_names": write_class_names, "Path": Path}  # fmt: skip


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
    ],
)
def test_a_row_of_the_table_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    assert f"`{code}`" in TABLE
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "photos/a/1.jpg", "photos/b/2.jpg")
    write_class_names(Path("label_def.txt"), ["a", "b"])
    lf = label_dir_auto("photos").labels.write("out.txt")
    given = {"root": ".", "P": "photos", "F": Path("out.txt"), "D": Path("def.txt"), "folder": Path("photos"),
             "labels": lf, "label": 1, "path": Path("label_def.txt"), "lf": lf, "seed": 0}  # fmt: skip
    result = eval(code, {**NAMES, **given})
    if isinstance(result, dict):
        assert result == {0: "a", 1: "b"}
    assert len(list(LabelFile("out.txt"))) == 2


def test_a_separator_need_not_be_said(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "a.txt").write_text("1.jpg,0\n2.jpg,1\n")
    assert lines(LabelFile(tmp_path / "a.txt"), tmp_path) == ["1.jpg 0", "2.jpg 1"]
