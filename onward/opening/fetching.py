"""Getting a checkpoint of sharded weights onto the machines that go on from it.

Each machine downloads what its ranks are to hold, and verifies it: together all of it, each file
once. So the newest good one is found as by a single process, and no machine holds all of it. What
is in `checkpoint.pth` beside the pieces goes from rank 0 to the others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from onward.checkpoint.artifacts import Artifacts
from onward.checkpoint.content import Content
from onward.checkpoint.format import load_content
from onward.checkpoint.host_files import HostFiles
from onward.checkpoint.manifest import Manifest
from onward.errors import CheckpointDamaged, StoreUnavailable
from onward.system import environment
from onward.terminal.progress import show_transfer
from onward.words.language import _
from onward.world import World
from onward.world.questions import Questions

_DAMAGED, _UNAVAILABLE = "damaged", "unavailable"

OpenArtifacts = Callable[[], Artifacts]


def get_apart(
    manifest: Manifest, artifacts: Artifacts, world: World, questions: Questions
) -> Content:
    """Return what rank 0 needs of a checkpoint, once all machines have verified their parts.

    Args:
        manifest: What was committed, with files of ranks.
        artifacts: The run's files.
        world: The ranks.
        questions: By which the others hear of it.

    Returns:
        The content, with a marker for each tensor that is spread.

    Raises:
        CheckpointDamaged: Some file is not what the manifest says.
        StoreUnavailable: The store does not answer, here or elsewhere.
    """
    files = host_files(manifest, lambda: artifacts)
    told: list[Any] = []

    def fetch_here() -> None:
        files.keep()
        own = [e for e in manifest.files if e not in manifest.shard_files]
        shards = files.of_ranks(world.host_ranks, world.size)
        title = _("Downloading {title}").format(title=manifest.name)
        total = sum(e.bytes for e in (*own, *shards))
        with show_transfer(title, total, files.moved.num_bytes):
            files.fetch_all(own)
            told.append(_fetch(files, world))

    question = {"fetch": manifest.to_dict(), "name": manifest.name, "uri": artifacts.uri}
    told += questions.ask(question, fetch_here)
    for error in filter(None, told):
        kind, found = error
        is_damage = kind == _DAMAGED
        raise CheckpointDamaged(manifest.name, found) if is_damage else StoreUnavailable(found)
    content = load_content(files.folder, manifest, manifest.name, is_whole=False)
    files.shards().require(content.parts)
    return content


def host_files(manifest: Manifest, open_artifacts: OpenArtifacts) -> HostFiles:
    """Return the files of a checkpoint on this machine."""
    return HostFiles(environment.home(), manifest, open_artifacts)


def fetch_asked(
    question: Mapping[str, Any], open_files: Callable[[str], Artifacts], world: World
) -> Any:
    """Answer on another rank what `get_apart` asks: None, or what is wrong, and in words."""
    manifest = Manifest.from_dict(question["fetch"], question["name"])
    files = host_files(manifest, functools.partial(open_files, question["uri"]))
    try:
        files.keep()
    except OSError as error:
        return [_UNAVAILABLE, str(error)]
    return _fetch(files, world)


def _fetch(files: HostFiles, world: World) -> list[str] | None:
    """Fetch what the ranks of this machine are to read, where this rank is the first of them."""
    try:
        files.fetch_all(files.of_ranks(world.host_ranks, world.size))
    except CheckpointDamaged as error:
        return [_DAMAGED, error.found]
    except OSError as error:
        return [_UNAVAILABLE, str(error)]
    return None
