"""What ranks write beside each other, and rank 0 takes into one checkpoint; or does not."""

import math

import pytest
import torch

from onward.checkpoint.index import Origin, index_file
from onward.checkpoint.pieces import Piece
from onward.checkpoint.rank_files import RankFiles, RankWriter
from onward.errors import CheckpointDamaged, UsageError
from onward.run.following import RankPipeline

NAME = "epoch_1"


def ranks(folder, number, timeout=60.0):
    return [RankFiles(folder, rank, number, 1, timeout) for rank in range(number)]


def piece(rank, rows=2):
    tensor = torch.full((rows, 3), float(rank))
    return Piece(key="w", shape=(2 * rows, 3), offset=(rank * rows, 0), tensor=tensor)


def forever():
    return math.inf


def take(files, to, step=5):
    to.mkdir()
    return files.take(to, NAME, step, [piece(0)], forever)


def test_all_that_ranks_wrote_lies_in_one_folder(tmp_path):
    """Listed with size and hash; nothing of it is left where it was written."""
    first, second = ranks(tmp_path, 2)
    second.write(NAME, 5, [piece(1)])
    written = take(first, tmp_path / "to")
    names = {path.name for path in (tmp_path / "to").iterdir()}
    assert names == {entry.path for entry in written.entries}
    assert {index_file(0), index_file(1)} < names
    assert not list((tmp_path / "rank_1").iterdir())


def test_what_was_never_asked_for_is_removed_with_the_next(tmp_path):
    """Such as where rank 0 found no room."""
    first, second = ranks(tmp_path, 2)
    second.write("epoch_0", 4, [piece(1)])
    second.write(NAME, 5, [piece(1)])
    take(first, tmp_path / "to")
    assert not list((tmp_path / "rank_1").iterdir())


@pytest.mark.parametrize("way", ["failed", "lost", "time", "signal"])
def test_a_rank_whose_files_do_not_come_is_told(tmp_path, way):
    """By an error that only pauses saving, and at once where the rank knows that they will not."""
    first, second = ranks(tmp_path, 2, 0.05 if way == "time" else 60.0)
    if way == "failed":
        blocked = tmp_path / "rank_1"
        blocked.mkdir()
        (blocked / NAME).write_text("in the way")
        with pytest.raises(OSError, match=r"."):
            second.write(NAME, 5, [piece(1)])
    if way == "lost":
        first.lose()
    (tmp_path / "to").mkdir()
    left = (lambda: 0.0) if way == "signal" else forever
    with pytest.raises(OSError, match="files of rank 1 for epoch_1 did not come"):
        first.take(tmp_path / "to", NAME, 5, [piece(0)], left)


def test_files_of_another_step_are_not_taken(tmp_path):
    """Left by a checkpoint of that name which rank 0 gave up."""
    first, second = ranks(tmp_path, 2)
    second.write(NAME, 4, [piece(1)])
    with pytest.raises(OSError, match="rank 1 has written of epoch_1 is of another step"):
        take(first, tmp_path / "to")


def test_a_hostile_index_is_refused(tmp_path):
    """Whoever can write to the folder leads no file out of it."""
    first, second = ranks(tmp_path, 2)
    second.write(NAME, 5, [piece(1)])
    index = tmp_path / "rank_1" / NAME / Origin(1, 2, 1, 5).index_file
    index.write_text(index.read_text().replace("shard-00001-00000.pth", "../../../x"))
    with pytest.raises(CheckpointDamaged):
        take(first, tmp_path / "to")


def test_what_is_to_stay_on_another_disk_is_refused(tmp_path):
    """With upload=off and a machine between, before anything is set aside."""
    pipeline = RankPipeline(ranks(tmp_path, 2)[1], is_refused=True)
    assert pipeline.save({}, {}, kept=True)
    with pytest.raises(UsageError, match="a store that all of them reach"):
        pipeline.save({}, {}, kept=True, pieces=[piece(1)])


def test_pieces_are_written_in_the_background(tmp_path):
    """As they were when they were set aside."""
    first, second = ranks(tmp_path, 2)
    writer, mine = RankWriter(second), piece(1)
    writer.save({"epoch": 1, "step": 5, "epoch_step": 0}, [mine], None)
    mine["tensor"].zero_()
    writer.close()
    take(first, tmp_path / "to")
    found = torch.load(tmp_path / "to" / "shard-00001-00000.pth", weights_only=True)
    assert [t.unique().item() for t in found.values()] == [1.0]
