"""Jobs to MLflow: the run that tells of one, made once and written as often as it takes."""
