"""`python -m train`, and the command `train`."""

from __future__ import annotations

from onward.system.threads import run_to_its_end
from train.cli import main


def console() -> None:
    """Run the command line as a process of its own, which ends when it has done its work."""
    run_to_its_end(lambda: main(prog_name="train"))


if __name__ == "__main__":
    console()
