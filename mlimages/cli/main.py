"""The command line: its commands, exit codes and logging."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from mlimages import __version__
from mlimages.cli import augment, curate, demo, deploy, gather, inspect, probe_compare, train
from mlimages.cli.process import (
    disable_gc_at_exit,
    escape_unprintable_output,
    raise_mmap_threshold,
    repeat_lost_interrupts,
)
from mlimages.core import MlimagesError, PeerExitedError, escape_unprintable

STEPS = ("gather", "curate", "train", "deploy", "inspect")

UTF8_ADVICE = "use a UTF-8 locale, such as LC_ALL=C.UTF-8, or set PYTHONUTF8=1"


class StepGroup(TyperGroup):
    """Lists the commands by step, in order of use."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section per step."""
        for step in STEPS:
            named = [(name, command) for name, command in self.commands.items() if command.rich_help_panel == step]  # type: ignore[attr-defined]  # Typer sets it on commands and groups alike
            with formatter.section(step):
                formatter.write_dl([(name, command.get_short_help_str(limit=64)) for name, command in named])


app = typer.Typer(
    cls=StepGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Download images, clean datasets, fine-tune image classifiers and export them to ONNX.",
)


def _print_version(value: bool) -> None:
    if value:
        print(f"mlimages {__version__}")
        for name in ("torch", "timm", "onnxruntime"):
            print(f"{name} {_installed_version(name)}")
        raise typer.Exit


def _installed_version(distribution: str) -> str:
    """Read the version from the package metadata, since importing torch takes seconds."""
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


@app.callback()
def _global_options(
    version: bool = typer.Option(
        False,
        "--version",
        callback=_print_version,
        is_eager=True,
        help="Print the versions of mlimages and its libraries.",
    ),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Log to standard error."),
) -> None:
    shown = logging.StreamHandler()
    shown.setLevel(logging.INFO if verbose else logging.WARNING)
    shown.addFilter(lambda record: verbose or _is_always_shown(record))
    shown.setFormatter(logging.Formatter("%(name)s: %(message)s") if verbose else _PackageFormatter())
    logging.basicConfig(handlers=[shown])
    logging.captureWarnings(True)


class _PackageFormatter(logging.Formatter):
    """Names the package, such as `mlimages`, not the module."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.name.partition('.')[0]}: {super().format(record)}"


def _is_always_shown(record: logging.LogRecord) -> bool:
    """Whether a log record is shown without --verbose; Pillow's warnings and skipped images are not."""
    shown = ("gathering", "core", "networks", "training", "export", "checks", "images.text", "images.image_files")
    return record.levelno >= logging.ERROR or f"{record.name}.".startswith(tuple(f"mlimages.{name}." for name in shown))


for step in (gather, curate, augment, probe_compare, train, deploy, inspect, demo):
    step.register(app)


def _exit_on_sigterm(signal_number: int, frame: object) -> NoReturn:
    raise PeerExitedError("another training process exited, or the launcher was stopped (SIGTERM)")


def _report_to_launcher(error: MlimagesError) -> None:
    """Under torchrun, pass the error to its summary; only the main process prints it.

    Most errors occur in all processes; torchrun stops the others as soon as one has exited.
    """
    if isinstance(error, PeerExitedError):
        return
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # torch.distributed.elastic.multiprocessing.errors
        Path(path).write_text(json.dumps({"message": str(error), "timestamp": int(time.time())}), "utf-8")
    if os.environ.get("LOCAL_RANK", "0") != "0":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(30)


def main() -> NoReturn:
    """Run the command given by `sys.argv`, then exit: 0 done, 1 error, 2 usage error, 130 interrupted."""
    is_utf8 = sys.getfilesystemencoding() == "utf-8"
    disable_gc_at_exit()
    raise_mmap_threshold()
    escape_unprintable_output()
    repeat_lost_interrupts()
    if not is_utf8:
        text = "file names with characters outside the encoding of the locale can be neither read nor written"
        print(f"mlimages: {text}: {UTF8_ADVICE}", file=sys.stderr)
    if "WORLD_SIZE" in os.environ:
        signal.signal(signal.SIGTERM, _exit_on_sigterm)
    try:
        app()
    except MlimagesError as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # in an atexit callback it would print a traceback
        _report_to_launcher(error)
        print(f"mlimages: {escape_unprintable(str(error))}", file=sys.stderr)
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != 130:  # 130: some versions of Typer catch Ctrl-C themselves
            raise
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C during exit would print a traceback
        print("mlimages: interrupted; run the same command again to resume", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except UnicodeEncodeError as error:
        if is_utf8:
            raise
        print(f"mlimages: cannot write {escape_unprintable(error.object[:200])}: {UTF8_ADVICE}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"mlimages: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)
