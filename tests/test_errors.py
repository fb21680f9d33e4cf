"""The tree of errors is what its docstring draws, and messages say what was found."""

import builtins
import re

import pytest

from onward import errors
from onward.errors import TrainError

CLASSES = {
    name: item
    for name, item in vars(errors).items()
    if isinstance(item, type) and issubclass(item, TrainError)
}


def drawn_tree():
    """Return name to (name of the parent, builtin or None, exit code), as the docstring has it."""
    tree, path = {}, []
    for line in errors.__doc__.splitlines():
        found = re.match(r"    ([│├└─ ]*)(\w+)(?: \((\w+)\))? +(\d+)(?:   |$)", line)
        if found:
            branches, name, builtin, code = found.groups()
            path = [*path[: len(branches) // 4], name]
            tree[name] = (path[-2] if len(path) > 1 else "Exception", builtin, int(code))
    return tree


def one_of_each():
    """Return an error of every class that builds its own message."""
    return [
        errors.ForkNeeded("r1", {"lr": (0.1, 0.2)}, "train run --fork true"),
        errors.DataNotFound("t.csv", "/data/t.csv"),
        errors.CheckpointNotFound("r1", "epoch 7", ["5", "10"]),
        errors.CheckpointNotFound("r1", "epoch 7", []),
        errors.CheckpointDamaged("epoch_7 of run 'r1'", "checkpoint.pth is missing"),
        errors.CheckpointDamaged("epoch_7 of run 'r1'", "checkpoint.pth is missing", ["5", "6"]),
        errors.CheckpointFileNotFound("c.pth", "/data/c.pth"),
        errors.NonFinite("loss", float("nan"), 3, 41, 1e-3),
        errors.RunNotUsable("r1", "was deleted"),
        errors.UnsafeValue("run ID", "../r1"),
        errors.UnsafeFile("/mlruns/0/r1/artifacts/logs", "a symbolic link"),
        errors.TooLarge("checkpoints/index.json", 16),
        errors.Superseded("r1", 2, 3),
        errors.Interrupted("SIGTERM", 3, 21),
    ]


def test_the_drawn_tree_is_the_tree_of_classes():
    """Names, parents, builtin bases and exit codes are those of the module's docstring."""
    actual = {}
    for name, kind in CLASSES.items():
        parent, *others = kind.__bases__
        assert all(other.__module__ == builtins.__name__ for other in others)
        assert len(others) <= 1
        actual[name] = (parent.__name__, others[0].__name__ if others else None, kind.exit_code)
    assert actual == drawn_tree()


def test_every_error_is_caught_as_its_builtin():
    """A caller who knows only Python's own exceptions catches ours by them."""
    for name, (_, builtin, _) in drawn_tree().items():
        if builtin:
            assert issubclass(CLASSES[name], getattr(builtins, builtin)), name


@pytest.mark.parametrize("error", one_of_each(), ids=lambda error: type(error).__name__)
def test_messages_are_one_line_and_carry_their_values(error):
    """A message is one line, and every value that the error was made of is in it."""
    message = str(error)
    assert message
    assert "\n" not in message
    for value in vars(error).values():
        parts = value if isinstance(value, list | tuple) else [value]
        for part in parts if not isinstance(value, dict) else ["lr", "0.1", "0.2"]:
            assert str(part) in message or f"{part:g}" in message


def test_not_found_names_what_exists_or_says_that_nothing_does():
    """Whoever asks for a pruned epoch is told which ones are there."""
    assert "it has 5, 10" in str(errors.CheckpointNotFound("r1", "epoch 7", iter(["5", "10"])))
    assert "it has none" in str(errors.CheckpointNotFound("r1", "epoch 7", []))


def test_interrupted_tells_of_steps_only_where_there_are_some():
    """A stop between two epochs is told by its epoch alone."""
    assert str(errors.Interrupted("SIGTERM", 3)) == "stopped by SIGTERM after 3 epochs"
    inside = "stopped by SIGINT after 0 epochs and 7 steps of the next"
    assert str(errors.Interrupted("SIGINT", 0, 7)) == inside


def test_fork_needed_names_both_values_and_the_command():
    """A refused option shows the run's value, the given one, and how to fork."""
    error = errors.ForkNeeded("r1", {"lr": (0.1, 0.2), "seed": (0, 1)}, "the command")
    assert "lr is 0.1 in the run and 0.2 was given" in str(error)
    assert "seed is 0 in the run and 1 was given" in str(error)
    assert str(error).endswith("the command")
