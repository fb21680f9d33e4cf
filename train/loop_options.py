"""The options of the built-in training loop: `LoopOptions`."""

from __future__ import annotations

import dataclasses

from onward.options.declare import ORDER, OnResume, option

FORK = OnResume.FORK
TABULAR = "tabular"  # the task that is shipped


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """What is trained, and how its weights are changed."""

    task: str = option(
        TABULAR,
        "What is trained: tabular, or the Python file of a task of your own, such as ./my_task.py.",
        "Task",
        metavar="tabular|FILE",
        by_tag=False,
        is_new=True,
    )

    batch_size: int = option(
        512, "Rows per optimizer step.", "Training", minimum=1, on_resume=FORK, covers=ORDER
    )
    shuffle_window: int = option(
        0,
        "So many rows are shuffled among each other, and then the next ones, for data that does "
        "not fit into memory: they lie in 16 places, drawn in each epoch. 0: all rows.",
        "Training",
        minimum=0,
        on_resume=FORK,
        covers=ORDER,
        is_new=True,
    )
    accumulation_steps: int = option(
        1,
        "Forward and backward passes of an optimizer step: its rows are cut into so many parts, "
        "one after the other in memory, whose gradients are added.",
        "Training",
        minimum=1,
        on_resume=FORK,
    )
    strategy: str = option(
        "ddp",
        "How several ranks make a step: ddp (the average of their gradients), fsdp (the same, with "
        "weights and moments spread over them), parts (the same bits for any number: see parts).",
        "Training",
        choices=("ddp", "fsdp", "parts"),
        on_resume=FORK,
        is_new=True,
    )
    parts: int = option(
        0,
        "With strategy=parts: into how many parts each batch is cut, a power of two; as many ranks "
        "or fewer share them, and give the same bits. 0: as many as there are ranks at the start.",
        "Training",
        minimum=0,
        maximum=1024,
        on_resume=FORK,
        is_new=True,
    )
    lr: float = option(
        2e-3,
        "Highest learning rate of AdamW.",
        "Training",
        minimum=0,
        maximum=10,
        on_resume=FORK,
    )
    weight_decay: float = option(
        1e-2, "Decoupled weight decay of AdamW.", "Training", minimum=0, on_resume=FORK
    )
    schedule: str = option(
        "cosine",
        "How the learning rate moves: cosine (down to 1 % at schedule_epochs), plateau (a third "
        "whenever val_loss, or the metric that is given as monitor, has not "
        "improved for 3 epochs), none.",
        "Training",
        choices=("cosine", "plateau", "none"),
        on_resume=FORK,
    )
    schedule_epochs: int | None = option(
        None,
        "Epochs over which the cosine runs, however often the run is extended; "
        "default: the epochs of the first attempt.",
        "Training",
        minimum=1,
        on_resume=FORK,
    )
    max_grad_norm: float = option(
        1.0,
        "Gradients are scaled down to this norm; 0: never.",
        "Training",
        minimum=0,
        on_resume=FORK,
    )
    precision: str = option(
        "fp32",
        "Arithmetic of the forward pass: fp32, or bf16 (autocast; the weights stay fp32).",
        "Training",
        choices=("fp32", "bf16"),
        on_resume=FORK,
    )
