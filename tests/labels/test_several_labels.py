"""Files in which an image has any number of classes: read as what they say, refused, and kept by every step."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlimages.checks import split_labels
from mlimages.core import ImageProperty, InputError, LabeledPath, LabelFileError
from mlimages.dataset import TrainingData, augment, compute_mean
from mlimages.labels import LabelFile, TableOptions, merge_classes, open_splits, write_class_folders, write_label_file
from tests.conftest import RunCli
from tests.labels.test_labels import NAMES, touch

CLASSES = ("ant", "bee", "cat", "dog")
SETS = st.sets(st.integers(0, 3)).map(sorted).map(tuple)
MULTI = TableOptions(multi_label=True)


def sets(labels: LabelFile) -> list[str]:
    """Return the class names of each image."""
    assert labels.is_multi_label
    assert {item.label for item in labels} == {-1}
    return [";".join(labels.class_names[n] for n in item.labels or ()) for item in labels]


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl"])
@settings(max_examples=15)
@given(images=st.dictionaries(NAMES, SETS, min_size=1, max_size=6), seed=st.integers(0, 3))
def test_an_image_keeps_its_classes_however_it_is_written_merged_split_and_sampled(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, images: dict[str, tuple[int, ...]], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("labels")
    items = [LabeledPath(folder / name, -1, labels) for name, labels in images.items()]
    write_label_file(folder / f"labels{suffix}", items, CLASSES)
    read = LabelFile(folder / f"labels{suffix}")
    assert list(read) == items
    assert read.is_multi_label
    by_class = {n: count for n in range(4) if (count := sum(n in labels for labels in images.values()))}
    assert read.count_images() == (len(items), by_class)

    other_way = LabelFile(folder / "x.txt", items=lambda: items, class_names=CLASSES[::-1])
    reversed_sets = [";".join(sorted(CLASSES[::-1][n] for n in labels)) for labels in images.values()]
    assert sets(read.merge(other_way)) == [*sets(read), *reversed_sets]
    by_path = {item.path: item for item in items}
    for parts in (read.split((0.5, 0.5), seed=seed), (read.shuffle(seed),), (read.without([]),)):
        found = [item for part in parts for item in part]
        assert {item.path: item for item in found} == by_path
        assert len(found) == len(items)
    few = list(read.limit_per_class(1, seed=seed))
    assert all(by_path[item.path] == item for item in few)
    assert all(sum(n in (item.labels or ()) for item in few) <= 1 for n in range(4))


READ: list[tuple[str, str, TableOptions, list[str]]] = [
    ("brackets.txt", "a.jpg [0,3]\nb.jpg []\nc.jpg [3]\n", TableOptions(), ["ant;dog", "", "dog"]),
    ("list.jsonl", '{"path": "a.jpg", "label": ["dog", "ant"]}\n{"path": "b.jpg", "label": []}\n'
     '{"path": "c.jpg", "label": [3]}\n', TableOptions(), ["ant;dog", "", "dog"]),
    ("list.csv", "image,labels\na.jpg,\"['dog', 'ant']\"\nb.jpg,[]\nc.jpg,\"[\"\"dog\"\"]\"\n", TableOptions(),
     ["ant;dog", "", "dog"]),
    ("semicolon.csv", "image,tags\na.jpg,dog; ant\nb.jpg,\nc.jpg,dog;\n", MULTI, ["ant;dog", "dog"]),
    ("comma.csv", 'image,tags\na.jpg,"dog,ant"\nb.jpg,bee\nc.jpg,dog\n', MULTI, ["ant;dog", "bee", "dog"]),
    ("pipe.csv", "image,tags\na.jpg,dog|ant\nb.jpg,bee\nc.jpg,dog\n", MULTI, ["ant;dog", "bee", "dog"]),
    ("name.csv", 'image,tags\na.jpg,dog;ant\nb.jpg,"bee, big"\nc.jpg,dog\n', MULTI, ["ant;dog", "bee, big", "dog"]),
    ("columns.csv", "image,p,q\na.jpg,dog,ant\nb.jpg,,\nc.jpg,dog,\n",
     TableOptions(multi_label=True, label_column="p,q"), ["ant;dog", "dog"]),
    ("hot.csv", "image,ant,bee,dog\na.jpg,1,0,1\nb.jpg,0,0,0\nc.jpg,0,0,1.0\n", MULTI, ["ant;dog", "", "dog"]),
    ("unknown.csv", "image,age,ant,bee,dog\na.jpg,40,True,no,1\nb.jpg,41,0,0,0\nc.jpg,42,-1,NaN,\n"
     "a.jpg,44,0,0,0\n", MULTI, ["ant;dog", ""]),
    ("ones.csv", "image,p,ant,bee\na.jpg,,1,\nc.jpg,,,1\nb.jpg,,1,\n", TableOptions(multi_label=True,
     label_column="ant,bee"), ["ant", "bee", "ant"]),
    ("chexpert.csv", "image,ant,bee,dog\na.jpg,1.0,,1.0\nb.jpg,-1.0,,0.0\nc.jpg,,0.0,1.0\n", MULTI,
     ["ant;dog", "dog"]),
    ("numpy.csv", "image,tags\na.jpg,['dog' 'ant']\nb.jpg,[]\nc.jpg,\"('dog',)\"\n", MULTI, ["ant;dog", "", "dog"]),
    ("postgres.csv", 'image,tags\na.jpg,"{dog,""ant""}"\nb.jpg,{}\nc.jpg,{dog}\n', MULTI, ["ant;dog", "", "dog"]),
    ("choices.csv", 'image,choice\na.jpg,"{""choices"": [""dog"", ""ant""]}"\nb.jpg,\nc.jpg,dog\n', MULTI,
     ["ant;dog", "dog"]),
    ("min.json", '[{"image": "a.jpg", "choice": {"choices": ["dog", "ant"]}}, {"image": "c.jpg", "choice": "dog"}]',
     MULTI, ["ant;dog", "dog"]),
    ("blanks.csv", "image,tags\na.jpg,dog;ant\nb.jpg,\nc.jpg,\nd.jpg,\n", MULTI, ["ant;dog"]),
    ("rows.csv", "image,label\na.jpg,dog\nc.jpg,dog\na.jpg,ant\n./a.jpg,ant\n", MULTI, ["ant;dog", "dog"]),
    ("rows.txt", "a.jpg 3\nc.jpg 3\na.jpg 0\n", MULTI, ["ant;dog", "dog"]),
    ("names.txt", "a.jpg dog;ant\nc.jpg dog;dog\n", MULTI, ["ant;dog", "dog"]),
    ("again.txt", "a.jpg [0,3]\nb.jpg []\n", MULTI, ["ant;dog", ""]),
    ("from.csv", "image,label\na.jpg,x\nb.jpg,x\n", TableOptions(multi_label=True, class_from="^(.)"), ["a", "b"]),
    ("coco.json", json.dumps({
        "images": [{"id": n, "file_name": f"{name}.jpg"} for n, name in enumerate("abc")],
        "annotations": [{"image_id": n, "category_id": c} for n, c in ((0, 1), (0, 2), (2, 2))],
        "categories": [{"id": 1, "name": "ant"}, {"id": 2, "name": "dog"}],
    }), MULTI, ["ant;dog", "", "dog"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "options", "expected"), READ, ids=[each[0] for each in READ])
def test_any_number_of_classes_is_read_from_the_forms_that_have_it(
    tmp_path: Path, name: str, text: str, options: TableOptions, expected: list[str]
) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / name).write_text(text)
    if name in ("brackets.txt", "list.jsonl", "rows.txt", "again.txt"):
        (tmp_path / f"{Path(name).stem}_class_def.txt").write_text("0 ant\n1 bee\n2 cat\n3 dog\n")
    labels = LabelFile(tmp_path / name, options=options)
    assert sets(labels) == expected
    for suffix in (".txt", ".csv", ".jsonl"):
        written = labels.write(tmp_path / f"out{suffix}")
        assert sets(written) == expected
        assert [item.path for item in written] == [item.path for item in labels]


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("a.txt", "a.jpg [0]\nb.jpg 1\n", TableOptions(), r"a.txt:2: expected one class on every line, or a list"),
        ("a.txt", "a.jpg 1\nb.jpg [0]\n", TableOptions(), r"a.txt:2: expected one class on every line, or a list"),
        ("a.txt", "a.jpg [0, 1]\n", TableOptions(), r"a.txt:1: .*found '1\]' .*without spaces"),
        ("a.txt", "a.jpg [x]\n", TableOptions(), r"a.txt:1: .*found '\[x\]'"),
        ("a.jsonl", '{"path": "a.jpg", "label": ["x"]}\n' * 201 + '{"path": "b.jpg", "label": "x"}\n',
         TableOptions(), r"a.jsonl:202: expected one class on every line"),
        ("a.csv", 'image,tags\na.jpg,ant|bee\nb.jpg,"ant,bee"\n', MULTI, "a.csv:3: labels are separated by"),
        ("a.csv", "image,p,q\na.jpg,1,1\nb.jpg,0,1\n", TableOptions(), "if a row may contain 1 in several columns"),
        ("a.csv", "image,p,q\na.jpg,1,-1\nb.jpg,-1,1\n", MULTI, "a.csv:2: .* 0 or 1 in .*; other values in 2 of 2"),
        *(("a.csv", f'image,tags\na.jpg,"{cell}"\nb.jpg,1\n', MULTI, "a.csv:2: .* list of 0 and 1 without")
          for cell in ("[1, 0, 0]", "1,0,0", "[1 0 0]")),
        ("a.txt", "a.jpg [1,0,0]\n", TableOptions(), "a.txt:1: .* list of 0 and 1 without"),
        *(("a.csv", f'image,tags\na.jpg,"{cell}"\nb.jpg,"x,y"\n', MULTI, "a.csv:2: .* cannot be parsed as a list")
          for cell in ("[x, y]", "{'x': 'y'}", "(x, y)", "[1. 0. 0.]")),
    ],
)  # fmt: skip
def test_what_is_unclear_is_refused_with_its_line(
    tmp_path: Path, name: str, text: str, options: TableOptions, message: str
) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / name).write_text(text)
    with pytest.raises(LabelFileError, match=message):
        list(LabelFile(tmp_path / name, options=options))


@pytest.mark.parametrize(
    ("name", "text", "note"),
    [
        ("a.csv", "image,tags\na.jpg,dog;ant\nb.jpg,ant\n", "1 label contains ';': use --multi-label if"),
        ("a.csv", "image,tags\na.jpg,dog|ant\nb.jpg,ant\n", "1 label contains '|': use --multi-label if"),
        ("a.csv", 'image,tags\na.jpg,"dog, ant"\nb.jpg,ant\n', "1 label contains ',': use --multi-label if"),
        ("a.csv", "image,tags\na.jpg,\"['dog', 'ant']\"\nb.jpg,ant\n", "1 label contains brackets: use --multi-label"),
        ("a.jsonl", '{"image": "a.jpg", "tags": ["x", "y"]}\n{"image": "b.jpg", "tags": "x"}\n'
         '{"image": "a.jpg", "tags": "y"}\n',
         "1 row with several classes: use --multi-label to keep"),
    ],
)  # fmt: skip
def test_without_the_option_a_label_is_one_class_and_a_note_says_so(
    tmp_path: Path, name: str, text: str, note: str
) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / name).write_text(text)
    labels = LabelFile(tmp_path / name)
    assert not labels.is_multi_label
    assert any(note in line for line in labels.notes)


def test_blank_cells_of_columns_of_0_and_1_are_0_and_counted_where_nothing_else_is_in_a_row(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "a.csv").write_text("image,p,q\na.jpg,1,\nb.jpg,-1,0\nb.jpg,0,0\na.jpg,,\nc.jpg,1,1\n")
    first, skipped_row_notes = LabelFile(tmp_path / "a.csv", options=MULTI).notes
    assert "p, q (one-hot, several per image, blank cells as 0) as label" in first
    assert "left out: 2 rows" in skipped_row_notes
    assert "(rows 3, 5)" in skipped_row_notes


@pytest.mark.parametrize("is_multi_label", [False, True])
def test_a_table_is_not_read_with_the_classes_of_another_label_file(tmp_path: Path, is_multi_label: bool) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    table, options = tmp_path / "photos.csv", TableOptions(multi_label=is_multi_label)
    table.write_text("image,tags\na.jpg,ant;bee\nb.jpg,ant\nc.jpg,bee\n")
    written = LabelFile(table).write(tmp_path / "photos.txt")
    assert written.class_names == LabelFile(table).class_names == ("ant", "ant;bee", "bee")
    if not is_multi_label:
        table.write_text("image,tags\na.jpg,cat\nb.jpg,ant\nc.jpg,bee\n")
    assert LabelFile(table, options=options).class_names == ("ant", "bee", "cat")[: 3 - is_multi_label]
    assert written.class_names == ("ant", "ant;bee", "bee")

    table.write_text("image,label\na.jpg,2\nb.jpg,0\n")  # numbers are those of the definition
    assert LabelFile(table).class_names == written.class_names
    (tmp_path / "own.csv").write_text("image,label\na.jpg,bee\nb.jpg,cat\n")
    (tmp_path / "own_class_def.txt").write_text("0 ant\n1 bee\n")  # a person's: a label it lacks is a mistake
    with pytest.raises(
        LabelFileError, match=r"own.csv:3: .* found 'cat' \(class names are read from own_class_def.txt"
    ):
        list(LabelFile(tmp_path / "own.csv"))


def test_files_of_one_class_and_of_several_are_not_mixed(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "one.txt").write_text("a.jpg 0\n")
    (tmp_path / "several.txt").write_text("b.jpg [0]\n")
    files = [LabelFile(tmp_path / name) for name in ("one.txt", "several.txt")]
    for mix in (merge_classes, lambda files: files[0].merge(files[1])):
        with pytest.raises(LabelFileError, match=r"one.txt has one class per image, but .*several.txt has any number"):
            mix(files)
    with pytest.raises(InputError, match="class folders require one class per image"):
        write_class_folders(files[1], tmp_path / "folders")


def test_every_class_is_split_in_the_given_shares(tmp_path: Path) -> None:
    has_class = np.random.default_rng(0).random((600, 5)) < [0.6, 0.4, 0.2, 0.1, 0.05]
    items = [
        LabeledPath(tmp_path / f"{n}.jpg", -1, tuple(np.flatnonzero(row).tolist())) for n, row in enumerate(has_class)
    ]
    labels = LabelFile(tmp_path / "labels.txt", items=lambda: items, class_names=tuple("vwxyz"))
    _, val = labels.split((0.8, 0.2), seed=0)
    total, own = labels.count_images()[1], val.count_images()[1]
    assert all(abs(own[n] - total[n] / 5) <= max(3, 0.05 * total[n]) for n in range(5)), (total, own)
    assert abs(len(list(val)) - 120) <= 1


def test_the_commands_keep_the_classes_of_an_image_in_several_folders(tmp_path: Path, run_cli: RunCli) -> None:
    from tests.checks.test_validation import jpeg, scene

    for number in range(6):
        data = jpeg(scene(number, width=64, height=48))
        for class_name in ("ants", *["bees"] * (number % 2), *["wings"] * (number == 1)):
            touch(tmp_path / "photos" / class_name, f"{number}.jpg")
            (tmp_path / "photos" / class_name / f"{number}.jpg").write_bytes(data)
    made = run_cli("label", "photos", "--multi-label", "-o", "labels.txt")
    assert made.stdout == "labels.txt: 6 images, 3 classes: ants 6, bees 3, wings 1\n"
    assert "4 files with the same content as another file: each image is listed once" in made.stderr
    assert (tmp_path / "labels.txt").read_text().splitlines()[:2] == [
        "photos/ants/0.jpg [0]",
        "photos/ants/1.jpg [0,1,2]",
    ]
    checked = run_cli("check", "photos", "--multi-label")
    assert "6 images checked, 6 ok" in checked.stdout
    assert "two-labels" not in checked.stdout
    checked_text = (tmp_path / "photos" / "labels_checked.txt").read_text()
    assert checked_text == (tmp_path / "labels.txt").read_text().replace("photos/", "")
    parts = split_labels(tmp_path / "labels.txt", (0.5, 0.5))
    assert sorted(sets(parts[0]) + sets(parts[1])) == sorted(sets(LabelFile(tmp_path / "labels.txt")))
    augment(tmp_path / "labels.txt", tmp_path / "out.npz", image_property=ImageProperty(8), flip=True)
    assert np.load(tmp_path / "out.npz")["y"].sum(axis=0).tolist() == [12, 6, 2]

    labels = open_splits(tmp_path / "photos", MULTI)[""]
    assert sets(labels) == sets(LabelFile(tmp_path / "labels.txt"))
    x, y = next(TrainingData(labels, ImageProperty(8)).generate_batches(6))
    assert (x.shape, y.dtype) == ((6, 3, 8, 8), np.float32)
    assert y.tolist() == [[1, n % 2, n == 1] for n in range(6)]
    by_class = compute_mean(labels, ImageProperty(8), per_class=True)
    assert (by_class.mean == compute_mean(labels, ImageProperty(8)).mean).all()
    assert sorted(by_class.class_means) == [0, 1, 2]
    assert (by_class.class_means[0] == by_class.mean).all()
