"""The names that MLflow knows a run by: tags and params, each once. They never change."""

LATEST_CHECKPOINT_TAG = "mlflow.latest_checkpoint_artifact"
PARENT_TAG = "mlflow.parentRunId"
USER_TAG = "mlflow.user"
FINGERPRINT_TAG = "train.fingerprint"  # marks a run as one of ours
OPTIONS_TAG = "train.options"  # the options of the newest attempt, as JSON
EPOCH_TAG = "train.epoch"  # of the newest checkpoint
MANIFEST_TAG = "train.manifest"  # SHA-256 of the newest checkpoint's manifest
INDEX_TAG = "train.index"  # SHA-256 of the list of its checkpoints, as that commit leaves it
HEARTBEAT_TAG = "train.heartbeat"  # changes as long as the newest attempt lives
HOST_TAG = "train.checkpoints_on"  # the machine whose disk has them, with upload=off
DATA_TAG = "train.data"  # fingerprint of the data
ATTEMPT_TAG = "train.attempt."  # + N: what became of attempt N, in words
TASK_TAG = "train.task"  # what the run trains, if it is not the table
MONITOR_TAG = "train.monitor"  # the metric that decides which is best; none: see `monitor`
UNIT_TAG = "train.unit"  # what the run counts: steps, if not epochs
COMMAND_TAG = "train.command"  # how a script of one's own is started, as a list of words
ENDED_TAG = "train.ended"  # of an attempt's child: finished, preempted, failed, vanished
ATTEMPT_PARAM = "train.attempt."  # + N: claims attempt N, since params are write-once
BEST_EPOCH_TAG = "train.best_epoch"  # of its best checkpoint
MODEL_TAG = "train.model"  # of the run: ID of its logged model
MODEL_OF_TAG = "train.model_of"  # of the run: the checkpoint that its logged model was made of
CHECKPOINT_TAG = "train.checkpoint"  # of a logged model: the checkpoint that it was made of
NOTE_TAG = "mlflow.note.content"  # the description
NUMBER_TAG = "train.attempt"  # number of the newest attempt
LAUNCHED_TAG = "train.launched"  # of a stray launch: its run
FORKED_RUN_TAG = "train.forked_from_run"
FORKED_EPOCH_TAG = "train.forked_from_epoch"
FILE_TAG = "train.resumed_from_file"
VERSION_TAG = "train.version."  # + the name of a package
MACHINE_TAG = "train.host"  # where an attempt ran
HARDWARE_TAG = "train.hardware"  # on what
CODE_TAG = "train.code"  # the commit of the program
