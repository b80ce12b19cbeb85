"""Options of commands: created from the fields of an options dataclass, shared, and grouped in the help."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import MISSING
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand

from mlimages import checks
from mlimages.core import ImageProperty, InputError, Option, OptionField, Resize, option_fields, parse_size
from mlimages.labels import IMAGE_SUFFIXES

_OTHER_TITLE = "Options"
_COMMON_TITLE = "Common options"
_SECTION_ORDER = {"Arguments": -3, _COMMON_TITLE: -2, "Source": -1, "Table": 1, "Output": 2, _OTHER_TITLE: 3}
"""Sort keys of the sections of the help; all other sections have the key 0."""

_ADVANCED = "advanced:"
"""Prefix of the section of an option that only --help-all lists."""

_HELP_ALL_KEY = "mlimages.help_all"
"""Key of Click's `Context.meta`, set by --help-all."""

_COMMON_GATHER_OPTIONS = ("--out", "--limit", "--min-size", "--dry-run")
COMMON_OPTIONS = {
    "urls": (*_COMMON_GATHER_OPTIONS, "--class"),
    "imagenet": (*_COMMON_GATHER_OPTIONS, "--subtree"),
    "openverse": (*_COMMON_GATHER_OPTIONS, "--licence"),
    "inaturalist": (*_COMMON_GATHER_OPTIONS, "--licence"),
    "commons": (*_COMMON_GATHER_OPTIONS, "--contact"),
    "pexels": (*_COMMON_GATHER_OPTIONS, "--i-have-permission"),
    "label": ("--out", "--split", "--seed", "--limit-per-class", "--class-from"),
    "check": ("--report", "--fix", "--yes", "--strict", "--threshold"),
    "mean": ("--out", "--size", "--resize", "--model", "--per-class"),
    "augment": ("--out", "--size", "--rotate", "--flip", "--split"),
    "probe": ("--out", "--report", "--model", "--most", "--size"),
    "features": ("--out", "--model", "--weights", "--layer", "--size"),
    "finetune": ("--out", "--val", "--model", "--freeze", "--epochs"),
    "evaluate": ("--report", "--explain", "--json"),
    "quantize": ("--out", "--calibration", "--max-drop"),
    "export": ("--out", "--page", "--calibrate", "--unknown", "--target"),
    "serve": ("--host", "--port", "--workers", "--cors", "--access-log"),
    "show": ("--out", "--per-class", "--size", "--seed", "--layer"),
}
"""The most common options of each command with many options; the help lists them first."""

_KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY
_METAVAR_BY_TYPE = {int: "N", float: "X", str: "TEXT", Path: "FILE"}
"""Placeholder of an option's value in the help, by type."""


