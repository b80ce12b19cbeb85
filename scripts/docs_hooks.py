"""Pages that mkdocs generates at build time, so that they cannot differ from the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mlimages"
ERRORS = re.compile(r"\w+Error")
NO_TEXT = ("AssertionError", "MissingExtraError")
OWN_WORDS = re.compile(r"\w+ \w+")
"""A message has at least two words of its own; others only pass on what a library says."""


def on_files(files: Any, *, config: Any) -> Any:
    """Add the generated pages (a hook of mkdocs)."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> dict[str, str]:
    """The generated pages by their path in the documentation."""
    api = {f"reference/{path.parent.name}.md": api_page(path) for path in PACKAGE.glob("*/__init__.pyi")}
    return {
        **api,
        "reference/public.md": api_page(PACKAGE / "__init__.pyi"),
        "reference/commands.md": commands_page(),
        "reference/messages.md": messages_page(),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(),
        "security.md": (ROOT / "SECURITY.md").read_text(),
    }


def api_page(stub: Path) -> str:
    """The names that a package exports: links for `mlimages`, descriptions for the packages below it."""
    package = ".".join(stub.parent.relative_to(ROOT).parts)
    nodes = [node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ImportFrom)]
    names = sorted((node.module or "", alias.name) for node in nodes for alias in node.names)
    names = [(module, name) for module, name in names if not name.isupper()]
    if package == "mlimages.core":
        public = (PACKAGE / "__init__.pyi").read_text()
        names = [(module, name) for module, name in names if f"import {name} as" in public]
    if package == "mlimages":
        rows = [f"| [`{name}`][mlimages.{module}.{name}] | `mlimages.{module}` |" for module, name in names]
        return (
            "# mlimages\n\nThe public names; `from mlimages import NAME`.\n\n| name | defined in |\n|---|---|\n"
            + "\n".join(rows)
        )
    return f"# {package}\n\n" + "".join(f"::: {package}.{name}\n\n" for _, name in names)


def commands_page() -> str:
    """What `--help-all` prints for each command, at 80 columns."""
    sections = [f"## mlimages {' '.join(words)}\n\n```text\n{text}\n```\n" for words, text in command_helps()]
    return "# Commands\n\nAs `mlimages COMMAND --help-all` prints them.\n\n" + "\n".join(sections)


def command_helps() -> Iterator[tuple[list[str], str]]:
    """The words of each command, and its full help."""
    import typer.main
    from typer.testing import CliRunner

    from mlimages.cli import main

    def walk(command: Any, words: list[str]) -> Iterator[tuple[list[str], list[str]]]:
        children = getattr(command, "commands", {})
        if not children:
            has_more = any("--help-all" in param.opts for param in command.params)
            yield words, [*words, "--help-all" if has_more else "--help"]
        for name, child in children.items():
            yield from walk(child, [*words, name])

    for words, line in walk(typer.main.get_command(main.app), []):
        done = CliRunner().invoke(main.app, line, env={"COLUMNS": "80"}, prog_name="mlimages")
        yield words, done.stdout.strip()


def messages_page() -> str:
    """The texts of all errors that the packages raise, by package."""
    sections = []
    for folder in sorted(path.parent for path in PACKAGE.glob("*/__init__.py")):
        messages = sorted({message for module in folder.rglob("*.py") for message in messages_of(module)})
        rows = "".join(f"- `{error}`: {text}\n" for error, text in messages)
        if rows:
            sections.append(f"## {folder.name}\n\n{rows}")
    top = (
        "# Error messages\n\nCollected from the source; an ellipsis stands for what a message names. A message says "
        "what is wrong, where, and what to do next. [Troubleshooting](../troubleshooting.md) explains those that need "
        "more.\n\n"
    )
    return top + "\n".join(sections)


def messages_of(module: Path) -> Iterator[tuple[str, str]]:
    """The class and the text of each error that a module creates with a text of its own."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and ERRORS.fullmatch(node.func.id):
            texts = [_template(argument) for argument in node.args if node.func.id not in NO_TEXT]
            yield from ((node.func.id, f"`` {text} ``") for text in texts if OWN_WORDS.search(text))


def _template(node: ast.expr) -> str:
    """The text of a string, of an f-string with … for its values, or of texts that are added; else empty."""
    if isinstance(node, ast.Constant):
        return str(node.value) if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) or "…" for part in node.values)
    if isinstance(node, ast.BinOp):
        return _template(node.left) + _template(node.right)
    return ""
