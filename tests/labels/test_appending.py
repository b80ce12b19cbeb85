"""`label --append`: what is listed keeps its class and its split, and what is not appended is said with its number."""

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Literal

import pytest

from mlimages.core import InputError
from mlimages.labels import LabelFile, append_labels, format_label, label_dir
from tests.checks.test_validation import jpeg, scene
from tests.conftest import RunCli

PETS = [f"pets/{name}/{n}.jpg" for name in ("cat", "dog") for n in range(4)]
TAGS = "path,label\npets/cat/0.jpg,cat\npets/cat/1.jpg,cat;{}\npets/dog/0.jpg,dog\npets/dog/1.jpg,{}\n"


def rows(dogs: str) -> str:
    return "path,label\n" + "".join(f"{path},{dogs if 'dog' in path else 'cat'}\n" for path in PETS)


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


def images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(scene(number, width=60, height=40)))


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def listed(folder: Path, *names: str) -> list[str]:
    files = [LabelFile(folder / name) for name in names]
    return sorted(
        f"{Path(path).relative_to(folder)} {format_label(label, file.class_names)}"
        for file in files
        for path, label in file.text_items()
    )


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
@pytest.mark.parametrize(
    ("first", "second", "note"),
    [
        (["one.csv"], ["other.csv"], "4 images listed with another class (pets/dog/0.jpg is dog, not wolf; "),
        (["one.csv"], ["wrong.csv"], "4 images listed with another class (pets/dog/0.jpg is dog, not cat; "),
        (["one.csv"], ["linked"], "4 images listed with another class (pets/dog/0.jpg is dog, not wolf; "),
        (
            ["tags.csv", "--multi-label"],
            ["more_tags.csv", "--multi-label"],
            "2 images listed with another class (pets/cat/1.jpg is cat;old, not cat;new; pets/dog/1.jpg is no class, "
            "not new): ",
        ),
        (
            ["pets/dog", "--label", "0"],
            ["pets/dog", "--label", "2"],
            "4 images listed with another class (pets/dog/0.jpg is class 0, not class 2; ",
        ),
    ],
)
def test_listed_images_keep_their_class_and_no_empty_class_is_added(
    tmp_path: Path, invoke_cli: RunCli, suffix: str, first: list[str], second: list[str], note: str
) -> None:
    images(tmp_path, *PETS)
    write(tmp_path, "one.csv", rows("dog"))
    write(tmp_path, "other.csv", rows("wolf"))
    write(tmp_path, "wrong.csv", rows("cat"))
    write(tmp_path, "tags.csv", TAGS.format("old", "[]"))
    write(tmp_path, "more_tags.csv", TAGS.format("new", "new"))
    images(tmp_path, "linked/cat/new.jpg")
    (tmp_path / "linked/wolf").symlink_to(tmp_path / "pets/dog")
    out = f"all{suffix}"
    invoke_cli("label", *first, "-o", out)
    before, names = listed(tmp_path, out), LabelFile(tmp_path / out).class_names
    done = invoke_cli("label", *second, "-o", out, "--append")
    assert f"{out}: not changed: {note}" in done.stderr
    assert set(before) <= set(listed(tmp_path, out))
    assert LabelFile(tmp_path / out).class_names == names


def test_classes_of_another_order_are_no_other_classes(tmp_path: Path, invoke_cli: RunCli) -> None:
    images(tmp_path, *PETS)
    write(tmp_path, "dog.csv", "path,label\npets/dog/0.jpg,dog\n")
    write(tmp_path, "both.csv", "path,label\npets/dog/1.jpg,cat;dog\n")
    for table in ("dog.csv", "both.csv", "both.csv"):
        done = invoke_cli("label", table, "--multi-label", "-o", "all.txt", "--append")
        assert "not changed" not in done.stderr
    assert listed(tmp_path, "all.txt") == ["pets/dog/0.jpg dog", "pets/dog/1.jpg dog;cat"]


def test_an_image_that_is_listed_with_two_classes_is_compared_with_both(tmp_path: Path, invoke_cli: RunCli) -> None:
    images(tmp_path, *PETS)
    write(tmp_path, "both.csv", rows("dog") + "pets/dog/0.jpg,cat\n")
    invoke_cli("label", "both.csv", "-o", "all.txt")
    assert "not changed" not in invoke_cli("label", "both.csv", "-o", "all.txt", "--append").stderr
    write(tmp_path, "one.csv", rows("dog"))
    done = invoke_cli("label", "one.csv", "-o", "all.txt", "--append")
    assert "1 image listed with another class (pets/dog/0.jpg is cat, not dog): " in done.stderr


