"""The command line of an options class: defaults, names and help are those of its fields."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, get_origin

import pytest
import typer
from typer.testing import CliRunner

from mlimages.__main__ import main
from mlimages.cli import main as cli
from mlimages.cli.options import SectionedHelpCommand, takes_options
from mlimages.core import MAX_SEED, InputError, TqdmProgress, option_fields
from mlimages.labels import TableOptions
from mlimages.training import FineTuneConfig
from tests.commands import COMMANDS

OPTIONS = [field for field in option_fields(FineTuneConfig) if not field.option.is_internal]


@pytest.fixture
def values() -> dict[str, Any]:
    return {}


@pytest.fixture
def app(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    monkeypatch.chdir(tmp_path)
    Path("labels.txt").touch()
    made = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

    @takes_options(FineTuneConfig, positional_field="labels", is_required=False)
    def run(settings: dict[str, Any], extra: bool = typer.Option(False, "--extra", help="Extra.")) -> None:
        values.update(settings, extra=extra)

    made.command(cls=SectionedHelpCommand)(run)
    return made


def test_without_options_the_command_gives_the_defaults_of_the_fields(app: typer.Typer, values: dict[str, Any]) -> None:
    assert CliRunner().invoke(app, ["labels.txt"]).exit_code == 0
    assert values == {
        **{field.name: field.default for field in OPTIONS},
        "labels": Path("labels.txt"), "out": None, "extra": False,
    }  # fmt: skip


def test_text_is_parsed_by_the_field_and_refused_as_a_usage_error(app: typer.Typer, values: dict[str, Any]) -> None:
    done = CliRunner().invoke(
        app, ["labels.txt", "--lr", "0.1", "--scale", "127.5", "--time-budget", "10m", "--std", "0.5,0.25"]
    )
    assert done.exit_code == 0, done.output
    assert (values["lr"], values["scale"]) == (0.1, 127.5)
    assert (values["time_budget_s"], values["std"]) == (600.0, (0.5, 0.25))
    refused = [("--time-budget", "soon"), ("--std", "1,x")]
    refused += [(option, text) for option in ("--lr", "--scale") for text in ("0", "-1", "nan", "inf", "x")]
    for option, text in refused:
        assert CliRunner().invoke(app, ["labels.txt", option, text]).exit_code == 2


def test_help_shows_the_common_options_and_help_all_every_one(app: typer.Typer) -> None:
    short = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).output
    full = CliRunner().invoke(app, ["--help-all"], env={"COLUMNS": "80"}).output
    for field in OPTIONS:
        flag = next((name for name in field.option.flags if name.startswith("--")), f"--{field.name.replace('_', '-')}")
        flag = flag.split("/")[0]
        if field.name == "labels":
            continue
        assert flag in full
        assert (f"{flag} " in short) != field.option.is_advanced, flag
    assert max(map(len, full.splitlines())) <= 80
    headings = [line.rstrip(":") for line in full.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Arguments", "Data", "Model", "Optimization", "Cache", "Table", "Output", "Options"]


def test_every_command_that_reads_label_files_takes_the_options_of_tables() -> None:
    flags = {f"--{field.name.replace('_', '-')}" for field in option_fields(TableOptions)}
    reading = {
        words[-1]: {option for param in command.params for option in param.opts}
        for words, command in COMMANDS
        if any("LABELS" in str(param.metavar) for param in command.params)
    }
    assert {"label", "check", "mean", "augment", "probe", "finetune", "evaluate", "quantize", "show"} <= reading.keys()
    for name, options in reading.items():
        assert flags <= options, name


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("mlimages fin", "finetune"),
        ("mlimages gather inat", "inaturalist"),
        ("mlimages finetune --opti", "--optimizer"),
    ],
)
def test_what_is_typed_is_completed(typed: str, offered: str) -> None:
    asked = {"_MLIMAGES_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = CliRunner().invoke(cli.app, [], env=asked, prog_name="mlimages")
    assert done.stdout.split() == [offered]


def test_an_output_file_of_another_kind_is_refused_before_any_work(tmp_path: Path) -> None:
    outputs = [
        (words[-1], command.params, option)
        for words, command in COMMANDS
        for option in command.params
        if str(option.metavar).startswith("FILE.")
    ]
    assert {name for name, *_ in outputs} >= {"check", "mean", "probe", "features", "evaluate", "export", "quantize"}
    for name, parameters, option in outputs:
        inputs = [str(tmp_path)] * sum(parameter.param_type_name == "argument" for parameter in parameters)
        required = ["--calibration", str(tmp_path)] if name == "quantize" else []
        done = CliRunner().invoke(cli.app, [name, *inputs, *required, option.opts[-1], "out.txt"])
        assert f"out.txt: expected a file name that ends in {Path(option.metavar).suffix}" in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_while_the_command_line_is_imported_prints_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(ModuleType):
        def __getattr__(self, name: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "mlimages.cli.main", Interrupted("mlimages.cli.main"))
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, capsys.readouterr().err) == (130, "mlimages: interrupted\n")


SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Run `main` with a function that ends in an error, by default an interruption, in place of the command."""

    def run(command: Callable[[], None], *words: str, exit_code: int = 130) -> None:
        monkeypatch.setattr(cli, "tune_memory_management", lambda: None)  # it changes this process
        monkeypatch.setattr(cli, "app", command)
        monkeypatch.setattr(sys, "argv", ["mlimages", *words])
        with pytest.raises(SystemExit, match=f"^{exit_code}$"):
            cli.main()

    handlers = [signal.getsignal(number) for number in SIGNALS]
    yield run
    for number, handler in zip(SIGNALS, handlers, strict=True):
        signal.signal(number, handler)


