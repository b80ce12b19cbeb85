"""Run Python in a process without root's right to read and write everything."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def run_without_override(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS...` in `folder` without root's right to read and write everything."""
    as_others: list[str] = []
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("there is no setpriv to give up root's right to read and write everything")
        as_others = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    command = [*as_others, sys.executable, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
