"""The split: random for groups of any size, stable, true to the fractions, and the same wherever it is made."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlimages import FineTuneConfig, fine_tune, split_labels
from mlimages.core import InputError, LabeledPath
from mlimages.labels import LabelFile, label_dir_auto, split
from tests.checks.test_validation import jpeg, scene
from tests.conftest import RunCli

Groups = dict[Path, object]


def grouped(classes: Sequence[Sequence[int]]) -> tuple[list[LabeledPath], Groups]:
    """Images of groups of the given sizes, class by class."""
    items, groups = [], Groups()
    for label, sizes in enumerate(classes):
        for group, size in enumerate(sizes):
            for number in range(size):
                items.append(LabeledPath(Path(f"c{label}/{group}_{number}.jpg"), label))
                groups[items[-1].path] = (label, group)
    return items, groups


@pytest.mark.parametrize(
    "classes",
    [
        [range(1, 21)],
        [[5] * 10, [1] * 50],
        [[20] * 6, [1] * 100],
        [[1] * 7] * 6,
        [[1, 1, 1, 8, 8]] * 5,
    ],
    ids=["1 to 20", "bursts and single images", "long bursts", "small classes", "mixed"],
)
def test_each_group_is_in_each_part_for_about_its_share_of_the_seeds(classes: Sequence[Sequence[int]]) -> None:
    items, groups = grouped(classes)
    seeds = 300
    hits = Counter[object]()
    for seed in range(seeds):
        hits.update({groups[item.path] for item in split(items, (0.8, 0.2), seed=seed, groups=groups)[1]})
    found = [hits[group] / seeds for group in set(groups.values())]
    assert 0.10 < min(found) <= max(found) < 0.36, sorted(found)
    assert 0.17 < sum(found) / len(found) < 0.28


@settings(deadline=None, max_examples=200)
@given(
    classes=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=15), min_size=1, max_size=6),
    fractions=st.sampled_from([(0.8, 0.2), (0.5, 0.5), (0.95, 0.05), (0.7, 0.2, 0.1), (0.8, 0.1, 0.1), (0.25,) * 4]),
    seed=st.integers(0, 1000),
)
def test_shares_hold_to_within_one_group_and_no_group_is_torn(
    classes: list[list[int]], fractions: tuple[float, ...], seed: int
) -> None:
    items, groups = grouped(classes)
    parts = split(items, fractions, seed=seed, groups=groups)
    largest = max(map(max, classes))
    for share, part in zip(fractions, parts, strict=True):
        assert abs(len(part) - share * len(items)) <= largest + 1e-6
    where = {group: {n for n, part in enumerate(parts) for item in part if groups[item.path] == group}
             for group in groups.values()}  # fmt: skip
    assert all(len(found) == 1 for found in where.values())
    assert sorted(item.path for part in parts for item in part) == sorted(item.path for item in items)


@settings(deadline=None, max_examples=200)
@given(
    classes=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=15), min_size=1, max_size=6),
    large=st.integers(1, 200),
    fractions=st.sampled_from([(0.8, 0.2), (0.6, 0.2, 0.2), (0.95, 0.05)]),
    seed=st.integers(0, 1000),
)
def test_each_class_has_training_images_if_the_fractions_permit(
    classes: list[list[int]], large: int, fractions: tuple[float, ...], seed: int
) -> None:
    sizes = [*classes, [large], [large, 1, 1]]
    items, groups = grouped(sizes)
    assume(sum(max(each) for each in sizes if 2 * max(each) > sum(each)) <= fractions[0] * len(items))
    train = split(items, fractions, seed=seed, groups=groups)[0]
    assert {item.label for item in train} == {item.label for item in items}


@settings(deadline=None, max_examples=100)
@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=12), seed=st.integers(0, 1000))
def test_single_images_are_split_class_by_class(counts: list[int], seed: int) -> None:
    items, _ = grouped([[1] * count for count in counts])
    val = Counter(item.label for item in split(items, (0.8, 0.2), seed=seed)[1])
    for label, count in enumerate(counts):
        assert abs(val[label] - 0.2 * count) <= 2 if len(counts) > 1 else abs(val[label] - 0.2 * count) < 1


@pytest.mark.parametrize(
    "classes", [[[1] * 250] * 2, [[1] * 20] * 25, [[1, 2, 3, 1, 1, 8] * 20] * 3], ids=["two", "many", "groups"]
)
def test_one_more_image_moves_less_than_three_percent_of_the_validation_set(classes: Sequence[Sequence[int]]) -> None:
    items, groups = grouped(classes)
    moved = []
    for seed in range(60):
        before = {item.path for item in split(items, (0.8, 0.2), seed=seed, groups=groups)[1]}
        added = LabeledPath(Path(f"c{seed % len(classes)}/new{seed}.jpg"), seed % len(classes))
        after = {item.path for item in split([*items, added], (0.8, 0.2), seed=seed, groups=groups)[1]}
        moved.append(len(before ^ (after - {added.path})) / len(before))
    assert max(moved) < 0.06
    assert float(np.mean(moved)) < 0.01


def test_an_image_that_joins_a_group_moves_no_more_than_that_group() -> None:
    items, groups = grouped([[4] * 25] * 2)
    for seed in range(40):
        added = LabeledPath(Path(f"c0/7_{seed + 4}.jpg"), 0)
        before = {groups[item.path] for item in split(items, (0.8, 0.2), seed=seed, groups=groups)[1]}
        joined = {**groups, added.path: (0, 7)}
        after = {joined[item.path] for item in split([*items, added], (0.8, 0.2), seed=seed, groups=joined)[1]}
        assert len((before ^ after) - {(0, 7)}) <= 1


def test_a_new_class_leaves_the_others_nearly_as_they_are() -> None:
    items, _ = grouped([[1] * 50, [1] * 50])
    more = [LabeledPath(Path(f"a/{n}.jpg"), 0) for n in range(50)]
    later = more + [LabeledPath(item.path, item.label + 1) for item in items]
    before = {item.path for item in split(items, (0.8, 0.2), seed=0, class_names=("c0", "c1"))[1]}
    after = {item.path for item in split(later, (0.8, 0.2), seed=0, class_names=("a", "c0", "c1"))[1]}
    assert len(before - after) <= 1


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes; bursts of near-duplicates, an image that cannot be decoded, one that is gone."""
    for number in range(36):
        path = tmp_path / "photos" / ("ants", "bees", "wasps")[number % 3] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = scene(number, width=90, height=60)
        path.write_bytes(jpeg(image))
        for copy in range(number % 4):
            path.with_stem(f"z{number}_{copy}").write_bytes(jpeg(image, quality=60 - 10 * copy))
    (tmp_path / "photos/ants/cut.jpg").write_bytes(jpeg(scene(99))[:700])
    return tmp_path / "photos"


