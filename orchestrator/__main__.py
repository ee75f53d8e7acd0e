"""``python -m orchestrator``: the same as the console script.

``python -m`` puts the working directory before the libraries: a user's own ``mlflow.py`` or
``json.py`` would be imported instead of the library. ``PYTHONPATH`` still counts.
"""

import os
import sys


def main() -> None:
    """Entry point of both. Ctrl-C while modules are still imported ends as it does later."""
    try:
        from orchestrator.cli.main import main as carry_out
    except KeyboardInterrupt:
        sys.exit(130)
    carry_out()


if __name__ == "__main__":
    here, package = os.getcwd(), os.path.dirname(os.path.abspath(__file__))  # noqa: PTH109, PTH100, PTH120
    if sys.path and sys.path[0] in ("", here) and not sys.flags.safe_path:
        del sys.path[0]
        if os.path.dirname(package) == here and here not in sys.path:  # noqa: PTH120
            sys.path.append(here)  # a checkout that is not installed, after the libraries
    main()
