"""`python -m train`, and the command `train`."""

from __future__ import annotations

from train.cli import main
from train.threads import END_SECONDS, end_within


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