def test_a_corrected_class_is_named_for_each_part_of_a_split(tmp_path: Path, invoke_cli: RunCli) -> None:
    images(tmp_path, *PETS, "pets/dog/new.jpg")
    split = ("-o", "all.txt", "--split", "0.5,0.5", "--group", "[^/]+$")
    for number, dogs in enumerate(("dog", "wolf")):
        write(tmp_path, "one.csv", rows(dogs) + f"pets/dog/new.jpg,{dogs}\n" * number)
        done = invoke_cli("label", "one.csv", *split, *["--append"] * number)
    parts = {name: listed(tmp_path, name) for name in ("all_train.txt", "all_val.txt")}
    for name, lines in parts.items():
        count = sum(line.endswith("dog") for line in lines)
        assert f"{name}: not changed: {count} image{'s' * (count > 1)} listed with another class" in done.stderr
    assert [line for lines in parts.values() for line in lines if line.endswith("wolf")] == ["pets/dog/new.jpg wolf"]


@pytest.mark.parametrize("existing", [["s1/ok"], ["s1/ok", "s1/bad"]])
def test_a_second_class_of_the_same_name_is_refused_before_anything_is_written(
    tmp_path: Path, invoke_cli: RunCli, existing: list[str]
) -> None:
    images(tmp_path, "s1/ok/1.jpg", "s1/bad/2.jpg", "s2/ok/3.jpg")
    for number, folder in enumerate(existing):
        invoke_cli("label", folder, "--label", number, "-o", "all.txt", "--append")
    before = {path: path.read_bytes() for path in tmp_path.glob("all*")}
    refused = invoke_cli("label", "s2/ok", "--label", "1", "-o", "all.txt", "--append", check=False)
    assert (
        "all.txt: the class ok already has the label 0, not 1: append s2/ok with --label 0, or rename the folder"
        in refused.stderr
    )
    assert {path: path.read_bytes() for path in tmp_path.glob("all*")} == before
    done = invoke_cli("label", "s2/ok", "--label", "0", "-o", "all.txt", "--append")
    assert f"{len(existing) + 1} images" in done.stdout
    with pytest.raises(InputError, match="the class ok already has the label 0, not 1"):
        append_labels(label_dir(tmp_path / "s1/ok", 0), label_dir(tmp_path / "s2/ok", 1), by_class_index=True)


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        ({1: "0"}, ("unnamed 0", "0")),
        ({1: "0", 0: "1"}, ("1", "0")),
        ({0: "1", 2: "3"}, ("1", "unnamed 1", "3")),
        ({0: "1", 2: "3", 1: "2"}, ("1", "2", "3")),
        ({0: "4", 5: "cat"}, ("4", "1", "2", "3", "unnamed 4", "cat")),
    ],
)
def test_classes_without_a_name_and_folders_with_a_number_do_not_get_the_same_name(
    tmp_path: Path, invoke_cli: RunCli, folders: dict[int, str], names: tuple[str, ...]
) -> None:
    images(tmp_path, *(f"photos/{name}/1.jpg" for name in folders.values()))
    for label, name in folders.items():
        invoke_cli("label", f"photos/{name}", "--label", str(label), "-o", "all.txt", "--append")
    labels = LabelFile(tmp_path / "all.txt")
    assert labels.class_names == names
    assert {item.label: item.path.parent.name for item in labels} == folders


@pytest.mark.parametrize("suffix", [".txt", ".csv"])
@pytest.mark.parametrize(("label", "names"), [(0, ("cat", "1")), (1, ("0", "cat")), (3, ("0", "1", "2", "cat"))])
def test_a_class_is_named_in_a_label_file_of_indices(
    tmp_path: Path, invoke_cli: RunCli, suffix: str, label: int, names: tuple[str, ...]
) -> None:
    images(tmp_path, *PETS, "new/cat/1.jpg")
    out = f"all{suffix}"
    separator = {".txt": " ", ".csv": ","}[suffix]
    lines = [f"{path}{separator}{int('dog' in path)}\n" for path in PETS]
    write(tmp_path, out, "path,label\n" * (suffix == ".csv") + "".join(lines))
    invoke_cli("label", "pets/dog", "--label", "1", "-o", out, "--append", "--force")  # no image is new
    assert LabelFile(tmp_path / out).defined_class_names == ()
    invoke_cli("label", "new/cat", "--label", str(label), "-o", out, "--append", "--force")
    labels = LabelFile(tmp_path / out)
    assert labels.class_names == names
    assert [item.label for item in labels] == [0] * 4 + [1] * 4 + [label]


