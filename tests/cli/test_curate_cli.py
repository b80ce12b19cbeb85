"""`label`, `check` and `mean` as a person types them."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mlimages.checks import Thresholds, check, split_labels, write_results
from mlimages.cli.main import app
from mlimages.core import InputError, make_install_command
from mlimages.images import load_all_plugins
from mlimages.labels import LabelFile, label_dir_auto
from tests.checks.test_validation import jpeg, scene
from tests.cli.conftest import write_ants_and_bees
from tests.conftest import RunCli
from tests.test_extras import run_without
from tests.unprivileged import run_without_override


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two classes of six images, one of them cut, one doubled at lower quality; an empty class."""
    write_ants_and_bees(tmp_path / "data", 12)
    (tmp_path / "data/ants/cut.jpg").write_bytes(jpeg(scene(50))[:700])
    (tmp_path / "data/ants/1 again.jpg").write_bytes(jpeg(scene(1, width=90, height=60), quality=60))
    (tmp_path / "data/empty").mkdir()
    return tmp_path


def test_a_folder_is_labelled_checked_and_averaged(folders: Path, run_cli: RunCli) -> None:
    labelled = run_cli("label", "data")
    assert labelled.stdout == "data/labels.txt: 14 images, 2 classes: ants 8, bees 6\n"
    assert labelled.stderr == "left out: empty: no images\nnext: mlimages check data/labels.txt\n"
    assert (folders / "data/labels_class_def.txt").read_text() == "0 ants\n1 bees\n"

    checked = run_cli("check", "data/labels.txt")
    assert "14 images checked, 13 ok" in checked.stdout
    assert "        1  truncated\n" in checked.stdout
    assert "        1  near-duplicate\n" in checked.stdout
    assert checked.stderr.endswith("next: mlimages finetune data/labels_checked.txt\n")

    averaged = run_cli("mean", "data/labels_checked.txt", "--size", "24", "--per-class", "-o", "out/mean.png")
    assert averaged.stderr.endswith("next: mlimages finetune data/labels_checked.txt --size 24 --mean out/mean.npy\n")
    assert np.load(folders / "out/mean.npy").shape == (3, 24, 24)
    assert json.loads((folders / "out/mean.json").read_text())["count"] == 13
    assert len((folders / "data/labels_checked_used_in_mean.txt").read_text().splitlines()) == 13
    assert (folders / "out/mean_per_class.png").exists()


def test_of_one_nothing_is_said_in_the_plural(tmp_path: Path, invoke_cli: RunCli) -> None:
    (tmp_path / "data/ants").mkdir(parents=True)
    (tmp_path / "data/ants/1.jpg").write_bytes(jpeg(scene(1)))
    assert invoke_cli("label", "data").stdout == "data/labels.txt: 1 image, 1 class: ants 1\n"
    assert "1 image checked, 1 ok" in invoke_cli("check", "data/labels.txt").stdout
    assert "mean of 1 image, 0 skipped" in invoke_cli("mean", "data/labels.txt").stdout


def test_what_cannot_be_written_is_said_in_a_line_with_its_place(folders: Path, run_cli: RunCli) -> None:
    (folders / "file").touch()
    ended = run_cli("label", "data", "-o", "file/labels.txt", check=False)
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (1, "mlimages: file: this is a file, not a folder")


