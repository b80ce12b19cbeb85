"""Layouts of folders that people have, read as what they are or refused with what to do."""

import tarfile
from collections import Counter
from pathlib import Path

import pytest

from mlimages import label_dir_auto
from mlimages.core import InputError
from mlimages.labels import (
    LabelFile,
    LabelOptions,
    TableOptions,
    label_dir,
    label_dir_by_pattern,
    make_label_files,
    open_labels,
    open_splits,
    require_outside_dataset,
)
from tests.checks.test_validation import jpeg, scene
from tests.conftest import RunCli
from tests.labels.test_labels import touch


def classes(labels: LabelFile) -> dict[str, int]:
    counts = Counter(item.label for item in labels)
    return {name: counts[number] for number, name in enumerate(labels.class_names)}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["flowers/rose/1.jpg", "flowers/tulip/2.jpg"], {"rose": 1, "tulip": 1}),
        (["a/b/c/rose/1.jpg", "a/b/c/tulip/2.jpg", "a/readme.txt"], {"rose": 1, "tulip": 1}),
        (["10/a.jpg", "9/a.jpg", "2/a.jpg", "1/a.jpg"], {"1": 1, "2": 1, "9": 1, "10": 1}),
        (["cafe\u0301/1.jpg", "tea/1.jpg"], {"caf\u00e9": 1, "tea": 1}),
        (["only/1.jpg", "only/deep/2.jpg"], {"only": 2}),
        (
            ["a/1.jpg", "b/1.jpg", "a/._1.jpg", "@eaDir/x.jpg", "$RECYCLE.BIN/x.jpg", "__MACOSX/a/x.jpg", ".git/x.jpg"],
            {"a": 1, "b": 1},
        ),
        ([*(f"a/{n}.jpg" for n in range(99)), "b/1.jpg", "loose.jpg"], {"a": 99, "b": 1}),
    ],
)
def test_a_layout_is_read_as_what_it_is(tmp_path: Path, names: list[str], expected: dict[str, int]) -> None:
    assert classes(label_dir_auto(touch(tmp_path, *names)).labels) == expected


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["1.jpg", "2.jpg"], r"2 images and no class folders.*--class-from.*--label"),
        (["a/1.jpg", "b/1.jpg", "loose.jpg"], r"contains images outside the class folders \(loose.jpg\): move each"),
        (["two  spaces/1.jpg", "two spaces/1.jpg", "c/1.jpg"], "have the same class name"),
        (["cafe\u0301/1.jpg", "caf\u00e9/1.jpg"], "have the same class name"),
        (["Ants/1.jpg", "ants/1.jpg", "bees/1.jpg"], "have the same class name"),
        (["Ants/1.jpg", "ants /1.jpg", "bees/1.jpg"], "have the same class name"),
        (
            ["train/Cats/1.jpg", "train/b/1.jpg", "val/cats/2.jpg", "val/b/2.jpg"],
            r"train/Cats and \S+val/cats differ only in case: rename a folder",
        ),
        (["ants/1.jpg", "ants\u200b/1.jpg", "bees/1.jpg"], "have the same class name"),
        (
            ["train/a\ufeffb/1.jpg", "train/c/1.jpg", "val/ab/2.jpg", "val/c/2.jpg"],
            r"val/ab differ only in characters that are not visible: rename a folder",
        ),
        (["train/1.jpg", "test/2.jpg"], r"contains the splits test, train without class folders"),
        (
            ["val/a/1.jpg", "valid/a/2.jpg", "train/a/3.jpg"],
            r"contains two folders for the same split \(train, val, valid\): merge or rename them",
        ),
    ],
)
def test_a_layout_that_does_not_look_right_stops_with_what_to_do(tmp_path: Path, names: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        label_dir_auto(touch(tmp_path, *names))


@pytest.mark.parametrize("options", [["--label", "1"], ["--class-from", "x"], ["--leaf"], []])
def test_a_folder_without_images_is_refused_before_a_file_is_written(
    tmp_path: Path, invoke_cli: RunCli, options: list[str]
) -> None:
    touch(tmp_path / "photos", "notes/readme.txt")
    refused = invoke_cli("label", "photos", *options, "-o", "all.txt", check=False)
    assert "no images in photos" in refused.stderr
    assert refused.stderr.strip().endswith("files whose suffix is not that of an image: 1 .txt")
    assert list(tmp_path.glob("all*")) == []


def test_what_else_is_in_the_folder_and_folders_of_another_name_are_said(tmp_path: Path) -> None:
    data = touch(tmp_path / "data", "a,b/1.jpg", "c./2.jpg", "c./drawing.svg")
    (data / "metadata.csv").write_text("file_name,label\nc./2.jpg,d\n")
    notes: list[str] = []

    def label(source: Path, **options: object) -> None:
        make_label_files(LabelOptions(source, **options), split=LabelFile.split, print_note=notes.append)  # type: ignore[arg-type]

    label(data, as_folders=tmp_path / "linked", out=tmp_path / "all.txt")
    assert notes == [
        "left out: metadata.csv: not read, since the folders are the classes; to read it: "
        f"`mlimages label {data}/metadata.csv`",
        "left out: files whose suffix is not that of an image: 1 .svg",
        "folders whose name differs from the class name: c. as c",
    ]
    notes.clear()
    label(data / "c.", class_index=1, out=tmp_path / "c.txt")
    assert notes == ["left out: files whose suffix is not that of an image: 1 .svg"]


@pytest.mark.parametrize("table", [TableOptions(), TableOptions(multi_label=True)], ids=["one label", "several"])
@pytest.mark.parametrize("folder", ["{}", "{}/part-0000", " red  {} "])
def test_the_class_folders_of_a_label_file_are_a_dataset(tmp_path: Path, folder: str, table: TableOptions) -> None:
    touch(tmp_path, *(f"photos/{folder.format(name)}/1.jpg" for name in ("ant", "bee")))
    labels = open_labels(tmp_path / "photos", table).write(tmp_path / "all.txt")
    with pytest.raises(InputError, match=f"new is the dataset {tmp_path}/photos, or inside it, where"):
        require_outside_dataset(tmp_path / "photos/new", labels)
    require_outside_dataset(tmp_path / "new", labels)


def test_the_folder_of_the_shards_of_a_label_file_is_a_dataset(tmp_path: Path) -> None:
    touch(tmp_path, *(names := ("ant/1.jpg", "bee/1.jpg")))
    (tmp_path / "photos").mkdir()
    with tarfile.open(tmp_path / "photos/images-00000.tar", "w") as shard:
        for name in names:
            shard.add(tmp_path / name, name)
    labels = open_labels(tmp_path / "photos").write(tmp_path / "all.txt")
    with pytest.raises(
        InputError, match=f"new is the dataset {tmp_path}/photos, or inside it, where"
    ):  # `label photos` would read `new`
        require_outside_dataset(tmp_path / "photos/new", labels)
    require_outside_dataset(tmp_path / "new", labels)


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_parts_become_label_files_with_one_numbering(tmp_path: Path, invoke_cli: RunCli, val: str) -> None:
    names = ("train/rose/1.jpg", "train/tulip/2.jpg", "train/tulip/3.jpg", f"{val}/tulip/4.jpg", "test/5.jpg")
    touch(tmp_path / "data", *names)
    done = invoke_cli("label", "data", "-o", "all.txt")
    train, part = (LabelFile(tmp_path / f"all_{name}.txt") for name in ("train", "val"))
    assert classes(train) == {"rose": 1, "tulip": 2}
    assert classes(part) == {"rose": 0, "tulip": 1}
    assert "test: 1 images without class folders" in done.stderr
    assert done.stdout.startswith("all_train.txt: 3 images, 2 classes: rose 1, tulip 2\n")
    assert "next: mlimages check all_train.txt all_val.txt" in done.stderr
    assert "data is already split (train, val)" in invoke_cli("label", "data", "--split", "0.8,0.2", check=False).stderr
    found = label_dir_auto(tmp_path / "data")
    assert list(found.splits) == ["train", "val"]
    assert classes(found.labels) == {"rose": 1, "tulip": 3}


def test_what_we_made_ourselves_is_no_image_of_the_dataset(tmp_path: Path, invoke_cli: RunCli) -> None:
    for name in ("a/1.jpg", "b/1.jpg"):
        touch(tmp_path, name)
        (tmp_path / name).write_bytes(jpeg(scene(1)))
    invoke_cli("label", ".")
    invoke_cli("mean", "labels.txt", "--size", "8", "-o", "mean.png")
    assert invoke_cli("label", ".").stdout == "labels.txt: 2 images, 2 classes: a 1, b 1\n"


def test_one_class_and_classes_without_images_are_said(tmp_path: Path, invoke_cli: RunCli) -> None:
    touch(tmp_path / "one", "cats/1.jpg", "cats/2.jpg")
    assert "only one class: a classifier needs at least two" in invoke_cli("label", "one").stderr
    touch(tmp_path / "two", "train/a/1.jpg", "train/a/2.jpg", "train/b/3.jpg", "val/a/1.jpg", "val/a/2.jpg")
    assert "two/labels_val.txt: fewer than two images of b\n" in invoke_cli("label", "two").stderr
    (tmp_path / "from-one.txt").write_text("one/cats/1.jpg 1\none/cats/2.jpg 2\n")
    assert "2 classes: 1 1, 2 1\n" in invoke_cli("label", "from-one.txt", "-o", "again.txt").stdout, (
        "there is no class 0"
    )


def test_a_pattern_of_groups_that_finds_nothing_is_refused(tmp_path: Path, run_cli: RunCli, invoke_cli: RunCli) -> None:
    touch(tmp_path / "data", *(f"{c}/P{n}_{m}.jpg" for c in "ab" for n in range(4) for m in range(2)))
    for options, message in (
        (("--group", "P"), "--group and --group-by require --split"),
        (("--group-by", "features"), "--group and --group-by require --split"),
        (("--copy",), "--copy requires --as-folders"),
    ):
        assert message in invoke_cli("label", "data", *options, check=False).stderr
    failed = run_cli("label", "data", "--split", "0.5,0.5", "--group", "Q[0-9]", check=False)
    assert failed.returncode == 1
    assert "--group Q[0-9] matches none of the 16 paths" in failed.stderr
    done = invoke_cli("label", "data", "--split", "0.5,0.5", "--group", "P[0-9]")
    assert "--group: 4 groups; P[0-9] matches 16 of 16 paths" in done.stderr


def notes_of(parts: dict[str, LabelFile]) -> dict[str, tuple[str, ...]]:
    return {name: part.notes for name, part in parts.items()}


def test_what_was_opened_is_said_in_one_line_a_part(tmp_path: Path) -> None:
    touch(tmp_path, *(f"ant/{n}.jpg" for n in range(3)), "bee/x 1.jpg")
    assert notes_of(open_splits(tmp_path)) == {"": (f"{tmp_path}: 4 images, 2 classes: ant 3, bee 1",)}
    found = open_splits(tmp_path, TableOptions(class_from=r"(\d)"))
    assert notes_of(found) == {"": (f"{tmp_path}: 4 images, 3 classes: 0 1, 1 2, 2 1",)}
    assert classes(found[""]) == {"0": 1, "1": 2, "2": 1}
    some = open_labels(tmp_path, TableOptions(class_from="(ant)"))
    assert some.notes == (
        f"{tmp_path}: 3 images, 1 class: ant 3",
        "left out: 1 of 4 paths do not match the regular expression (ant) (bee/x 1.jpg)",
    )  # fmt: skip
    assert (some.path, some.img_root) == (tmp_path / "labels.txt", tmp_path)
    assert open_splits(some) == {"": some}


def test_each_part_has_its_line_its_name_and_the_notes_of_all(tmp_path: Path) -> None:
    touch(tmp_path, "Training/ant/1.jpg", "Training/ant/2.jpg", "Training/bee/1.jpg", "valid/bee/1.jpg", "x.jpg")
    (tmp_path / "valid/cow").mkdir()
    notes = ("left out: valid/cow: no images", "left out: x.jpg: outside the folders train, val and test")
    assert notes_of(open_splits(tmp_path)) == {
        "train": (f"{tmp_path}, train: 3 images, 2 classes: ant 2, bee 1", *notes),
        "val": (f"{tmp_path}, val: 1 image, 2 classes: ant 0, bee 1", *notes),
    }
    found = label_dir_auto(tmp_path)
    assert {name: part.path.name for name, part in found.splits.items()} == {
        "train": "labels_train.txt", "val": "labels_val.txt",
    }  # fmt: skip
    assert found.labels.path == tmp_path / "labels.txt"
    assert classes(found.labels) == {"ant": 2, "bee": 2}
    with pytest.raises(
        InputError, match="contains several splits \\(train, val\\), expected one: use one of its subfolders"
    ):
        open_labels(tmp_path)


@pytest.mark.parametrize("count", [1, 9, 10, 11])
def test_the_line_shows_ten_classes(tmp_path: Path, count: int) -> None:
    touch(tmp_path, *(f"c{n}/1.jpg" for n in range(1, count + 1)))
    shown = ", ".join(f"c{n} 1" for n in range(1, min(count, 10) + 1)) + (" ..." if count > 10 else "")
    (note,) = open_labels(tmp_path).notes
    images, kinds = f"{count} image{'s' * (count > 1)}", f"{count} class{'es' * (count > 1)}"
    assert note == f"{tmp_path}: {images}, {kinds}: {shown}"


@pytest.mark.parametrize(
    ("options", "is_allowed"),
    [
        ({"suffix": ".png"}, False), ({"images": Path()}, False), ({"path_column": "1"}, False),
        ({"label_column": "1"}, False), ({"class_from": "(.)"}, True), ({"multi_label": True}, True),
    ],
)  # fmt: skip
def test_options_of_columns_are_refused_with_a_folder(
    tmp_path: Path, options: dict[str, object], is_allowed: bool
) -> None:
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    table = TableOptions(**options)  # type: ignore[arg-type]
    if is_allowed:
        assert open_labels(tmp_path, table).is_multi_label is table.multi_label
        return
    with pytest.raises(InputError, match="is a folder: --path-column, --label-column, --images and --suffix apply"):
        open_labels(tmp_path, table)


@pytest.mark.parametrize(
    ("unmatched", "expected"),
    [(0, ()), (2, ("left out: 2 of 5 paths do not match the regular expression [ab] (x0.jpg, x1.jpg)",)),
     (3, None), (4, None), (11, None)],
)  # fmt: skip
def test_half_of_the_paths_must_match(tmp_path: Path, unmatched: int, expected: tuple[str, ...] | None) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "b2.jpg", *(f"x{n}.jpg" for n in range(unmatched)))
    if expected is None:
        message = (
            rf"{unmatched} of {3 + unmatched} paths do not match the regular expression \[ab\] \(x0.jpg, x1.jpg, x2.jpg"
        )
        with pytest.raises(InputError, match=message) as raised:
            label_dir_by_pattern(tmp_path, "[ab]")
        assert (" ...): correct the expression" in str(raised.value)) == (unmatched > 10)
        return
    found = label_dir_by_pattern(tmp_path, "[ab]")
    assert classes(found) == {"a": 1, "b": 2}
    assert found.notes == expected
    assert (found.path, found.img_root) == (tmp_path / "labels.txt", tmp_path)


