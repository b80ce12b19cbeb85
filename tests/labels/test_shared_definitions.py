"""Label files of one name share a class definition: no command changes the classes of another label file."""

import shutil
import unicodedata
from pathlib import Path
from typing import Literal

import pytest

from mlimages.core import InputError
from mlimages.labels import LabelFile
from tests.conftest import RunCli
from tests.labels.test_appending import images, read_files

PETS = ("pets/Bird/0.jpg", "pets/Bird/1.jpg", "pets/cat/0.jpg", "pets/cat/1.jpg", "pets/dog/0.jpg", "pets/dog/1.jpg")
NAMES = [".txt", ".csv", ".tsv", ".jsonl", ".TXT"]
REFUSED = "would have the same class definition, l{}_class_def.txt, but not the same classes"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images(tmp_path, *PETS)
    (tmp_path / "order.txt").write_text("dog\ncat\nBird\n")
    return tmp_path


def read_classes(*paths: Path) -> list[str]:
    """Return, for each image, the name of its class; it is that of its folder if the classes are right."""
    files = [LabelFile(path) for path in paths]
    return [f"{item.path.parent.name} {file.class_names[item.label]}" for file in files for item in file]


def write_indices(path: Path) -> None:
    """Write the indices of the classes in `order.txt`, as `path label` lines or as a table."""
    header, separator = ("path,label\n", ",") if path.suffix == ".csv" else ("", " ")
    lines = (f"{name}{separator}{['dog', 'cat', 'Bird'].index(name.split('/')[1])}\n" for name in PETS)
    path.write_text(header + "".join(lines))


@pytest.mark.parametrize("suffix", NAMES)
@pytest.mark.parametrize("other", NAMES)
@pytest.mark.parametrize("split", [(), ("--split", "0.5,0.5", "--group", "[^/]+$")])
def test_a_label_file_of_other_classes_is_refused_beside_one_of_the_same_name(
    folder: Path, invoke_cli: RunCli, suffix: str, other: str, split: tuple[str, ...]
) -> None:
    part = "_train" if split else ""
    invoke_cli("label", "pets", "-o", f"l{suffix}", "--classes", "order.txt", *split)
    before = read_files(folder)
    done = invoke_cli("label", "pets", "-o", f"l{other}", *split, check=suffix == other)
    if suffix == other:
        assert (folder / f"l{part}_class_def.txt").read_text() == "0 Bird\n1 cat\n2 dog\n"
    else:
        assert f"l{part}{other} and l{part}{suffix} {REFUSED.format(part)} (Bird, cat, dog; dog, cat" in done.stderr
        assert read_files(folder) == before
    assert all(len(set(line.split())) == 1 for line in read_classes(folder / f"l{part}{suffix}"))
    invoke_cli("label", f"l{part}{suffix}", "-o", f"l{part}.csv")  # the same classes


def test_a_class_that_was_appended_stays_the_last_one_in_both_label_files(folder: Path, invoke_cli: RunCli) -> None:
    shutil.move(folder / "pets/Bird", folder / "Bird")
    invoke_cli("label", "pets", "-o", "l.txt")
    invoke_cli("label", "l.txt", "-o", "l.csv")
    shutil.move(folder / "Bird", folder / "pets/Bird")
    for name in ("l.txt", "l.csv"):
        invoke_cli("label", "pets", "-o", name, "--append")
    assert REFUSED.format("") in invoke_cli("label", "pets", "-o", "l.tsv", check=False).stderr
    names = read_classes(folder / "l.txt", folder / "l.csv")
    assert (len(names), {len(set(name.split())) for name in names}) == (12, {1})


@pytest.mark.parametrize("classes", [(), ("--classes", "order.txt")])
def test_a_table_of_class_names_keeps_them_and_is_converted_again_with_any_classes(
    folder: Path, invoke_cli: RunCli, classes: tuple[str, ...]
) -> None:
    (folder / "t.csv").write_text("path,label\n" + "".join(f"{path},{path.split('/')[1]}\n" for path in PETS[2:]))
    invoke_cli("label", "t.csv", "-o", "t.txt")
    (folder / "t.csv").write_text("path,label\n" + "".join(f"{path},{path.split('/')[1]}\n" for path in PETS))
    invoke_cli("label", "t.csv", "-o", "t.txt", *classes)
    assert {len(set(name.split())) for name in read_classes(folder / "t.txt", folder / "t.csv")} == {1}


@pytest.mark.parametrize("target", ["l.txt", "l.csv"])
def test_a_label_file_without_class_names_does_not_get_those_of_other_images(
    folder: Path, invoke_cli: RunCli, target: str
) -> None:
    invoke_cli("label", "pets", "-o", "l.txt")
    (folder / "list.txt").write_text("pets/dog/0.jpg 0\npets/cat/0.jpg 1\n")
    before = read_files(folder)
    refused = invoke_cli("label", "list.txt", "-o", target, check=False).stderr
    assert (
        f"{target} would be read with the class names in l_class_def.txt (Bird, cat, dog), but its classes" in refused
    )
    with pytest.raises(InputError, match="would be read with the class names"):
        LabelFile(folder / "list.txt").write(folder / target)
    assert read_files(folder) == before
    invoke_cli("label", "list.txt", "-o", "l.csv", "--classes", "l_class_def.txt")


