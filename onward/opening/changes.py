"""What options that are given mean for a run that exists: a resume, a fork, or a refusal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onward.errors import ForkNeeded, RunNotUsable, UsageError
from onward.opening.source import Source
from onward.options.command import Standing, train_command
from onward.options.declare import DATA, MACHINE, ORDER, OnResume, covered_by, options_of, to_text
from onward.options.run_options import RunOptions
from onward.run.subject import Kind
from onward.words.language import _

Given = Mapping[str, Any]


def resumed_options(source: Source, given: Given, kind: Kind) -> RunOptions:
    """Return the run's options, with those that were given where that is sound.

    Raises:
        ForkNeeded: A given option would make it another training.
        RunNotUsable: The run is finished, and no larger epochs was given.
        UsageError: Fewer epochs were given than the run has.
    """
    run_id = source.record.run_id
    # What was left to choose was chosen by the first attempt.
    given = {k: v for k, v in given.items() if v is not None and (k, v) != ("threads", 0)}
    options = source.options.replace(**given)
    changes = _changes(source, given, kind)
    _refuse_another_model(source, changes)
    if changes and source.content is None:
        raise ForkNeeded(run_id, changes, _fresh_command(source, given), has_checkpoint=False)
    if changes:
        if _order_of(source, changes):
            _whole_epochs(source, changes)  # refuses where there is none to fork from
        raise ForkNeeded(run_id, changes, fork_command(source, given, kind))
    if not kind.knows_length:
        return options
    if source.record.status == "FINISHED" and "epochs" not in given:
        more = train_command({**_standing(source).go_on(), **given})
        raise RunNotUsable(
            run_id,
            _("is finished after {epoch} epochs: pass a larger epochs, as in {command}").format(
                epoch=source.epoch, command=more
            ),
        )
    if options.epochs < source.epochs_begun:
        raise UsageError(
            _(
                "epochs={epochs} is fewer than the {begun} that run '{run_id}' has begun: epochs "
                "counts from the run's beginning"
            ).format(epochs=options.epochs, begun=source.epochs_begun, run_id=run_id)
        )
    return options


def forked_options(source: Source, given: Given, kind: Kind) -> RunOptions:
    """Return the options of a fork: the run's, with those that were given.

    Raises:
        UsageError: A given option would make another model, or another order of the samples in
            the middle of an epoch; or no epoch is left.
    """
    run_id = source.record.run_id
    changes = _changes(source, given, kind)
    _refuse_another_model(source, changes)
    _refuse_another_order(source, changes)
    options = source.options.replace(**given)
    if kind.knows_length:
        require_epochs_left(options, source.epoch, _("run '{run_id}'").format(run_id=run_id))
    return options


def fork_command(source: Source, given: Given, kind: Kind) -> str:
    """Return the command that goes on with the options given all the same: as a fork.

    It names what else the fork needs: epochs to train, a checkpoint at the end of an epoch where
    the order of the samples changes.
    """
    standing = _standing(source)
    options: dict[str, Any] = standing.as_fork()
    if source.options.replace(**given).epochs <= source.epoch:
        options = standing.anew()
    elif standing.has_stopped_early:
        options["early_stopping"] = 0
    changes = _changes(source, given, kind)
    if source.epochs_begun > source.epoch and _order_of(source, changes):
        options["resume_epoch"] = _whole_epochs(source, changes)[-1]
    return train_command({**options, **given})


def _fresh_command(source: Source, given: Given) -> str:
    """Return the command that starts afresh with the run's options and those given."""
    declared = options_of(type(source.options))
    values = {name: getattr(source.options, name) for name in declared}
    options = {
        name: value
        for name, value in values.items()
        if value != declared[name][0].default
        and declared[name][1].covers != MACHINE  # which has chosen it
        and (name, value) != ("schedule_epochs", source.options.epochs)  # likewise
    }
    return train_command({**options, **given})


def _standing(source: Source) -> Standing:
    is_finished = source.record.status == "FINISHED"
    best_epoch = source.content.best_epoch if source.content else None
    run_id = source.record.run_id
    return Standing.by_options(run_id, is_finished, source.epoch, source.options, best_epoch)


