"""The folders of classes depend on the list alone, not on the order in which the images arrive."""

import asyncio
import json
from pathlib import Path

import pytest

from mlimages import UrlList
from mlimages.core import InputError
from mlimages.gathering import read_list, read_manifest
from mlimages.gathering.sources.search_source import parse_queries
from mlimages.gathering.store.file_names import PathsInUse
from tests.conftest import RunCli
from tests.gathering.conftest import links, run
from tests.servers import Connection, Reply, Request, Site, answer, photo


def delayed(reply: Reply, seconds: float) -> Reply:
    def wait_and_reply(connection: Connection, request: Request) -> None:
        connection.pause(seconds)
        reply(connection, request)

    return wait_and_reply


@pytest.mark.parametrize("slow", [0, 1, 2])
@pytest.mark.parametrize(
    "labels", [("cat", "cat.", "Cat"), ("Cat", "cat?", "cat"), ("pets/cat", "Pets/cat", "pets/Cat")]
)
def test_the_first_class_of_the_list_gets_a_folder_that_several_would_share(
    site: Site, tmp_path: Path, slow: int, labels: tuple[str, ...]
) -> None:
    site.routes |= {f"/{n}.jpg": delayed(answer(photo(n)), 0.6 if n == slow else 0.0) for n in range(len(labels))}
    source = links(tmp_path, *(f"{label}\t{site.url(f'/{n}.jpg')}" for n, label in enumerate(labels)))
    assert run(source, tmp_path / "out").ok == 3
    folders = {row.label: str(Path(row.path or "").parent) for row in read_manifest(tmp_path / "out")}
    planned = PathsInUse()
    assert folders == {label: planned.assign_folder(label) for label in labels}
    assert folders[labels[0]] == labels[0]


@pytest.mark.parametrize("name", [" cat", "cat ", "big  cat", "caf\u00e9", "cafe\u0301", "cafe\u0301 \t"])
@pytest.mark.parametrize("form", ["x.txt", "x.csv", "x.jsonl", "class"])
def test_names_that_are_equal_but_for_white_space_and_unicode_form_are_one_class(
    tmp_path: Path, name: str, form: str
) -> None:
    expected = {"big  cat": "big cat", "caf\u00e9": "caf\u00e9", "cafe\u0301": "caf\u00e9"}.get(name.strip(), "cat")
    texts = {
        "x.txt": f"{name.strip()}\thttp://x/1.jpg",
        "x.csv": f'url,label\nhttp://x/1.jpg,"{name.strip()}"',
        "x.jsonl": f'{{"url": "http://x/1.jpg", "label": "{name.strip()} "}}',
    }
    path = tmp_path / (form if form in texts else "x.txt")
    path.write_text(texts.get(form, "http://x/1.jpg"), encoding="utf-8")
    if form == "class":
        assert asyncio.run(UrlList(path, class_name=name).count_links_by_class()) == {expected: 1}
    else:
        assert [ref.label for ref in read_list(path)] == [expected]


RENAMED = {
    "Camera: old": "Camera_ old",
    '"q"': "_q_",
    ".hidden": "hidden",
    "..": "images",
    "a/b?": "a/b_",
    "con": "_con",
}
"""Class names that cannot be folder names, and their folders."""


@pytest.mark.parametrize("options", [[], ["--workers", "2"], ["--subfolders"], ["--layout", "tar"]])
def test_a_run_names_the_classes_whose_folder_has_another_name(
    site: Site, tmp_path: Path, options: list[str], run_cli: RunCli
) -> None:
    labels = ["ants", "more/bees", *RENAMED]
    site.routes |= {f"/{n}.jpg": answer(photo(n)) for n in range(len(labels))}
    rows = [{"url": site.url(f"/{n}.jpg"), "label": label} for n, label in enumerate(labels)]
    (tmp_path / "x.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    words = ["gather", "urls", "x.jsonl", "-o", "out", "--allow-private", *options]
    renamed = {} if "tar" in options else dict(sorted(RENAMED.items()))
    shown = ", ".join(f"{label} as {folder}" for label, folder in renamed.items())
    for _ in range(2):
        lines = [line for line in run_cli(*words).stdout.splitlines() if "differs" in line]
        assert lines == [f"folders whose name differs from the class name: {shown}"] * bool(renamed)
    assert json.loads(run_cli(*words, "--json").stdout)["renamed"] == renamed


def test_a_class_without_a_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("http://x/1.jpg")
    for name in ("", "  "):
        with pytest.raises(InputError, match="the name of the class is empty"):
            UrlList(tmp_path / "x.txt", class_name=name)


@pytest.mark.parametrize(("wrong", "right"), [("Dog", "dog"), ("dog.", "dog"), ("Pets/Dog", "pets/dog")])
def test_a_folder_that_a_corrected_class_has_left_is_free_for_the_new_class(
    site: Site, tmp_path: Path, wrong: str, right: str, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    site.routes |= {f"/{n}.jpg": answer(photo(n)) for n in range(3)}
    urls = [site.url(f"/{n}.jpg") for n in range(3)]
    run(links(tmp_path, *(f"{wrong}\t{url}" for url in urls[:2])), out)
    assert run(links(tmp_path, *(f"{right}\t{url}" for url in urls[:2])), out).moved == 2
    assert "its images are in" not in caplog.text
    run(links(tmp_path, *(f"{right}\t{url}" for url in urls)), out)
    assert {str(Path(row.path or "").parent) for row in read_manifest(out)} == {right}
    assert len(site.requests) == 3


def test_a_folder_in_which_a_class_keeps_an_image_is_not_given_to_another(site: Site, tmp_path: Path) -> None:
    out = tmp_path / "out"
    site.routes |= {f"/{n}.jpg": answer(photo(n)) for n in range(2)}
    urls = [site.url(f"/{n}.jpg") for n in range(2)]
    run(links(tmp_path, *(f"Dog\t{url}" for url in urls)), out)
    run(links(tmp_path, f"dog\t{urls[0]}", f"Dog\t{urls[1]}"), out)
    folders = {row.label: str(Path(row.path or "").parent) for row in read_manifest(out)}
    assert folders["Dog"] == "Dog"
    assert folders["dog"].startswith("dog-")


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (["cat", "Cat"], "'cat' and 'Cat' differ only in case"),
        (["big cat=lion", "Big  cat=tiger"], "'big cat' and 'Big cat' differ only in case"),
        (["big cat=lion", "big  cat=tiger"], "'big cat' appears twice"),
        (["caf\u00e9", "cafe\u0301=coffee house"], "'caf\u00e9' appears twice"),
    ],
)
def test_search_queries_whose_classes_would_share_a_folder_are_refused(queries: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_queries(queries)


def test_a_class_is_named_by_its_query_but_for_white_space() -> None:
    assert parse_queries(["big  cat", "dog=Canis lupus"]) == {"big cat": "big  cat", "dog": "Canis lupus"}
