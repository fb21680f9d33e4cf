"""Keeping what people see of a run in MLflow up to date: description and checkpoint page."""

from __future__ import annotations

from train.attempt import Attempt
from train.checkpoint.publisher import Publisher
from train.pages.checkpoints import checkpoint_page


def refresh(attempt: Attempt, publisher: Publisher) -> None:
    """Write the checkpoint page of the attempt's run, and while it runs the description.

    Raises:
        StoreUnavailable: The server does not answer. Call again later.
        Superseded: A later attempt has the run.
    """
    record = attempt.check_lease()
    page = checkpoint_page(
        record.run_id, record.name, record.status, publisher.manifests, publisher.published
    )
    publisher.upload_page(page)
    if record.status == "RUNNING":  # the end is told by the attempt itself
        attempt.describe(record)
