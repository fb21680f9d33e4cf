"""Opening a run by all ranks: rank 0 opens it, the others hear what came of it."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onward.attempts.last_word import status_after
from onward.checkpoint.bringing import rank_folder
from onward.checkpoint.content import Content
from onward.checkpoint.manifest import Manifest
from onward.checkpoint.others import Bringer, ask_for_lease
from onward.checkpoint.spool import RunFolder
from onward.metrics import History
from onward.opening import open as opening
from onward.opening.begin import fresh_start, rank_files, start_from
from onward.opening.fetching import fetch_asked, host_files
from onward.opening.finishing import bring_waiting
from onward.options.request import Launch
from onward.options.run_options import RunOptions
from onward.run import signals
from onward.run.following import Followed, Following, RankPipeline
from onward.run.lifecycle import Lifecycle
from onward.run.run import Run
from onward.run.subject import NO_FILES, Kind, Stored
from onward.system import environment
from onward.system.allocator import keep_freed_memory
from onward.system.files import atomic_write, read_plain
from onward.system.untrusted import path_part
from onward.terminal.report import Reporter
from onward.tracking.connect import open_files, prepare
from onward.words.language import _
from onward.world import World
from onward.world.questions import OPENED, Questions

log = logging.getLogger(__name__)

_MARKER_FILE = "marker.txt"  # by which other ranks know whether they have the disk of rank 0


def open_run(
    kind: Kind,
    given: Mapping[str, Any],
    launch: Launch,
    reporter: Reporter,
    world: World,
) -> Run:
    """Open the run that a command asks for, on every rank.

    Only rank 0 speaks to MLflow, before there is a group whose time could run out. The checkpoint
    that is gone on from it sends to the others: it is downloaded once. Of weights that are sharded
    each rank reads its own.

    Args:
        kind: What is to be trained.
        given: The options of the run that were given, and only those.
        launch: What to go on from; where the ranks were started anew, the run that they had.
        reporter: What the terminal shows; that of other ranks than 0 shows nothing.
        world: The ranks.

    Raises:
        RankStopped: Rank 0 could not open it.
        TrainError: Another of its kinds, on rank 0.
    """
    world.open()
    if not world.is_leader:
        try:
            run = _follow(kind, reporter, world)
            _get_ready()
            return run
        except BaseException as error:  # whatever it is, the others wait for this rank
            world.end(error)
            raise
    opened: Run | None = None

    def lead() -> Mapping[str, Any]:
        nonlocal opened
        opened = opening.open_run(kind, given, _gone_on(launch, world), reporter, world)
        world.lives.remember(opened.run_id, 0)
        return _facts(opened)

    try:
        world.from_leader(OPENED, lead)
        assert opened is not None
        if not world.is_alone:
            _connect(world, opened.options)
            content = opened.start.content
            world.broadcast(None if content is None else content.to_dict())
        _get_ready()
        return opened
    except BaseException as error:  # such as a signal: the run must not stay RUNNING
        if opened is not None:
            opened.life.abandon(status_after(error))
            world.end(error)
        raise


def _get_ready() -> None:
    """Prepare this process for training, which begins as the run is entered."""
    keep_freed_memory()
    signals.hold()


def _gone_on(launch: Launch, world: World) -> Launch:
    """Return what to go on from: in a later life of the ranks, the run that they had."""
    run_id = world.lives.run_id()
    if run_id is None:
        return launch
    log.info(_("Going on with run '%s', which this job has begun"), run_id)
    return dataclasses.replace(
        launch, resume_run=run_id, resume_epoch=None, resume_from=None, fork=False
    )


def _connect(world: World, options: RunOptions) -> None:
    world.connect(60 * options.rank_minutes)


def _facts(run: Run) -> dict[str, Any]:
    """Return what the other ranks need to know of a run."""
    attempt, files = run.attempt, run.start.files
    assert isinstance(run.life, Lifecycle)
    marker = secrets.token_hex(16)
    atomic_write(run.life.folder / _MARKER_FILE, lambda file: file.write(marker.encode()))
    return {
        "run_id": run.run_id,
        "attempt": attempt.number,
        "first_epoch": attempt.first_epoch,
        "link": attempt.link,
        "unit": attempt.unit,
        "data_fingerprint": run.subject.data_fingerprint,
        "options": json.dumps(run.options.to_dict()),
        "folder": str(run.life.folder),
        "marker": marker,
        "artifact_uri": run.life.artifact_uri,
        "checkpoint": None if files is None else [files.manifest.name, files.manifest.to_dict()],
    }


def _sees(folder: Path, marker: str) -> bool:
    """Tell whether this rank has the TRAIN_HOME of rank 0, and not just a folder of that name."""
    if not folder.resolve().is_relative_to(environment.home().resolve()):
        return False
    try:
        return read_plain(folder / _MARKER_FILE, 100) == marker.encode()
    except (OSError, ValueError):
        return False


def _own_folder(run_id: str) -> RunFolder:
    """Return the folder for the run on the disk of this rank."""
    uri, _calls = prepare()
    return RunFolder(environment.run_folder(uri, path_part(run_id, "run_id")))


def _reply(question: Mapping[str, Any], world: World) -> Any:
    """Do what rank 0 asks while it opens the run: one rank of each other machine does."""
    if not world.leads_host:
        return None
    if "fetch" in question:
        return fetch_asked(question, open_files, world)
    folder = _own_folder(question["run_id"])
    try:
        files = open_files(question["uri"])
        check_lease = functools.partial(ask_for_lease, world, threading.Event())
        bring_waiting(folder, question["attempt"], files, question["bring"], check_lease)
    except OSError as error:  # rank 0 sees what is not there
        log.warning("%s", error)
    return None


def _follow(kind: Kind, reporter: Reporter, world: World) -> Run:
    """Return the run of another rank than 0.

    What it trains on is where rank 0 has put it on this machine, or is made anew.
    """
    told = Questions(world).answer(lambda question: _reply(question, world))
    options = kind.declared.from_dict(json.loads(told["options"]))
    number, host = told["attempt"], None
    is_shared = _sees(Path(told["folder"]), told["marker"])
    folder = Path(told["folder"])
    if not is_shared:
        host = _own_folder(told["run_id"])
        folder = host.spool(number).folder
    log_file = folder / f"attempt_{number}_rank_{world.rank}.log"
    reporter.log_to(log_file)
    world.board.post(f"apart/{world.rank}", "no" if is_shared else "yes")
    stored = Stored(told["run_id"], told["data_fingerprint"], options, NO_FILES)
    subject = kind.open(options, stored)
    _connect(world, options)
    document = world.broadcast(None)
    open_artifacts = functools.partial(open_files, told["artifact_uri"])
    start = fresh_start(subject)
    if document is not None:
        start = start_from(Content.from_dict(document), History())
    if told["checkpoint"] is not None:
        name, manifest = told["checkpoint"]
        files = host_files(Manifest.from_dict(manifest, name), open_artifacts)
        start = dataclasses.replace(start, files=files)
    attempt = Followed(
        told["run_id"], told["attempt"], told["first_epoch"], told["link"], told["unit"]
    )
    pieces = rank_files(folder, number, options, world)
    if host is None:
        pipeline = RankPipeline(pieces)
    else:
        bringer = Bringer(world, rank_folder(folder, world.rank), open_artifacts)
        pipeline = RankPipeline(pieces, bringer, options.upload == "off")
        if world.leads_host:
            host.acquire()
            host.clear_before(number)
    life = Following(options, pipeline, world, log_file, host)
    return Run(subject, attempt, pipeline, life, start, reporter, world)