def contents(*files: Path) -> list[set[bytes]]:
    """What the images of each file hold."""
    return [{item.path.read_bytes() for item in LabelFile(file)} for file in files]


def test_every_command_and_python_make_the_same_split(photos: Path, tmp_path: Path, invoke_cli: RunCli) -> None:
    fractions = ("--split", "0.8,0.2", "--seed", "3")
    invoke_cli("label", "photos", "-o", "a.txt", *fractions)
    train, val = contents(tmp_path / "a_train.txt", tmp_path / "a_val.txt")
    assert not train & val
    assert len(train | val) == len(list(photos.rglob("*.jpg")))

    invoke_cli("label", "photos", "-o", "deep/er/all.csv")
    invoke_cli("label", "deep/er/all.csv", "-o", "b.jsonl", *fractions)
    assert contents(tmp_path / "b_train.jsonl", tmp_path / "b_val.jsonl") == [train, val]

    for labels in (label_dir_auto(photos).labels, tmp_path / "deep/er/all.csv"):
        parts = [part.write(tmp_path / f"{n}.txt").path for n, part in enumerate(split_labels(labels, (0.8, 0.2), 3))]
        assert contents(*parts) == [train, val]

    photos.rename(tmp_path / "moved")
    invoke_cli("label", "moved", "-o", "c.txt", *fractions)
    assert contents(tmp_path / "c_train.txt", tmp_path / "c_val.txt") == [train, val]


def test_augment_makes_the_same_split(photos: Path, tmp_path: Path, invoke_cli: RunCli) -> None:
    invoke_cli("label", "photos", "-o", "all.txt")
    invoke_cli("label", "all.txt", "--split", "0.8,0.2", "--seed", "3")
    invoke_cli("augment", "all.txt", "-o", "out", "--size", "8", "--split", "0.8,0.2", "--seed", "3")
    for part in ("train", "val"):
        stems = {path.stem.split("_", 1)[1] for path in (tmp_path / "out" / part).rglob("*.png")}
        assert stems == {item.path.stem for item in LabelFile(tmp_path / f"all_{part}.txt")} - {"cut"}


