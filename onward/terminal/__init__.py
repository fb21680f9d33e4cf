"""What a terminal shows: log lines, bars."""

import random

_state = random.getstate()
import rich.style  # noqa: E402 - it draws a number, and a script may have seeded them by now

random.setstate(_state)
del random, rich, _state