@pytest.mark.parametrize("out", [[], ["-o", "./all.csv"]])
@pytest.mark.parametrize("selection", [["--drop", "drop.txt"], ["--limit-per-class", "3"]])
def test_a_label_file_that_is_appended_to_its_own_split_does_not_bring_excluded_images_back(
    tmp_path: Path, invoke_cli: RunCli, selection: list[str], out: list[str]
) -> None:
    images(tmp_path, *PETS)
    write(tmp_path, "drop.txt", "pets/cat/0.jpg 0\npets/dog/2.jpg 0\n")
    invoke_cli("label", "pets", "-o", "all.csv")
    before = listed(tmp_path, "all.csv")
    invoke_cli("label", "all.csv", *selection, *out, "--append", "--split", "0.5,0.5")
    split = listed(tmp_path, "all_train.csv", "all_val.csv")
    assert len(split) == 6
    if "--drop" in selection:
        assert split == [text for text in before if "cat/0" not in text and "dog/2" not in text]
    invoke_cli("label", "all.csv", *out, "--append", "--split", "0.5,0.5")
    assert listed(tmp_path, "all_train.csv", "all_val.csv") == listed(tmp_path, "all.csv") == before


@pytest.mark.parametrize("target", [["-o", "all.txt"], ["-o", "./all.txt"], ["--as-folders", "linked"]])
def test_a_label_file_is_not_appended_to_itself(tmp_path: Path, invoke_cli: RunCli, target: list[str]) -> None:
    images(tmp_path, *PETS)
    invoke_cli("label", "pets", "-o", "all.txt")
    before = {path: path.read_bytes() for path in tmp_path.glob("all*")}
    refused = invoke_cli("label", "all.txt", "--limit-per-class", "1", *target, "--append", check=False)
    assert "all.txt cannot be appended to itself: omit --append" in refused.stderr
    assert {path: path.read_bytes() for path in tmp_path.glob("all*")} == before
    assert not (tmp_path / "linked").exists()


SPLIT_TABLES = {
    "t.csv": "path,label,split\n" + "".join(f"{path},x,{'train' if 'cat' in path else 'test'}\n" for path in PETS),
    "t.jsonl": "".join(
        json.dumps({"path": path, "label": "x", "split": "train" if "cat" in path else "test"}) + "\n" for path in PETS
    ),
}


@pytest.mark.parametrize("options", [["--append"], ["--split", "0.5,0.5"], ["--append", "--split", "0.5,0.5"]])
@pytest.mark.parametrize("name", SPLIT_TABLES)
def test_the_splits_of_a_table_are_not_put_into_one_file(
    tmp_path: Path, invoke_cli: RunCli, name: str, options: list[str]
) -> None:
    images(tmp_path, *PETS)
    write(tmp_path, name, SPLIT_TABLES[name])
    invoke_cli("label", name, "-o", "v.txt")
    before = sorted(tmp_path.iterdir())
    refused = invoke_cli("label", name, "-o", "v.txt", *options, check=False)
    assert refused.returncode == 1
    assert f"{name} is already split (train, test): omit --split and --append, or remove the column" in refused.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_a_table_of_one_split_can_be_split(tmp_path: Path, invoke_cli: RunCli) -> None:
    images(tmp_path, *PETS)
    write(tmp_path, "t.csv", SPLIT_TABLES["t.csv"].replace("test", "train"))
    assert len(invoke_cli("label", "t.csv", "-o", "v.txt", "--split", "0.5,0.5").stdout.splitlines()) == 2


def test_a_file_beside_the_parts_of_a_split_is_not_created_by_append(tmp_path: Path, invoke_cli: RunCli) -> None:
    images(tmp_path, *PETS)
    invoke_cli("label", "pets", "-o", "v.txt", "--split", "0.5,0.5")
    refused = invoke_cli("label", "pets", "-o", "v.txt", "--append", check=False)
    assert "no label file at v.txt to append to, but v_train.txt, v_val.txt: append to these with" in refused.stderr
    assert not (tmp_path / "v.txt").exists()


