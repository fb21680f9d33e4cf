"""A training loop of somebody's own, in a script or a notebook: the way in by `onward.open_run`."""