class SectionedHelpCommand(TyperCommand):
    """A command whose help groups the options, hides advanced options without `--help-all`, and ends with examples."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.help, _, self.epilog = str(self.help).partition("\n\nExample: ")

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line, with `LIST...` instead of Typer's `{LIST...}...`."""
        return [
            piece.replace("...}...", "...}").replace("{", "").replace("}", "")
            for piece in super().collect_usage_pieces(ctx)
        ]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; reject empty paths, as from an unset shell variable, which pathlib reads as "."."""
        raw_values, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        rest: list[str] = super().parse_args(ctx, args)
        for param in self.get_params(ctx):
            is_path = any(isinstance(value, Path) for value in _to_list(ctx.params.get(param.name)))
            if is_path and "" in _to_list(raw_values.get(param.name)):
                raise typer.BadParameter("the path is empty; use . for the current folder", ctx=ctx, param=param)  # type: ignore[arg-type]
        return rest

    def invoke(self, ctx: Any) -> Any:
        """Check label files and the suffixes of output files before the command imports slow modules, then run it."""
        for param in self.get_params(ctx):
            values = _to_list(ctx.params.get(param.name))
            kind, _, suffix = str(param.metavar).removesuffix("...").partition(".")
            if kind in ("LABELS", "LABELS|FOLDER"):
                for source in values:
                    require_label_source(source)
            elif kind == "FILE" and suffix:
                for out in values:
                    if out.suffix.lower() != f".{suffix}":
                        raise InputError(f"{param.opts[-1]} {out}: expected a file name that ends in .{suffix}")
        return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write sections for the arguments, the common options, each group of options and the thresholds."""
        common = COMMON_OPTIONS.get(str(ctx.command.name), ())
        sections: dict[str, list[tuple[str, str]]] = {_COMMON_TITLE: []} if common else {}
        for param in sorted(self.get_params(ctx), key=lambda param: _find_common_option_index(param, common)):
            panel, row = _make_help_row(param, ctx)
            if panel.startswith(_ADVANCED) and not ctx.meta.get(_HELP_ALL_KEY):
                continue
            is_common = _find_common_option_index(param, common) < len(common)
            sections.setdefault(_COMMON_TITLE if is_common else panel.removeprefix(_ADVANCED), []).append(row)
        for title in sorted(sections, key=lambda title: _SECTION_ORDER.get(title, 0)):
            with formatter.section(title):
                formatter.write_dl(sections[title], col_max=24)
        if ctx.command.name == "check" and ctx.meta.get(_HELP_ALL_KEY):
            with formatter.section("Thresholds (--threshold NAME=VALUE)"):
                rows = [
                    (f"{field.name}={field.default}", field.option.help) for field in option_fields(checks.Thresholds)
                ]
                formatter.write_dl(rows, col_max=24)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples; wrapped lines end in a backslash, so that they can be pasted into a shell."""
        formatter.write_paragraph()
        for example in str(self.epilog).split("\nExample: "):
            lines = textwrap.wrap(
                f"  Example: {example}", formatter.width - 2, subsequent_indent="    ", break_on_hyphens=False
            )
            formatter.write(" \\\n".join(lines) + "\n")


def _find_common_option_index(param: Any, common_options: tuple[str, ...]) -> int:
    """Return the index of a parameter in `common_options`; the length of `common_options` if it is not in them."""
    return next((index for index, flag in enumerate(common_options) if flag in param.opts), len(common_options))


def require_label_source(source: Path) -> None:
    """Raise InputError if a local path does not exist or is an image, instead of a label file or folder."""
    if ":/" in str(source):  # an address
        return
    if not source.exists():
        raise InputError(f"no folder or label file at {source}: create a label file with `mlimages label FOLDER`")
    if source.suffix.lower() in IMAGE_SUFFIXES and source.is_file():
        raise InputError(f"{source} is an image: expected a label file, or a folder with one subfolder per class")


def _to_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _make_help_row(param: Any, ctx: Any) -> tuple[str, tuple[str, str]]:
    """Return the title of a parameter's help section, with the prefix `_ADVANCED` or not, and its row in it."""
    if param.param_type_name == "argument":
        return "Arguments", (param.metavar or param.name.upper(), param.help or "")
    if not param.metavar and not param.is_flag:
        param.metavar = _choose_metavar(param.type_descriptor.annotation)
    names, text = param.get_help_record(ctx)
    panel = getattr(param, "rich_help_panel", None) or _OTHER_TITLE  # Click's own --help has none
    return panel, (names, re.sub(r"\[default: \((.*?)\)(;|])", r"[default: \1\2", text))


def _choose_metavar(value_type: Any) -> str:
    if get_origin(value_type) is Literal:
        return "|".join(map(str, get_args(value_type)))
    return _METAVAR_BY_TYPE.get(value_type, "VALUE")


def _print_full_help(ctx: typer.Context, value: bool) -> None:
    if value:
        ctx.meta[_HELP_ALL_KEY] = True
        print(ctx.get_help())
        raise typer.Exit