@pytest.mark.parametrize("group", [[], ["--group", r"[^/]+$"]])
@pytest.mark.parametrize("suffix", [".txt", ".csv"])
def test_copies_of_images_in_a_part_that_is_not_appended_to_are_left_out(
    tmp_path: Path, invoke_cli: RunCli, group: list[str], suffix: str
) -> None:
    images(tmp_path, *[f"a/{c}/{c}{n}.jpg" for c in ("cat", "dog") for n in range(8)])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    options = ("-o", f"all{suffix}", *group)
    invoke_cli("label", "a", *options, "--split", "0.5,0.25,0.25")
    names = [f"all_{name}{suffix}" for name in ("train", "val", "test")]
    train, val, test = (listed(tmp_path, name) for name in names)
    done = invoke_cli("label", "b", *options, "--split", "0.7,0.3", "--append")
    assert (
        f"left out: {len(test)} images that must stay in one split with images in all_test{suffix} (b/" in done.stderr
    )
    copies = {line: f"b{line[1:]}" for line in (*train, *val, *test)}
    assert [listed(tmp_path, name) for name in names] == [
        sorted([*train, *map(copies.__getitem__, train)]), sorted([*val, *map(copies.__getitem__, val)]), test,
    ]  # fmt: skip
    done = invoke_cli("label", "b", *options, "--split", "0.5,0.25,0.25", "--append")
    assert "left out" not in done.stderr
    assert listed(tmp_path, names[2]) == sorted([*test, *map(copies.__getitem__, test)])


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
def test_listed_images_that_were_moved_are_counted_and_stay_listed(
    tmp_path: Path, invoke_cli: RunCli, suffix: str
) -> None:
    images(tmp_path, *PETS)
    out = f"all{suffix}"
    invoke_cli("label", "pets", "-o", out)
    before = listed(tmp_path, out)
    (tmp_path / "pets/cat/0.jpg").rename(tmp_path / "pets/dog/moved.jpg")
    moved = invoke_cli("label", "pets", "-o", out, "--append")
    assert f"{out}: 1 of 8 listed images are missing (pets/cat/0.jpg): if they were moved or" in moved.stderr
    (tmp_path / "pets/dog").rename(tmp_path / "pets/dogs")
    renamed = invoke_cli("label", "pets", "-o", out, "--append")
    assert (
        f"{out}: 6 of 9 listed images are missing (pets/cat/0.jpg; pets/dog/0.jpg; pets/dog/1.jpg ...)"
        in renamed.stderr
    )
    assert set(before) <= set(listed(tmp_path, out))


def test_moved_images_are_counted_in_each_part_of_a_split(tmp_path: Path, invoke_cli: RunCli) -> None:
    images(tmp_path, *PETS)
    split = ("-o", "all.txt", "--split", "0.5,0.5", "--group", "[^/]+/[^/]+$")
    invoke_cli("label", "pets", *split)
    for name in ("all_train.txt", "all_val.txt"):
        path = tmp_path / listed(tmp_path, name)[0].split()[0]
        path.rename(path.with_name(f"{path.stem}_moved.jpg"))
    done = invoke_cli("label", "pets", *split, "--append")
    assert "all_train.txt: 1 of 4 listed images are missing" in done.stderr
    assert "all_val.txt: 1 of 4 listed images are missing" in done.stderr


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("suffix", [".txt", ".csv"])
@pytest.mark.parametrize("options", [(), ("--label", "0")])
def test_a_class_in_another_unicode_form_is_the_same_class(
    tmp_path: Path, invoke_cli: RunCli, form: Literal["NFC", "NFD"], suffix: str, options: tuple[str, ...]
) -> None:
    name = unicodedata.normalize(form, "caf\u00e9")
    other = unicodedata.normalize("NFD" if form == "NFC" else "NFC", name)
    images(tmp_path, "old/1.jpg", f"new/{other}/2.jpg", "new/tea/3.jpg")
    (tmp_path / f"l{suffix}").write_text("old/1.jpg 0\n" if suffix == ".txt" else "path,label\nold/1.jpg,0\n")
    (tmp_path / "l_class_def.txt").write_text(f"0 {name}\n", "utf-8")
    force = ("--force",) * (suffix == ".csv")  # a table is written again
    source = f"new/{other}" if options else "new"
    refused = invoke_cli("label", f"new/{other}", "--label", "1", "-o", f"l{suffix}", "--append", check=False).stderr
    assert "already has the label 0, not 1" in refused
    done = invoke_cli("label", source, *options, "-o", f"l{suffix}", "--append", *force)
    assert "not changed" not in done.stderr
    assert LabelFile(tmp_path / f"l{suffix}").class_names == ((name,) if options else (name, "tea"))
    assert [item.label for item in LabelFile(tmp_path / f"l{suffix}")] == ([0, 0] if options else [0, 0, 1])
