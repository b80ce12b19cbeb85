"""Label files: folders become lines, lines become parts, and nothing is lost on the way."""

import shlex
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mlimages.checks import split_labels
from mlimages.core import InputError, LabeledPath, LabelFileError
from mlimages.labels import (
    IMAGE_SUFFIXES,
    LabelFile,
    LabelOptions,
    append_labels,
    group_by_pattern,
    label_dir,
    label_dir_auto,
    label_dir_by_pattern,
    make_folder_names,
    make_label_files,
    read_class_names,
    read_paths,
    split,
    write_class_folders,
    write_class_names,
    write_label_file,
)
from mlimages.labels.scanning import describe_skipped_entries, iter_images, list_subfolders, make_path_resolver
from tests.conftest import RunCli


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image")
    return root


def lines(labels: LabelFile, root: Path) -> list[str]:
    return [f"{item.path.relative_to(root).as_posix()} {item.label}" for item in labels]


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    names = ("Zebra/1.jpg", "ant/b.PNG", "ant/nested/A.jpeg", "bee/3.webp", "bee/notes.txt", "ant/._b.png")
    return touch(tmp_path / "animals", *names, "empty/readme.md", ".git/x.jpg", "ant/.ipynb_checkpoints/b.png")


def test_each_folder_is_a_class_sorted_without_regard_to_case(animals: Path) -> None:
    found = label_dir_auto(animals)
    assert found.labels.class_names == ("ant", "bee", "Zebra")
    assert lines(found.labels, animals) == [
        "ant/b.PNG 0", "ant/nested/A.jpeg 0", "bee/3.webp 1", "Zebra/1.jpg 2",
    ]  # fmt: skip


def test_what_is_left_out_is_said(animals: Path) -> None:
    (animals / "loop").symlink_to("..")
    nested = "images in nested folders belong to the class folder that contains them (ant/nested); "
    nested += "--leaf makes each folder a class"
    for leaf in (False, True):
        assert label_dir_auto(touch(animals, "bee/.git/y.jpg"), leaf=leaf).notes == (
            *([] if leaf else [nested]),
            "left out: empty: no images",
            "left out: files whose suffix is not that of an image: 1 .md, 1 .txt",
            "left out: hidden folders and folders created by tools: 2 .git, 1 .ipynb_checkpoints",
            "left out: links to a parent folder: 1 loop",
        )


def test_subfolders_that_every_class_has_may_be_the_classes(tmp_path: Path) -> None:
    years = touch(tmp_path, "2021/ants/1.jpg", "2021/bees/1.jpg", "2022/ants/1.jpg", "2022/bees/1.jpg")
    note = label_dir_auto(years).nested_note
    assert "Every class folder has the same subfolders" in note
    pattern = shlex.split(note.partition("--class-from ")[2])[0]
    assert label_dir_by_pattern(years, pattern).class_names == ("ants", "bees")


def test_with_leaf_each_folder_that_holds_images_is_a_class(animals: Path) -> None:
    labels = label_dir_auto(animals, leaf=True).labels
    assert labels.class_names == ("ant", "ant/nested", "bee", "Zebra")
    assert "ant/nested/A.jpeg 1" in lines(labels, animals)


def test_every_suffix_that_pillow_decodes_by_itself_counts() -> None:
    Image.init()
    stubs = {"BUFR", "GRIB", "HDF5", "MPEG"}  # recognised, never decoded
    outside = {"EPS", "WMF"}  # need Ghostscript or Windows
    suffixes = {s for s, form in Image.registered_extensions().items() if form in Image.OPEN.keys() - stubs - outside}
    assert suffixes <= IMAGE_SUFFIXES


def test_names_that_no_line_can_hold_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a/fine.jpg", "a/two\nlines.jpg", "a/back\\slash.jpg")
    found = label_dir_auto(touch(tmp_path, "b\nc/1.jpg", "d\\e/1.jpg"))
    assert found.skipped_notes == (
        "file names that a label file cannot contain: 2",
        r"folders whose names a label file cannot contain (rename them): 1 b\nc, 1 d\e",
    )
    written = found.labels.write(tmp_path / "labels.txt")
    assert lines(written, tmp_path) == ["a/fine.jpg 0"]


