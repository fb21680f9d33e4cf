"""What one command asks for, beside what the run is: where to go on from, and names for it."""

from __future__ import annotations

import dataclasses
import re

from onward.errors import UsageError
from onward.options.declare import option
from onward.words.language import _
from onward.words.redact import redact

MAX_NAME_CHARS = 250  # MLflow's databases have room for as many
MAX_TEXT_CHARS = 3_000
DESCRIPTION_TAG = "train.description"  # of the run: what its user says of it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """What one command asks for: where to go on from, and how the run is called.

    Raises:
        UsageError: On construction, options that exclude or need each other.
    """

    resume_run: str | None = option(
        None,
        "Go on with this run: its ID, 'latest' for the unfinished one of the experiment that was "
        "worked on last, or 'auto' for the same among those with these options and this data, else "
        "a fresh run.",
        "Resume",
        metavar="RUN",
    )
    resume_epoch: str | None = option(
        None,
        "Checkpoint to go on from: an epoch, latest, best, or the name of one inside an epoch, "
        "such as global_step_4321; one that is not the latest forks.",
        "Resume",
        metavar="N|latest|best",
    )
    resume_from: str | None = option(
        None,
        "Start a new run from a plain checkpoint file (.pth), such as the script version's.",
        "Resume",
        metavar="FILE",
    )
    resume_from_weights_only: bool = option(
        False,
        "Take of that file the weights alone, with a fresh optimizer, from epoch 1: for files "
        "whose optimizer was of another kind.",
        "Resume",
    )
    checkpoint_key: str | None = option(
        None,
        "Sign checkpoints by the bytes of this file, and take none that it has not signed; also by "
        "TRAIN_CHECKPOINT_KEY, for every command.",
        "Resume",
        metavar="FILE",
    )
    take_over: bool = option(
        False,
        "Do not wait to see whether the run is still being trained on another machine: take it "
        "from there.",
        "Resume",
    )
    fork: bool = option(
        False,
        "Start a new run from the checkpoint and leave the old one as it is; "
        "options may then differ.",
        "Resume",
    )

    run_name: str | None = option(
        None,
        "Name of the run in MLflow, also of one that is resumed; default: MLFLOW_RUN_NAME for a "
        "new run, or what MLflow makes up.",
        "Run",
        metavar="NAME",
    )
    tags: tuple[str, ...] = option(
        (),
        "Tags for the run, separated by commas; names that begin with mlflow. or train. are taken.",
        "Run",
        metavar="K=V,…",
    )
    description: str | None = option(
        None,
        "What MLflow shows above what the program itself tells of the run; it may be Markdown.",
        "Run",
    )

    def __post_init__(self) -> None:
        """Refuse options that exclude or need each other."""
        self._check_names()
        if self.resume_run is None:
            for name in ("resume_epoch", "take_over", "fork"):
                if getattr(self, name):
                    told = _("{name} needs resume_run=<id>: which run to start from")
                    raise UsageError(told.format(name=name))
        elif self.resume_run == "auto" and (self.resume_epoch or self.fork):
            raise UsageError(
                _("resume_run=auto goes on from the newest checkpoint, if there is a run to go on "
                  "with: give its ID to choose an epoch or to fork")
            )  # fmt: skip
        elif self.resume_from is not None:
            raise UsageError(_("give either resume_run or resume_from, not both"))
        if self.resume_from_weights_only and self.resume_from is None:
            raise UsageError(
                _("resume_from_weights_only needs resume_from=<file>: whose weights to start from")
            )
        epoch = self.resume_epoch or "latest"
        number = epoch.removeprefix("global_step_")
        if epoch not in ("latest", "best") and not number.isdecimal():
            raise UsageError(
                _("resume_epoch={resume_epoch!r} is not an epoch number, 'latest', 'best', or a "
                  "checkpoint inside an epoch such as 'global_step_4321'")
                .format(resume_epoch=self.resume_epoch)
            )  # fmt: skip

    def _check_names(self) -> None:
        for tag in self.tags:
            name, equals, value = tag.partition("=")
            told = ""
            if not equals or not re.fullmatch(r"[\w.\-/ ]{1,250}", name):
                told = _("it is to be name=value, the name of letters, digits and . _ - /")
            elif name.startswith(("mlflow.", "train.")):
                told = _("names that begin with mlflow. or train. are taken")
            elif len(value) > MAX_TEXT_CHARS:
                told = _("it is longer than {number} characters").format(number=MAX_TEXT_CHARS)
            if told:
                raise UsageError(_("tags: {tag!r}: {told}").format(tag=tag[:80], told=told))
        for name, limit in (("run_name", MAX_NAME_CHARS), ("description", MAX_TEXT_CHARS)):
            if len(getattr(self, name) or "") > limit:
                told = _("{name} is longer than {number} characters")
                raise UsageError(told.format(name=name, number=limit))

    def run_tags(self) -> dict[str, str]:
        """Return the tags that the command gives the run."""
        tags = dict(tag.split("=", 1) for tag in self.tags)
        if self.description is not None:
            tags[DESCRIPTION_TAG] = redact(self.description)
        return tags
