"""Runs tests in forked processes: traced, or with one mutant in place."""

import contextlib
import gc
import hashlib
import json
import os
import resource
import shutil
import signal
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from mutants import Mutant, put_in

SLOW_TEST_S = 3.0
"""A test that takes longer is not run for mutants."""
TESTS_S = 10.0
"""The tests of one mutant are the cheapest ones up to this sum."""
EXCLUDED = {"realdata", "ray", "browser", "gpu"}
"""Marks of tests that a contributor may be unable to run."""
NOT_RUN = 3  # exit code of a child that could not put the mutant in


class Runner:
    """Collects the tests once; `verdicts` runs them for each mutant."""

    def __init__(self, root: Path, paths: Sequence[str], tests: Sequence[str] | None, *, jobs: int) -> None:
        self._root, self._paths, self._jobs = root, paths, jobs
        self._tests = list(tests or _tests_of(root, paths))
        self._cache = root / "build" / "mutation"
        self._reached: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
        self._seconds: dict[str, float] = {}

    def verdicts(self, mutants: Sequence[Mutant], deadline: float) -> Iterator[tuple[Mutant, str]]:
        """Yield each mutant with `killed`, `survived` or `no test reaches it`."""
        results: list[tuple[Mutant, str]] = []
        plugin = _Plugin(lambda session: results.extend(self._in_session(session, mutants, deadline)))
        doctests = [path for path in self._paths if ">>>" in (self._root / path).read_text()]
        without = (f"-pno:{plugin}" for plugin in ("terminal", "xdist", "cacheprovider"))
        words = [*self._tests, *doctests, "-o", "addopts=--doctest-modules", *without]
        os.chdir(self._root)
        code = pytest.main([*words, f"--rootdir={self._root}"], plugins=[plugin])
        if not plugin.ran:
            raise SystemExit(f"pytest could not collect {' '.join(self._tests)}: exit code {code}")
        yield from results

    def _in_session(
        self, session: pytest.Session, mutants: Sequence[Mutant], deadline: float
    ) -> list[tuple[Mutant, str]]:
        items = {
            item.nodeid: item for item in session.items if not EXCLUDED & {mark.name for mark in item.iter_markers()}
        }
        gc.collect()
        gc.freeze()
        self._trace(items)
        self._seconds = {name: seconds for name, seconds in self._seconds.items() if name in items}
        jobs: list[tuple[Mutant, Callable[[], int], float]] = []
        verdicts = []
        for mutant in mutants:
            names = self._tests_for(mutant)
            if names:
                limit_s = 5 + 10 * sum(self._seconds[name] for name in names)
                jobs.append(
                    (
                        mutant,
                        lambda mutant=mutant, names=names: self._try(mutant, [items[name] for name in names]),
                        limit_s,
                    )
                )
            else:
                verdicts.append((mutant, "no test reaches it"))
        for mutant, code in _in_parallel(jobs, self._jobs, deadline):
            verdicts.append((mutant, {0: "survived", NOT_RUN: "could not be put in"}.get(code, "killed")))
        return verdicts

    def _try(self, mutant: Mutant, items: Sequence[pytest.Item]) -> int:
        try:
            put_in(mutant, self._root)
        except Exception:
            return 1 if mutant.at_import else NOT_RUN  # 1: the module could not be imported
        return _run(items)

    def _tests_for(self, mutant: Mutant) -> list[str]:
        """The tests that reach the mutant's lines; for what runs at import, all that reach the module."""
        lines = self._reached[mutant.path]
        names = {name for line in range(mutant.line, mutant.end_line + 1) for name in lines[line]}
        if mutant.at_import:
            names = {name for tests in lines.values() for name in tests}
        cheapest, total = sorted(names, key=lambda name: (self._seconds[name], name)), 0.0
        chosen = []
        for name in cheapest:
            total += self._seconds[name]
            if self._seconds[name] > SLOW_TEST_S or total > TESTS_S:
                break
            chosen.append(name)
        return chosen

    def _trace(self, items: dict[str, pytest.Item]) -> None:
        """Fill in which test reaches which line, from the cache or by running the test files."""
        self._cache.mkdir(parents=True, exist_ok=True)
        package = _digest(sorted((self._root / "mlimages").rglob("*.py")))
        by_file: dict[Path, list[pytest.Item]] = defaultdict(list)
        for item in items.values():
            by_file[item.path].append(item)
        jobs = []
        answers = {}
        for path, group in by_file.items():
            names = hashlib.sha256("\n".join(item.nodeid for item in group).encode()).hexdigest()
            answers[path] = self._cache / f"{path.stem}-{_digest([path])}{package}{names[:8]}.json"
            if not answers[path].exists():
                jobs.append((path, lambda group=group, path=path: _traced(group, answers[path], self._root), 900.0))
        for path, code in _in_parallel(jobs, self._jobs, time.monotonic() + 3600):
            if code:
                print(f"{path}: tests could not be traced (exit code {code})")
        for answer in answers.values():
            if answer.exists():
                self._read(json.loads(answer.read_text()))

    def _read(self, answer: dict[str, Any]) -> None:
        self._seconds |= answer["seconds"]
        for path, lines in answer["reached"].items():
            for line, names in lines.items():
                self._reached[path][int(line)] += names


