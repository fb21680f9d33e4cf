"""`python -m train`, and the command `train`."""

from __future__ import annotations

from onward.system.threads import END_SECONDS, end_within
from train.cli import main


def console() -> None:
    """Run the command line as a process of its own, which ends when it has done its work."""
    code: object = 1  # of a traceback
    try:
        main(prog_name="train")
        code = 0
    except SystemExit as end:
        code = end.code
        raise
    finally:
        end_within(END_SECONDS, code)


if __name__ == "__main__":
    console()
