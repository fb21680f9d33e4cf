"""What several machines bring to a store, each in its time, becomes one checkpoint; or none."""

import dataclasses
import errno
import json
import threading
from types import SimpleNamespace

import pytest
import torch
from support import attempt_of, wait_for

from onward.checkpoint import listed
from onward.checkpoint.bringing import bring_part, parts_in, remove_part
from onward.checkpoint.format import write_checkpoint
from onward.checkpoint.index import Origin
from onward.checkpoint.manifest import MANIFEST_FILE
from onward.checkpoint.others import Bringer, Others
from onward.checkpoint.pieces import Marker, Piece, add_shard, write_shard
from onward.checkpoint.policy import Retention
from onward.checkpoint.spool import RunFolder
from onward.checkpoint.store import CheckpointStore
from onward.checkpoint.uploads import Uploads
from onward.errors import (
    CheckpointDamaged,
    CheckpointError,
    RankFilesMissing,
    RankLost,
    RunNotUsable,
    StoreUnavailable,
    Superseded,
    UnsafeFile,
)
from onward.opening import finishing
from onward.publish.publisher import Publisher
from onward.tracking.connect import open_files
from onward.world.board import Board

NAME, STEP = "epoch_3", 30


class Notes(dict):
    """A store of torch's, in one process."""

    gone = False

    def set(self, key, value):
        self._there()
        self[key] = value.encode()

    def get(self, key):
        return self[key]

    def check(self, keys):
        self._there()
        return all(key in self for key in keys)

    def add(self, key, number):
        self[key] = str(int(self.get(key) if key in self else 0) + number).encode()
        return int(self[key])

    def _there(self):
        if self.gone:
            raise RuntimeError("the connection is closed")


@dataclasses.dataclass
class Ranks:
    """Two ranks on machines of their own."""

    rank: int
    notes: Notes
    size: int = 2

    @property
    def board(self):
        return Board(self.notes, 60.0)


def piece(rank):
    tensor = torch.full((2, 3), float(rank))
    return Piece(key="w", shape=(4, 3), offset=(2 * rank, 0), tensor=tensor)


@pytest.fixture
def hosts(tmp_path):
    """Return this run's folder on the disks of two machines."""
    return [RunFolder(tmp_path / name) for name in "ab"]


@pytest.fixture
def write(hosts, make_checkpoint):
    """Return a function that writes what each of two ranks has; it returns rank 0's manifest."""

    def write(attempt=1, step=STEP):
        own = {"format_version": 3, "world": 2, "layout": "fsdp", "step": step}
        own["model_state_dict"] = {"w": Marker("w", "float32", (4, 3)).to_dict()}
        manifest = write_checkpoint(
            hosts[0].spool(attempt).path(NAME), make_checkpoint(3, **own), attempt=attempt,
            kept=True, metrics={},
            shard=lambda to: add_shard(to, Origin(0, 2, attempt, step), [piece(0)]),
        )  # fmt: skip
        part = hosts[1].spool(attempt).folder / "rank_1" / NAME
        write_shard(part, Origin(1, 2, attempt, step), [piece(1)])
        return manifest

    return write


@pytest.fixture
def store(artifacts):
    return CheckpointStore(artifacts, "r1")


def bring(store, hosts, attempt=1):
    """Bring what rank 1 has."""
    [(number, part)] = [found for found in parts_in(hosts[1]) if found[0] == attempt]
    assert number == attempt
    return bring_part(Uploads(store._artifacts), part, lambda: None)


def weight_of(store):
    [manifest] = store.list()
    return store.get(manifest).parts["model"]["w"][:, 0].tolist()


def test_the_draft_and_the_index_are_last(store, write, hosts, calls, one_at_a_time):
    """Whatever stops in between leaves nothing that could be taken for whole."""
    manifest = write()
    bring(store, hosts)
    sent = [name.rpartition("/")[2] for name in calls.names if name.startswith("upload")]
    assert sent == ["shard-00001-00000.pth", "shard-00001.json"]
    store.list()
    store.put(hosts[0].spool(1).path(NAME), manifest)
    sent = [name.rpartition("/")[2] for name in calls.names if name.startswith("upload")]
    assert sent[-3:] == ["shard-00000.json", "draft.json", "manifest.json"]
    assert weight_of(store) == [0, 0, 1, 1]