def test_an_empty_folder_is_an_error_that_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a folder per class"):
        label_dir_auto(tmp_path)
    with pytest.raises(InputError, match="no folder at"):
        label_dir_auto(tmp_path / "nowhere")


NAMES = st.text(st.characters(exclude_characters="\n\r\\/\0", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name not in (".", "..")
)


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl"])
@given(names=st.lists(NAMES, max_size=5))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, suffix: str, names: list[str]) -> None:
    folder = tmp_path_factory.mktemp("labels")
    items = [LabeledPath(folder / name, number % 2) for number, name in enumerate(names)]
    write_label_file(folder / f"labels{suffix}", items, ["cats", "dogs"])
    assert list(LabelFile(folder / f"labels{suffix}")) == items


def test_a_text_file_from_elsewhere_is_understood(tmp_path: Path) -> None:
    text = '\ufeffa b.jpg 0\r\n\r\n"c d.jpg" 1  \r\ne.jpg\t2\r\n  sub\\f g.jpg   1 \r\n'
    (tmp_path / "labels.txt").write_bytes(text.encode())
    read = lines(LabelFile(tmp_path / "labels.txt"), tmp_path)
    assert read == ["a b.jpg 0", "c d.jpg 1", "e.jpg 2", "sub/f g.jpg 1"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "a.jpg,1\nb.jpg,0\n"),
        ("b.csv", "label,width,path\n1,20,a.jpg\n0,30,b.jpg\n"),
        ("c.tsv", "path\tlabel\na.jpg\t1\n\nb.jpg\t0\n"),
        ("metadata.csv", "file_name,label\na.jpg,dog\nb.jpg,Cat\n"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "label": "dog"}\n{"file_name": "b.jpg", "label": "Cat"}\n'),
        ("d.jsonl", '{"path": "a.jpg", "label": 1}\n{"path": "b.jpg", "label": 0}\n'),
    ],
)
def test_tables_are_read_with_or_without_header_and_with_names_or_numbers(tmp_path: Path, name: str, text: str) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / name).write_text(text)
    labels = LabelFile(tmp_path / name)
    assert lines(labels, tmp_path) == ["a.jpg 1", "b.jpg 0"]
    assert labels.class_names in (("0", "1"), ("Cat", "dog"))


@pytest.mark.parametrize("found", [("1", "2", "other"), ("-1", "0", "1"), ("3", "cat", "10")])
def test_numbers_among_the_names_of_a_table_are_names(tmp_path: Path, found: tuple[str, ...]) -> None:
    touch(tmp_path, *(f"{name}.jpg" for name in found))
    (tmp_path / "a.csv").write_text("path,label\n" + "".join(f"{name}.jpg,{name}\n" for name in found))
    labels = LabelFile(tmp_path / "a.csv")
    for file in (labels, labels.write(tmp_path / "b.txt")):
        assert [file.class_names[item.label] for item in file] == list(found)


def test_paths_as_text_are_those_of_the_images_whatever_the_file_stands_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text('sub/../a b.jpg 1\n" c.jpg" 1\n/elsewhere/d.jpg 0\nsub\\e.jpg 1\n')
    (tmp_path / "a_class_def.txt").write_text("0 1\n1 0\n")  # names that look like numbers of others
    labels = LabelFile(tmp_path / "a.txt")
    assert [label for _, label in labels.text_items()] == [1, 1, 0, 1]
    for stands_for in (labels, labels.without([tmp_path / "a b.jpg"]), labels.shuffle(0), labels.merge(labels)):
        assert [LabeledPath(Path(name), label) for name, label in stands_for.text_items()] == list(stands_for)
    assert len(list(labels.without([tmp_path / "a b.jpg"]))) == 3
    assert list(labels.where([False, True, True, False])) == list(labels)[1:3]


