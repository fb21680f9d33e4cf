"""Any layout to any layout: what ranks saved is loaded by others, equal to the bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import environment, start_command

from onward.checkpoint.format import load_content
from onward.checkpoint.manifest import MANIFEST_FILE, parse_manifest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("layouts.py")
# By number of ranks: [name, layout, where from, where to]
SAVING = {
    2: [
        ["fsdp2", "fsdp", None, "fsdp2/global_step_5"],
        ["start", "fsdp", None, None],
        ["zero", "fsdp", None, "zero/global_step_0"],
    ],
    4: [["fsdp4", "fsdp", None, "fsdp4/global_step_5"]],
    1: [["single", "plain", None, "single/global_step_5"]],
}
LOADING = {
    1: [
        ["fsdp2-single", "plain", "fsdp2/global_step_5", None],
        ["single-single", "plain", "single/global_step_5", None],
    ],
    2: [
        ["fsdp2-fsdp2", "fsdp", "fsdp2/global_step_5", None],
        ["fsdp4-fsdp2", "fsdp", "fsdp4/global_step_5", None],
        ["fsdp4-ddp2", "ddp", "fsdp4/global_step_5", None],
        ["single-fsdp2", "fsdp", "single/global_step_5", None],
        ["zero-fsdp2", "fsdp", "zero/global_step_0", None],
    ],
    3: [
        ["fsdp4-fsdp3", "fsdp", "fsdp4/global_step_5", None],
        ["single-fsdp3", "fsdp", "single/global_step_5", None],
    ],
    4: [["fsdp2-fsdp4", "fsdp", "fsdp2/global_step_5", None]],
}


def run(folder, world, tasks):
    """Let so many ranks do the tasks."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    env = environment(folder, OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME=loopback)
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    ranks = [
        start_command(
            [sys.executable, SCRIPT, rank, world, folder, json.dumps(tasks)],
            cwd=folder, env=env, **pipes,
        )
        for rank in range(world)
    ]  # fmt: skip
    told = [process.communicate(timeout=200)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0] * world, "\n".join(told)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder in which all of them have saved and loaded."""
    folder = tmp_path_factory.mktemp("layouts")
    for name in ("fsdp2", "zero", "fsdp4", "single"):
        (folder / name).mkdir()
    for world, tasks in [*SAVING.items(), *LOADING.items()]:
        (folder / f"meet-{world}").unlink(missing_ok=True)
        run(folder, world, tasks)
    return folder


def found(folder, name, rank=0):
    """Return what a task found on a rank."""
    return json.loads((folder / f"{name}-{rank}.json").read_text())


@pytest.mark.parametrize("name", [task[0] for tasks in LOADING.values() for task in tasks])
def test_any_layout_is_loaded_in_any_other(folder, name):
    """Weights and Adam's state are to the bit what was saved, on every rank."""
    source, target = name.split("-")
    ranks = int(target[-1]) if target[-1].isdigit() else 1
    whole = found(folder, source)["then"][0]
    assert [found(folder, name, rank)["then"][0] for rank in range(ranks)] == [whole] * ranks


@pytest.mark.parametrize(
    ("name", "then"),
    [("fsdp2-fsdp2", "fsdp2"), ("single-single", "single"), ("zero-fsdp2", "zero")],
)
def test_the_same_layout_goes_on_as_if_nothing_had_happened(folder, name, then):
    """Each rank ends with the bits of a training that was not stopped, its own among them."""
    for rank in range(1 if then == "single" else 2):
        resumed, straight = found(folder, name, rank), found(folder, then, rank)
        assert resumed["end"][0] == straight["end"][0]
        if then != "single":  # whose random numbers are those of rank 0 in the checkpoint
            assert resumed["end"][1] == straight["end"][1]


def test_saving_before_the_first_step_changes_nothing(folder):
    """Asking for the state takes no step, on any rank."""
    for rank in range(2):
        assert found(folder, "zero", rank) == found(folder, "start", rank)


def test_a_rank_opens_only_its_own_files_in_the_same_layout(folder):
    """In another one it opens those that overlap what it is to hold."""
    for rank in range(2):
        opened = found(folder, "fsdp2-fsdp2", rank)["opened"]
        assert opened
        assert {path.split("-")[1] for path in opened} == {f"{rank:05d}"}
    assert {p.split("-")[1] for p in found(folder, "fsdp4-fsdp2", 0)["opened"]} == {
        "00000",
        "00001",
    }


def test_ranks_have_running_means_of_their_own(folder):
    """Else the test of the same layout would not tell whether they come back."""
    assert found(folder, "fsdp2", 0)["then"][1] != found(folder, "fsdp2", 1)["then"][1]


def test_one_process_reads_all_of_it(folder):
    """Whole tensors, tied where they were, in files no larger than asked."""
    where = folder / "fsdp4" / "global_step_5"
    manifest = parse_manifest((where / MANIFEST_FILE).read_bytes(), where.name)
    assert (manifest.world, manifest.layout, manifest.format_version) == (4, "fsdp", 3)
    assert max(entry.bytes for entry in manifest.shard_files) <= 20_000
    model = load_content(where, manifest, "x").parts["model"]
    assert model["first.weight"].shape == (193, 15)
    assert model["embedding.weight"] is model["back.weight"]
    assert all(type(tensor) is torch.Tensor for tensor in model.values())