@pytest.mark.parametrize(
    ("listed", "loose", "shown"),
    [
        (99, 1, "0.jpg"), (100, 1, None), (199, 2, "0.jpg, 1.jpg"), (200, 2, None), (5, 3, "0.jpg, 1.jpg, 2.jpg"),
        (5, 4, "0.jpg, 1.jpg, 2.jpg and 1 more"), (5, 5, "0.jpg, 1.jpg, 2.jpg and 2 more"),
    ],
)  # fmt: skip
def test_one_image_in_a_hundred_may_be_outside_the_class_folders(
    tmp_path: Path, listed: int, loose: int, shown: str | None
) -> None:
    touch(tmp_path, *(f"{'ab'[n % 2]}/{n}.jpg" for n in range(listed)), *(f"{n}.jpg" for n in range(loose)))
    if shown is None:
        found = label_dir_auto(tmp_path)
        assert found.notes == tuple(f"left out: {n}.jpg: outside the class folders" for n in range(loose))
        assert sum(classes(found.labels).values()) == listed
        return
    with pytest.raises(InputError) as error:
        label_dir_auto(tmp_path)
    told = f"{tmp_path} contains images outside the class folders ({shown}): move each into the folder of its class"
    assert str(error.value).startswith(told)


@pytest.mark.parametrize("tables", [[], ["b.csv"], ["b.csv", "a.tsv"]])
def test_images_without_folders_are_labelled_by_the_first_table(tmp_path: Path, tables: list[str]) -> None:
    touch(tmp_path, "1.jpg", "2.jpg")
    for table in tables:
        (tmp_path / table).write_text("path,label\n1.jpg,x\n")
    with pytest.raises(InputError) as error:
        label_dir_auto(tmp_path)
    hint = f"label the images by a table (`mlimages label {tmp_path}/{min(tables)} -o labels.txt`), " if tables else ""
    assert str(error.value).startswith(
        f"{tmp_path} contains 2 images and no class folders: {hint}create a folder per class, "
    )