def test_a_tables_class_names_outlive_its_conversion_and_its_split(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{n}.jpg" for n in range(8)))
    (tmp_path / "a.csv").write_text(
        "path,label\n" + "".join(f"{n}.jpg,{'dog' if n % 2 else 'Cat'}\n" for n in range(8))
    )
    labels = LabelFile(tmp_path / "a.csv")
    train, val = labels.split([0.5, 0.5], seed=1)
    for part in (labels, labels.shuffle(1), train, val, labels.merge(labels)):
        written = part.write(tmp_path / "b.txt")
        assert written.class_names == part.class_names == ("Cat", "dog")
    assert labels.merge(LabelFile("c.txt", items=list, class_names=("cow",))).class_names == ("Cat", "dog", "cow")


@pytest.mark.parametrize(
    ("name", "text", "line", "expected"),
    [
        ("a.txt", "a.jpg 0\nb.jpg\n", 2, "expected `path label`"),
        ("a.txt", "a.jpg cat\n", 1, "the label is a class index"),
        ("a.txt", "a.jpg ²\n", 1, "the label is a class index"),
        ("a.txt", f"a.jpg {'9' * 5000}\n", 1, "the label is a class index below 1000000"),
        ("a.csv", "path,label\na.jpg\n", 2, "expected a path and a label"),
        ("a.csv", "path,size\na.jpg,4\n", 1, "a column named label"),
        ("a.jsonl", '{"path": "a.jpg", "label": 0}\n{"path"', 2, 'expected {"path"'),
        ("a.jsonl", "[" * 100_000, 1, 'expected {"path"'),
    ],
)
def test_a_bad_line_is_named_with_what_was_expected(
    tmp_path: Path, name: str, text: str, line: int, expected: str
) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(LabelFileError) as error:
        list(LabelFile(tmp_path / name))
    assert f"{name}:{line}: " in str(error.value)
    assert expected in str(error.value)


def test_a_label_beyond_the_class_definition_is_a_bad_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a.jpg 2\n")
    (tmp_path / "a_class_def.txt").write_text("0 cats\n1 dogs\n")
    with pytest.raises(
        LabelFileError, match=r"a.txt:1: expected a class index from 0 to 1 or .* \(cats, dogs\), found '2'"
    ):
        list(LabelFile(tmp_path / "a.txt"))


def test_a_file_that_is_not_utf_8_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("schön.jpg 0\n".encode("latin-1"))
    with pytest.raises(LabelFileError, match="is not UTF-8 at byte 3: save it as UTF-8"):
        list(LabelFile(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 a cat\n1 dog\n", ("a cat", "dog")),
        ("a cat\n\ndog\n", ("a cat", "dog")),  # one name per line
        ("1\n2\n10\n", ("1", "2", "10")),
        ("0 a cat\n2 dog\n", "names.txt:2: expected `1 NAME`, found '2 dog'"),
        ("a cat\n1 dog\n", "names.txt:1: expected `0 NAME`, found 'a cat'"),
        ("1 a cat\n2 dog\n", "names.txt:1: expected `0 NAME`, found '1 a cat'"),
    ],
)
def test_class_definitions_count_from_zero_or_have_no_numbers(
    tmp_path: Path, text: str, expected: tuple[str, ...] | str
) -> None:
    (tmp_path / "names.txt").write_text(text)
    if isinstance(expected, tuple):
        assert read_class_names(tmp_path / "names.txt") == expected
        return
    with pytest.raises(LabelFileError) as error:
        read_class_names(tmp_path / "names.txt")
    assert str(error.value).endswith(expected)


@pytest.mark.parametrize(
    ("text", "line", "first"), [("b\nb\na\n", 2, 1), ("b\n\na\n b \n", 4, 1), ("0 b\n1 a\n2 a\n", 3, 2)]
)
def test_a_class_definition_with_the_same_name_twice_is_refused_with_both_lines(
    tmp_path: Path, text: str, line: int, first: int
) -> None:
    touch(tmp_path, "h/a/0.jpg", "h/b/0.jpg")
    definition = tmp_path / "d_class_def.txt"
    definition.write_text(text)
    (tmp_path / "d.txt").write_text("h/b/0.jpg 0\nh/a/0.jpg 2\n")
    message = f"{definition.name}:{line}: the class name .* is already on line {first}: "
    with pytest.raises(LabelFileError, match=message):
        list(LabelFile(tmp_path / "d.txt"))
    options = LabelOptions(tmp_path / "h", tmp_path / "out.txt", classes=definition)
    with pytest.raises(LabelFileError, match=message):
        make_label_files(options, split=split_labels)
    assert not (tmp_path / "out.txt").exists()


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (("b", "b", "a"), InputError, "contains 'b' more than once: give each class a unique name"),
        ({0: "a", 1: "b"}, TypeError, "expected a list of names"),
        ("ab", TypeError, "expected a list of names"),
        ((0, 1), TypeError, "expected a list of names"),
    ],
)
def test_class_names_in_python_are_a_list_of_different_names(
    tmp_path: Path, names: Any, error: type[Exception], message: str
) -> None:
    touch(tmp_path, "h/a/0.jpg", "h/b/0.jpg")
    with pytest.raises(error, match=message):
        label_dir_auto(tmp_path / "h", class_names=names)
    with pytest.raises(error, match=message):
        LabelFile(tmp_path / "d.txt", class_names=names)


