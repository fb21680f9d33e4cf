"""Keeping what people see of a run in MLflow up to date: description and checkpoint page."""

from __future__ import annotations

import logging

from onward.attempts.attempt import Attempt
from onward.publish.checkpoint_page import checkpoint_page
from onward.publish.publisher import Publisher
from onward.words.language import _

log = logging.getLogger(__name__)


def refresh(attempt: Attempt, publisher: Publisher) -> None:
    """Write the checkpoint page of the attempt's run, and while it runs the description.

    Raises:
        StoreUnavailable: The server does not answer. Call again later.
        Superseded: A later attempt has the run.
    """
    record = attempt.check_lease()
    try:
        page = checkpoint_page(
            record.standing, record.name, record.status, publisher.manifests, publisher.published
        )
    except Exception as error:  # a fault in what is only looked at must not end training
        log.warning(_("The page of the checkpoints is not up to date: %r"), error)
        return
    publisher.upload_page(page)
    if record.status == "RUNNING":  # the end is told by the attempt itself
        attempt.describe(record)
