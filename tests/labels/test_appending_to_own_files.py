"""`label --append` to files that a person made or edited: what they contain stays, byte by byte, and protected."""

from pathlib import Path

import pytest

from mlimages.labels import LabelFile, read_class_names
from tests.conftest import RunCli
from tests.labels.test_appending import images

OLD = ["pets/cat/0.jpg", "pets/cat/1.jpg", "pets/dog/0.jpg"]
DEFINITION = b"0 cat\n1 dog\n"
NEW = "new/dog/2.jpg"

OWN_FILES = {
    "unusual white space": b"pets/cat/0.jpg   0\n\n./pets/dog/0.jpg\t1\n",
    "Windows line ends": b"pets/cat/0.jpg 0\r\npets/dog/0.jpg 1\r\n",
    "line ends of classic Mac OS": b"pets/cat/0.jpg 0\rpets/dog/0.jpg 1\r",
    "no last line end": b"pets/cat/0.jpg 0\r\npets/dog/0.jpg 1",
    "a byte order mark": b"\xef\xbb\xbfpets/cat/0.jpg 0\npets/dog/0.jpg 1\n",
    "UTF-16": "\ufeffpets/cat/0.jpg 0\r\npets/dog/0.jpg 1\r\n".encode("utf-16-le"),
    "UTF-16, big endian": "\ufeffpets/cat/0.jpg 0\npets/dog/0.jpg 1".encode("utf-16-be"),
    "class names": b"pets/cat/0.jpg cat\npets/dog/0.jpg dog\n",
    "nothing": b"",
    "a blank line": b"\n",
    "an image that is gone": b"pets/cat/gone.jpg 1\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images(tmp_path, *OLD, NEW)
    return tmp_path


def require_protected(folder: Path, invoke_cli: RunCli, *names: str) -> None:
    """Check that `label`, and `check --fix`, leave these files as they are; the last one is a label file."""
    before = {name: (folder / name).read_bytes() for name in names}
    refused = invoke_cli("label", "pets", "-o", names[-1], check=False)
    assert "was not written by mlimages, or was edited since" in refused.stderr
    (folder / NEW).write_bytes(b"")
    invoke_cli("check", names[-1], "--fix", "--yes")
    assert {name: (folder / name).read_bytes() for name in names} == before


@pytest.mark.parametrize("content", OWN_FILES.values(), ids=OWN_FILES)
def test_lines_are_appended_to_a_file_of_any_form(folder: Path, invoke_cli: RunCli, content: bytes) -> None:
    (folder / "own.txt").write_bytes(content)
    (folder / "own_class_def.txt").write_bytes(DEFINITION)
    before = list(LabelFile(folder / "own.txt"))
    invoke_cli("label", "new", "-o", "own.txt", "--append")
    appended = (folder / "own.txt").read_bytes().removeprefix(content)
    encoding = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}.get(content[:2], "utf-8")
    text = content.decode(encoding)
    line_end = next((end for end in ("\r\n", "\r") if end in text), "\n")
    start = line_end * bool(text and text[-1] not in "\r\n")
    assert appended.decode(encoding) == f"{start}{NEW} 1{line_end}"
    labels = LabelFile(folder / "own.txt")
    assert list(labels)[:-1] == before
    assert (list(labels)[-1].path, labels.class_names) == (folder / NEW, ("cat", "dog"))
    assert (folder / "own_class_def.txt").read_bytes() == DEFINITION
    require_protected(folder, invoke_cli, "own_class_def.txt", "own.txt")


@pytest.mark.parametrize("split", [False, True])
def test_a_correction_by_hand_stays_after_an_append_and_a_file_that_nobody_edited_is_replaced_as_before(
    folder: Path, invoke_cli: RunCli, split: bool
) -> None:
    options = ("-o", "all.txt", *(["--split", "0.5,0.5", "--group", "[^/]+$"] if split else []))
    invoke_cli("label", "pets", *options)
    invoke_cli("label", "new", *options, "--append")
    invoke_cli("label", "pets", *options)
    name = "all_train.txt" if split else "all.txt"
    corrected = (folder / name).read_bytes().replace(b" 0\n", b" 1\n", 1).replace(b" 1\n", b"  1\n")
    (folder / name).write_bytes(corrected)
    images(folder, *(f"new/dog/{n}.jpg" for n in range(20, 30)))
    invoke_cli("label", "new", *options, "--append")
    after = (folder / name).read_bytes()
    assert after.startswith(corrected)
    assert after != corrected
    require_protected(folder, invoke_cli, name)


