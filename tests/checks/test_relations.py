"""Which images of a group of near-duplicates get which code, against the definitions of the codes."""

from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlimages.checks import Code, Thresholds, leaks
from mlimages.checks.cache import CheckCache
from mlimages.checks.codes import CODES
from mlimages.checks.feature_pairs import AlignedPair
from mlimages.checks.leaks import (
    _find_equal_digests,
    _find_plain_images,
    _iter_image_relations,
    describe_image_relation,
    find_duplicate_groups,
    make_duplicate_findings,
)
from mlimages.checks.near_duplicates import DisjointSets
from tests.checks.test_rules import listed, table_of

COPIES = 3


@settings(max_examples=150)
@given(
    images=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 3)), min_size=2, max_size=9),
    others=st.tuples(*[st.integers(0, 4)] * 3),
    is_multi_label=st.booleans(),
)
def test_every_code_of_a_group_means_what_it_says(
    images: list[tuple[int, int, int]], others: tuple[int, int, int], is_multi_label: bool
) -> None:
    """Images: file, class or set of classes, bytes; files also hold `others` images that are in no group."""
    images.sort(key=lambda image: image[0])
    sizes = [sum(file == number for file, *_ in images) + others[number] for number in range(3)]
    file_starts = (0, *accumulate(sizes))
    group: list[int] = []
    for number in range(3):
        group += range(file_starts[number], file_starts[number] + sum(file == number for file, *_ in images))
    image_at = dict(zip(group, images, strict=True))
    label_indices, digest = np.zeros(file_starts[-1], np.int32), np.zeros((file_starts[-1], 2), np.uint64)
    for index, (_, label, content) in image_at.items():
        label_indices[index], digest[index] = label, (7, content)

    table = SimpleNamespace(
        file_starts=file_starts, label_indices=label_indices, digests=digest, is_multi_label=is_multi_label
    )
    found = list(_iter_image_relations(table, [group], Thresholds(placeholder_copies=COPIES)))  # type: ignore[arg-type]

    expected = set()
    home = max({file for file, *_ in images}, key=lambda file: (-sizes[file], file))
    for index in group:
        file, label, content = image_at[index]
        same = [other for other in group if image_at[other][2] == content]
        has_two_labels = len({image_at[other][1] for other in same}) > 1
        in_file = [other for other in group if image_at[other][0] == file]
        if file != home:
            expected.add((index, Code.LEAK))
        if has_two_labels:
            expected.add((index, Code.TWO_LABELS))
        elif any(other < index for other in set(same) & set(in_file)):
            expected.add((index, Code.DUPLICATE))
        if len(same) >= COPIES:
            expected.add((index, Code.PLACEHOLDER))
        near = [other for other in group if image_at[other][2] != content]
        if any(image_at[other][1] != label for other in near) and not is_multi_label:
            expected.add((index, Code.NEAR_TWO_LABELS))
        firsts = [
            other
            for other in in_file
            if not any(image_at[one][2] == image_at[other][2] for one in in_file if one < other)
        ]
        same_class = [other for other in firsts if other < index and (is_multi_label or image_at[other][1] == label)]
        if index in firsts and same_class:
            expected.add((index, Code.NEAR_DUPLICATE))
    assert {(index, code) for index, code, _ in found} == expected
    assert len(found) == len(expected), "each once"

    for index, code, other in found:
        (file, label, content), (file_there, label_there, content_there) = image_at[index], image_at[other]
        assert other != index
        assert {
            Code.LEAK: other == min(one for one in group if image_at[one][0] == home),
            Code.TWO_LABELS: content == content_there and label != label_there,
            Code.DUPLICATE: content == content_there and file == file_there and other < index,
            Code.PLACEHOLDER: content == content_there,
            Code.NEAR_TWO_LABELS: content != content_there and label != label_there,
            Code.NEAR_DUPLICATE: content != content_there
            and (is_multi_label or label == label_there)
            and file == file_there,
        }[code], (index, code, other)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=12))
def test_equal_digests_are_one_group_and_those_of_images_that_were_not_decoded_are_none(
    digests: list[tuple[int, int]],
) -> None:
    column = np.array(digests, np.uint64).reshape(-1, 2)
    group_of = list(range(len(digests)))
    for one, other in _find_equal_digests(column):
        assert digests[one] == digests[other] != (0, 0)
        group_of = [group_of[one] if group == group_of[other] else group for group in group_of]
    for one, first in enumerate(digests):
        for other, second in enumerate(digests):
            assert (group_of[one] == group_of[other]) == (one == other or (first == second and first != (0, 0)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, False), ({"width": 31}, True), ({"height": 32}, False), ({"two_level_fraction": 0.499}, False),
        ({"two_level_fraction": 0.5}, True), ({"sharpness": 0.2599}, True), ({"sharpness": 0.26}, False),
    ],
)  # fmt: skip
def test_images_that_are_tiny_line_art_or_without_detail_are_plain(values: dict[str, float], expected: bool) -> None:
    assert _find_plain_images(table_of([values]), Thresholds()).tolist() == [expected]