class _Plugin:
    """Replaces pytest's loop over the tests; notes failures."""

    def __init__(self, loop: Callable[[pytest.Session], None]) -> None:
        self._loop, self.ran = loop, False

    def pytest_configure(self) -> None:
        import hypothesis  # after pytest has seen it as a plugin

        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # a failure need not be made smaller
        hypothesis.settings.register_profile("mutation", parent=hypothesis.settings(), phases=phases)
        hypothesis.settings.load_profile("mutation")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.ran = True
        self._loop(session)
        return True


def _run(
    items: Sequence[pytest.Item], around: Callable[[pytest.Item], contextlib.AbstractContextManager[None]] | None = None
) -> int:
    """Run the tests in this process, with an own folder for their files; 1 at the first failure."""
    config = items[0].config
    failures = _Failures()
    config.pluginmanager.register(failures)
    folder = Path(tempfile.mkdtemp(prefix="mutation"))
    vars(config._tmp_path_factory)["_basetemp"] = folder  # type: ignore[attr-defined]
    try:
        for item, following in zip(items, [*items[1:], None], strict=True):
            with around(item) if around else contextlib.nullcontext():
                config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if failures.failed and not around:
                return 1
        return 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Failures:
    def __init__(self) -> None:
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)


def _traced(items: Sequence[pytest.Item], answer: Path, root: Path) -> int:
    import coverage

    seconds: dict[str, float] = {}
    tracer = coverage.Coverage(data_file=None, config_file=False, include=[f"{root}/mlimages/*"])
    failures = _Failures()
    items[0].config.pluginmanager.register(failures)

    @contextlib.contextmanager
    def timed(item: pytest.Item) -> Iterator[None]:
        tracer.switch_context(item.nodeid)
        start = time.process_time()
        yield
        seconds[item.nodeid] = time.process_time() - start

    tracer.start()
    _run(items, timed)
    tracer.stop()
    data = tracer.get_data()
    good = seconds.keys() - failures.failed
    reached = {
        Path(file).relative_to(root).as_posix(): {
            line: [name for name in names if name in good] for line, names in data.contexts_by_lineno(file).items()
        }
        for file in data.measured_files()
    }
    if failures.failed:
        print("fails without a mutant:", *sorted(failures.failed))
    part = answer.with_suffix(".part")
    part.write_text(json.dumps({"seconds": {name: seconds[name] for name in good}, "reached": reached}))
    part.replace(answer)
    return 0


def _in_parallel(
    jobs: Sequence[tuple[Any, Callable[[], int], float]], processes: int, deadline: float
) -> Iterator[tuple[Any, int]]:
    """Run each job in a forked process and yield its key and exit code; kill it beyond its limit."""
    waiting, running = list(reversed(jobs)), {}
    while running or (waiting and time.monotonic() < deadline):
        while waiting and len(running) < processes and time.monotonic() < deadline:
            key, work, limit_s = waiting.pop()
            running[_forked(work, limit_s)] = (key, time.monotonic() + 3 * limit_s)
        for pid, (key, end) in list(running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del running[pid]
                yield key, os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                os.killpg(pid, signal.SIGKILL)
        time.sleep(0.005)


def _forked(work: Callable[[], int], limit_s: float) -> int:
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit_s) + 1, int(limit_s) + 2))
        with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
            code = work()
    finally:
        os._exit(code)


def _tests_of(root: Path, paths: Sequence[str]) -> list[str]:
    """The folders of tests that mirror the packages."""
    folders = {root / "tests" / Path(path).parts[1] for path in paths}
    return sorted(str(folder.relative_to(root)) for folder in folders if folder.is_dir())


def _digest(paths: Sequence[Path]) -> str:
    found = hashlib.sha256()
    for path in paths:
        found.update(path.read_bytes())
    return found.hexdigest()[:16]
