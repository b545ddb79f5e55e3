"""The pipelines, and the ways to run them: `python -m pipelines.cli` is the console script `lockstep`."""
