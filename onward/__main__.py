"""`python -m onward`, and the command `onward`."""

from __future__ import annotations

from onward.cli.main import main
from onward.system.threads import run_to_its_end


def console() -> None:
    """Run the command line as a process of its own, which ends when it has done its work."""
    run_to_its_end(lambda: main(prog_name="onward"))


if __name__ == "__main__":
    console()