@pytest.mark.parametrize("is_first", [True, False])
def test_machines_bring_what_they_have_in_any_order(store, write, hosts, is_first):
    """By `sync` on each: the last one commits, and nothing that the other brought is cleared."""
    manifest, folder = write(), hosts[0].spool(1).path(NAME)
    if is_first:
        bring(store, hosts)
        store.list()
        store.put(folder, manifest)
        assert weight_of(store) == [0, 0, 1, 1]
        return
    with pytest.raises(RankFilesMissing, match="rank 1 for epoch_3 are not in the store"):
        store.put(folder, manifest)
    assert store.list() == []
    bring(store, hosts)
    [draft] = store.gathering.drafts([NAME])
    adopted = hosts[1].spool(1).path(NAME)
    whole = store.gathering.adopt(draft, adopted)
    store.put(adopted, whole)
    assert weight_of(store) == [0, 0, 1, 1]


def test_what_another_attempt_or_step_left_is_not_taken(store, write, hosts, artifacts):
    """An index is believed for the step and the attempt that it names."""
    write(attempt=1)
    bring(store, hosts)
    manifest = write(attempt=2)
    store.list()
    with pytest.raises(RankFilesMissing):
        store.put(hosts[0].spool(2).path(NAME), manifest)
    assert "shard-00001.json" not in artifacts.list(f"checkpoints/{NAME}")


@pytest.mark.parametrize("what", ["cut", "gone", "other"])
def test_what_is_not_as_its_index_says_is_not_committed(store, write, hosts, artifacts, what):
    """By its size where its own attempt commits; by its hash where others finish it."""
    manifest, folder = write(), hosts[0].spool(1).path(NAME)
    if what == "other":
        with pytest.raises(RankFilesMissing):
            store.put(folder, manifest)
    bring(store, hosts)
    file = artifacts.root / "checkpoints" / NAME / "shard-00001-00000.pth"
    content = file.read_bytes()
    file.unlink()  # it is a second name of the rank's own
    if what == "cut":
        file.write_bytes(content[:-1])
    store.list()
    if what == "other":
        file.write_bytes(content[:-1] + b"x")
        with pytest.raises(RankFilesMissing, match="sha256"):
            store.put(folder, manifest)  # by `sync`: nobody has told what it was to be
        with pytest.raises(CheckpointDamaged, match="sha256"):
            store.gathering.adopt(manifest, hosts[1].spool(1).path(NAME))
    else:
        with pytest.raises(RankFilesMissing, match="00001-00000"):
            store.put(folder, manifest)
    assert store.list() == []


def test_what_was_cleared_is_brought_again(store, write, hosts, artifacts):
    """Whatever was noted as brought: rank 0 asks again where its own upload failed."""
    write()
    bring(store, hosts)
    store.delete(NAME)
    own = hosts[0].spool(1).path(NAME) / "shard-00000-00000.pth"
    artifacts.upload(own, f"checkpoints/{NAME}")
    bring(store, hosts)
    assert "shard-00001-00000.pth" in artifacts.list(f"checkpoints/{NAME}")


def test_regions_that_do_not_make_up_the_tensor_are_not_committed(store, write, hosts):
    """Though every file is there, and is what its index says."""
    manifest = write()
    part = hosts[1].spool(1).folder / "rank_1" / NAME
    write_shard(part, Origin(1, 2, 1, STEP), [piece(0)])  # that of rank 0 once more
    bring(store, hosts)
    store.list()
    with pytest.raises(RankFilesMissing, match="do not make it up"):
        store.put(hosts[0].spool(1).path(NAME), manifest)


def test_a_hostile_draft_leads_nowhere(store, write, hosts, artifacts):
    """It is read as a manifest is; what is none counts as none."""
    manifest = write()
    with pytest.raises(RankFilesMissing):
        store.put(hosts[0].spool(1).path(NAME), manifest)
    file = artifacts.root / "checkpoints" / NAME / "draft.json"
    document = json.loads(file.read_text())
    document["files"][0]["path"] = "../../x"
    file.unlink()
    file.write_text(json.dumps(document))
    assert store.gathering.drafts([NAME]) == []


@pytest.fixture
def serving(write, hosts, artifacts):
    """Return rank 0's store, what it has to commit, and rank 1, which listens."""
    notes, manifest = Notes(), write()
    notes.set("apart/1", "yes")
    store = CheckpointStore(artifacts, "r1")
    store.gathering.others = Others(Ranks(0, notes))
    place = hosts[1].spool(1).folder / "rank_1"
    bringer = Bringer(Ranks(1, notes), place, lambda: artifacts)
    yield store, manifest, bringer, notes
    bringer.close(hosts[1].spool(1).log_file)


