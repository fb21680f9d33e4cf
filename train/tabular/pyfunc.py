"""What MLflow loads of a logged model: it names this module in the model's `MLmodel`.

Nothing is unpickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onward.errors import DataError
from onward.tracking.models import refusal
from train.tabular.predictor import Predictor

if TYPE_CHECKING:
    import pandas


class Served:
    """A model as MLflow asks it, also over HTTP: whoever sends wrong rows is told what is wrong.

    Args:
        predictor: The model.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, rows: pandas.DataFrame, params: Any = None) -> NDArray[np.float64]:
        """Return the prediction for each row; see `Predictor.predict`.

        Raises:
            MlflowException: The rows cannot be predicted; a server answers with status 400.
        """
        try:
            return self._predictor.predict(rows)
        except DataError as error:
            raise refusal(str(error)) from error


def _load_pyfunc(path: str) -> Served:
    """Load a model that MLflow has downloaded; MLflow calls this by its name."""
    return Served(Predictor.load(Path(path)))
