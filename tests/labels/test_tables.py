"""Tables as people have them: read as what they mean, or refused with the options that settle it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlimages.checks import check, write_results
from mlimages.core import InputError, LabeledPath, LabelFileError
from mlimages.labels import (
    LabelFile,
    TableOptions,
    merge_classes,
    open_labels,
    open_splits,
    read_paths,
    write_label_file,
)
from tests.conftest import RunCli
from tests.labels.test_label_folders import classes
from tests.labels.test_labels import touch

IDS = [f"id{number}" for number in range(6)]
BREEDS = ["pug", "pug", "hound", "hound", "beagle", "beagle"]
BOTH = list(zip(IDS, BREEDS, strict=True))


def table(header: str, rows: list[str], *, delimiter: str = ",") -> str:
    return "\n".join([*([header] if header else []), *rows, ""]).replace("|", delimiter)


NAMED = [f"{name}.jpg|{breed}" for name, breed in BOTH]
PAIRS = [f"{name}|{breed}" for name, breed in BOTH]
BY_BREED = {"beagle": 2, "hound": 2, "pug": 2}
ONE_HOT = [f"{name}.jpg|{int(n % 3 == 0)}|{int(n % 3 == 1)}|{int(n % 3 == 2)}.0" for n, name in enumerate(IDS)]

FORMS: list[tuple[str, str, dict[str, int]]] = [
    *((f"{header.partition('|')[0]}.csv", table(header, NAMED), BY_BREED) for header in (
        "image_path|label", "filepath|label", "image|breed", "Image Path|Label", "file_name|Species", "whatever|kind",
    )),
    ("headerless.csv", table("", NAMED), BY_BREED),
    ("semicolon.csv", table("file|label", NAMED, delimiter=";"), BY_BREED),
    ("tab.csv", table("file|label", NAMED, delimiter="\t"), BY_BREED),
    ("tab.tsv", table("", NAMED, delimiter="\t"), BY_BREED),
    ("comma.tsv", table("file|label", NAMED), BY_BREED),
    ("text.txt", table("", NAMED), BY_BREED),
    ("spaced.txt", table("", NAMED, delimiter=", "), BY_BREED),
    ("header.txt", table("path|label", NAMED), BY_BREED),
    ("tab.txt", table("", NAMED, delimiter="\t"), BY_BREED),
    ("no_suffix.csv", table("id|breed", PAIRS), BY_BREED),
    ("id_code.csv", table("id_code|diagnosis", [f"{name}|{n % 5}" for n, name in enumerate(IDS)]),
     {"0": 2, "1": 1, "2": 1, "3": 1, "4": 1}),
    ("more.csv", table("width|breed|image|url", [f"10|{b}|{n}.jpg|http://x/{n}" for n, b in BOTH]),
     BY_BREED),
    ("from_one.csv", table("path|label", [f"{name}.jpg|{n % 3 + 1}" for n, name in enumerate(IDS)]),
     {"1": 2, "2": 2, "3": 2}),
    ("from_one_bare.csv", table("image_id|label", [f"{name}|{n % 3 + 1}" for n, name in enumerate(IDS)]),
     {"1": 2, "2": 2, "3": 2}),
    ("both.csv", table("image|class_id|class_name", [f"{n}.jpg|{i}|{b}" for i, (n, b) in enumerate(BOTH)]),
     BY_BREED),
    ("one_hot.csv", table("image|MEL|NV|BCC", ONE_HOT), {"BCC": 2, "MEL": 2, "NV": 2}),
    ("keys.jsonl", "".join(json.dumps({"Image": f"{n}.jpg", "LABEL": b}) + "\n" for n, b in BOTH),
     BY_BREED),
    ("list.json", json.dumps([{"image": f"{n}.jpg", "choice": b} for n, b in BOTH]), BY_BREED),
    ("coco.json", json.dumps({
        "images": [{"id": n, "file_name": f"{name}.jpg"} for n, name in enumerate(IDS)],
        "annotations": [{"image_id": n, "category_id": 7 + n % 2} for n in range(6)],
        "categories": [{"id": 7, "name": "odd"}, {"id": 8, "name": "even"}],
    }), {"even": 3, "odd": 3}),
    ("studio.json", json.dumps([
        {"data": {"image": f"/data/upload/1/{n}.jpg"}, "annotations": [{"result": [{"value": {"choices": [b]}}]}]}
        for n, b in BOTH
    ]), BY_BREED),
    ("cvat.xml", "<annotations>" + "".join(
        f'<image name="{n}.jpg"><tag label="{b}"/></image>' for n, b in BOTH
    ) + "</annotations>", BY_BREED),
]  # fmt: skip


@pytest.mark.parametrize("folder", ["", "train_images"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(("name", "text", "expected"), FORMS, ids=[form[0] for form in FORMS])
def test_a_table_is_read_as_what_it_means(
    tmp_path: Path, name: str, text: str, expected: dict[str, int], encoding: str, folder: str
) -> None:
    touch(tmp_path / folder, *(f"{each}.jpg" for each in IDS))
    (tmp_path / name).write_text(text, encoding=encoding)
    labels = LabelFile(tmp_path / name)
    assert classes(labels) == expected
    assert all(item.path.exists() for item in labels)
    assert [item.path.stem for item in labels] == IDS
    (note,) = labels.notes
    assert "6 of 6 images exist" in note
    assert f"{len(expected)} classes: {', '.join(expected)}" in note
    written = labels.write(tmp_path / "out.txt")
    assert list(written) == list(labels)
    assert classes(written) == expected


def test_what_was_understood_and_what_is_missing_is_said(tmp_path: Path) -> None:
    touch(tmp_path, *(f"photos/{name}.png" for name in IDS[:4]))
    (tmp_path / "train.csv").write_text(table("id_code|diagnosis", [f"{name}|{n % 2}" for n, name in enumerate(IDS)]))
    said, missing = LabelFile(tmp_path / "train.csv", options=TableOptions(images=tmp_path / "photos")).notes
    assert said == (
        f"{tmp_path}/train.csv: column id_code as image (suffix .png added, in {tmp_path}/photos), diagnosis as label; "
        "4 of 6 images exist; 2 classes: 0, 1"
    )
    assert missing == f"{tmp_path}/train.csv: missing: id4.png, id5.png"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", table("path|label", [f"x{n}.jpg|a" for n in range(4)]), "only 0 of 4 images exist.*--images DIR"),
        ("a.csv", table("path|label", [f"{n}.JPG|a" for n in IDS]), "no file at .*id0.JPG, but id0.jpg exists"),
        ("a.csv", table("path|p|q", [f"{n}.jpg|a|b" for n in IDS]), "columns: path, p, q.*"),
        ("a.csv", table("", [f"{n}.jpg|a|b" for n in IDS]), r"a.csv:1: expected a column named label.*--label-column"),
        ("a.csv", table("url|label", ["http://x/1.jpg|a", "https://x/2.jpg|b"]), "contains URLs.*gather urls .*a.csv"),
        ("a.json", json.dumps({"images": [{"id": 1, "file_name": "id0.jpg"}], "categories": [],
                               "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]}), "bounding boxes or masks"),
        ("a.json", "{}", "expected a JSON list of objects, or image-level annotations exported from COCO"),
        ("a.json", "{", "not valid JSON"),
        ("a.xml", '<annotations><image name="a.jpg"><box/></image></annotations>', "shapes but no tags"),
        ("a.xml", "<a", "not valid XML"),
        ("a.zip", "", r"an archive. .* `unzip .*a.zip -d a`, then use `mlimages label a`"),
        ("a-000.tar", "", r"tar -xf .*a-000.tar -C a-000.*WebDataset.*labels.csv"),
        ("a.tar.gz", "", "tar -xf .*a.tar.gz -C a`"),
        ("a.tgz", "", "tar -xf .*a.tgz -C a`"),
        ("a.TAR.XZ", "", "tar -xf .*a.TAR.XZ -C a`"),
        ("a.csv.gz", "", r"a compressed file. .* `gunzip -k .*/a.csv.gz`, then use `mlimages label .*/a.csv`$"),
        ("a.tsv.bz2", "", r"a compressed file. .* `bunzip2 -k .*/a.tsv.bz2`, then use `mlimages label .*/a.tsv`$"),
        ("a b.JSONL.xz", "", r"`unxz -k '.*/a b.JSONL.xz'`, then use `mlimages label '.*/a b.JSONL'`$"),
        ("a.gz", "", r"`gunzip -k .*/a.gz`"),
        ("a_class_def.txt", "0 ant\n1 bee\n", r"a_class_def.txt is a class definition, not a label file: omit it$"),
        ("a.parquet", "", "gather urls .*a.parquet.*to_csv"),
        ("a.xlsx", "", "Save it as CSV"),
        ("a.mat", "", "scipy.io.loadmat"),
    ],
)  # fmt: skip
def test_what_does_not_fit_stops_with_what_to_type(tmp_path: Path, name: str, text: str, said: str) -> None:
    touch(tmp_path, *(f"{each}.jpg" for each in IDS))
    (tmp_path / name).write_text(text)
    with pytest.raises(LabelFileError, match=said):
        list(LabelFile(tmp_path / name))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (TableOptions(label_column="q"), {"x": 6}),
        (TableOptions(label_column="2"), BY_BREED),
        (TableOptions(path_column="mask", label_column="P"), BY_BREED),
        (TableOptions(path_column="3", label_column="3", class_from=r"(\d)_m"), {str(n): 1 for n in range(6)}),
        (TableOptions(class_from=r"^id(\d)"), {str(n): 1 for n in range(6)}),
        (TableOptions(label_column="a,b"), {"a": 2, "b": 4}),
    ],
)
def test_options_settle_what_a_table_means(tmp_path: Path, options: TableOptions, expected: dict[str, int]) -> None:
    touch(tmp_path, *(f"{each}{end}" for each in IDS for end in (".jpg", "_mask.png")))
    rows = [f"{n}.jpg|{b}|{n}_mask.png|x|{int(b == 'pug')}|{int(b != 'pug')}" for n, b in BOTH]
    (tmp_path / "a.csv").write_text(table("image|p|mask|q|a|b", rows))
    assert classes(LabelFile(tmp_path / "a.csv", options=options)) == expected


@pytest.mark.parametrize(
    ("lines", "options", "expected"),
    [
        ("id{n} 3 {c} x\n", {"suffix": ".jpg", "label_column": "3"}, {"1": 2, "2": 2, "3": 2}),  # as in Oxford Pets
        ("id{n}.jpg {c}\n", {"class_from": r"id(\d)"}, {str(n): 1 for n in range(6)}),
        ("id{n} {c}\n", {"suffix": ".jpg"}, {"0": 0, "1": 2, "2": 2, "3": 2}),  # numbers stay numbers
        ("id{n}.jpg kind{c}\n", {"images": "."}, {"kind1": 2, "kind2": 2, "kind3": 2}),
    ],
)
def test_options_hold_for_lines_of_words_too(
    tmp_path: Path, lines: str, options: dict[str, Any], expected: dict[str, int]
) -> None:
    touch(tmp_path, *(f"{each}.jpg" for each in IDS))
    (tmp_path / "a.txt").write_text("".join(lines.format(n=n, c=n % 3 + 1) for n in range(6)))
    images = {"images": tmp_path} if "images" in options else {}
    labels = LabelFile(tmp_path / "a.txt", options=TableOptions(**{**options, **images}))
    assert classes(labels) == expected
    assert all(item.path.exists() for item in labels)


def test_paths_alone_are_labelled_by_their_names(tmp_path: Path) -> None:
    names = ["cat.1.jpg", "cat.2.jpg", "dog.1.jpg"]
    touch(tmp_path, *names)
    (tmp_path / "list.txt").write_text("\n".join(names))
    assert classes(LabelFile(tmp_path / "list.txt", options=TableOptions(class_from=r"(\w+)\."))) == {
        "cat": 2,
        "dog": 1,
    }


@given(labels=st.lists(st.integers(-2, 6).map(str) | st.sampled_from(["cat", "a b"]), min_size=1, max_size=8))
def test_a_label_in_a_table_is_always_the_name_that_stands_there(
    tmp_path_factory: pytest.TempPathFactory, labels: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("table")
    touch(folder, *(f"{n}.jpg" for n in range(len(labels))))
    (folder / "a.csv").write_text("path,label\n" + "".join(f"{n}.jpg,{label}\n" for n, label in enumerate(labels)))
    file = LabelFile(folder / "a.csv")
    assert [file.class_names[item.label] for item in file] == labels
    assert set(file.class_names) == set(labels)


def two_files(folder: Path, suffix: str, train: list[int], val: list[int]) -> list[LabelFile]:
    files = []
    for name, labels in (("train", train), ("val", val)):
        touch(folder, *(f"{name}{n}.jpg" for n in range(len(labels))))
        files.append(folder / f"{name}{suffix}")
        write_label_file(files[-1], [LabeledPath(folder / f"{name}{n}.jpg", x) for n, x in enumerate(labels)])
    return [LabelFile(file) for file in files]


@pytest.mark.parametrize("suffix", [".txt", ".csv"])
@pytest.mark.parametrize(("train", "val"), [([0, 1, 2], [0, 2]), ([1, 2, 3], [3, 1]), ([0, 2], [1, 0]), ([5, 9], [9])])
def test_numbers_of_several_files_are_the_same_classes(
    tmp_path: Path, suffix: str, train: list[int], val: list[int]
) -> None:
    files = two_files(tmp_path, suffix, train, val)
    names, own = merge_classes(files)
    assert names == tuple(map(str, sorted({*train, *val})))
    for file, own_names, numbers in zip(files, own, (train, val), strict=True):
        assert [own_names[item.label] for item in file] == list(map(str, numbers))


@pytest.mark.parametrize("suffix", [".txt", ".csv"])
def test_numbers_are_of_the_classes_that_another_file_names(tmp_path: Path, suffix: str) -> None:
    files = two_files(tmp_path, suffix, [0, 1, 2], [2, 0])
    (tmp_path / "train_class_def.txt").write_text("0 ant\n1 bee\n2 cow\n")
    names, own = merge_classes(files)
    assert names == ("ant", "bee", "cow")
    assert [own[1][item.label] for item in files[1]] == ["cow", "ant"]


NUMERIC_NAMES = st.lists(st.sampled_from(["0", "1", "2", "3", "10", "cat"]), min_size=1, max_size=5, unique=True)


@given(NUMERIC_NAMES, st.data(), st.sampled_from(["file,grade", "path,label", ""]), st.booleans())
def test_a_number_in_a_table_of_ones_own_is_the_class_of_that_name(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], data: st.DataObject, header: str, has_file: bool
) -> None:
    folder = tmp_path_factory.mktemp("grades")
    cells = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=4))
    touch(folder, *(f"{n}.jpg" for n in range(len(cells))))
    path = folder / ("a.csv" if header else "a.txt")
    rows = [f"{n}.jpg{',' if header else ' '}{cell}" for n, cell in enumerate(cells)]
    path.write_text("\n".join([*([header] if header else []), *rows, ""]))
    if has_file := has_file and bool(header):  # in `path index` lines beside a class definition, numbers are indices
        (folder / "a_class_def.txt").write_text("".join(f"{n} {name}\n" for n, name in enumerate(names)))
    file = LabelFile(path, class_names=None if has_file else tuple(names))
    numbers = [int(cell) for cell in cells if cell.isdigit()]
    may_be_indices = header != "file,grade" and max(numbers, default=0) < len(names)  # as in files that mlimages writes
    if may_be_indices and any(names[number] != str(number) for number in numbers):
        with pytest.raises(LabelFileError, match="use words as class names"):
            list(file)
    else:
        assert [file.class_names[item.label] for item in file] == cells


@given(NUMERIC_NAMES, st.data(), st.sampled_from([".csv", ".tsv", ".jsonl", ".txt"]))
def test_files_of_ours_are_read_back_whatever_the_names_of_the_classes(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], data: st.DataObject, suffix: str
) -> None:
    folder = tmp_path_factory.mktemp("grades")
    labels = data.draw(st.lists(st.integers(0, len(names) - 1), min_size=1, max_size=4))
    touch(folder, *(f"{n}.jpg" for n in range(len(labels))))
    items = [LabeledPath(folder / f"{n}.jpg", label) for n, label in enumerate(labels)]
    file = LabelFile(folder / "x", items=lambda: items, class_names=tuple(names)).write(folder / f"a{suffix}")
    assert ([item.label for item in file], file.class_names) == (labels, tuple(names))


def test_an_image_in_two_files_of_which_one_lacks_a_class_has_one_class(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "train.csv").write_text("path,label\na.jpg,ant\nb.jpg,bee\nc.jpg,cow\n")
    (tmp_path / "val.csv").write_text("path,label\nc.jpg,cow\na.jpg,ant\n")
    report = check([tmp_path / "train.csv", tmp_path / "val.csv"])
    assert report.class_names == ("ant", "bee", "cow")
    assert not any("two-labels" in code for code in report.errors)


def test_a_table_is_taken_by_every_command_of_the_step(tmp_path: Path, run_cli: RunCli, invoke_cli: RunCli) -> None:
    from tests.checks.test_validation import jpeg, scene

    (tmp_path / "train_images").mkdir()
    for number, name in enumerate(IDS):
        (tmp_path / f"train_images/{name}.jpg").write_bytes(jpeg(scene(number, width=90, height=60)))
    (tmp_path / "train.csv").write_text(table("id|breed", PAIRS))
    understood = (
        "train.csv: column id as image (suffix .jpg added, in train_images), breed as label; 6 of 6 images exist; "
        "3 classes: beagle, hound, pug"
    )
    for words in (["check", "train.csv"], ["mean", "train.csv", "--size", "8"], ["label", "train.csv", "-o", "l.txt"]):
        done = invoke_cli(*words)
        assert understood in done.stderr
    assert done.stdout == "l.txt: 6 images, 3 classes: beagle 2, hound 2, pug 2\n"
    few = invoke_cli("label", "train.csv", "-o", "few.csv", "--limit-per-class", "1")
    assert few.stdout == "few.csv: 3 images, 3 classes: beagle 1, hound 1, pug 1\n"
    stopped = run_cli("label", "train.csv", "-o", "m.txt", "--suffix", ".png", check=False)
    assert stopped.returncode == 1
    assert "only 0 of 6 images exist" in stopped.stderr
    assert "--images DIR or --suffix .png" in stopped.stderr


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("empty.csv", table("file|kind", ["id0.jpg|ant", "id1.jpg|", "id2.jpg|bee", "id3.jpg|bee"]), "3"),
        ("hot.csv", table("image|ant|bee", ["id0.jpg|1|0", *["id2.jpg|0|1"] * 210, "id1.jpg|1|1", "id1.jpg|0|0"]),
         "213, 214"),
        ("studio.json", json.dumps([
            {"data": {"image": f"/data/upload/1/id{n}.jpg"}, "annotations": [{"result": [{"value": {"choices": c}}]}]}
            for n, c in enumerate([["ant"], [], ["bee"], ["ant", "bee"], ["bee"]])
        ]), "2, 4"),
    ],
)  # fmt: skip
def test_a_row_without_one_class_costs_itself_alone(tmp_path: Path, name: str, text: str, rows: str) -> None:
    touch(tmp_path, *(f"{each}.jpg" for each in IDS))
    (tmp_path / name).write_text(text)
    labels = LabelFile(tmp_path / name)
    assert {item.path.name for item in labels} <= {"id0.jpg", "id2.jpg", "id3.jpg", "id4.jpg"}
    assert labels.class_names == ("ant", "bee")
    (note,) = [note for note in labels.notes if "left out" in note]
    assert note.endswith(f"without a path, or without exactly one class (row{'s' * (',' in rows)} {rows})")


@pytest.mark.parametrize("cell", ["/kaggle/input/pets/{}.jpg", "/data/upload/4/{}.jpg", "C:\\pets\\{}.jpg"])
def test_paths_of_another_machine_are_found_in_the_folder_given(tmp_path: Path, cell: str) -> None:
    touch(tmp_path / "photos", *(f"{each} cat.jpg" for each in IDS))
    name = "{}%20cat" if "upload" in cell else "{} cat"
    rows = [f"{cell.format(name.format(each))}|{breed}" for each, breed in BOTH]
    (tmp_path / "a.csv").write_text(table("image|breed", rows))
    labels = LabelFile(tmp_path / "a.csv", options=TableOptions(images=tmp_path / "photos"))
    assert [item.path.name for item in labels] == [f"{each} cat.jpg" for each in IDS]


def test_the_parts_that_a_column_names_are_label_files_of_their_own(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{each}.jpg" for each in IDS))
    rows = [f"{each}.jpg|{breed}|{('train', 'Validation')[n % 2]}" for n, (each, breed) in enumerate(BOTH)]
    (tmp_path / "a.csv").write_text(table("image|breed|split", rows))
    parts = open_splits(tmp_path / "a.csv")
    assert list(parts) == ["train", "val"]
    assert [part.path.name for part in parts.values()] == ["a_train.csv", "a_val.csv"]
    with pytest.raises(
        InputError,
        match=r"several splits \(train, val\), expected one: to write .*, use `mlimages label .*a.csv -o .*a.txt`",
    ):
        open_labels(tmp_path / "a.csv")
    assert all(classes(part) == {"beagle": 1, "hound": 1, "pug": 1} for part in parts.values())


@pytest.mark.parametrize(
    ("sources", "same"),
    [(["a.csv"], ""), (["a.csv", "b.txt"], ""), (["b.txt", "./b.txt"], "b"), (["a.csv", "b.txt", "b.csv"], "b")],
)
def test_each_label_file_and_part_gets_files_of_its_own_from_a_check(
    tmp_path: Path, sources: list[str], same: str
) -> None:
    touch(tmp_path, *(f"{each}.jpg" for each in IDS))
    rows = [f"{each}.jpg|{breed}|{['train', 'val', 'test'][n % 3]}" for n, (each, breed) in enumerate(BOTH)]
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(table(f"image|breed|{'split' if name == 'a.csv' else 'height'}", rows))
    (tmp_path / "b.txt").write_text("".join(f"{each}.jpg 0\n" for each in IDS))
    report = check([tmp_path / name for name in sources])
    if same:
        with pytest.raises(InputError, match=f"would both be written to .*{same}_checked.txt: omit or rename one"):
            write_results(report)
        return
    written = [path for path in write_results(report) if path.name.endswith("_rejected.tsv")]
    assert sum(len({*read_paths(path)}) for path in written) == report.num_images == len(BOTH) * len(sources)


def test_lines_of_tabs_are_a_table_even_where_they_end_in_a_number(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{each}.jpg" for each in IDS))
    (tmp_path / "val.txt").write_text("".join(f"{each}.jpg\tn{n % 2}\t0\t32\n" for n, each in enumerate(IDS)))
    with pytest.raises(LabelFileError, match="columns: 1, 2, 3, 4"):
        list(LabelFile(tmp_path / "val.txt"))
    assert classes(LabelFile(tmp_path / "val.txt", options=TableOptions(label_column="2"))) == {"n0": 3, "n1": 3}


def test_spaces_around_a_path_are_left_out_unless_they_are_part_of_the_name(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", " b.jpg", "b.jpg", "c.jpg")
    (tmp_path / "x.csv").write_text("file , label\na.jpg , cat\n b.jpg,dog\n c.jpg , cat\n")
    labels = LabelFile(tmp_path / "x.csv")
    assert [item.path.name for item in labels] == ["a.jpg", " b.jpg", "c.jpg"]
    assert classes(labels) == {"cat": 2, "dog": 1}


@pytest.mark.parametrize("name", ["caf\u00e9", "cafe\u0301"])
def test_a_class_name_is_the_same_in_both_forms_of_unicode(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "x.csv").write_text("file,class\na.jpg,caf\u00e9\nb.jpg,cafe\u0301\nc.jpg,tea\n")
    assert classes(LabelFile(tmp_path / "x.csv")) == {"caf\u00e9": 2, "tea": 1}
    (tmp_path / "x_class_def.txt").write_text(f"0 tea\n1 {name}\n")
    assert classes(LabelFile(tmp_path / "x.csv")) == {"tea": 1, name: 2}


@pytest.mark.parametrize(
    ("names", "differences"),
    [
        (("Cat", "cat", "tea"), ["case: Cat and cat"]),
        (("Cat", "tea", "tea\u200b"), ["characters that are not visible: tea and tea\\u200b"]),
        (("red cat", "red\xa0cat", "Red  cat"),
         ["characters that are not visible: Red  cat and red cat and red\\xa0cat"]),
        (("caf\u00e9", "cafe", "tea"), []),
        (("1", "2", "\u20602"), ["characters that are not visible: 2 and \\u20602"]),
    ],
)  # fmt: skip
def test_classes_that_look_the_same_or_differ_only_in_case_are_named(
    tmp_path: Path, names: tuple[str, ...], differences: list[str]
) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    rows = "".join(f"{path}.jpg,{name}\n" for path, name in zip("abc", names, strict=True))
    (tmp_path / "x.csv").write_text(f"file,class\n{rows}")
    labels = LabelFile(tmp_path / "x.csv")
    assert list(labels.notes[1:]) == [
        f"{tmp_path / 'x.csv'}: classes that differ only in {each}" for each in differences
    ]
    assert classes(labels) == dict.fromkeys(names, 1)