def test_rank_0_asks_and_the_others_bring(serving, hosts):
    """Each is asked; what nobody needs any more is removed on their disks too."""
    store, manifest, bringer, _notes = serving
    bringer.start()
    folder = hosts[0].spool(1).path(NAME)
    store.put(folder, manifest)
    assert weight_of(store) == [0, 0, 1, 1]
    store.gathering.others.leave(NAME)
    bringer.close(hosts[1].spool(1).log_file)
    assert parts_in(hosts[1]) == []


def test_a_rank_that_cannot_bring_its_files_says_so(serving, hosts):
    """At once, and why; what is on its disk stays."""
    store, manifest, bringer, _notes = serving
    bringer.start()
    part = hosts[1].spool(1).folder / "rank_1" / NAME / "shard-00001-00000.pth"
    part.unlink()
    with pytest.raises(RankFilesMissing, match="rank 1 for epoch_3"):
        store.put(hosts[0].spool(1).path(NAME), manifest)
    assert store.list() == []


def test_a_rank_that_is_gone_is_not_waited_for(serving, hosts):
    """If its files are up they are committed; else nothing is."""
    store, manifest, _bringer, _notes = serving
    store.gathering.others.lose()
    folder = hosts[0].spool(1).path(NAME)
    with pytest.raises(RankFilesMissing):
        store.put(folder, manifest)
    bring(store, hosts)
    store.put(folder, manifest)
    assert weight_of(store) == [0, 0, 1, 1]


def test_an_attempt_that_was_overtaken_lets_nobody_upload(serving, hosts, artifacts):
    """A rank sends no file before rank 0 has seen that it still has the run."""
    store, manifest, bringer, notes = serving
    bringer.start()
    checks = []

    def check_lease():
        checks.append(1)
        if len(checks) > 5:  # after rank 0's own files
            raise Superseded("r1", 1, 2)

    def put():
        with pytest.raises((RankFilesMissing, Superseded)):
            store.put(hosts[0].spool(1).path(NAME), manifest, check_lease)

    waits = threading.Thread(target=put)
    waits.start()
    remote = f"checkpoints/{NAME}"

    def asks_or_brings():
        asked = int(notes.get("lease/asked")) if "lease/asked" in notes else 0
        return asked or "shard-00001.json" in artifacts.list(remote)

    wait_for(asks_or_brings)
    store.gathering.others.lose()
    waits.join(60)
    assert MANIFEST_FILE not in artifacts.list(f"checkpoints/{NAME}")
    assert "shard-00001.json" not in artifacts.list(f"checkpoints/{NAME}")


def test_a_run_that_is_gone_ends_training_and_no_rank_waits(serving, hosts):
    """Whatever an answer is refused by, the training thread hears of it, as of one process."""
    store, manifest, bringer, notes = serving
    bringer.start()

    def check_lease():
        if threading.current_thread().name == "lease":
            raise RunNotUsable("r1", "was deleted")

    store.gathering.others.brought = lambda rank, name: None  # it waits for its answer
    with pytest.raises(RunNotUsable, match="was deleted"):
        store.put(hosts[0].spool(1).path(NAME), manifest, check_lease)
    wait_for(lambda: "brought/1" in notes)
    assert "does not have the run" in json.loads(notes.get("brought/1"))[2]


@pytest.mark.parametrize(
    "error", [CheckpointError("no room"), OSError(errno.ENOSPC, "full"), UnsafeFile("x", "a link")]
)
def test_a_draft_that_cannot_be_finished_stops_no_resume(hosts, store, monkeypatch, error, caplog):
    """The checkpoint before it is still good, and each machine has room for its part of that."""
    draft = SimpleNamespace(name=NAME)
    monkeypatch.setattr(finishing, "find_drafts", lambda *_: [draft])

    def adopt(*_):
        raise error

    store.gathering.adopt = adopt
    record = SimpleNamespace(
        run_id="r1", attempts=1, index_sha256=None, artifact_uri=str(store.uri)
    )
    assert not finishing.finish_drafts(None, record, store, hosts[0], None, is_free=True)
    assert "It is not committed" in caplog.text