def test_class_names_may_be_an_iterator(tmp_path: Path) -> None:
    touch(tmp_path, "h/a/0.jpg")
    assert LabelFile(tmp_path / "d.txt", class_names=iter("ab")).class_names == ("a", "b")  # type: ignore[arg-type]
    assert label_dir_auto(tmp_path, class_names=iter(("h", "i"))).labels.class_names == ("h", "i")  # type: ignore[arg-type]


def test_no_class_definition_with_the_same_name_twice_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"n\.txt cannot contain the class name 'b' more than once"):
        write_class_names(tmp_path / "n.txt", ("b", "a", "b"))
    assert not (tmp_path / "n.txt").exists()


@pytest.mark.parametrize(("missing", "shown"), [(0, ""), (2, "0.jpg, 1.jpg"), (5, "0.jpg, 1.jpg, 2.jpg ...")])
def test_images_of_a_label_file_that_are_missing_are_counted(tmp_path: Path, missing: int, shown: str) -> None:
    touch(tmp_path, *(f"{n}.jpg" for n in range(missing, 6)))
    (tmp_path / "a.txt").write_text("".join(f"{n}.jpg {n % 2}\n" for n in range(6)))
    notes: list[str] = []
    make_label_files(LabelOptions(tmp_path / "a.txt", tmp_path / "b.txt"), split=split_labels, print_note=notes.append)
    assert [note.replace(f"{tmp_path}/", "").partition(": paths are")[0] for note in notes] == (
        [f"a.txt: {missing} of 6 images are missing ({shown})"] if missing else []
    )


def test_a_table_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"{n}.jpg {n % 2}\n" for n in range(6)))
    (tmp_path / "names.txt").write_text("cats\ndogs\n")
    for name in ("b.csv", "b.jsonl"):
        with pytest.raises(
            InputError,
            match=f"{name} could not be read again: 6 of 6 images are missing, .*--images DIR .*, --classes FILE",
        ):
            make_label_files(LabelOptions(tmp_path / "a.txt", tmp_path / name), split=split_labels)
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "names.txt"}
    options = LabelOptions(tmp_path / "a.txt", tmp_path / "b.csv", classes=tmp_path / "names.txt")
    assert make_label_files(options, split=split_labels)[0].class_counts == {"cats": 3, "dogs": 3}


def many(count: int = 200, classes: int = 2) -> list[LabeledPath]:
    return [LabeledPath(Path(f"c{n % classes}/{n}.jpg"), n % classes) for n in range(count)]


def test_a_split_is_stratified_whole_and_the_same_for_the_same_seed() -> None:
    parts = split(many(), [0.8, 0.1, 0.1], seed=1)
    assert [[sum(item.label == label for item in part) for label in (0, 1)] for part in parts] == [
        [80, 80],
        [10, 10],
        [10, 10],
    ]
    assert sorted((item for part in parts for item in part), key=str) == sorted(many(), key=str)
    assert parts == split(many(), [0.8, 0.1, 0.1], seed=1)
    assert parts != split(many(), [0.8, 0.1, 0.1], seed=2)