def changes_data(source: Source, given: Given, kind: Kind) -> bool:
    """Tell whether the given options are about other data, or another use of it."""
    data = covered_by(type(source.options), DATA)
    return bool(data & set(_changes(source, given, kind)))


def require_epochs_left(options: RunOptions, done: int, of: str) -> None:
    """Refuse to start from a checkpoint that has all the epochs behind it.

    Raises:
        UsageError: It has.
    """
    if options.epochs <= done:
        raise UsageError(
            _(
                "the checkpoint of {of} has {done} epochs behind it and epochs={epochs}: "
                "nothing is left to train. Pass a larger epochs"
            ).format(of=of, done=done, epochs=options.epochs)
        )


def _refuse_another_model(source: Source, changes: Mapping[str, tuple[str, str]]) -> None:
    run_id = source.record.run_id
    for name, (old, new) in changes.items():
        if options_of(type(source.options))[name][1].on_resume is OnResume.NEVER:
            raise UsageError(
                _(
                    "{name} is {old} in run '{run_id}' and {new} was given: neither a resume nor a "
                    "fork can change its model or its inputs. Leave the option out, or start a "
                    "fresh run without resume_run"
                ).format(name=name, old=old or _("empty"), run_id=run_id, new=new or _("empty"))
            )


def _refuse_another_order(source: Source, changes: Mapping[str, Any]) -> None:
    """Refuse what would change the batches of an epoch that is under way."""
    changed = _order_of(source, changes)
    if changed and source.epochs_begun > source.epoch:
        raise UsageError(
            _(
                "the checkpoint lies inside epoch {epoch}, and with another {changed} the rest of "
                "the epoch would not be the rest of its samples: fork from the end of an epoch, "
                "resume_epoch={whole}"
            ).format(
                epoch=source.epochs_begun,
                changed=", ".join(changed),
                whole="|".join(_whole_epochs(source, changes)[-3:]),
            )
        )


def _order_of(source: Source, changes: Mapping[str, Any]) -> list[str]:
    """Return those of the changes that change which samples an epoch has, or their order."""
    return sorted(covered_by(type(source.options), DATA, ORDER) & set(changes))


def _whole_epochs(source: Source, changes: Mapping[str, Any]) -> list[str]:
    """Return the checkpoints at the end of an epoch, oldest first.

    Raises:
        UsageError: There is none yet.
    """
    whole = [m.key for m in source.manifests if not m.epoch_step]
    if whole:
        return whole
    raise UsageError(
        _(
            "run '{run_id}' has no checkpoint at the end of an epoch yet, so {changed} cannot be "
            "changed: go on with it until it has one, or start afresh: {command}"
        ).format(
            run_id=source.record.run_id,
            changed=", ".join(_order_of(source, changes)),
            command=_fresh_command(source, {n: new for n, (_old, new) in changes.items()}),
        )
    )


def _changes(source: Source, given: Given, kind: Kind) -> dict[str, tuple[str, str]]:
    """Return the given options that would make it another training: name to (old, new)."""
    then, declared = source.options, options_of(type(source.options))
    changed = {
        name: (to_text(getattr(then, name)), to_text(value))
        for name, value in given.items()
        if value != getattr(then, name) and declared[name][1].on_resume is not OnResume.CHANGE
    }
    own = source.content.monitor if source.content else source.record.monitor
    if changed.get("monitor", ("", ""))[1] == str(own):
        del changed["monitor"]  # it is the run's own, now said
    if "upload" in given and (given["upload"] == "off") != (then.upload == "off"):
        # The run's checkpoints are in one place, so that there is one answer to which it has.
        changed["upload"] = (then.upload, given["upload"])
    forked = {name for name in changed if declared[name][1].on_resume is OnResume.FORK}
    # Only the command may say where data is read: by that an option is known to name a place.
    places = {n for n in covered_by(type(then), DATA) & forked if not declared[n][1].by_tag}
    if places and kind.is_source_of(then.replace(**given), source.data_fingerprint):
        for name in places:  # the same data in another place
            del changed[name]
    return changed
