"""What retrieval is worth: exact rankings of the full catalogue, their measures, slices, intervals and baselines."""
