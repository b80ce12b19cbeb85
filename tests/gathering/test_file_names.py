"""Names for files and folders: what is allowed, how long, and which are taken."""

import hashlib
from itertools import islice
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlimages.core import ImageRef
from mlimages.gathering.store.file_names import (
    MAX_FOLDER_BYTES,
    MAX_FOLDER_DEPTH,
    MAX_NAME_BYTES,
    PathsInUse,
    file_stem_from_url,
    generate_paths,
    is_in_folder_of,
    label_to_folder,
    sanitize_name,
)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cat", "cat"),
        ("a b", "a b"),
        (" a ", "a"),
        ("..a", "a"),
        (".. ", "default"),
        ("a. .", "a"),
        (". .a", "a"),
        (".\xa0.\u3000. a \xa0.", "a"),
        ("", "default"),
        ('a/b\\c:d*e?f"g<h>i|j', "a_b_c_d_e_f_g_h_i_j"),
        ("a\x00\x1f\x7f\x9fb", "a____b"),
        ("\x20a\xa0b", "a\xa0b"),
        ("\u202eevil\u2066", "_evil_"),
        ("e\u0301", "\xe9"),
        ("\ud800a", "_a"),
        ("con", "_con"),
        ("CON.jpg", "_CON.jpg"),
        ("lpt9.x", "_lpt9.x"),
        ("com", "com"),
        ("com10", "com10"),
        ("console", "console"),
        ("a" * MAX_NAME_BYTES, "a" * MAX_NAME_BYTES),
        ("a" * (MAX_NAME_BYTES + 1), "a" * MAX_NAME_BYTES),
        ("\xe9" * 61, "\xe9" * 60),
        ("a" + "\xe9" * 60, "a" + "\xe9" * 59),
        ("a" * (MAX_NAME_BYTES - 1) + " b", "a" * (MAX_NAME_BYTES - 1)),
    ],
)
def test_a_name_is_one_that_every_system_takes(text: str, name: str) -> None:
    assert sanitize_name(text, default_name="default") == name
    assert sanitize_name(name, default_name="default") == name


def test_a_name_of_a_megabyte_takes_no_quadratic_time() -> None:
    for filler in (".", " ", "\u3000"):
        assert sanitize_name(f"a{filler * 2**20}b", default_name="default") == "a"


def digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


DEEP, DEEPER = "/".join("a" * MAX_FOLDER_DEPTH), "/".join("a" * (MAX_FOLDER_DEPTH + 1))
LONG = "/".join(["a" * 113] * 8 + ["b" * 112])  # 8 * 114 + 112 = 1024
LONGER = "/".join(["a" * 113] * 8 + ["b" * 113])


@pytest.mark.parametrize(
    ("label", "folder"),
    [
        ("cats", "cats"),
        ("pets/cats", "pets/cats"),
        ("/pets//.. /cats/", "pets/cats"),
        ("", "images"),
        ("../..", "images"),
        ("manifest-1.jsonl", "_manifest-1.jsonl"),
        ("Metadata.JSONL/x", "_Metadata.JSONL/x"),
        ("manifest.parquet", "_manifest.parquet"),
        ("x/metadata.jsonl", "x/metadata.jsonl"),
        ("attribution of cats.md", "_attribution of cats.md"),
        ("my manifest.jsonl", "my manifest.jsonl"),
        (DEEP, DEEP),
        (DEEPER, f"{DEEP}/{digest(DEEPER, 16)}"),
        (LONG, LONG),
        (LONGER, f"{'/'.join(['a' * 113] * 8)}/{digest(LONGER, 16)}"),
    ],
)
def test_a_label_is_a_folder_of_allowed_depth_and_length(label: str, folder: str) -> None:
    assert label_to_folder(label) == folder
    assert len(LONG) == MAX_FOLDER_BYTES