@pytest.mark.parametrize(
    ("definition", "added"),
    [
        (b"0 cat\r\n1 dog\r\n", b"2 owl\r\n"),
        (b"0\tcat\n\n1   dog", b"\n2 owl\n"),
        (b"cat\ndog\n", b"owl\n"),
        (b"\xef\xbb\xbfcat\r\ndog", b"\r\nowl\r\n"),
        (b"0 cat\n1 dog\n2 owl\n3 fox", b""),
    ],
)
def test_a_class_is_added_to_a_class_definition_in_its_form(
    folder: Path, invoke_cli: RunCli, definition: bytes, added: bytes
) -> None:
    images(folder, "new/owl/3.jpg")
    (folder / "own.txt").write_text("pets/dog/0.jpg 1\n")
    path = folder / "own_class_def.txt"
    path.write_bytes(definition)
    invoke_cli("label", "new", "-o", "own.txt", "--append")
    assert path.read_bytes() == definition + added
    assert read_class_names(path)[:3] == ("cat", "dog", "owl")
    assert [item.label for item in LabelFile(folder / "own.txt")] == [1, 1, 2]
    require_protected(folder, invoke_cli, path.name, "own.txt")


def test_an_empty_class_definition_gets_class_indices(folder: Path, invoke_cli: RunCli) -> None:
    for name in ("own.txt", "own_class_def.txt"):
        (folder / name).touch()
    invoke_cli("label", "new", "-o", "own.txt", "--append")
    assert (folder / "own_class_def.txt").read_text() == "0 dog\n"


@pytest.mark.parametrize(
    ("name", "content", "definition"),
    [
        ("own.txt", "pets/cat/0.jpg 0\npets/dog/0.jpg 5\n", None),  # class 5 would be renumbered
        ("own.txt", "pets/cat/0.jpg,cat\npets/dog/0.jpg,dog\n", None),  # a table
        ("own.csv", "file;class\npets/cat/0.jpg;cat\npets/dog/0.jpg;dog\n", None),
        ("own.txt", "pets/cat/0.jpg 0\n", "cat\ndog\n"),  # with `3 owls`, its lines would be indices
    ],
)
def test_a_file_to_which_lines_cannot_be_appended_is_written_again_only_with_force(
    folder: Path, invoke_cli: RunCli, name: str, content: str, definition: str | None
) -> None:
    images(folder, "new/3 owls/3.jpg")
    texts = {name: content} | ({"own_class_def.txt": definition} if definition else {})
    for file, text in texts.items():
        (folder / file).write_text(text)
    refused = invoke_cli("label", "new", "-o", name, "--append", "--as-folders", "classes", check=False)
    assert not (folder / "classes").exists()
    assert f"{list(texts)[-1]} exists and was not written by mlimages" in refused.stderr
    assert {path.name: path.read_text() for path in folder.glob("own*")} == texts
    invoke_cli("label", "new", "-o", name, "--append", "--force")
    labels = LabelFile(folder / name)
    assert len(list(labels)) == len(content.splitlines()) + 2 - (name == "own.csv")
    assert "3 owls" in labels.class_names


def test_lines_are_appended_to_the_file_that_a_link_leads_to(folder: Path, invoke_cli: RunCli) -> None:
    (folder / "shared.txt").write_text("pets/cat/0.jpg 0\n")
    (folder / "names.txt").write_text("0 cat\n")
    (folder / "link.txt").symlink_to("shared.txt")
    (folder / "link_class_def.txt").symlink_to(folder / "names.txt")
    invoke_cli("label", "new", "-o", "link.txt", "--append")
    assert (folder / "link.txt").is_symlink()
    assert (folder / "link_class_def.txt").is_symlink()
    assert (folder / "shared.txt").read_text() == f"pets/cat/0.jpg 0\n{NEW} 1\n"
    assert (folder / "names.txt").read_text() == "0 cat\n1 dog\n"
    (folder / "other").mkdir()
    (folder / "other/link.txt").symlink_to("../shared.txt")
    refused = invoke_cli("label", "pets", "-o", "other/link.txt", "--append", check=False)
    assert "is a link to a file in another folder" in refused.stderr
    assert f"append to {folder / 'shared.txt'}" in refused.stderr


@pytest.mark.parametrize("name", ["own.txt", "own_class_def.txt"])
def test_a_file_that_is_read_only_is_not_appended_to(folder: Path, invoke_cli: RunCli, name: str) -> None:
    (folder / "own.txt").write_text("pets/cat/0.jpg 0\n")
    (folder / "own_class_def.txt").write_text("0 cat\n")
    before = {path: path.read_bytes() for path in folder.glob("own*")}
    (folder / name).chmod(0o444)
    refused = invoke_cli("label", "new", "-o", "own.txt", "--append", check=False)
    assert f"{name} is read-only" in refused.stderr
    assert {path: path.read_bytes() for path in folder.glob("own*")} == before
    (folder / name).chmod(0o600)
    invoke_cli("label", "new", "-o", "own.txt", "--append")
    assert (folder / name).stat().st_mode & 0o777 == 0o600
