"""Mutation testing: `scripts/mutate [MODULE...] [--since REV] [--all] [--seed N] [--count N] [--tests PATH]`.

1. pytest collects the tests of the modules' packages once, in this process; nothing runs in it.
2. One forked process per test file runs it under `coverage`: which test reaches which line, in how many seconds. The
   answer is kept in build/mutation until the package or the file changes.
3. One forked process per mutant changes the module and runs the tests that reach its line, cheapest first, to the
   first failure.
"""

import argparse
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from mutants import Mutant, mutants_of

ROOT = Path.cwd()
EQUIVALENT = ROOT / "tests" / "mutants.txt"
PURE = {
    "labels": ["splitting", "label_file", "tables", "table_columns", "formats", "folders", "scanning"],
    "gathering/store": ["merge_manifests", "file_names"],
    "gathering/download": ["host_limits", "host_state", "reasons", "address_guard"],
    "images": ["geometry", "decoding", "reading", "arrays"],
    "checks": ["rules", "near_duplicates", "leaks"],
    "training": ["head", "loop"],
    "networks": ["freezing"],
    "core": ["scores"],
    "inference": ["calibration", "bundle"],
    "serving": ["inference_protocol"],
}


def main() -> int:
    """Print what no test notices; exit with 1 if there is any."""
    options = _options()
    equivalent = _equivalent()
    chosen = [mutant for path in _modules(options) for mutant in _drawn(path, options)]
    if not chosen:
        print("nothing to change: name a module, or --since REV, or --all")
        return 0
    from runner import Runner  # pytest

    paths = sorted({mutant.path for mutant in chosen})
    runner = Runner(ROOT, paths, options.tests, jobs=options.jobs)
    survivors, killed, drawn = [], Counter[str](), Counter[str]()
    deadline = time.monotonic() + 60 * options.minutes
    random.Random(options.seed).shuffle(chosen)
    for mutant, verdict in runner.verdicts(chosen, deadline):
        drawn[mutant.path] += 1
        killed[mutant.path] += verdict == "killed"
        if verdict != "killed":
            survivors.append((mutant, verdict))
    shown = [(mutant, verdict) for mutant, verdict in survivors if mutant.key not in equivalent]
    for mutant, verdict in sorted(shown, key=lambda pair: (pair[0].path, pair[0].line)):
        print(
            f"{mutant.path}:{mutant.line} {mutant.function}: {mutant.text}"
            + ("" if verdict == "survived" else f"  ({verdict})")
        )
    print(f"\n{'module':44} mutants killed equivalent  score")
    for path in paths:
        excepted = sum(mutant.path == path and mutant.key in equivalent for mutant, _ in survivors)
        score = killed[path] / max(1, drawn[path] - excepted)
        print(f"{path:44} {drawn[path]:7} {killed[path]:6} {excepted:10}  {score:5.0%}")
    if late := len(chosen) - sum(drawn.values()):
        print(f"{late} mutants were not tried within {options.minutes:g} minutes")
    return 1 if shown else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/mutate", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", help="for example mlimages/labels/splitting.py or labels/splitting")
    parser.add_argument("--since", metavar="REV", help="only lines that changed since this revision")
    parser.add_argument("--all", action="store_true", help="all modules that need neither files nor a network")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the mutants drawn (0)")
    parser.add_argument("--count", type=int, default=60, help="mutants drawn per module, 0 for all (60)")
    parser.add_argument("--minutes", type=float, help="stop after this time (3 with --since, else 15)")
    parser.add_argument("--tests", action="append", help="test files or folders in place of those of the packages")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    options = parser.parse_args()
    options.minutes = options.minutes or (3 if options.since else 15)
    return options


def _modules(options: argparse.Namespace) -> list[Path]:
    names = [
        *options.modules,
        *([f"{package}/{name}" for package, group in PURE.items() for name in group] if options.all else []),
    ]
    if options.since and not names:
        changed = _git("diff", "--name-only", "--diff-filter=d", options.since, "--", "mlimages/*.py")
        return [ROOT / name for name in changed.split()]
    paths = [ROOT / "mlimages" / name.removeprefix("mlimages/") for name in names]
    return [path if path.suffix == ".py" else path.with_name(f"{path.name}.py") for path in paths]


def _drawn(path: Path, options: argparse.Namespace) -> list[Mutant]:
    found = mutants_of(path, ROOT)
    if options.since:
        lines = _changed_lines(path, options.since)
        found = [mutant for mutant in found if mutant.line in lines]
    count = options.count or len(found)
    return random.Random(f"{options.seed} {path.name}").sample(found, min(count, len(found)))


def _changed_lines(path: Path, revision: str) -> set[int]:
    lines: set[int] = set()
    for start, count in re.findall(
        r"^@@ \S+ \+(\d+)(?:,(\d+))? @@", _git("diff", "-U0", revision, "--", str(path)), re.MULTILINE
    ):
        lines |= set(range(int(start), int(start) + int(count or 1)))
    return lines


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _equivalent() -> set[str]:
    """The mutants that change nothing, by key; each line also says why."""
    if not EQUIVALENT.exists():
        return set()
    return {line.partition("  # ")[0] for line in EQUIVALENT.read_text().splitlines() if "  # " in line}


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