def test_an_object_that_exists_is_an_error_in_one_line(
    run_main: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def create_object() -> None:
        raise FileExistsError("bucket/manifest.jsonl")  # as fsspec raises it, without `filename`

    run_main(create_object, "gather", exit_code=1)
    assert capsys.readouterr().err == "mlimages: bucket/manifest.jsonl\n"


@pytest.mark.parametrize("wait_s", [0.0, 0.1])
def test_ctrl_c_in_a_finalizer_ends_the_command_too(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    run_main: Callable[..., None],
    wait_s: float,
) -> None:
    start = threading.Thread.start

    def start_slowly(thread: threading.Thread) -> None:  # as on a busy machine: the thread runs before this returns
        start(thread)
        thread.join(wait_s)

    class Interrupted:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def command() -> None:
        Interrupted()
        threading.Event().wait(60)

    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    monkeypatch.setattr(threading.Thread, "start", start_slowly)
    run_main(command, "check", "labels.txt")
    assert capsys.readouterr().err == "mlimages: interrupted; run the same command again to resume\n"


def test_the_message_of_an_interruption_follows_a_progress_bar_on_a_line_of_its_own(
    capsys: pytest.CaptureFixture[str], run_main: Callable[..., None]
) -> None:
    def command() -> None:
        progress = TqdmProgress()
        progress.start("decode", 3, "images")
        raise KeyboardInterrupt

    run_main(command, "show")
    assert capsys.readouterr().err.endswith("\nmlimages: interrupted\n")


@pytest.mark.parametrize(
    "name", sorted(["gather", *(each.__name__ for part in cli.COMMANDS.values() for each in part)])
)
def test_only_a_command_that_reuses_its_work_proposes_to_resume(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run_main: Callable[..., None], name: str
) -> None:
    def command() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "resend_lost_interrupts", lambda: None)
    run_main(command, "--verbose", name)
    assert [signal.getsignal(number) for number in SIGNALS] == [signal.SIG_IGN] * 2  # else a traceback during exit
    resumes = name in ("gather", "label", "check", "mean", "probe", "features", "finetune")
    expected = "; run the same command again to resume" if resumes else ""
    assert capsys.readouterr().err == f"mlimages: interrupted{expected}\n"


def parameters_of_commands(is_tested: Callable[[Any], bool]) -> list[Any]:
    """The words of each command, the command, and each of its parameters that is tested."""
    return [
        pytest.param(words, command, param, id=f"{'-'.join(words)}-{param.name}")
        for words, command in COMMANDS
        for param in command.params
        if is_tested(param)
    ]


def is_path(param: Any) -> bool:
    return param.type_descriptor.annotation in (Path, list[Path])


def is_repeatable(param: Any) -> bool:
    kind = get_origin(param.type_descriptor.annotation)
    return param.param_type_name == "option" and kind in (list, tuple, Sequence)


def to_arguments(command: Any, values: dict[str, list[str]]) -> list[str]:
    """Arguments with these values of parameters, and "8" for each other parameter that is required."""
    arguments: list[str] = []
    for param in command.params:
        for value in values.get(param.name, ["8"] * param.required):
            arguments += [value] if param.param_type_name == "argument" else [param.opts[-1], value]
    return arguments


@pytest.mark.parametrize(("words", "command", "tested"), parameters_of_commands(is_path))
def test_an_empty_path_is_not_the_current_folder(
    words: list[str], command: Any, tested: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script whose variable is not set passes ""; pathlib's Path("") is the folder that the script runs in."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, [*words, *to_arguments(command, {tested.name: [""]})])
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "the path is empty" in result.output


@pytest.mark.parametrize(("words", "command", "option"), parameters_of_commands(is_repeatable))
def test_a_repeatable_option_is_accepted_once_and_twice(words: list[str], command: Any, option: Any) -> None:
    for given in (["one"], ["one", "two"]):
        context = command.make_context(words[-1], to_arguments(command, {option.name: given}))
        assert list(context.params[option.name]) == given


def test_the_repeatable_options_of_commands_are_found() -> None:
    found = [param.values for param in parameters_of_commands(is_repeatable)]
    assert {(words[-1], option.name) for words, _, option in found} >= {
        ("urls", "headers"), ("pexels", "headers"), ("serve", "cors_origins"), ("check", "threshold"),
    }  # fmt: skip


@pytest.mark.parametrize("seed", ["-1", str(MAX_SEED + 1), str(2**63 - 1)])
@pytest.mark.parametrize(("words", "command", "_"), parameters_of_commands(lambda param: param.name == "seed"))
def test_a_seed_out_of_range_is_one_line_and_nothing_is_written(
    words: list[str], command: Any, _: Any, seed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.txt").write_text("")
    labels = next(param.name for param in command.params if param.param_type_name == "argument")
    done = CliRunner().invoke(cli.app, [*words, *to_arguments(command, {labels: ["labels.txt"], "seed": [seed]})])
    assert done.exit_code == 2 or isinstance(done.exception, InputError)
    assert "seed" in done.output + str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.txt"]
