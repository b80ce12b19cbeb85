"""Names that a label file or a class definition cannot hold are refused before anything is written."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mlimages.core import InputError, LabeledPath, LabelFileError
from mlimages.labels import LabelFile, TableOptions, write_class_names
from tests.conftest import RunCli
from tests.labels.test_labels import touch

BROKEN = "daisy\n(white)"
OTHERS = ("daisy\r", "a\x00b", "a\tb", "a\x1b[2Jb", "a\x85b", "a\u2028b")
GOOD = "file,label\na.jpg,daisy\nb.jpg,rose\n"


def as_csv(name: str) -> str:
    return f'file,label\nb.jpg,rose\na.jpg,"x{name}"\n'


def as_rows(label: object) -> list[dict[str, object]]:
    return [
        {"file": "b.jpg", "label": ["rose"] if isinstance(label, list) else "rose"},
        {"file": "a.jpg", "label": label},
    ]


def as_coco(name: str) -> str:
    return json.dumps({
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
        "categories": [{"id": 1, "name": f"x{name}x"}, {"id": 2, "name": "rose"}],
        "annotations": [{"image_id": 1, "category_id": 1}, {"image_id": 2, "category_id": 2}],
    })  # fmt: skip


TABLES: dict[str, Callable[[str], str]] = {
    "t.csv": as_csv,
    "t.jsonl": lambda name: "".join(json.dumps(row) + "\n" for row in as_rows(f"x{name}x")),
    "lists.jsonl": lambda name: "".join(json.dumps(row) + "\n" for row in as_rows(["rose", f"x{name}x"])),
    "t.json": as_coco,
    "one-hot.csv": lambda name: f'file,rose,"x{name}x"\nb.jpg,1,0\na.jpg,0,1\n',
}


@pytest.mark.parametrize("name", [BROKEN, *OTHERS])
@pytest.mark.parametrize("table", TABLES)
def test_a_class_name_with_a_control_character_is_refused_with_its_row(tmp_path: Path, table: str, name: str) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / table).write_text(TABLES[table](f"{name}y"), newline="")
    with pytest.raises(
        LabelFileError, match=rf"{table}:\d: the class name 'x\S+.*' is blank, or contains a line break"
    ):
        list(LabelFile(tmp_path / table))


@pytest.mark.parametrize("output", [("-o", "g.txt"), ("-o", "g.csv"), ("-o", "g.txt", "--as-folders", "d")])
@pytest.mark.parametrize("table", TABLES)
def test_an_earlier_label_file_stays_where_a_class_name_is_refused(
    tmp_path: Path, invoke_cli: RunCli, table: str, output: tuple[str, ...]
) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "good.csv").write_text(GOOD)
    (tmp_path / table).write_text(TABLES[table](BROKEN))
    invoke_cli("label", "good.csv", *output[:2])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert invoke_cli("label", table, *output, check=False).returncode == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    invoke_cli("check", output[1])


@pytest.mark.parametrize("name", [BROKEN, "daisy\r", " daisy", "daisy ", "", "\udcff"])
def test_a_class_name_that_would_not_be_read_again_is_not_written(tmp_path: Path, name: str) -> None:
    labels = LabelFile(
        tmp_path / "a.txt", items=lambda: [LabeledPath(tmp_path / "a.jpg", 1)], class_names=("rose", name)
    )
    with pytest.raises(InputError, match=r"g_class_def.txt cannot contain the class name"):
        labels.write(tmp_path / "g.txt")
    with pytest.raises(InputError, match=r"names.txt cannot contain the class name"):
        write_class_names(tmp_path / "names.txt", ("rose", name))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [TableOptions(), TableOptions(multi_label=True)])
def test_white_space_around_the_names_of_a_list_is_no_part_of_them(tmp_path: Path, options: TableOptions) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in as_rows([" daisy", "rose "])))
    written = LabelFile(tmp_path / "t.jsonl", options=options).write(tmp_path / "g.txt")
    assert written.class_names == ("daisy", "rose")
    assert [item.labels for item in written] == [(1,), (0, 1)]


@pytest.mark.parametrize(
    ("source", "options"),
    [
        (" pink  lady ", ("--label", "0")),
        ("t.csv", ("--class-from", r"/([^_/]+)_")),
        (".", ("--class-from", r"/([^_/]+)_")),
    ],
)
def test_white_space_in_the_name_of_a_folder_or_a_match_is_collapsed(
    tmp_path: Path, invoke_cli: RunCli, source: str, options: tuple[str, ...]
) -> None:
    paths = [f" pink  lady / pink  lady _{n}.jpg" for n in range(2)]
    touch(tmp_path, *paths)
    (tmp_path / "t.csv").write_text("\n".join(["file", *paths]))
    invoke_cli("label", source, *options, "-o", "g.txt")
    assert (tmp_path / "g_class_def.txt").read_text() == "0 pink lady\n"


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl"])
def test_a_path_with_a_line_break_never_breaks_a_label_file(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, "a\n1.jpg", "b.jpg")
    (tmp_path / "t.csv").write_text('file,label\n"a\n1.jpg",daisy\nb.jpg,rose\n')
    labels = LabelFile(tmp_path / "t.csv")
    if suffix == ".txt":
        with pytest.raises(LabelFileError, match="cannot contain a path with a line break"):
            labels.write(tmp_path / "g.txt")
        assert not (tmp_path / "g.txt").exists()
        return
    written = labels.write(tmp_path / f"g{suffix}")
    assert [item.path.name for item in written] == ["a\n1.jpg", "b.jpg"]