def test_a_split_is_the_same_on_every_machine() -> None:
    _, val = split(many(20), [0.8, 0.2], seed=0)
    assert [item.path.as_posix() for item in val] == ["c0/0.jpg", "c1/5.jpg", "c0/8.jpg", "c1/11.jpg"]


def test_a_split_depends_neither_on_where_images_and_label_file_are_nor_on_the_order_of_lines(tmp_path: Path) -> None:
    found = []
    for images, place in (("img", "."), ("img", "sub/deeper"), ("img", "img"), ("moved/img", ".")):
        items = [LabeledPath(tmp_path / images / f"P{n // 4:02}_{n}.jpg", n % 3) for n in range(120)]
        file = tmp_path / place / "all.txt"
        write_label_file(file, items[:: -1 if place == "img" else 1], ["a", "b", "c"])
        by_group = LabelOptions(file, split=(0.7, 0.3), group=r"P\d+", force=True)
        parts = [LabelFile(part.path) for part in make_label_files(by_group, split=split_labels)]
        parts += [*LabelFile(file).split((0.7, 0.3), seed=1), LabelFile(file).limit_per_class(5, seed=2)]
        found.append([{item.path.name for item in part} for part in parts])
    assert found == [found[0]] * 4


def test_images_of_one_group_stay_on_one_side() -> None:
    groups = group_by_pattern((item.path for item in many()), r"/(\d)\d*\.jpg")
    train, val = split(many(), [0.7, 0.3], seed=0, groups=groups)
    assert not {groups[item.path] for item in train} & {groups[item.path] for item in val}
    assert 40 <= len(val) <= 80


def test_label_files_filter_shuffle_split_and_merge_as_values(tmp_path: Path) -> None:
    write_label_file(tmp_path / "a.txt", [LabeledPath(tmp_path / f"{n}.jpg", n % 2) for n in range(10)], ["ant", "bee"])
    write_label_file(tmp_path / "b.txt", [LabeledPath(tmp_path / "b.jpg", 0)], ["bee"])
    labels = LabelFile(tmp_path / "a.txt")
    assert [item.label for item in labels.filter(lambda item: item.label == 1)] == [1] * 5
    assert list(labels.shuffle(1)) != list(labels)
    assert set(labels.shuffle(1)) == set(labels)
    assert [len(list(part)) for part in labels.split([0.8, 0.2], seed=0)] == [8, 2]
    merged = labels.merge(LabelFile(tmp_path / "b.txt")).write(tmp_path / "both.jsonl")
    assert merged.class_names == ("ant", "bee")
    assert lines(merged, tmp_path)[-1] == "b.jpg 1"


def test_appending_a_class_by_number_names_it_and_lists_no_image_twice(tmp_path: Path) -> None:
    touch(tmp_path, "cats/1.jpg", "dogs/2.jpg", "more/3.jpg")
    first = label_dir(tmp_path / "cats", 0).write(tmp_path / "labels.txt")
    for folder, number in [("dogs", 1), ("more", 1), ("more", 1)]:
        append_labels(first, label_dir(tmp_path / folder, number), by_class_index=True).write(first.path)
    assert lines(first, tmp_path) == ["cats/1.jpg 0", "dogs/2.jpg 1", "more/3.jpg 1"]
    assert first.class_names == ("cats", "dogs")


def test_a_data_set_is_laid_out_as_folders_and_labelled_again(animals: Path, tmp_path: Path) -> None:
    labels = label_dir_auto(animals).labels
    for _again in range(2):
        write_class_folders(labels, tmp_path / "out")
    again = label_dir_auto(tmp_path / "out").labels
    assert len(list(again)) == len(list(labels)) == 4
    assert (tmp_path / "out/bee/3.webp").resolve() == animals / "bee/3.webp"
    write_class_folders(labels, tmp_path / "copied", copy=True)
    assert (tmp_path / "copied/bee/3.webp").read_bytes() == b"image"