@pytest.mark.parametrize(
    ("url", "stem"),
    [
        ("https://a.org/b/cat.jpg", "cat"),
        ("https://a.org/b/cat.jpeg?x=/dog.png#y/z.gif", "cat"),
        ("https://a.org/cat#x/dog.png", "cat"),
        ("https://a.org/b/cat/", "cat"),
        ("https://a.org/a%20cat%2F1.png", "a cat_1"),
        ("https://a.org/cat.12345", "cat"),
        ("https://a.org/cat.123456", "cat.123456"),
        ("https://a.org/cat.", "cat"),
        ("https://a.org/cat.j_g", "cat.j_g"),
        ("https://a.org/a.b.jpg", "a.b"),
        ("https://a.org/.jpg", "jpg"),
        ("https://a.org/cat", "cat"),
        ("https://a.org/", "image"),
        ("https://a.org", "image"),
        ("https://a.jpg", "image"),
    ],
)
def test_an_image_is_named_like_the_end_of_its_link(url: str, stem: str) -> None:
    assert file_stem_from_url(url) == stem


def test_free_paths_begin_with_the_best_and_never_end() -> None:
    digits = "0123456789abcdef"
    shared = ["a/b-01234567.png", "a/b-0123456789abcdef-1.png", "a/b-0123456789abcdef-2.png"]
    assert list(islice(generate_paths("a/b", ".png", digits, is_only_writer=False), 3)) == shared
    assert list(islice(generate_paths("a/b", ".png", digits, is_only_writer=True), 4)) == ["a/b.png", *shared]


def test_a_folder_belongs_to_one_label_and_a_path_to_one_image_whatever_the_case() -> None:
    names = PathsInUse()
    assert names.reserve("Cats", "Cats/1.jpg")
    assert not names.reserve("Cats", "cats/1.JPG")
    assert names.reserve("Cats", "Cats/2.jpg")
    assert names.assign_folder("cats") == f"cats-{digest('cats', 8)}"
    assert names.assign_folder("Cats") == "Cats"
    assert names.assign_folder("dogs") == "dogs"
    assert names.reserve("Dogs", "elsewhere/1.jpg")
    assert names.assign_folder("DOGS") == f"DOGS-{digest('DOGS', 8)}"
    assert names.reserve("birds", "other/3.jpg"), "a path elsewhere takes no folder"
    assert names.assign_folder("Birds") == "Birds"
    assert names.reserve("Cows", f"Cows-{digest('Cows', 8)}/1.jpg")
    assert names.assign_folder("Cows") == f"Cows-{digest('Cows', 8)}", "a label keeps its folder"
    assert names.assign_folder("cats/red") == f"cats-{digest('cats', 8)}/red", "no folder has two spellings"
    assert names.assign_folder("Cats/red") == "Cats/red"
    assert names.assign_folder("Cats/1.jpg") == f"Cats/1.jpg-{digest('Cats/1.jpg', 8)}", "an image has this name"
    assert not names.reserve("Cats", "Cats/RED"), "a folder has this name"


@given(st.lists(st.sampled_from(["a", "A", "b", "a/b", "A/b", "A/B", "a/B/c", "a/b/C", "a:/b", "a?/b", "B/a", "a//b"])))
def test_no_two_labels_share_a_folder_and_no_folder_has_two_spellings(labels: list[str]) -> None:
    names, links = PathsInUse(), ["x/A", "x/b.jpg"]
    paths = {
        (label, f"{names.make_path_stem(ImageRef(f'http://{link}', label))}.jpg") for label in labels for link in links
    }
    stored = [(label, path) for label, path in sorted(paths) if names.reserve(label, path)]
    assert len({names.assign_folder(label).casefold() for label in labels}) == len(set(labels))
    parents = {str(parent) for _, path in stored for parent in PurePosixPath(path).parents}
    assert len({parent.casefold() for parent in parents}) == len(parents)
    again = PathsInUse()
    assert all(again.reserve(label, path) for label, path in stored)
    assert all(again.assign_folder(label) == names.assign_folder(label) for label, _ in stored)
    assert all(is_in_folder_of(label, path) and not again.is_misplaced(label, path) for label, path in stored)


def test_an_image_is_stored_by_its_name_or_else_that_of_its_link() -> None:
    names = PathsInUse()
    assert names.make_path_stem(ImageRef("https://a.org/x/cat.jpg", "pets")) == "pets/cat"
    assert names.make_path_stem(ImageRef("https://a.org/x/cat.jpg", "pets", name="my cat")) == "pets/my cat"
    assert names.make_path_stem(ImageRef("https://a.org/x/cat.jpg", "pets", name="..")) == "pets/cat"
