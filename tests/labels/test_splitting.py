"""The parts of a split by figures worked out by hand: hashes, positions of groups, what moves across a boundary."""

import hashlib
import re
from pathlib import Path

import pytest

from mlimages.core import InputError, LabeledPath
from mlimages.labels import group_by_pattern, split
from mlimages.labels.splitting import (
    ImageGroup,
    _compute_rounding_offsets,
    _hash_to_unit_interval,
    _iter_later_groups,
    _iter_ranked_groups,
    _make_image_id,
    _select_groups_after,
    check_fractions,
    match_pattern,
    sample_per_class,
)


def hashed(text: str) -> float:
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12


def test_random_numbers_are_those_of_sha_256() -> None:
    assert _hash_to_unit_interval(7, "image", "cats/1.jpg") == hashed("7:image:cats/1.jpg")
    names = ["ant", "bee", "cat"]
    ranks = {name: rank for rank, name in enumerate(sorted(names, key=lambda name: hashed(f"3:class:{name}")))}
    assert _compute_rounding_offsets(names, 3) == {
        name: (ranks[name] + hashed(f"3:offset:{name}")) / 3 for name in names
    }


def test_at_most_so_many_images_of_each_class_are_those_with_the_lowest_hashes() -> None:
    items = [LabeledPath(Path(f"set/c{n % 3}/{n}.jpg"), n % 3) for n in range(20)] + [LabeledPath(Path("x/7.jpg"), 2)]
    names = ["c0", "c1", "c2"]

    def order(index: int) -> float:
        item = items[index]
        name = f"c{item.label}/{item.path.name}" if item.path.parts[0] == "set" else "c2/x/7.jpg"
        return hashed(f"5:limit:{name}")

    for limit in (0, 1, 4, 50):
        own = [sorted((n for n, item in enumerate(items) if item.label == label), key=order) for label in range(3)]
        expected = [items[index] for index in sorted(index for indices in own for index in indices[:limit])]
        assert sample_per_class(items, limit, seed=5, class_names=names) == expected


@pytest.mark.parametrize(
    ("path", "root", "expected"),
    [
        ("photos/cats/a/1.jpg", None, "cats/a/1.jpg"),
        ("cats/1.jpg", None, "cats/1.jpg"),
        ("cats/old/cats/1.jpg", None, "cats/1.jpg"),
        ("photos/dogs/1.jpg", None, "cats/photos/dogs/1.jpg"),
        ("photos/dogs/1.jpg", "photos", "cats/dogs/1.jpg"),
        ("photos/cats.jpg", None, "cats/photos/cats.jpg"),
    ],
)
def test_an_image_is_known_by_its_path_below_the_folder_of_its_class(
    path: str, root: str | None, expected: str
) -> None:
    assert _make_image_id(Path(path), "cats", Path(root) if root else None) == expected


def test_a_class_without_a_name_is_named_by_its_number() -> None:
    items = [LabeledPath(Path(f"set/{label}/{n}.jpg"), label) for label in range(2) for n in range(10)]
    named = [split(items, (0.5, 0.5), seed=seed, class_names=("0", "1")) for seed in range(3)]
    assert named == [split(items, (0.5, 0.5), seed=seed) for seed in range(3)]


def test_a_position_is_the_number_of_images_before_over_the_mean_size_of_the_others() -> None:
    groups = list(_iter_ranked_groups([([5], False), ([1, 2], False), ([3], False), ([4, 6], False)], 0.25))
    assert groups == [
        ImageGroup((5,), 0.0, 0.25, 4),
        ImageGroup((1, 2), 1 / (4 / 3), 0.25, 4),
        ImageGroup((3,), 3 / (5 / 3), 0.25, 4),
        ImageGroup((4, 6), 4 / (4 / 3), 0.25, 4),
    ]
    assert list(_iter_ranked_groups([([0, 1], True)], 0.5)) == [ImageGroup((0, 1), 0.0, 0.5, 1, is_majority=True)]
    assert list(_iter_ranked_groups([([0], False), ([1, 2], True)], 0.5)) == [
        ImageGroup((1, 2), 0.0, 0.5, 2, is_majority=True), ImageGroup((0,), 1.0, 0.5, 2)
    ]  # fmt: skip
    equal = _iter_ranked_groups([([0], False), ([1], False)], 0.5)
    assert [group.fractional_rank for group in equal] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("group", "fraction", "expected"),
    [
        (ImageGroup((0,), 0.0, 0.3, 1, is_majority=True), 0.8, (2, 0.0)),  # the only image of its class
        (ImageGroup((0, 1), 0.0, 0.25, 3, is_majority=True), 0.1, (2, 0.0)),
        (ImageGroup((0, 1), 0.0, 0.25, 1), 0.75, (0, 0.5)),  # one group of two images contains the boundary
        (ImageGroup((0,), 0.0, 0.25, 2), 0.5, (1, 0.75)),  # a whole group is needed
        (ImageGroup((0,), 0.5, 0.25, 2), 0.5, (0, 0.25)),
        (ImageGroup((0,), 1.0, 0.25, 2), 0.5, (-1, -0.25)),  # nothing is
    ],
)
def test_groups_after_the_boundary_have_the_lowest_keys(
    group: ImageGroup, fraction: float, expected: tuple[int, float]
) -> None:
    assert group.get_sort_key(fraction) == expected