@pytest.mark.parametrize("sweeps", [False, True])
def test_what_others_have_brought_is_not_swept_away(tracking, record, hosts, store, sweeps, write):
    """By `sync` on one machine, while another has yet to bring what completes it."""
    write()
    bring(store, hosts)
    store.list()
    attempt = attempt_of(tracking, record.run_id)
    publisher = Publisher(attempt, store, hosts[0].spool(1), Retention(), sweeps=sweeps)
    publisher._prune([], listed.to_text([]))
    assert bool(store._artifacts.list(f"checkpoints/{NAME}")) is not sweeps


def test_a_note_of_somebody_else_leads_nowhere(serving, hosts):
    """The names on the board are those of checkpoints, or of nothing."""
    _store, _manifest, bringer, notes = serving
    outside = hosts[1].path / "outside"
    outside.mkdir()
    notes.set("left/1", "../../outside")
    notes.set("asked", json.dumps([1, "../../outside"]))
    bringer.start()
    wait_for(lambda: "brought/1" in notes)
    assert json.loads(notes.get("brought/1"))[2]
    assert outside.is_dir()


def test_without_a_board_nobody_waits(serving, hosts):
    """The store of the ranks is gone with one of them."""
    store, manifest, _bringer, notes = serving
    notes.gone = True
    with pytest.raises(RankFilesMissing, match="its store is gone"):
        store.put(hosts[0].spool(1).path(NAME), manifest)
    with pytest.raises(RankLost):
        Board(notes, 60.0).post("x")


class Muffled(Notes):
    """A store that does not answer for a while; what it is told then is lost."""

    num_asked = 0
    is_silent = False

    def _there(self):
        if self.is_silent:
            self.num_asked += 1
            threading.Event().wait()


@pytest.fixture
def muffled(monkeypatch):
    """Return such a store, with rank 1 on a machine of its own, and the ranks that rank 0 sees."""
    monkeypatch.setattr("onward.checkpoint.others.END_SECONDS", 0.05)
    notes = Muffled({"apart/1": b"yes"})
    return notes, Others(Ranks(0, notes))


def test_what_is_left_is_told_once_the_board_answers(muffled, monkeypatch):
    """Who calls has the pipeline's lock: one call waits a moment, the others not at all."""
    notes, others = muffled
    notes.is_silent = True
    for name in ("epoch_1", "epoch_2", "epoch_3"):
        others.leave(name)
    assert notes.num_asked == 1
    notes.is_silent = False
    others._quiet_until = 0.0  # it is over
    others.leave("epoch_4")
    told = [notes[f"left/{number}"].decode() for number in range(1, 5)]
    assert told == ["epoch_1", "epoch_2", "epoch_3", "epoch_4"]


def test_once_a_rank_is_lost_nobody_is_told_anything(muffled):
    """It may take minutes, for nothing."""
    notes, others = muffled
    notes.is_silent = True
    others.lose()
    others.leave("epoch_1")
    others.ask("epoch_1")
    assert notes.num_asked == 0


def test_ranks_that_see_the_disk_are_told_nothing(muffled):
    """What is removed there, nobody else has."""
    notes, others = muffled
    notes["apart/1"] = b"no"
    others.leave("epoch_1")
    assert list(notes) == ["apart/1"]


def test_a_rank_that_was_never_asked_brings_its_log(hosts, artifacts):
    """As with whole weights, of which it writes none."""
    spool = hosts[1].spool(1)
    log_file = spool.folder / "attempt_1_rank_1.log"
    log_file.parent.mkdir(parents=True)
    log_file.write_text("a line\n")
    Bringer(Ranks(1, Notes()), spool.folder / "rank_1", lambda: artifacts).close(log_file)
    assert artifacts.list("logs") == [log_file.name]
    assert not log_file.exists()


def test_a_folder_that_is_not_on_this_machine_is_not_made(tmp_path):
    """Of that name another machine's would be another: what went there nobody would find."""
    root = tmp_path / "mlruns" / "0" / "r1" / "artifacts"
    with pytest.raises(StoreUnavailable, match="which this machine does not have"):
        open_files(str(root))
    assert list(tmp_path.iterdir()) == []
    root.mkdir(parents=True)
    assert open_files(str(root)).folder == root


def test_a_part_that_is_removed_leaves_no_folder(write, hosts):
    """Nothing of it stays on the disk."""
    write()
    [(_attempt, part)] = parts_in(hosts[1])
    remove_part(part)
    assert list(hosts[1].path.iterdir()) == []
