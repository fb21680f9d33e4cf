"""This process among those that train with it; alone it costs nothing.

Rank 0 leads: it alone speaks to MLflow and writes checkpoints. What it knows the others hear by a
store of torch's, on which they can wait for minutes and be asked to stop meanwhile. What all bring
together goes by collectives of a group of its own, on the CPU.

IMPORTANT: only the training thread calls what is a collective. One of another thread that comes
between takes the others' numbers for its own, and nothing tells.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import gc
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onward.errors import RankLost, RankStopped, TrainError, UsageError
from onward.system import processes
from onward.system.environment import Ranks
from onward.system.threads import bounded
from onward.words.language import _
from onward.world.board import Board
from onward.world.lives import Lives
from onward.world.packed import packed, unpacked

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.02  # between two looks at the store
ANSWER_SECONDS = 1.0  # in which a rank that lives tells so, after another is lost
LOST_SECONDS = 5.0  # in which the store tells who is lost
CHUNK_BYTES = 1 << 28  # of a state that is sent
TIMEOUT_SECONDS = 600.0  # for which ranks wait for one another; `open` may have another
# In what collectives raise, also those of the training itself, where a rank is gone.
_LOST = re.compile(r"[Cc]onnection (closed|reset|refused)|[Tt]imed out|[Tt]imeout|gloo|NCCL")
_WHERE = re.compile(r"^\[[^]]*\] ?")  # in torch's own code


class World:
    """The ranks of a training.

    Args:
        ranks: What the environment says of them.

    Attributes:
        rank: The number of this process.
        size: How many there are.
        leads_host: Whether it is the first on its machine.
        host_ranks: Those that it leads there; none where it does not.
        lives: By which a later life of them knows the run of this one.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self._ranks = ranks or Ranks()
        self.rank, self.size = self._ranks.rank, self._ranks.size
        self.leads_host = self._ranks.local_rank == 0
        num_here = self._ranks.local_size if self.leads_host else 0
        self.host_ranks = range(self.rank, self.rank + num_here)
        self._store: Any = None  # of this life
        self.lives = Lives(self._ranks)
        self._group: Any = None
        self._timeout = TIMEOUT_SECONDS
        self._told: dict[str, int] = {}  # how often each name was

    @property
    def is_alone(self) -> bool:
        """Whether there is no other rank."""
        return self.size == 1

    @property
    def is_leader(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def has_agent(self) -> bool:
        """Whether an agent sends signals to all ranks, perhaps more than once."""
        return self._ranks.has_agent

    # Before there is a group.

    def open(self) -> None:
        """Find the store; `connect` follows once rank 0 has something to go on with."""
        if self.has_agent:
            processes.stop_with_parent()
        if self.is_alone:
            return
        import torch.distributed as dist
        from torch.distributed import distributed_c10d
        from torch.distributed.rendezvous import rendezvous

        if dist.is_initialized():
            if (dist.get_rank(), dist.get_world_size()) != (self.rank, self.size):
                told = _("torch.distributed has {size} ranks, and WORLD_SIZE is {number}")
                raise UsageError(told.format(size=dist.get_world_size(), number=self.size))
            lasting = distributed_c10d._get_default_store()
        else:
            timeout = datetime.timedelta(seconds=self._timeout)
            lasting = next(rendezvous("env://", self.rank, self.size, timeout=timeout))[0]
        # Of this life: the agent's store outlives its workers, and what they said is past.
        self._store = distributed_c10d.PrefixStore(f"onward/{self._ranks.life}", lasting)
        self.lives.store = lasting

    def connect(self, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        """Make the group, once every rank has come so far.

        Args:
            timeout_seconds: How long ranks wait for one another from here on.

        Raises: `RankStopped` where a rank could not come so far, `RankLost` where one is gone.
        """
        self._timeout = timeout_seconds
        if self.is_alone:
            return
        # Where they can be stopped, which they cannot as a group is made.
        self.board.post(f"ready/{self.rank}")
        self.wait_for_all("ready")
        import torch
        import torch.distributed as dist
        from torch.distributed import distributed_c10d

        timeout = datetime.timedelta(seconds=timeout_seconds)
        atexit.register(_leave, None)
        with self._together():
            if dist.is_initialized():
                # The training's own: what waits for a frozen rank is mostly a gradient.
                distributed_c10d._set_pg_timeout(timeout, distributed_c10d._get_default_group())
                self._group = dist.new_group(backend="gloo", timeout=timeout)
                return
            if has_gpus := torch.cuda.is_available():
                torch.cuda.set_device(self._ranks.local_rank)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if has_gpus else "gloo",
                store=distributed_c10d.PrefixStore("group", self._store), rank=self.rank,
                world_size=self.size, timeout=timeout,
            )  # fmt: skip
            self._group = dist.group.WORLD

    def wait_for_all(self, name: str) -> list[str]:
        """Return the notes of that name of all other ranks; raise if one of them ends."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        names = [f"{name}/{rank}" for rank in others]
        while not self.board.has(*names):
            for rank in others:
                if self.board.has(f"ended/{rank}"):
                    raise self._ended(rank)
            time.sleep(LOOK_SECONDS)
        return [self.board.read(name) or "" for name in names]

    def from_leader(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what rank 0 makes, as JSON has it; the others wait for it.

        Raises:
            RankStopped: Rank 0 could not: it says why.
        """
        if self.is_alone:
            return make()
        if not self.is_leader:
            return self.hear(name)
        try:
            value = make()
        except BaseException as error:  # whatever it is, the others wait
            code = getattr(error, "exit_code", 75 if isinstance(error, KeyboardInterrupt) else 1)
            self._say_at_last(self._numbered(name), {"error": str(error), "code": code})
            self._wait_until_heard()
            raise
        self.tell(name, value)
        return value

    def tell(self, name: str, value: Any) -> None:
        """Let the other ranks hear a value, as JSON has it."""
        if not self.is_alone:
            self.board.post(self._numbered(name), json.dumps({"value": value}))

    def hear(self, name: str) -> Any:
        """Wait for what rank 0 tells by that name, for as long as it takes; return it.

        Raises: `RankStopped` where rank 0 could not, `RankLost` where its store is gone.
        """
        key = self._numbered(name)
        while (told := self.board.read(key)) is None:
            time.sleep(LOOK_SECONDS)
        document = json.loads(told)
        if "error" in document:
            self.board.post(f"heard/{self.rank}")
            raise RankStopped(0, document["error"], document["code"])
        return document["value"]

    def _wait_until_heard(self) -> None:
        """Let the others hear of an error before the store may end with this process."""
        ends, keys = time.monotonic() + ANSWER_SECONDS, [f"heard/{r}" for r in range(1, self.size)]
        with contextlib.suppress(RankLost):
            while not self.board.within(LOST_SECONDS).has(*keys) and time.monotonic() < ends:
                time.sleep(LOOK_SECONDS)

    def _numbered(self, name: str) -> str:
        """Return the key for the next value of that name."""
        number = self._told[name] = self._told.get(name, 0) + 1
        return f"{name}/{number}"

    @property
    def board(self) -> Board:
        """What ranks can leave notes on, from any thread."""
        return Board(self._store, self._timeout)

    # Collectives: of the training thread only.

    def agree(self, values: Sequence[float]) -> list[float]:
        """Return the largest of what each rank gives, one by one.

        Raises:
            RankLost: A rank died, or does not answer.
        """
        if self.is_alone:
            return list(values)
        import torch
        import torch.distributed as dist

        agreed = torch.tensor(values, dtype=torch.float64)
        with self._together():
            dist.all_reduce(agreed, dist.ReduceOp.MAX, group=self._group)
        return agreed.tolist()

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all ranks, added in their order: the same on each, to the bit."""
        if self.is_alone:
            return list(values)
        import torch
        import torch.distributed as dist

        mine = torch.tensor(values, dtype=torch.float64)
        everybodys = [torch.empty_like(mine) for _rank in range(self.size)]
        with self._together():
            dist.all_gather(everybodys, mine, group=self._group)
        return [math.fsum(column) for column in zip(*(t.tolist() for t in everybodys), strict=True)]

    def add_from(self, tensor: torch.Tensor, partner: int) -> None:
        """Add a rank's tensor to this one's, and the other way round; on the CPU."""
        import torch
        import torch.distributed as dist

        theirs = torch.empty_like(tensor)
        with self._together():
            ways = [
                dist.P2POp(dist.isend, tensor, partner, self._group),
                dist.P2POp(dist.irecv, theirs, partner, self._group),
            ]
            for work in dist.batch_isend_irecv(ways):
                work.wait()
        tensor += theirs

    def gather(self, state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Return what each rank gives, tensors and builtins, on rank 0; elsewhere nothing."""
        if self.is_alone:
            return [state]
        import torch
        import torch.distributed as dist

        mine = packed(state)
        with self._together():
            sizes = [torch.zeros(1, dtype=torch.int64) for _rank in range(self.size)]
            dist.all_gather(sizes, torch.tensor([len(mine)]), group=self._group)
            padded = torch.zeros(int(max(sizes)), dtype=torch.uint8)
            padded[: len(mine)] = mine
            places = [torch.empty_like(padded) for _rank in range(self.size)]
            dist.gather(padded, places if self.is_leader else None, 0, group=self._group)
        if not self.is_leader:
            return []
        return [unpacked(place[: int(n)]) for place, n in zip(places, sizes, strict=True)]

    def broadcast(self, state: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Return what rank 0 gives: tensors and builtins."""
        if self.is_alone:
            return state
        import torch
        import torch.distributed as dist

        sent = packed({"": state}) if self.is_leader else torch.empty(0, dtype=torch.uint8)
        size = torch.tensor([len(sent)])
        with self._together():
            dist.broadcast(size, 0, group=self._group)
            if not self.is_leader:
                sent = torch.empty(int(size), dtype=torch.uint8)
            for chunk in sent.split(CHUNK_BYTES):
                dist.broadcast(chunk, 0, group=self._group)
        found: Mapping[str, Any] | None = state if self.is_leader else unpacked(sent)[""]
        return found

    # How it ends.

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise self._lost(error) from error

    def blame(self, error: BaseException | None) -> TrainError | None:
        """Return which rank an error comes from that looks as if one is lost; None: from none."""
        if self.is_alone or not isinstance(error, RuntimeError) or not _LOST.search(str(error)):
            return None
        return self._lost(error)

    def _lost(self, error: BaseException) -> TrainError:
        reason = _WHERE.sub("", " ".join(str(error).split())).partition(". ")[0][:200]
        found: list[TrainError] = []

        def look() -> None:
            for rank in range(self.size):
                if rank != self.rank and self._store.check([f"ended/{rank}"]):
                    found.append(self._ended(rank))
                    return
            found.append(RankLost(self._silent(), reason))

        # The store may be gone, or beyond a link that was cut: then it never answers.
        with contextlib.suppress(RuntimeError):
            bounded(look, LOST_SECONDS)
        return found[0] if found else RankLost([] if self.is_leader else [0], reason)

    def _ended(self, rank: int) -> RankStopped:
        ended = json.loads(self._store.get(f"ended/{rank}"))
        told = ended["error"] or _("its loop has fewer steps than that of others")
        return RankStopped(rank, told, ended["code"] or 1)

    def _silent(self) -> list[int]:
        """Return the ranks that do not tell that they live."""
        self._store.set(f"alive/{self.rank}", "")
        missing = set(range(self.size)) - {self.rank}
        ends = time.monotonic() + ANSWER_SECONDS
        while missing and time.monotonic() < ends:
            missing = {rank for rank in missing if not self._store.check([f"alive/{rank}"])}
            time.sleep(LOOK_SECONDS)
        return sorted(missing)

    def end(self, error: BaseException | None) -> None:
        """Say how this rank ends, and after an error let go those that wait for it."""
        if isinstance(error, RankLost | RankStopped):
            # Whoever starts all anew waits for this process: to free all else takes it a second.
            atexit.register(gc.freeze)
        else:
            self._say_end(error)
        if error is not None:
            self.close()

    def _say_end(self, error: BaseException | None) -> None:
        document = {"error": "", "code": 0}
        if error is not None:
            told = str(error) or type(error).__name__
            if not isinstance(error, TrainError):
                told = f"{type(error).__name__}: {told}"
            document = {"error": told[:500], "code": getattr(error, "exit_code", 1)}
        self._say_at_last(f"ended/{self.rank}", document)

    def _say_at_last(self, name: str, document: Mapping[str, Any]) -> None:
        """Leave a note on the way out; where the store is gone, so is whoever would read it."""
        if self._store is not None:
            with contextlib.suppress(RankLost):
                self.board.within(LOST_SECONDS).post(name, json.dumps(document))

    def wait_for_leader(self, seconds_left: Callable[[], float]) -> None:
        """Let rank 0 end first: an agent ends the others with the first that fails."""
        with contextlib.suppress(RankLost):
            while (left := min(seconds_left(), self._timeout)) > 0:
                if self.board.within(left).has("closed"):
                    return
                time.sleep(LOOK_SECONDS)

    def closed(self) -> None:
        """Say that rank 0 has closed the run."""
        if self.is_leader:
            self._say_at_last("closed", {})

    def close(self) -> None:
        """Leave the group; one that the training has made for itself stays."""
        if self._group is not None:
            _leave(self._group)
        self._group = None


ALONE = World()


def _leave(group: Any) -> None:
    """Leave a group, None: all of them. A process that ends with one open may end by a signal."""
    import torch.distributed as dist

    if dist.is_initialized():
        with contextlib.suppress(RuntimeError, ValueError, AssertionError):
            dist.destroy_process_group(group)
