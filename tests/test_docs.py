"""The documentation agrees with the code; that it builds without a warning, `scripts/docs` shows."""

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import typer.main
from typer.testing import CliRunner

import mlimages
from mlimages.checks import ERROR_CODES, Code
from mlimages.cli import main as cli
from mlimages.cli.options import COMMON_OPTIONS
from mlimages.core import RETRYABLE_REASONS, Reason

ROOT = Path(mlimages.__file__).parents[1]
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "examples").rglob("*.md"),
    ROOT / "deploy/README.md",
]
BY_OTHERS = {"TORCHELASTIC_ERROR_FILE", "LOCAL_WORLD_SIZE"}
"""Variables that a launcher sets for its own use."""


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "scripts" / "docs_hooks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command_lines(text: str) -> Iterator[list[str]]:
    """The words behind `mlimages` in console blocks and in code spans."""
    blocks = "".join(re.findall(r"```console\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    lines = re.findall(r"^\$ (?:\w+=\S+ |torchrun .*-m )?mlimages (.*)$", blocks, re.MULTILINE)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for line in [*lines, *re.findall(r"(?<!`)`mlimages\s([^`]+)`(?!`)", prose)]:
        yield shlex.split(line, comments=True)


def fault(words: list[str]) -> str:
    """What the command line does not know of these words; empty if it knows them."""
    command, path = typer.main.get_command(cli.app), "mlimages"
    known = {"--help", "-h", "--help-all"}
    for place, word in enumerate(words):
        known |= {name for param in command.params for name in [*param.opts, *param.secondary_opts]}
        children = getattr(command, "commands", {})
        if children and not word.startswith("-"):
            if word.isupper() or word == "..." or not word.isascii():  # a placeholder
                return ""
            word = word.split("|")[0]  # one of several
            if word not in children:
                return f"{path} has no command {word}"
            command, path = children[word], f"{path} {word}"
        elif re.match(r"--?[a-z]", word) and word.split("=")[0] not in known:
            return f"{path} has no option {word} (word {place + 1})"
    return ""


@pytest.mark.parametrize(
    ("line", "is_known"),
    [
        ("label photos -o labels.txt --split 0.8,0.2", True),
        ("gather urls a.txt --dry-run", True),
        ("finetune --resume RUN", True),
        ("augment labels.txt --rotate -30:30:6", True),
        ("COMMAND --help-all", True),
        ("laber photos", False),
        ("label photos --splitt 0.8,0.2", False),
        ("gather url a.txt", False),
    ],
)
def test_a_command_line_that_does_not_exist_is_recognized(line: str, is_known: bool) -> None:
    assert (fault(line.split()) == "") == is_known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_line_of_a_page_exists(page: Path) -> None:
    assert [wrong for words in command_lines(page.read_text()) if (wrong := fault(words))] == []


def test_every_command_line_that_a_message_names_exists(hooks: ModuleType) -> None:
    hints = re.findall(r"`mlimages ([^`]+)`", hooks.messages_page())
    assert len(hints) > 10
    assert [wrong for hint in hints if (wrong := fault(hint.replace("…", "X.x").split()))] == []


def test_every_message_says_what_to_do_or_quotes_the_cause(hooks: ModuleType) -> None:
    users = r"^- `(?:BundleE|ExportE|GatherE|InputE|LabelFileE|ModelE|RunE)rror`: `` (?:…:)* ?(.*) ``$"
    messages = re.findall(users, hooks.messages_page(), re.MULTILINE)
    assert len(messages) > 200
    goes_on = re.compile(r"[:;,?] |\b(requires?|must|only|mutually)\b")
    assert [text for text in messages if not goes_on.search(text)] == []


def test_each_help_shows_what_a_newcomer_needs_on_its_first_screen_and_ends_with_examples_to_paste(
    hooks: ModuleType,
) -> None:
    for words, _ in hooks.command_helps():
        text = CliRunner().invoke(cli.app, [*words, "--help"], env={"COLUMNS": "80"}).output
        assert max(map(len, text.splitlines())) <= 80
        common = COMMON_OPTIONS.get(words[-1], ())
        flags = [re.findall(r"--[a-z-]+", line) for line in text.splitlines()[:24]]
        assert {*common} <= {flag for line in flags for flag in line if line}, words
        assert common or text.count("\n") <= 24, words
        examples = re.findall(r"Example: mlimages (.+)", text.replace(" \\\n   ", ""))
        assert examples
        assert [wrong for example in examples if (wrong := fault(shlex.split(example)))] == []


def first_cells(page: str, heading: str) -> set[str]:
    """The codes in the first column of the tables below a heading."""
    section = re.split(rf"^## {re.escape(heading)}.*$", page, maxsplit=1, flags=re.MULTILINE)[1]
    rows = re.findall(r"^\|(.+?)\|", re.split(r"^## ", section, flags=re.MULTILINE)[0], re.MULTILINE)
    return {code for row in rows for code in re.findall(r"`(.+?)`", row)}


def test_every_code_of_check_is_explained() -> None:
    page = (ROOT / "docs/reference/check-codes.md").read_text()
    assert first_cells(page, "Errors") == set(ERROR_CODES)
    assert first_cells(page, "Warnings") == set(Code) - ERROR_CODES


def test_every_reason_of_gather_is_explained() -> None:
    page = (ROOT / "docs/reference/gather-reasons.md").read_text()
    are_open = RETRYABLE_REASONS | {Reason.DECODER}  # of this machine
    assert first_cells(page, "Open") == are_open
    assert first_cells(page, "Final") == set(Reason) - are_open


def test_every_environment_variable_is_explained() -> None:
    source = "".join(path.read_text() for path in (ROOT / "mlimages").rglob("*.py"))
    names = set(re.findall(r"""environ(?:\.get\(|\[)["'](\w+)""", source))
    assert {"MLIMAGES_CACHE", "PEXELS_API_KEY"} <= names
    page = (ROOT / "docs/reference/environment.md").read_text()
    assert {name for name in names - BY_OTHERS if f"`{name}`" not in page} == set()


def test_every_message_that_troubleshooting_explains_exists(hooks: ModuleType) -> None:
    messages = hooks.messages_page()
    explained = re.findall(r"^\*\*(?:\d+ )?`(.+?)`\*\*", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    explained = [text for text in explained if "…" in text]
    assert len(explained) > 12
    assert [text for text in explained if text not in messages] == []


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = re.findall(r"`(tests/\S+?\.py)?::(test_\w+)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 15
    path = ""
    for file, test in named:
        path = file or path
        tests = {
            node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.FunctionDef)
        }
        assert test in tests, f"{path} has no {test}"
