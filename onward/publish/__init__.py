"""Pages and pictures of a run, for people who read it in MLflow."""
