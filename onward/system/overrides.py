"""Which of MLflow's environment variables do not stay as the user has set them.

What chooses a server, who asks it and how it is trusted (MLFLOW_TRACKING_*, certificates,
proxies) is the user's, and is not here.
"""

from __future__ import annotations

# Of MLflow, whatever the user's environment says; None: not set. Asynchronous logging drops errors
# and refuses what we ask; the jitter draws numbers from the global generator, which belongs to the
# training; metrics of an active model that is not there are refused; some kinds of pool serve one
# thread; and the log would be full of SQL.
FORCED: dict[str, str | None] = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "_MLFLOW_TESTING_TELEMETRY": None,
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",
    "MLFLOW_TRUNCATE_LONG_VALUES": "true",
    "MLFLOW_CONFIGURE_LOGGING": "true",
    "MLFLOW_LOGGING_LEVEL": None,
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "_MLFLOW_HTTP_REQUEST_MAX_RETRIES_LIMIT": None,
    "_MLFLOW_HTTP_REQUEST_MAX_BACKOFF_FACTOR_LIMIT": None,
    "MLFLOW_ACTIVE_MODEL_ID": None,
    "_MLFLOW_ACTIVE_MODEL_ID": None,
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": None,
    "MLFLOW_SQLALCHEMYSTORE_ECHO": None,
}
# The user's value stays if it is a whole number within these bounds: (least, most, else).
BOUNDED: dict[str, tuple[int, int, str | None]] = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": (0, 3, "3"),
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": (0, 1, "1"),
    "MLFLOW_HTTP_REQUEST_TIMEOUT": (1, 120, None),  # MLflow's own is 120
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": (1, 600, None),  # not -1, which is for ever
    "MLFLOW_ASYNC_LOGGING_THREADPOOL_SIZE": (1, 64, None),
    "MLFLOW_HTTP_TCP_KEEPALIVE_IDLE": (1, 3600, None),
    "MLFLOW_HTTP_TCP_KEEPALIVE_INTERVAL": (1, 3600, None),
    "MLFLOW_HTTP_TCP_KEEPALIVE_COUNT": (1, 100, None),
    "MLFLOW_HTTP_POOL_CONNECTIONS": (1, 1000, None),
    "MLFLOW_HTTP_POOL_MAXSIZE": (1, 1000, None),
    "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": (8, 1000, None),  # as many threads ask at once
    "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": (0, 1000, None),
}
