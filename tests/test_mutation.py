"""`scripts/mutate` prints what tests do not notice."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "mutation"
MODULE = """
LIMIT = 3

class Box:
    def __init__(self, size: int = 2) -> None:
        self.size = size

    @property
    def is_small(self) -> bool:
        return self.size < LIMIT

def unreached(n: int) -> None:
    print(n)
"""
TESTS = """
from mlimages.labels.edges import Box

def test_sizes_far_from_the_limit():
    assert Box().is_small and Box().size == 2
    assert not Box(9).is_small
"""
SURVIVORS = """\
mlimages/labels/edges.py:10 Box.is_small: self.size < LIMIT -> self.size <= LIMIT
mlimages/labels/edges.py:13 unreached: print(n) -> pass  (no test reaches it)

module                                       mutants killed equivalent  score
mlimages/labels/edges.py                           8      5          1    71%
"""


def test_a_change_lives_unless_a_test_fails_or_it_is_known_to_change_nothing(tmp_path: Path) -> None:
    for path, text in {
        "mlimages/__init__.py": "",
        "mlimages/labels/__init__.py": "",
        "mlimages/labels/edges.py": MODULE,
        "tests/labels/test_edges.py": TESTS,
        "tests/mutants.txt": "mlimages/labels/edges.py module: 3 -> 4  # no size is 3",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    command = [sys.executable, SCRIPT, "labels/edges", "--count", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == (SURVIVORS, 1), done.stderr