@pytest.mark.train
def test_finetune_sets_the_same_images_aside(photos: Path, tmp_path: Path, invoke_cli: RunCli) -> None:
    invoke_cli("label", "photos", "-o", "all.txt")
    invoke_cli("label", "all.txt", "--split", "0.8,0.2", "--seed", "3")
    fine_tune(FineTuneConfig(tmp_path / "all.txt", tmp_path / "run", model="lenet5", weights="none", epochs=1, seed=3))
    train, val = contents(tmp_path / "all_train.txt", tmp_path / "all_val.txt")
    cut = (photos / "ants/cut.jpg").read_bytes()
    assert contents(tmp_path / "run/train.txt", tmp_path / "run/val.txt") == [train - {cut}, val - {cut}]


@settings(deadline=None, max_examples=200)
@given(
    classes=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=12), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_images_join_the_split_that_their_group_already_has(
    classes: list[list[int]], seed: int, data: st.DataObject
) -> None:
    items, groups = grouped(classes)
    assigned = {}
    for group in sorted(set(groups.values())):  # some images of some groups
        if data.draw(st.booleans()):
            members = [item.path for item in items if groups[item.path] == group]
            assigned |= dict.fromkeys(members[: data.draw(st.integers(1, len(members)))], data.draw(st.integers(0, 2)))
    parts = split(items, (0.6, 0.2, 0.2), seed=seed, groups=groups, assigned=assigned)
    found = {item.path: number for number, part in enumerate(parts) for item in part}
    assert found.keys() == {item.path for item in items}
    expected = {groups[path]: number for path, number in assigned.items()}
    assert all(found[path] == expected[group] for path, group in groups.items() if group in expected)
    rest = [item for item in items if groups[item.path] not in expected]
    assert parts_of(rest, found, 3) == split(rest, (0.6, 0.2, 0.2), seed=seed, groups=groups)


def parts_of(items: Sequence[LabeledPath], found: dict[Path, int], count: int) -> list[list[LabeledPath]]:
    return [[item for item in items if found[item.path] == number] for number in range(count)]


@pytest.mark.parametrize("group", [(), ("--group", r"(\d+)\.jpg$")], ids=["near-duplicates", "groups"])
def test_copies_that_are_appended_join_their_originals(group: tuple[str, ...], tmp_path: Path, run_cli: RunCli) -> None:
    for number in range(24):
        for folder, quality in (("old", 90), ("new", 60)):
            path = tmp_path / folder / "ab"[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(scene(number), quality=quality))
    run_cli("label", "old", "-o", "all.txt", "--split", "0.6,0.2,0.2", *group)
    before = {name: (tmp_path / f"all_{name}.txt").read_text() for name in ("train", "val", "test")}
    run_cli("label", "new", "-o", "all.txt", "--split", "0.6,0.2,0.2", "--append", "--seed", "7", *group)
    for name, text in before.items():
        after = (tmp_path / f"all_{name}.txt").read_text()
        assert after == text + text.replace("old/", "new/"), name


@pytest.mark.parametrize("group", [(), ("--group", r"burst|\d+")], ids=["near-duplicates", "groups"])
def test_a_class_without_images_in_a_split_is_named_with_the_reason_and_what_to_do(
    group: tuple[str, ...], tmp_path: Path, invoke_cli: RunCli
) -> None:
    for number in range(24):
        is_burst = number % 3 == 0
        path = tmp_path / "photos" / ("part", "a", "b")[number % 3] / f"{'burst' if is_burst else ''}{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(scene(1000 if is_burst else number), quality=60 + number))
    said = invoke_cli("label", "photos", "-o", "s.txt", "--split", "0.5,0.5", *group).stderr
    assert "s_val.txt: no images of part: its fraction is less than one image, or the images stay together" in said
    assert "--group='[^/]+$'" in said
    assert "fewer than two images" not in said


@pytest.mark.train
def test_a_set_of_one_scene_cannot_be_split_and_the_commands_say_why(tmp_path: Path, invoke_cli: RunCli) -> None:
    for number in range(6):
        path = tmp_path / "one" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(scene(1), quality=70 + number))
    said = invoke_cli("label", "one", "--split", "0.5,0.5").stderr
    assert "one/labels_val.txt: no images: its fraction is less than one image, or the images stay together" in said
    invoke_cli("label", "one", "--split", "0.5,0.5", "--group=[^/]+$")
    assert len(list(LabelFile(tmp_path / "one/labels_val.txt"))) > 0
    with pytest.raises(InputError, match=r"no validation images: .* near-duplicates, which stay together"):
        fine_tune(FineTuneConfig(tmp_path / "one", tmp_path / "run", model="lenet5", weights="none", epochs=1))