@pytest.mark.parametrize(
    ("tables", "named"),
    [([], ""), (["train.csv", "sample.csv"], "train.csv"), (["val/c.csv", "train/c.csv"], "train/c.csv")],
)
def test_parts_without_class_folders_are_labelled_by_the_table_of_the_training_set(
    tmp_path: Path, tables: list[str], named: str
) -> None:
    root = touch(tmp_path / "d", "train/1.jpg", "val/2.jpg")
    for table in tables:
        (root / table).write_text("path,label\n1.jpg,x\n")
    with pytest.raises(InputError) as error:
        label_dir_auto(root)
    hint = f"label the images by a table (`mlimages label {root}/{named} -o labels.txt`), " if named else ""
    told = f"{root} contains the splits train, val without class folders: {hint}create folders such as train/CLASS"
    assert str(error.value).startswith(told)


def test_tables_beside_the_class_folders_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "in/a/1.jpg", "in/b/1.jpg")
    (tmp_path / "in/more.csv").write_text("path,label\n")
    table = tmp_path / "in/more.csv"
    assert label_dir_auto(tmp_path).notes == (
        "left out: in: not a class folder; its subfolders are the classes",
        f"left out: more.csv: not read, since the folders are the classes; to read it: `mlimages label {table}`",
    )


def test_shards_that_were_not_gathered_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/1.jpg", *(f"manifest-{n:05}-of-00004.jsonl" for n in (1, 2, 4)))
    missing = (
        "left out: shards 3 of 4: not gathered yet; the gather command without --shard merges the shards and downloads "
        "the images that are missing",
    )
    assert label_dir_auto(tmp_path).notes == missing
    (tmp_path / "manifest-00003-of-00004.jsonl").touch()
    assert label_dir_auto(tmp_path).notes == ()


