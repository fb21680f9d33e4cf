"""MLflow, as far as this project uses it. The only package that imports mlflow, and late."""