@pytest.mark.parametrize(
    ("command", "where"),
    [
        ("label data -o out.txt", "out.txt"),
        ("check data.txt", "data_checked.txt"),
        ("augment data.txt --size 32 --flip -o out.npz", "out.npz"),
        ("augment data.txt --size 32 --flip -o out", "out"),
    ],
)
def test_a_full_disk_is_named(folders: Path, command: str, where: str) -> None:
    items = "".join(f"data/ants/{n}.jpg 0\n" for n in range(1, 12, 2))
    (folders / "data.txt").write_text(items)
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"  # as a disk without room: what is longer fails
        "from mlimages.cli.main import main\n"
        f"sys.argv[1:] = {command.split()}\n"
        "main()\n"
    )
    # Python would cut off the bytecode that it caches
    env = {**os.environ, "TMPDIR": str(folders), "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run([sys.executable, "-c", code], cwd=folders, env=env, capture_output=True, text=True)
    assert ended.stderr.endswith(f"mlimages: {where.format(temp=folders)}: File too large\n")
    assert ended.returncode == 1
    assert not list(folders.glob(".*"))


def test_json_goes_to_standard_output_alone(folders: Path, invoke_cli: RunCli) -> None:
    written = json.loads(invoke_cli("label", "data", "--json").stdout)
    assert written["files"] == [{"path": "data/labels.txt", "count": 14, "classes": {"ants": 8, "bees": 6}}]
    checked = json.loads(invoke_cli("check", "data/labels.txt", "--json", "--fix").stdout)
    assert {key: checked[key] for key in ("checked", "ok", "errors", "warnings")} == {
        "checked": 14, "ok": 13, "errors": {"truncated": 1}, "warnings": {"near-duplicate": 1},
    }  # fmt: skip
    assert checked["duplicate_groups"] == [["data/ants/1 again.jpg", "data/ants/1.jpg"]]
    assert checked["seconds"] > 0
    assert checked["moves"][0]["to"] == "data/labels_quarantine/ants/cut.jpg"
    assert json.loads(invoke_cli("mean", "data/labels.txt", "--json").stdout)["broken"] == 1


def test_strict_fails_on_errors_and_only_then(folders: Path, invoke_cli: RunCli) -> None:
    invoke_cli("label", "data")
    assert invoke_cli("check", "data/labels.txt", "--strict", check=False).returncode == 1
    assert invoke_cli("check", "data/labels_checked.txt", "--strict").returncode == 0


def test_fix_asks_before_it_moves(folders: Path, invoke_cli: RunCli) -> None:
    invoke_cli("label", "data")
    told = invoke_cli("check", "data/labels.txt", "--fix").stdout
    assert "--yes requires --fix" in invoke_cli("check", "data/labels.txt", "--yes", check=False).stderr
    assert "would move data/ants/cut.jpg to data/labels_quarantine/ants/cut.jpg (truncated)" in told
    assert (folders / "data/ants/cut.jpg").exists()
    invoke_cli("check", "data/labels.txt", "--fix", "--yes")
    assert (folders / "data/labels_quarantine/ants/cut.jpg").exists()
    again = invoke_cli("check", "data/labels.txt", "--fix", "--yes")
    assert "--fix: no file has to be moved or renamed" in again.stderr
    assert (folders / "data/labels_quarantine/ants/cut.jpg").exists()
    assert "hidden folders and folders created by tools: 1 labels_quarantine" in invoke_cli("label", "data").stderr


@pytest.mark.parametrize("is_labelled", [False, True])
def test_fix_moves_the_images_of_a_folder_and_is_followed_in_its_label_file(
    folders: Path, invoke_cli: RunCli, is_labelled: bool
) -> None:
    if is_labelled:
        invoke_cli("label", "data")
    done = invoke_cli("check", "data", "--fix", "--yes")
    assert "moved data/ants/cut.jpg to data/labels_quarantine/ants/cut.jpg (truncated)\n" in done.stdout
    assert "labels_quarantine/ants/cut.jpg\tants\ttruncated" in (folders / "data/labels_rejected.tsv").read_text()
    assert len(list(LabelFile(folders / "data/labels_checked.txt"))) == 13
    assert ("data/labels.txt" in done.stderr) == is_labelled
    assert "not updated" not in done.stderr
    if is_labelled:
        lines = (folders / "data/labels.txt").read_text().splitlines()
        assert "labels_quarantine/ants/cut.jpg 0" in lines
        assert "ants/cut.jpg 0" not in lines


def test_a_label_file_that_lists_no_moved_image_is_not_named(folders: Path, invoke_cli: RunCli) -> None:
    invoke_cli("label", "data", "-o", "all.txt")
    (folders / "mine.txt").write_text("data/bees/0.jpg 1\n")
    done = invoke_cli("check", "all.txt", "mine.txt", "--fix", "--yes")
    assert (folders / "all_quarantine/data/ants/cut.jpg").exists()
    assert "not updated" not in done.stderr


def test_a_split_writes_its_parts_and_keeps_copies_together(folders: Path, invoke_cli: RunCli) -> None:
    done = invoke_cli("label", "data", "-o", "set.csv", "--split", "0.6,0.2,0.2", "--seed", "3")
    parts = {name: (folders / f"set_{name}.csv").read_text() for name in ("train", "val", "test")}
    assert done.stdout.splitlines()[0].startswith("set_train.csv: ")
    assert sum(text.count(".jpg") for text in parts.values()) == 14
    assert [("1.jpg" in text, "1 again.jpg" in text) for text in parts.values()].count((True, True)) == 1
    again = invoke_cli("label", "data", "-o", "again.csv", "--split", "0.6,0.2,0.2", "--seed", "3")
    assert again.stdout == done.stdout.replace("set_", "again_")


def test_python_writes_the_files_that_the_command_line_writes(
    folders: Path, invoke_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders)
    invoke_cli("label", "data", "-o", "cli.txt")
    invoke_cli("label", "cli.txt", "-o", "cli.csv", "--split", "0.6,0.4", "--seed", "3")
    invoke_cli("check", "cli_train.csv", "cli_val.csv", "--threshold", "blur=0.4")
    labels = label_dir_auto("data").labels.write("python.txt")
    parts = zip(split_labels(labels, (0.6, 0.4), 3), ("train", "val"), strict=True)
    written = [part.write(f"python_{name}.csv") for part, name in parts]
    write_results(check(written, thresholds=Thresholds(blur=0.4)))
    files = sorted(Path().glob("cli*"))
    assert len(files) == 14
    for path in files:
        twin = path.with_name(path.name.replace("cli", "python"))
        assert path.read_text() == twin.read_text().replace("python_", "cli_"), path.name


def test_a_label_file_is_converted_split_laid_out_and_cleaned(folders: Path, run_cli: RunCli) -> None:
    run_cli("label", "data")
    run_cli("check", "data/labels.txt")
    run_cli("label", "data/labels.txt", "--drop", "data/labels_rejected.tsv", "-o", "clean.jsonl")
    assert (folders / "clean.jsonl").read_text().count('"path": "data/') == 13
    split = ("--split", "0.5,0.5", "--group", r"(\d+)[^/]*$")
    run_cli("label", "clean.jsonl", *split, "--as-folders", "laid", "--copy")
    assert {path.name for path in (folders / "laid").iterdir()} == {"train", "val"}
    assert len(list((folders / "laid").rglob("*.jpg"))) == 13


@pytest.mark.parametrize("words", [[], ["--split", "0.8,0.2"], ["-o", "x.txt"]])
def test_label_without_a_source_is_an_error_of_usage(invoke_cli: RunCli, words: list[str]) -> None:
    done = invoke_cli("label", *words, check=False)
    assert done.returncode == 2
    assert "Missing argument 'FOLDER|LABELS'" in done.stderr


def test_a_class_is_appended_by_its_number(folders: Path, invoke_cli: RunCli) -> None:
    invoke_cli("label", "data/ants", "--label", "0", "-o", "all.txt")
    invoke_cli("label", "data/bees", "--label", "1", "--append", "-o", "all.txt")
    assert (folders / "all_class_def.txt").read_text() == "0 ants\n1 bees\n"
    assert len((folders / "all.txt").read_text().splitlines()) == 14


def test_a_part_of_an_earlier_split_that_is_not_written_again_is_named(folders: Path, invoke_cli: RunCli) -> None:
    invoke_cli("label", "data", "-o", "sp.txt", "--split", "0.6,0.2,0.2")
    said = "sp_test.txt belongs to an earlier split, and its images are also in sp_train.txt and sp_val.txt: delete "
    assert said in invoke_cli("label", "data", "-o", "sp.txt", "--split", "0.8,0.2").stderr
    assert "earlier split" not in invoke_cli("label", "data", "-o", "sp.txt", "--split", "0.6,0.2,0.2").stderr
    (folders / "sp_test.txt").write_text("other.jpg 0\n")
    assert "earlier split" not in invoke_cli("label", "data", "-o", "sp.txt", "--split", "0.8,0.2").stderr


@pytest.mark.parametrize("suffix", [".txt", ".csv"])
def test_what_is_appended_with_a_split_is_added_to_the_parts(folders: Path, invoke_cli: RunCli, suffix: str) -> None:
    def parts() -> list[list[str]]:
        return [
            [f"{item.path} {file.class_names[item.label]}" for item in file]
            for file in (LabelFile(folders / f"all_{name}{suffix}") for name in ("train", "val", "test"))
        ]

    invoke_cli("label", "data", "-o", f"all{suffix}", "--split", "0.4,0.3,0.3")
    before = parts()
    (folders / "two/wasps").mkdir(parents=True)
    for n in range(20, 24):
        (folders / f"two/wasps/{n}.jpg").write_bytes(jpeg(scene(n)))
    (folders / "two/ants").symlink_to(folders / "data/ants")  # these are in a part already
    words = ("two", "-o", f"all{suffix}", "--split", "0.5,0.5", "--append")
    for _again in range(2):
        invoke_cli("label", *words)
        train, val, test = parts()
        assert [train[: len(before[0])], val[: len(before[1])], test] == before
        new = train[len(before[0]) :] + val[len(before[1]) :]
        assert sorted(new) == [f"{folders}/two/wasps/{n}.jpg wasps" for n in range(20, 24)]
        assert len(train) - len(before[0]) == 2
    (folders / "more").mkdir()
    (folders / "more/one.jpg").write_bytes(jpeg(scene(30)))
    invoke_cli("label", "more", "--label", "2", *words[1:])
    assert sum("more/one.jpg wasps" in line for part in parts() for line in part) == 1


def test_links_in_a_circle_and_what_may_not_be_read_cost_themselves_alone(folders: Path) -> None:
    for name in ("loop", "loop.jpg"):
        (folders / "data/ants" / name).symlink_to(name)
    locked = folders / "data/locked"
    locked.mkdir(mode=0)
    unseen = folders / "data/bees/0.jpg"
    unseen.chmod(0)
    labelled = run_without_override(folders, "-m", "mlimages", "label", "data")
    assert labelled.stdout == "data/labels.txt: 15 images, 2 classes: ants 9, bees 6\n"
    assert "left out: links to files or folders that do not exist: 1 loop\n" in labelled.stderr
    assert "left out: folders without read permission: 1 locked\n" in labelled.stderr
    assert "locked: no images" not in labelled.stderr
    assert (
        "        2  unreadable\n" in run_without_override(folders, "-m", "mlimages", "check", "data/labels.txt").stdout
    )


@pytest.mark.parametrize(
    "words",
    [
        ["check", "data", "--report", "check.html"],
        ["mean", "data", "--size", "8", "-o", "mean.png"],
        ["label", "data"],
        ["label", "data", "-o", "data/new/labels.txt"],
        ["show", "data", "-o", "data/sheet.png"],
    ],
)
def test_a_read_only_dataset_is_refused_before_its_images_are_decoded(folders: Path, words: list[str]) -> None:
    before = set(folders.glob("*.*"))
    for folder in [*(folders / "data").rglob("*"), folders / "data"]:
        folder.chmod(0o555 if folder.is_dir() else 0o444)
    done = run_without_override(folders, "-m", "mlimages", *words)
    for folder in [folders / "data", *(folders / "data").rglob("*")]:
        folder.chmod(0o755)
    assert done.returncode == 1
    assert re.fullmatch(
        r"mlimages: data/\S+ cannot be written, since data is read-only: .*\n", done.stderr.splitlines(True)[-1]
    )
    assert set(folders.glob("*.*")) == before


@pytest.mark.parametrize(
    "words",
    [
        "finetune data --mean nowhere.npy",
        "finetune data --mean folder.npy",
        "finetune data --weights nowhere.pth",
        "finetune --resume nowhere",
        "show nowhere.npy -o a.png",
        "show folder.npy -o a.png",
        "predict nowhere.onnx data",
        "predict folder.onnx data",
        "summary nowhere.onnx",
        "export nowhere -o a.onnx",
        "gather urls nowhere.tsv -o a",
        "gather urls folder.tsv -o a",
        "gather urls folder.zip -o a",
        "gather urls text.zip -o a",
        "gather urls text.json -o a",
        "check folder.csv",
        "check text.json",
    ],
)
def test_a_path_that_cannot_be_read_is_named_without_the_librarys_error(
    folders: Path, invoke_cli: RunCli, words: str
) -> None:
    for name in ("folder.npy", "folder.onnx", "folder.tsv", "folder.zip", "folder.csv"):
        (folders / name).mkdir()
    for name in ("text.zip", "text.json"):
        (folders / name).write_text("{ no archive")
    done = invoke_cli(*words.split(), check=False)
    name = next(word for word in words.split() if word.startswith(("nowhere", "folder", "text")))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("mlimages: ")
    assert name in done.stderr
    assert not re.search(r"Errno|Error\b|Traceback|<class|b'", done.stderr)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("label nowhere", "no folder or label file at nowhere"),
        ("label data --split 0.8,0.3", "expected numbers greater than 0 that add up to 1"),
        ("label data --split most", "--split most: expected two or three fractions"),
        ("label data --split 0.5,0.5 --group (", "'(' is not a regular expression"),
        ("label data --label -1 -o a.txt", "class_index is -1: it must be from 0 to 999999"),
        ("label data --label 99999999 -o a.txt", "class_index is 99999999: it must be from 0 to 999999"),
        ("label data --label 0 --leaf", "--label, --leaf cannot be combined for a folder: choose"),
        ("label data --class-from ([a-z]+)/ --classes c.txt", "--class-from, --classes cannot be combined"),
        ("label data --limit-per-class 0", "limit_per_class is 0: it must be at least 1"),
        ("label data -o a.xls", "unknown suffix: expected .txt, .csv, .tsv or .jsonl"),
        ("label data --classes none.txt", "no class definition at none.txt"),
        ("check data/ants", "images and no class folders: create a folder per class"),
        ("mean data/empty", "no images in data/empty: expected a folder per class"),
        (
            "check data none.txt",
            "no folder or label file at none.txt: create a label file with `mlimages label FOLDER`",
        ),
        ("finetune nosuch --val data", "no folder or label file at nosuch"),
        ("finetune data --val nosuch", "no folder or label file at nosuch"),
        (
            "evaluate MODEL data/bees/0.jpg",
            "data/bees/0.jpg is an image: expected a label file, or a folder with one subfolder per class",
        ),
        ("check data --threshold x=1", "threshold 'x=1': expected NAME=VALUE"),
        ("check data --threshold blur=much", "'much' is not a number"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(folders: Path, invoke_cli: RunCli, words: str, said: str) -> None:
    done = invoke_cli(*words.split(), check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("mlimages: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [("--leaf",), ("--label", "0")])
def test_options_that_apply_only_to_folders_are_refused_for_a_label_file(
    folders: Path, invoke_cli: RunCli, words: tuple[str, ...]
) -> None:
    invoke_cli("label", "data", "-o", "all.txt")
    said = invoke_cli("label", "all.txt", "-o", "a.txt", *words, check=False).stderr
    assert said == "mlimages: all.txt is a label file: --label and --leaf apply only to folders: omit them\n"
    assert not Path("a.txt").exists()


def test_the_bench_runs(tmp_path: Path) -> None:
    bench = Path(__file__).parents[2] / "scripts/bench/curate.py"
    done = subprocess.run([sys.executable, bench, "--tiny"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_opens_an_iphones_image_is_named_where_it_is_not_installed_and_then_opens_it(
    tmp_path: Path, run_cli: RunCli
) -> None:
    (tmp_path / "data/cat").mkdir(parents=True)
    load_all_plugins()
    scene(1).save(tmp_path / "data/cat/IMG_1.HEIC", "HEIF")

    def without(*words: str) -> str:
        return run_without("pillow_heif", "from mlimages.cli.main import main; main()", tmp_path, *words).stderr

    advice = make_install_command("heic")
    assert advice in without("label", "data")
    run_cli("label", "data")
    without("check", "data/labels.txt")
    with (tmp_path / "data/labels_rejected.tsv").open(newline="") as file:
        (_, row) = csv.reader(file, delimiter="\t")
    assert advice in row[3]
    without("check", "data/labels.txt", "--fix", "--yes")  # moves what is broken, which this is not
    for _ in range(2):  # the second time from the cache
        found = json.loads(run_cli("check", "data/labels.txt", "--json").stdout)
        assert (found["ok"], found["warnings"].get("wrong-suffix", 0)) == (1, 0)


MADE = [
    ("label data", "data/labels.txt"),
    ("label data", "data/labels_class_def.txt"),
    ("label data -o l.csv --split 0.5,0.5", "l_val.csv"),
    ("check in.txt --report p.html", "in_checked.txt"),
    ("check in.txt --report p.html", "in_rejected.tsv"),
    ("check in.txt --report p.html", "p.html"),
    ("check data", "data/labels_checked.txt"),
    ("mean in.txt --size 8", "mean.png"),
    ("mean in.txt --size 8", "mean.json"),
    ("mean in.txt --size 8", "in_used_in_mean.txt"),
    ("mean in.txt --size 8 --per-class", "mean_per_class.png"),
    ("augment in.txt --size 8 -o a.npz", "a.npz"),
    ("show data -o s.png", "s.png"),
    ("probe data -o p.png", "p.png"),
    ("probe data --report p.html", "p.html"),
    ("compare run other --report c.html", "c.html"),
    ("evaluate no.onnx data --report e.html", "e.html"),
    ("export run -o m.onnx", "m.onnx"),
]
ONLY_REFUSED = ("probe", "compare", "evaluate", "export")
"""Commands that would take long, or whose inputs do not exist here."""


@pytest.mark.parametrize(("command", "file"), MADE, ids=[f"{command}: {file}" for command, file in MADE])
def test_nobodys_work_is_overwritten(folders: Path, monkeypatch: pytest.MonkeyPatch, command: str, file: str) -> None:
    def run(*more: str) -> object:
        done = CliRunner().invoke(app, [*command.split(), *more])
        return done.exception or done.exit_code

    monkeypatch.chdir(folders)
    (folders / "in.txt").write_text("".join(f"data/ants/{n}.jpg 0\n" for n in range(1, 12, 2)))
    (folders / file).write_text("by hand\n")
    refused = run()
    assert isinstance(refused, InputError)
    assert re.match(f"{file} (already exists|exists and was not written by mlimages)", str(refused))
    assert "--force" in str(refused)
    assert (folders / file).read_text() == "by hand\n"
    assert "--force" in CliRunner().invoke(app, [command.split()[0], "--help"]).output
    if command.startswith(ONLY_REFUSED):
        return
    assert run("--force") == 0
    ours = (folders / file).read_bytes()
    assert ours != b"by hand\n"
    if command.startswith("augment"):
        assert isinstance(run(), InputError)
    else:
        assert run() == 0  # what is still ours is replaced
    (folders / file).write_bytes(ours + b"#")
    assert isinstance(run(), InputError)
    assert (folders / file).read_bytes() == ours + b"#"


def test_as_folders_goes_into_an_empty_folder_or_the_same_again(folders: Path, invoke_cli: RunCli) -> None:
    invoke_cli("label", "data", "-o", "all.txt")
    split = ("label", "all.txt", "--split", "0.5,0.5", "--as-folders", "laid")
    invoke_cli(*split, "--seed", "1")
    before = sorted((folders / "laid").rglob("*"))
    invoke_cli(*split, "--seed", "1")
    refused = invoke_cli(*split, "--seed", "2", check=False)
    assert "laid contains" in refused.stderr
    assert "use an empty folder" in refused.stderr
    assert sorted((folders / "laid").rglob("*")) == before


def test_drop_finds_images_by_their_real_path_and_says_how_many(folders: Path, invoke_cli: RunCli) -> None:
    invoke_cli("label", "data", "-o", "all.txt")
    (folders / "elsewhere").mkdir()
    (folders / "elsewhere/link").symlink_to(folders / "data")
    (folders / "elsewhere/drop.tsv").write_text("path\tlabel\nlink/ants/1.jpg\t0\nlink/ants/none.jpg\t0\n")
    done = invoke_cli("label", "all.txt", "--drop", "elsewhere/drop.tsv", "-o", "less.txt")
    assert "dropped: 1 image (elsewhere/drop.tsv lists 2)" in done.stderr
    (folders / "drop.tsv").write_text("path\tlabel\nlink/ants/1.jpg\t0\n")
    refused = invoke_cli("label", "all.txt", "--drop", "drop.tsv", "-o", "none.txt", check=False)
    assert "no image of drop.tsv (1 listed) is in all.txt: check the paths" in refused.stderr


def test_fix_moves_into_the_quarantine_alone_and_is_followed_in_every_label_file(
    tmp_path: Path, run_cli: RunCli
) -> None:
    for name in ("away/cut.jpg", "away/png.jpg", "x/y/good.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(scene(len(name))))
    (tmp_path / "away/cut.jpg").write_bytes(jpeg(scene(3))[:500])
    scene(4).save(tmp_path / "away/png.jpg", "PNG")
    (tmp_path / "x/y/link").symlink_to(tmp_path / "away")
    (tmp_path / "x/y/a.txt").write_text("../../away/cut.jpg 0\n../../away/png.jpg 0\ngood.jpg 0\n")
    (tmp_path / "b.txt").write_text("x/y/link/cut.jpg 0\nx/y/link/png.jpg 0\n")
    run_cli("label", "b.txt", "-o", "ours.csv")
    own = (tmp_path / "b.txt").read_bytes()
    done = run_cli("check", "x/y/a.txt", "b.txt", "ours.csv", "--fix", "--yes")
    assert (tmp_path / "b.txt").read_bytes() == own  # a person wrote it
    assert (
        "label files that mlimages did not write, or that were edited since, are not updated: x/y/a.txt, b.txt; "
        "use NAME_checked.txt instead"
    ) in done.stderr
    assert (tmp_path / "ours.csv").read_text() == "path,label\nx/y/a_quarantine/cut.jpg,0\naway/png.png,0\n"
    assert [path.name for path in (tmp_path / "x/y/a_quarantine").iterdir()] == ["cut.jpg"]
    assert {path.name for path in (tmp_path / "away").iterdir()} == {"png.png"}
    for table in ("x/y/a_checked.txt", "b_checked.txt", "x/y/a_rejected.tsv", "b_rejected.tsv", "b_warnings.tsv"):
        for line in (tmp_path / table).read_text().splitlines():
            name = line.split("\t")[0] if table.endswith("tsv") else line.rsplit(" ", 1)[0]
            assert name == "path" or ((tmp_path / table).parent / name).exists() or "class" in line, (table, line)


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("label photos -o a.txt", 0, ""),
        ("label few.txt --as-folders out", 1, r"cannot write out/caf\xe9: use a UTF-8 locale"),
    ],
)
def test_a_locale_that_lacks_characters_of_file_names_is_said_and_no_traceback(
    tmp_path: Path, command: str, code: int, said: str
) -> None:
    for path in ("photos/caf\u00e9/1.png", "photos/tea/1.png", "photos/jam/1.png"):
        (tmp_path / path).parent.mkdir(parents=True)
        scene(1, width=40, height=30).save(tmp_path / path)
    (tmp_path / "few.txt").write_text("photos/tea/1.png 0\nphotos/jam/1.png 1\n")
    (tmp_path / "few_class_def.txt").write_text("0 caf\u00e9\n1 jam\n", "utf-8")
    ascii_locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "mlimages", *command.split()],
        cwd=tmp_path, env={**os.environ, **ascii_locale}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code
    first, *rest = done.stderr.splitlines()
    assert first.startswith(
        "mlimages: file names with characters outside the encoding of the locale can be neither read nor written: use"
    )
    assert said in "".join(rest)
    assert "Traceback" not in done.stderr
    if not code:
        assert "jam 1, tea 1" in done.stdout + done.stderr, "what can be read is listed"


@pytest.mark.parametrize(
    ("names", "training", "validation"),
    [
        (["x_test.txt", "x_train.txt", "x_val.txt"], "x_train", "x_val"),
        (["Valid.txt", "Test.txt", "Training.txt"], "Training", "Valid"),
        (["test.txt", "train.txt"], "train", ""),
        (["new.txt", "train.txt"], "train", "new"),
        (["val.txt", "all.txt"], "all", "val"),
        (["b.txt", "a.txt"], "b", "a"),
        (["test_labels.txt", "train-labels.txt", "val_labels.txt"], "train-labels", "val_labels"),
        (["test/a.txt", "train/a.txt", "Valid/a.txt"], "train/a", "Valid/a"),
        (["train/x_test.txt", "test/x_train.txt"], "test/x_train", ""),
        (["x_test.txt", "x_val.txt"], "", ""),
        (["dev/labels.txt"], "dev/labels", ""),
    ],
)
def test_the_next_command_trains_and_validates_on_the_files_of_that_name(
    tmp_path: Path, invoke_cli: RunCli, names: list[str], training: str, validation: str
) -> None:
    for number, name in enumerate(names):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(scene(number)))
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{tmp_path}/{number}.jpg 0\n")
    done = invoke_cli("check", *names)
    expected = f"next: mlimages finetune {training}_checked.txt" + f" --val {validation}_checked.txt" * bool(validation)
    assert done.stderr.splitlines()[-1:] == [expected] if training else "next:" not in done.stderr


def test_a_label_file_that_a_check_updates_is_not_proposed_as_the_validation_set(
    tmp_path: Path, invoke_cli: RunCli
) -> None:
    scene(1).save(tmp_path / "0.jpg", "PNG")
    (tmp_path / "all.txt").write_text("0.jpg 0\n")
    invoke_cli("check", "all.txt")
    done = invoke_cli("check", "all_checked.txt", "--fix", "--yes")
    assert "all_checked.txt" in done.stderr.splitlines()[-2]
    assert done.stderr.splitlines()[-1] == "next: mlimages finetune all_checked_checked.txt"


def test_the_splits_of_a_folder_come_in_the_order_of_training(tmp_path: Path, invoke_cli: RunCli) -> None:
    for number, name in enumerate(("test", "train", "val")):
        (tmp_path / "data" / name / "a").mkdir(parents=True)
        (tmp_path / "data" / name / "a" / f"{number}.jpg").write_bytes(jpeg(scene(number)))
    assert invoke_cli("label", "data", "-o", "x.txt").stderr.splitlines()[-1] == (
        "next: mlimages check x_train.txt x_val.txt x_test.txt"
    )
    assert invoke_cli("check", "data").stderr.splitlines()[-1] == (
        "next: mlimages finetune data/labels_train_checked.txt --val data/labels_val_checked.txt"
    )
