"""The command line: its commands, exit codes and logging."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from mlimages import __version__
from mlimages.cli import augment, curate, deploy, gather, inspect, server, train
from mlimages.cli.options import SectionedHelpCommand
from mlimages.cli.process import (
    escape_unprintable_output,
    interrupt_on_sigterm,
    resend_lost_interrupts,
    tune_memory_management,
)
from mlimages.core import MlimagesError, PeerExitedError, escape_unprintable

COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "gather": (),  # the sub-commands of `gather.app`
    "curate": (curate.label, curate.check, curate.mean, augment.augment),
    "train": (train.probe, train.features, train.compare, train.finetune),
    "deploy": (deploy.export, deploy.quantize, deploy.predict, deploy.evaluate, deploy.explain, server.serve),
    "inspect": (inspect.show, inspect.summary, inspect.demo),
}
"""The commands of each step of the workflow, in order of use."""

RESUMABLE_COMMANDS = frozenset({"gather", "label", "check", "mean", "probe", "features", "finetune"})
"""Commands that reuse the work of an interrupted run."""

UTF8_ADVICE = "use a UTF-8 locale, such as LC_ALL=C.UTF-8, or set PYTHONUTF8=1"


class SectionedHelpGroup(TyperGroup):
    """The command group `mlimages`; its help lists the commands by step of the workflow, as `COMMANDS` does."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section with the commands of each step of the workflow, such as "train"."""
        for step in COMMANDS:
            with formatter.section(step):
                formatter.write_dl(
                    [
                        (name, command.get_short_help_str(limit=64))
                        for name, command in self.commands.items()
                        if command.rich_help_panel == step  # type: ignore[attr-defined]  # Typer sets it on every command
                    ]
                )


app = typer.Typer(
    cls=SectionedHelpGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Download images, clean datasets, fine-tune image classifiers and export them to ONNX.",
)


def _print_version(value: bool) -> None:
    if value:
        print(f"mlimages {__version__}")
        from importlib import metadata  # importing torch for its version would take seconds

        for name in ("torch", "timm", "onnxruntime"):
            try:
                print(f"{name} {metadata.version(name)}")
            except metadata.PackageNotFoundError:
                print(f"{name} not installed")
        raise typer.Exit


@app.callback()
def _global_options(
    version: bool = typer.Option(
        False,
        "--version",
        callback=_print_version,
        is_eager=True,
        help="Print the versions of mlimages and its main libraries.",
    ),
    verbose: bool = typer.Option(
        False, "--verbose", "-v", help="Print log messages from level INFO to standard error."
    ),
) -> None:
    handler = logging.StreamHandler()
    handler.setLevel(logging.INFO if verbose else logging.WARNING)
    handler.addFilter(lambda record: verbose or _is_always_shown(record))
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s") if verbose else _PackageNameFormatter())
    logging.basicConfig(handlers=[handler])
    logging.getLogger("mlimages").setLevel(logging.INFO if verbose else logging.NOTSET)
    logging.captureWarnings(True)


class _PackageNameFormatter(logging.Formatter):
    """Format log records with the name of the package, such as `mlimages`, instead of the module."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.name.partition('.')[0]}: {super().format(record)}"


def _is_always_shown(record: logging.LogRecord) -> bool:
    """Whether a record is shown without --verbose: errors, and warnings of mlimages except those about an image."""
    shown = (
        "gathering",
        "core",
        "networks",
        "training",
        "export",
        "checks",
        "reports",
        "images.text",
        "images.image_files",
    )
    return record.levelno >= logging.ERROR or f"{record.name}.".startswith(tuple(f"mlimages.{name}." for name in shown))


app.add_typer(gather.app, name="gather", rich_help_panel="gather")
for step, functions in COMMANDS.items():
    for function in functions:
        app.command(function.__name__, cls=SectionedHelpCommand, rich_help_panel=step)(function)


def _exit_on_sigterm(signal_number: int, frame: object) -> NoReturn:
    """Raise PeerExitedError on SIGTERM, which torchrun sends to the other processes if one has failed."""
    raise PeerExitedError("stopped by SIGTERM: another training process failed, or the launcher was stopped")


def _report_to_torchrun_and_wait(error: MlimagesError) -> None:
    """Under torchrun, write the error to the file that it reads; local ranks other than 0 then wait to be stopped.

    Most errors occur in all processes, but must be printed once. Therefore only local rank 0 returns at once, prints
    the error and exits. The other processes of the machine wait up to 30 s; torchrun stops them in this time.
    """
    if isinstance(error, PeerExitedError):
        return
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # torch.distributed.elastic.multiprocessing.errors
        Path(path).write_text(json.dumps({"message": str(error), "timestamp": int(time.time())}), "utf-8")
    if os.environ.get("LOCAL_RANK", "0") != "0":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(30)


def main() -> NoReturn:
    """Run the command in `sys.argv` and exit with 0 (done), 1 (error), 2 (usage error) or 130 (interrupted)."""
    is_utf8 = sys.getfilesystemencoding() == "utf-8"
    tune_memory_management()
    escape_unprintable_output()
    resend_lost_interrupts()
    if not is_utf8:
        text = "file names with characters outside the encoding of the locale can be neither read nor written"
        print(f"mlimages: {text}: {UTF8_ADVICE}", file=sys.stderr)
    if "WORLD_SIZE" in os.environ:
        signal.signal(signal.SIGTERM, _exit_on_sigterm)
    else:
        interrupt_on_sigterm()
    try:
        try:
            app()
        finally:
            if progress := sys.modules.get("mlimages.core.progress"):  # imported by commands that show a progress bar
                progress.close_progress_bars()
    except MlimagesError as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # in an atexit callback it would print a traceback
        _report_to_torchrun_and_wait(error)
        print(f"mlimages: {escape_unprintable(str(error))}", file=sys.stderr)
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != 130:  # 130: some versions of Typer catch Ctrl-C themselves
            raise
        for number in (signal.SIGINT, signal.SIGTERM):  # a second one during exit would print a traceback
            signal.signal(number, signal.SIG_IGN)
        command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
        advice = "; run the same command again to resume" * (command in RESUMABLE_COMMANDS)
        print(f"mlimages: interrupted{advice}", file=sys.stderr)
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
        is_file = isinstance(error, FileExistsError) and error.filename and Path(error.filename).is_file()
        problem = "this is a file, not a folder" if is_file else error.strerror or error
        print(f"mlimages: {where}{problem}", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)
