"""One KFP component a step, one step a file: a typed envelope around one job, and no logic.

Every parameter that is a section of the configuration has that section's name. `python -m components NAME --help`
runs any of them alone.
"""

IMAGE = "lockstep-retrieval"
"""The image of every component, built by the Dockerfile; `[run] image` names the pushed one when compiling."""