HELP_ALL = typer.Option(
    False, "--help-all", is_eager=True, callback=_print_full_help, help="Show every option and exit."
)
LABELS = typer.Argument(..., metavar="LABELS|FOLDER", help="A label file, or a folder with one subfolder per class.")
INPUT_SIZE = typer.Option(None, metavar="N|WxH", help="Input width and height in pixels.", show_default="native size")
IMAGE_SIZE_HELP = "Width and height in pixels."
RESIZE = typer.Option("shorter", help="Resize method.")
GRAY = typer.Option(None, "--gray/--no-gray", help="Convert images to grayscale.")
WEIGHTS = typer.Option("default", metavar="default|none|FILE", help="Pretrained weights.")
PARALLEL_IMAGES = typer.Option(
    None, min=1, metavar="N", help="Images to process in parallel.", show_default="all cores"
)
SKIP_UNAVAILABLE = typer.Option(False, "--skip-unavailable", help="Skip remote images that cannot be downloaded.")
MODEL = typer.Argument(..., metavar="MODEL", help="An .onnx file written by `mlimages export`, or a run folder.")
FORCE = typer.Option(
    False,
    "--force",
    help="Replace files that mlimages did not write, or that were edited since.",
    rich_help_panel="Output",
)


def make_image_property(size: str, *, resize: Resize, gray: bool = False) -> ImageProperty:
    """Return the input size, resize method and number of channels that --size, --resize and --gray specify."""
    sides = parse_size(size)
    width, height = (sides, sides) if isinstance(sides, int) else sides
    return ImageProperty(width, height, resize=resize, gray_scale=gray)


def takes_options(
    options_class: type, *, positional_field: str = "", is_required: bool = True, shown_groups: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate the function of a command, so that the fields of an options dataclass become options of the command.

    The values of these options are passed as a dict in the first argument.

    Args:
        options_class: the options dataclass.
        positional_field: name of the field that becomes a positional argument.
        is_required: whether the positional argument is required.
        shown_groups: groups of options that `--help` lists although their options are advanced.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        fields = [field for field in option_fields(options_class) if not field.option.is_internal]

        def command(help_all: bool, **values: Any) -> None:
            given = {field.name: _list_to_tuple(values.pop(field.name)) for field in fields}
            defaults = {field.name: None if field.default is MISSING else field.default for field in fields}
            function({name: defaults[name] if value is None else value for name, value in given.items()}, **values)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        parameters = [
            _make_argument_parameter(field, is_required=is_required)
            if field.name == positional_field
            else _make_option_parameter(field, shown_groups=shown_groups)
            for field in fields
        ]
        parameters += list(signature.parameters.values())[1:]
        parameters.append(inspect.Parameter("help_all", _KEYWORD_ONLY, default=HELP_ALL, annotation=bool))
        parameters = [parameter.replace(kind=_KEYWORD_ONLY) for parameter in parameters]
        vars(command)["__signature__"] = signature.replace(parameters=parameters, return_annotation=None)
        return command

    return decorate


def _make_argument_parameter(field: OptionField, *, is_required: bool) -> inspect.Parameter:
    info = typer.Argument(
        ... if is_required else None, show_default=False, help=field.option.help, metavar=field.option.metavar
    )
    return inspect.Parameter(field.name, _KEYWORD_ONLY, default=info, annotation=field.type)


def _make_option_parameter(field: OptionField, *, shown_groups: tuple[str, ...]) -> inspect.Parameter:
    option, kind = field.option, field.type
    default = None if field.default is MISSING else field.default
    if option.parse:
        kind, default = str, None
    elif get_origin(kind) in (tuple, Sequence):  # a repeatable option
        kind, default = list.__class_getitem__(get_args(kind)[0]), None
    flags = option.flags or ((f"--{field.name.replace('_', '-')}",) if kind is bool and default is False else ())
    info = typer.Option(
        default,
        *flags,
        help=option.help,
        metavar=None if kind is bool else option.metavar or _choose_metavar(kind),
        rich_help_panel=f"{_ADVANCED * (option.is_advanced and option.group not in shown_groups)}{option.group}",
        show_default=option.default_text or not (default is None or default == "" or default is False),
        parser=partial(_parse_value, option, field) if option.parse else None,
    )
    return inspect.Parameter(field.name, _KEYWORD_ONLY, default=info, annotation=kind)


def _list_to_tuple(value: Any) -> Any:
    """Convert the list of a repeatable option to a tuple; an empty list becomes None."""
    return (tuple(value) or None) if isinstance(value, list) else value


def _parse_value(option: Option, field: OptionField, text: str) -> Any:
    """Parse the text of an option by its own parser; an InputError becomes a usage error."""
    assert option.parse is not None
    try:
        return option.parse(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None
