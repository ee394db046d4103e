"""The dashboard on a large job, beside optuna-dashboard on the same trials: `make bench-dashboard`."""