def test_how_images_are_related_is_said_with_the_class_where_classes_differ() -> None:
    found = {
        (code, same): describe_image_relation(code, Path("b/1.jpg"), name, is_identical=same)
        for code, name, same in [
            (Code.DUPLICATE, "ant", True), (Code.NEAR_DUPLICATE, "ant", False), (Code.LEAK, "ant", True),
            (Code.TWO_LABELS, "ant", True), (Code.NEAR_TWO_LABELS, "", False),
        ]
    }  # fmt: skip
    assert found == {
        (Code.DUPLICATE, True): "the same as b/1.jpg",
        (Code.NEAR_DUPLICATE, False): "nearly the same as b/1.jpg",
        (Code.LEAK, True): "the same as b/1.jpg",
        (Code.TWO_LABELS, True): "the same as b/1.jpg of class ant",
        (Code.NEAR_TWO_LABELS, False): "nearly the same as b/1.jpg of no class",
    }


def test_groups_are_of_equal_bytes_and_like_thumbnails_but_blank_images_only_of_equal_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Decoded images 0 to 6; 7 was not decoded. From the cache the groups are the same, and no others by thresholds."""
    other = np.random.default_rng(1).integers(0, 256, 256, np.uint8).tobytes()
    blank = {"luma_p2": 100, "luma_p98": 104}
    measurements = [{}, {}, {"thumbnail": other}, blank, blank, blank, {"thumbnail": other}, {}]
    table = table_of(measurements, *(listed([0] * 4, ("all",), name) for name in ("a.txt", "b.txt")))
    table.measurements[7] = 0
    table.digests[:, 1] = [1, 2, 3, 4, 5, 4, 6, 0]
    with CheckCache() as cache:

        def find_sets(thresholds: Thresholds) -> list[list[int]]:
            return find_duplicate_groups(table, thresholds, cache).list_sets_of_several()

        groups = find_sets(Thresholds())
        assert groups == [[0, 1], [2, 6], [3, 5]]
        with monkeypatch.context() as changed:
            changed.setattr(leaks, "find_near_duplicate_pairs", None)  # it is answered from the cache
            assert find_sets(Thresholds()) == groups
        assert find_sets(Thresholds(near_bits=0)) == [[0, 1], [2, 6], [3, 5]]
        table.measurements["thumbnail"][1] = np.frombuffer(other, np.uint8)
        table.digests[1, 1] = 9
        assert find_sets(Thresholds()) == [[1, 2, 6], [3, 5]]
    found = make_duplicate_findings(table, groups, Thresholds())
    near, leak = CODES.index(Code.NEAR_DUPLICATE), CODES.index(Code.LEAK)
    assert found.tolist() == [(1, near, 0), (2, leak, 6), (3, leak, 5)]


def test_pairs_by_features_are_of_other_groups_and_not_of_two_plain_images(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, blank = {"sharpness": 0.2}, {"luma_p2": 100, "luma_p98": 104}
    table = table_of([blank, {}, {}, plain, plain, {}, {}, {}])
    table.measurements[5] = 0  # was not decoded
    asked: list[Path] = []

    def found(paths: list[Path], embed: object, progress: object) -> list[AlignedPair]:
        assert (embed, progress) == ("embed", "progress")
        asked.extend(paths)
        return [(one, other, one + other / 10) for one, other in ((0, 1), (0, 2), (2, 3), (1, 4), (3, 4), (4, 5))]

    monkeypatch.setattr(leaks, "find_pairs_by_features", found)
    groups = DisjointSets(8)
    groups.merge_pairs([(6, 7)])
    pairs = leaks.merge_groups_by_features(table, Thresholds(), groups, "embed", "progress")  # type: ignore[arg-type]
    assert asked == [Path(f"{n}.jpg") for n in (1, 2, 3, 4, 6, 7)]
    # not 3 and 4, both plain; not 6 and 7, of one group
    assert pairs == [(1, 2, 0.1), (1, 3, 0.2), (2, 6, 1.4), (4, 6, 3.4)]
    assert groups.list_sets_of_several() == [[1, 2, 3, 4, 6, 7]]
