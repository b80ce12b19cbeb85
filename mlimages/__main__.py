"""The command `mlimages`, and `python -m mlimages`."""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line; Ctrl-C while its modules are imported ends the program without a traceback."""
    try:
        from mlimages.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("mlimages: interrupted\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