@pytest.mark.parametrize("known", [1, 10, 11])
def test_a_folder_that_is_none_of_the_classes_given_is_named(tmp_path: Path, known: int) -> None:
    touch(tmp_path, "c1/1.jpg", "odd/1.jpg")
    names, more = [f"c{n}" for n in range(1, known + 1)], " ..." * (known > 10)
    with pytest.raises(InputError) as error:
        label_dir_auto(tmp_path, class_names=names)
    told = f"{tmp_path}/odd: the folder name is not in the given class names ({', '.join(names[:10])}{more}): rename"
    assert str(error.value).startswith(told)
    assert label_dir_auto(tmp_path, class_names=["odd", "none", "c1"]).labels.count_images() == (2, Counter([0, 2]))


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["train/n1/images/1.jpg", "train/n2/images/2.jpg", "val/images/3.jpg"], "images"),  # as Tiny ImageNet
        (["train/a/1.jpg", "train/b/1.jpg", *(f"test/c{n}/1.jpg" for n in range(4))], "c0, c1, c2 ..."),
    ],
)
def test_parts_without_a_class_of_train_are_no_parts(tmp_path: Path, names: list[str], shown: str) -> None:
    with pytest.raises(
        InputError, match=rf"(val|test) and \S+train have no class in common \(\S+ has {shown}\): label only \S+train"
    ):
        label_dir_auto(touch(tmp_path, *names))


def test_all_images_of_a_folder_are_one_class_of_its_name(tmp_path: Path) -> None:
    labels = label_dir(touch(tmp_path / "cats", "1.jpg", "in/2.jpg", ".git/3.jpg"), 2)
    assert classes(labels) == {"0": 0, "1": 0, "cats": 2}
    assert (labels.path, labels.img_root) == (tmp_path / "cats/labels.txt", tmp_path / "cats")
    with pytest.raises(InputError, match="no folder at"):
        label_dir(tmp_path / "dogs", 0)


def test_leaf_folders_of_one_name_and_numbered_ones_are_classes_by_their_paths(tmp_path: Path) -> None:
    touch(tmp_path, "a/x/1.jpg", "b/x/2.jpg", "a/3.jpg", "b/y/part-0001/4.jpg", "b/y/part-0002/5.jpg")
    assert classes(label_dir_auto(tmp_path, leaf=True).labels) == {"a": 1, "a/x": 1, "b/x": 1, "b/y": 2}
    assert classes(label_dir_auto(tmp_path).labels) == {"a": 2, "b": 3}
