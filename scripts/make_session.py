"""Draw examples/session.svg, the README's image: a session in a terminal, given on standard input.

Usage: python scripts/make_session.py <session.txt
"""

import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

TARGET = Path(__file__).parents[1] / "examples" / "session.svg"


def main() -> None:
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=80, file=nowhere)
        for line in sys.stdin.read().splitlines():
            console.print(Text(line, style="bold green" if line.startswith("$ ") else ""))
    svg = console.export_svg(title="mlimages")
    TARGET.write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL))  # nothing is fetched to show it


if __name__ == "__main__":
    main()