@pytest.mark.parametrize("source", ["animals", "laid"])
@pytest.mark.parametrize("split", ["", "train"])
def test_copies_replace_links_that_mlimages_created(animals: Path, tmp_path: Path, split: str, source: str) -> None:
    images = label_dir_auto(animals).labels
    out = tmp_path / "laid"
    write_class_folders({split: images}, out)
    laid = {path: path.read_bytes() for path in out.rglob("*.*")}
    write_class_folders({split: images if source == "animals" else label_dir_auto(out / split).labels}, out, copy=True)
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == laid
    assert len(laid) == 4
    assert not any(path.is_symlink() for path in laid)


@pytest.mark.parametrize("target", ["relative", "chain", "elsewhere"])
def test_links_of_a_person_are_not_replaced_by_copies(animals: Path, tmp_path: Path, target: str) -> None:
    labels = label_dir_auto(animals).labels
    write_class_folders(labels, tmp_path / "out")
    link = tmp_path / "out/bee/3.webp"
    (tmp_path / "chain").symlink_to(animals / "bee/3.webp")
    link.unlink()
    link.symlink_to({"relative": f"../../{animals.name}/bee/3.webp", "chain": tmp_path / "chain"}.get(target, "/none"))
    before = {path: path.readlink() for path in (tmp_path / "out").rglob("*.*")}
    with pytest.raises(InputError, match=r"contains 1 other file, such as \S+bee/3.webp: use"):
        write_class_folders(labels, tmp_path / "out", copy=True)
    assert {path: path.readlink() for path in (tmp_path / "out").rglob("*.*")} == before


@pytest.mark.parametrize("name", ["\u79cd" * 200, "\U0001f98a" * 70, "a" * 300, "b" * 119 + " c"])
def test_long_class_names_of_any_script_become_unique_folders(tmp_path: Path, name: str) -> None:
    items = [LabeledPath(touch(tmp_path, f"{n}.jpg") / f"{n}.jpg", n) for n in range(2)]
    labels = LabelFile(tmp_path / "l.txt", items=lambda: items, class_names=(name, f"{name}-2"))
    assert write_class_folders(labels, tmp_path / "out") == 2
    folders = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(folders) == 2
    assert all(name.startswith(folder.removesuffix("_2")) and folder == folder.strip() for folder in folders)


@given(names=st.lists(st.text(min_size=1, max_size=6), max_size=12, unique=True), longest=st.integers(1, 8))
def test_folder_names_are_never_the_same_on_any_disk(names: list[str], longest: int) -> None:
    found = make_folder_names(names, max_length=longest)
    assert len({unicodedata.normalize("NFC", name).casefold() for name in found}) == len(names)
    assert not any(set(name) & set("/\\") or name in (".", "..") for name in found)