@pytest.mark.parametrize("own", ["l.txt", "l.csv"])
def test_a_label_file_without_class_names_gets_them_only_when_it_is_converted(
    folder: Path, invoke_cli: RunCli, own: str
) -> None:
    write_indices(folder / own)
    refused = invoke_cli("label", "pets", "-o", "l.tsv", check=False).stderr
    assert f"l.tsv and {own} {REFUSED.format('')} (Bird, cat, dog; without names): give l.tsv another name" in refused
    assert not (folder / "l_class_def.txt").exists()
    invoke_cli("label", f"../{folder.name}/{own}", "-o", "l.tsv", "--classes", "order.txt")
    assert {len(set(name.split())) for name in read_classes(folder / own, folder / "l.tsv")} == {1}


@pytest.mark.parametrize("name", ["labels.txt", "labels.csv"])
def test_a_label_file_in_the_folder_that_is_labelled_keeps_its_classes(
    folder: Path, invoke_cli: RunCli, name: str
) -> None:
    header = "path,label\n" if name == "labels.csv" else ""
    lines = [f"{path.partition('/')[2]}{',' if header else ' '}{index % 2}\n" for index, path in enumerate(PETS)]
    (folder / "pets" / name).write_text(header + "".join(lines))
    refused = invoke_cli("label", "pets", "-o", "pets/labels.tsv", check=False).stderr
    assert f"pets/labels.tsv and pets/{name} {REFUSED.replace('l{}', 'labels')} (Bird, cat, dog; without" in refused
    assert LabelFile(folder / "pets" / name).defined_class_names == ()


@pytest.mark.parametrize("own", ["l.txt", "l.csv"])
def test_a_conversion_is_repeated_with_corrected_class_names(folder: Path, invoke_cli: RunCli, own: str) -> None:
    write_indices(folder / own)
    for names in ("dgo\ncat\nBird\n", "dog\ncat\nBird\n"):
        (folder / "names.txt").write_text(names)
        invoke_cli("label", own, "-o", "l.tsv", "--classes", "names.txt")
    assert {len(set(name.split())) for name in read_classes(folder / own, folder / "l.tsv")} == {1}


def test_a_conversion_does_not_rename_the_classes_of_a_source_that_mlimages_wrote(
    folder: Path, invoke_cli: RunCli
) -> None:
    invoke_cli("label", "pets", "-o", "l.txt")
    before = read_files(folder)
    refused = invoke_cli("label", "l.txt", "-o", "l.csv", "--classes", "order.txt", check=False).stderr
    assert f"l.csv and l.txt {REFUSED.format('')} (dog, cat, Bird; Bird, cat, dog)" in refused
    assert read_files(folder) == before


def test_a_column_of_a_table_is_converted_again_when_it_has_another_class(folder: Path, invoke_cli: RunCli) -> None:
    for paths in (PETS[2:], PETS):
        rows = [f"{path},{index % 2},{path.split('/')[1]}\n" for index, path in enumerate(paths)]
        (folder / "l.csv").write_text("path,label,kind\n" + "".join(rows))
        invoke_cli("label", "l.csv", "--label-column", "kind", "-o", "l.txt")
    assert {len(set(name.split())) for name in read_classes(folder / "l.txt")} == {1}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_class_names_in_another_unicode_form_are_the_same_classes(
    folder: Path, invoke_cli: RunCli, form: Literal["NFC", "NFD"]
) -> None:
    shutil.move(folder / "pets/cat", folder / "pets" / unicodedata.normalize("NFC", "caf\u00e9"))
    names = ["dog", unicodedata.normalize(form, "caf\u00e9"), "Bird"]
    (folder / "names.txt").write_text("".join(f"{name}\n" for name in names), "utf-8")
    invoke_cli("label", "pets", "-o", "l.txt", "--classes", "names.txt")
    assert LabelFile(folder / "l.txt").class_names == tuple(names)
    other = unicodedata.normalize("NFD" if form == "NFC" else "NFC", "caf\u00e9")
    (folder / "names.txt").write_text(f"dog\n{other}\nBird\n", "utf-8")
    invoke_cli("label", "pets", "-o", "l.csv", "--classes", "names.txt")
    expected = [path.split("/")[1].replace("cat", other) for path in PETS]
    files = [LabelFile(folder / name) for name in ("l.txt", "l.csv")]
    for file in files:
        assert sorted(file.class_names[item.label] for item in file) == sorted(expected)


def test_results_of_check_and_mean_do_not_change_the_classes_of_other_label_files(
    folder: Path, invoke_cli: RunCli
) -> None:
    for name in ("l_checked.csv", "l_used_in_mean.csv"):
        invoke_cli("label", "pets", "-o", name, "--classes", "order.txt")
    invoke_cli("label", "pets", "-o", "l.txt")
    before = read_files(folder)
    for command in (("check", "l.txt"), ("mean", "l.txt", "--size", "8", "-o", "m.png")):
        assert "but not the same classes (Bird, cat, dog; dog, cat, Bird)" in invoke_cli(*command, check=False).stderr
    assert read_files(folder) == before


def test_other_files_of_the_name_do_not_matter(folder: Path, invoke_cli: RunCli) -> None:
    (folder / "l.json").write_text('{"size": 3}')
    (folder / "l.md").write_text("# Notes\n")
    (folder / "l.txt").write_text("Photos of pets\n")
    for classes in ((), ("--classes", "order.txt")):
        invoke_cli("label", "pets", "-o", "l.csv", *classes)
    assert {len(set(name.split())) for name in read_classes(folder / "l.csv")} == {1}
