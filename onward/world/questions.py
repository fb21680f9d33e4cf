"""What rank 0 asks of the others while it opens a run: what only their machines can tell, or do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from onward.world.world import World

OPENED = "opened"  # by which rank 0 tells what came of it
_NUMBER = "question"


class Questions:
    """The questions of rank 0, each of which all others answer before the next.

    Args:
        world: The ranks.
    """

    def __init__(self, world: World) -> None:
        self._world, self._number = world, 0

    def ask(
        self, question: Mapping[str, Any], meanwhile: Callable[[], object] = lambda: None
    ) -> list[Any]:
        """Return what the others answer, as JSON has it; alone nobody does.

        Args:
            question: What they are asked.
            meanwhile: What rank 0 does until they answer.

        Raises:
            RankStopped: One of them has ended.
        """
        self._number += 1
        self._world.tell(OPENED, {_NUMBER: self._number, **question})
        meanwhile()
        if self._world.is_alone:
            return []
        return [json.loads(text) for text in self._world.wait_for_all(f"answer/{self._number}")]

    def answer(self, reply: Callable[[Mapping[str, Any]], Any]) -> Any:
        """Answer what rank 0 asks until it has opened the run; return what it tells then.

        Raises:
            RankStopped: It could not.
        """
        world = self._world
        while _NUMBER in (told := world.hear(OPENED)):
            world.board.post(f"answer/{told[_NUMBER]}/{world.rank}", json.dumps(reply(told)))
        return told