def test_made_up_names_hide_no_image_nor_leave_the_folder_and_two_classes_share_no_folder(tmp_path: Path) -> None:
    touch(tmp_path, "x/1.jpg", "y/1.jpg", "z/1_2.jpg", "u/1.JPG", "out/.DS_Store")
    items = [LabeledPath(tmp_path / name, 0) for name in ("x/1.jpg", "y/1.jpg", "z/1_2.jpg")]
    items += [LabeledPath(tmp_path / "u/1.JPG", 1), LabeledPath(tmp_path / "u/1.JPG", 2)]
    labels = LabelFile(
        tmp_path / "l.txt", items=lambda: items, class_names=("animals/cats", "animals_cats", "../../up")
    )
    for _again in range(2):
        assert write_class_folders(labels, tmp_path / "out") == 5
    laid = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").glob("*/*"))
    assert laid == [
        "_.._up/1.JPG", "animals_cats/1.jpg", "animals_cats/1_2.jpg", "animals_cats/1_2_2.jpg", "animals_cats_2/1.JPG",
    ]  # fmt: skip


def test_a_label_file_in_a_linked_folder_leads_to_its_images(tmp_path: Path) -> None:
    touch(tmp_path, "photos/cats/1.jpg", "real/far/below/own.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "real/far/below")
    items = [LabeledPath(tmp_path / "photos/cats/1.jpg", 0), LabeledPath(tmp_path / "link/own.jpg", 0)]
    written = LabelFile("l.txt", items=lambda: items, class_names=("cats",)).write(tmp_path / "link/l.txt")
    assert all(item.path.exists() for item in written)
    assert list(written.without([tmp_path / "real/far/below/own.jpg"])) == list(written)[:1]


def test_a_label_file_is_replaced_only_as_long_as_it_is_ours(tmp_path: Path) -> None:
    touch(tmp_path, "cats/1.jpg", "dogs/2.jpg")
    for name in ("labels.txt", "labels_class_def.txt"):
        label_dir_auto(tmp_path).labels.write(tmp_path / "labels.txt")
        touch(tmp_path, f"cats/{name}.jpg")
        label_dir_auto(tmp_path).labels.write(tmp_path / "labels.txt")  # ours, and out of date
        edited = (tmp_path / name).read_text() + "by hand"
        (tmp_path / name).write_text(edited)
        before = (tmp_path / "labels.txt").read_text()
        with pytest.raises(
            InputError, match=rf"{name} exists and was not written by mlimages.*move or rename it.*--force"
        ):
            label_dir_auto(touch(tmp_path, f"cats/more {name}.jpg")).labels.write(tmp_path / "labels.txt")
        assert (tmp_path / name).read_text() == edited
        assert (tmp_path / "labels.txt").read_text() == before
        label_dir_auto(tmp_path).labels.write(tmp_path / "labels.txt", overwrite=True)


def test_the_only_image_of_a_class_stays_in_the_first_part() -> None:
    items = [LabeledPath(Path(f"{name}/{n}.jpg"), label) for label, name in enumerate("abc") for n in range(10)]
    for seed in range(30):
        train, val = split(items[:21], (0.8, 0.2), seed=seed, class_names=("a", "b", "c"))
        assert items[20] in train
        assert 3 <= len(val) <= 5


def test_a_label_file_shows_its_path_its_images_and_its_classes(tmp_path: Path) -> None:
    labels = LabelFile(tmp_path / "a.txt", items=lambda: many(3), class_names=("ant", "bee"))
    assert repr(labels) == f"<LabelFile {tmp_path / 'a.txt'}: 3 images, 2 classes: ant, bee>"
    assert "ant" in labels._repr_html_()
    assert repr(LabelFile(tmp_path / "none.txt")).startswith(f"<LabelFile {tmp_path / 'none.txt'}: no label file at")


def test_a_label_file_that_may_not_be_replaced_is_refused_before_images_are_compared(tmp_path: Path) -> None:
    (touch(tmp_path, "h/a/0.jpg", "h/b/0.jpg") / "all_train.txt").write_text("by hand")
    options = LabelOptions(tmp_path / "h", tmp_path / "all.txt", split=(0.5, 0.5))
    with pytest.raises(InputError, match=r"all_train.txt exists and was not written by mlimages"):
        make_label_files(options, split=pytest.fail)  # type: ignore[arg-type]


def test_the_limit_of_a_class_keeps_the_order_and_depends_on_the_seed() -> None:
    labels = LabelFile("a.txt", items=lambda: many(40), class_names=("ant", "bee"))
    few = list(labels.limit_per_class(5))
    assert [sum(item.label == label for item in few) for label in (0, 1)] == [5, 5]
    assert few == [item for item in many(40) if item in few] == list(labels.limit_per_class(5, seed=0))
    assert few != list(labels.limit_per_class(5, seed=1))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.tsv", "label\tpath\nx\tb\\1.jpg\nx\n\ny\t/c/2.jpg\n", ["b/1.jpg", "/c/2.jpg"]),
        ("a.csv", "1.jpg,cat\n2.jpg,dog\n", ["1.jpg", "2.jpg"]),
        ("a.csv", "image,file\n1.jpg,2.jpg\n", ["2.jpg"]),
        ("a.csv", "reason,File Name\nblurry,1.jpg\n", ["1.jpg"]),
        ("a.csv", "Image-Path,reason\n1.jpg,blurry\n", ["1.jpg"]),
        ("a.csv", "", []),
        ("a.jsonl", "{}\n", []),
        ("a.txt", "b\\1.jpg 0\n2.jpg 1\n", ["b/1.jpg", "2.jpg"]),
    ],
)
def test_paths_alone_are_read_from_the_column_that_is_named_so(
    tmp_path: Path, name: str, text: str, expected: list[str]
) -> None:
    (tmp_path / name).write_text(text)
    assert list(read_paths(tmp_path / name)) == [tmp_path / path for path in expected]


def test_files_without_names_are_merged_by_number_and_those_with_names_by_name(tmp_path: Path) -> None:
    numbers = LabelFile(tmp_path / "a.txt", items=lambda: many(4), class_names=())
    merged = numbers.merge(numbers)
    assert (list(merged), merged.defined_class_names, merged.class_names) == (many(4) * 2, (), ("0", "1"))
    named = LabelFile(tmp_path / "b.txt", tmp_path / "b", items=lambda: many(2), class_names=("bee", "ant"))
    other = LabelFile(tmp_path / "c.txt", items=lambda: many(2), class_names=("ant", "cow"))
    merged = named.merge(other)
    assert (merged.path, merged.img_root, merged.class_names) == (named.path, tmp_path / "b", ("bee", "ant", "cow"))
    assert [item.label for item in merged] == [0, 1, 1, 2]


def test_a_folder_in_memory_is_scanned_as_one_on_disk() -> None:
    fsspec = pytest.importorskip("fsspec")
    path = pytest.importorskip("upath").UPath("memory://scanned")
    files = fsspec.filesystem("memory")
    names = ["b/2.jpg", "b/10.jpg", "b/deep/3.PNG", "a/1.gif", ".git/x.jpg", "a/.hidden.jpg", "a/notes.txt"]
    try:
        for name in names:
            files.pipe(f"/scanned/{name}", b"image")
        root = str(path)
        assert [folder.name for folder in list_subfolders(path)] == ["a", "b"]
        assert [str(found).removeprefix(f"{root}/") for found in iter_images(path)] == [
            "a/1.gif", "b/2.jpg", "b/10.jpg", "b/deep/3.PNG",
        ]  # fmt: skip
        assert [str(found).removeprefix(f"{root}/") for found in iter_images(path / "b", recursive=False)] == [
            "b/2.jpg", "b/10.jpg",
        ]  # fmt: skip
        assert describe_skipped_entries(path) == [
            "files whose suffix is not that of an image: 1 .txt",
            "hidden folders and folders created by tools: 1 .git",
        ]
        assert make_path_resolver()(f"{root}/a/1.gif") == f"{root}/a/1.gif"
    finally:
        files.rm("/scanned", recursive=True)


@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff"])
@pytest.mark.parametrize("source", ["d", "l.txt"])
def test_a_file_without_class_names_is_refused(tmp_path: Path, invoke_cli: RunCli, text: str, source: str) -> None:
    touch(tmp_path, "d/cat/1.jpg", "d/dog/2.jpg")
    (tmp_path / "l.txt").write_text("d/cat/1.jpg 0\nd/dog/2.jpg 1\n")
    (tmp_path / "names.txt").write_text(text, "utf-8")
    refused = invoke_cli("label", source, "-o", "new.txt", "--classes", "names.txt", check=False)
    assert "names.txt contains no class names: expected lines such as `0 cats`" in refused.stderr
    assert not (tmp_path / "new.txt").exists()


def test_a_file_without_a_suffix_is_not_said_to_be_no_image(tmp_path: Path) -> None:
    touch(tmp_path, "d/cat/1.jpg", "d/cat/photo", "d/dog/2.jpg", "d/dog/notes.md")
    notes = label_dir_auto(tmp_path / "d").notes
    assert notes == ("left out: files whose suffix is not that of an image: 1 .md, 1 without a suffix",)