def at(position: float, images: int = 1, *, offset: float = 0.5) -> ImageGroup:
    return ImageGroup(tuple(range(images)), position, offset, 10)


BY_POSITION = [at(position, 2) for position in (9.0, 7.0, 5.0, 3.0, 1.0)]


@pytest.mark.parametrize(
    ("groups", "minimum", "maximum", "expected"),
    [
        (BY_POSITION, 0, 10, 3),  # 9, 7 and 5 lie behind half of the class
        (BY_POSITION, 0, 6, 3),  # just as many as may be
        (BY_POSITION, 0, 5.9, 2),
        (BY_POSITION, 0, 4, 2),
        (BY_POSITION, 0, 3.9, 1),
        (BY_POSITION, 6, 10, 3),
        (BY_POSITION, 6.1, 10, 4),
        (BY_POSITION, 8, 10, 4),
        (BY_POSITION, 8.1, 10, 5),
        (BY_POSITION, 99, 99, 5),  # no more than there are
        (BY_POSITION, 6 + 1e-10, 10, 3),  # rounding
        (BY_POSITION, 0, 6 - 1e-10, 3),
        ([at(4.5, offset=0.5)], 0, 9, 1),  # as much is needed as the offset says
        ([at(4.5, offset=0.51)], 0, 9, 1),
        ([at(4.5, offset=0.49)], 0, 9, 0),
    ],
)
def test_the_groups_nearest_to_the_boundary_change_sides(
    groups: list[ImageGroup], minimum: float, maximum: float, expected: int
) -> None:
    found = _select_groups_after(reversed(groups), 0.5, minimum, maximum)
    assert found == groups[:expected]


def test_a_part_deviates_by_at_most_the_largest_group_and_the_next_one_makes_up_for_it() -> None:
    groups = [at(float(n), 3) for n in range(4)]  # all lie before the boundaries, which ask for half and a quarter
    counts = [
        sum(len(group.image_indices) for group in behind) for behind in _iter_later_groups(groups, (0.5, 0.25, 0.25))
    ]
    assert counts == [3, 0]
    assert list(_iter_later_groups([], (0.5, 0.5))) == [[]]
    assert list(_iter_later_groups(groups, (1.0,))) == []


@pytest.mark.parametrize(
    ("fractions", "valid"),
    [
        ((1.0,), True), ((0.5, 0.5), True), ((0.1,) * 10, True), ((0.7, 0.3 + 9e-7), True), ((0.7, 0.3 + 2e-6), False),
        ((0.0, 1.0), False), ((-0.5, 1.5), False), ((0.5, 0.4), False), ((0.5, 0.6), False), ((), False),
    ],
)  # fmt: skip
def test_shares_are_positive_and_add_up_to_1(fractions: tuple[float, ...], valid: bool) -> None:
    if valid:
        check_fractions(fractions)
    else:
        with pytest.raises(InputError, match="expected numbers greater than 0 that add up to 1"):
            split([], fractions, seed=0)


def test_a_group_of_several_classes_belongs_to_its_most_frequent_one() -> None:
    burst = [LabeledPath(Path(f"b/{n}.jpg"), int(n > 0)) for n in range(3)]  # one of class 0, two of class 1
    single = [LabeledPath(Path(f"a/{n}.jpg"), 0) for n in range(4)]
    together = {item.path: "burst" for item in burst}
    for seed in range(20):
        first, second = split([*single, *burst], (0.5, 0.5), seed=seed, groups=together)
        assert 1 <= len({*single} & {*first}) <= 3
        assert {*burst} <= {*first} or {*burst} <= {*second}


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize(("rare", "in_group"), [(1, 1), (2, 2), (3, 2), (5, 3)])
@pytest.mark.parametrize("fractions", [(0.8, 0.2), (0.5, 0.5), (0.6, 0.2, 0.2)])
def test_a_group_with_most_images_of_any_of_its_classes_is_in_the_first_part(
    rare: int, in_group: int, fractions: tuple[float, ...], multi_label: bool
) -> None:
    def item(name: str, label: int) -> LabeledPath:
        return LabeledPath(Path(name), -1, (label,)) if multi_label else LabeledPath(Path(name), label)

    often = [item(f"often/{n}.jpg", 0) for n in range(24)]
    few = [item(f"few/{n}.jpg", 1) for n in range(rare)]
    together = {each.path: "copies" for each in (*often[:4], *few[:in_group])}
    for seed in range(30):
        first = split([*often, *few], fractions, seed=seed, groups=together)[0]
        assert {*few[:in_group]} <= {*first}
        assert abs(len(first) - fractions[0] * (24 + rare)) <= 4 + in_group


def test_the_group_of_a_path_is_the_match_or_its_first_group() -> None:
    paths = [Path("a/12_3.jpg"), Path("b/x.jpg")]
    assert group_by_pattern(paths, r"\d+_") == {paths[0]: "12_"}
    assert group_by_pattern(paths, r"(\d+)_(\d)") == {paths[0]: "12"}
    optional = group_by_pattern(paths, r"[ab]/(\d)?")
    assert optional == {paths[0]: "1", paths[1]: ""}
    with pytest.raises(InputError, match=r"'\(' is not a regular expression"):
        group_by_pattern(paths, "(")
    assert match_pattern(re.compile("z"), "a") is None
