"""From the `runner` and `beam` of [data] or [embed] to Beam's pipeline options.

Beam ignores an option that it does not know, so that a misspelt `max_num_worker` costs money; here it is an error.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
from collections.abc import Mapping
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions

from lockstep.errors import ConfigError

LOCAL_RUNNERS = ("DirectRunner", "PrismRunner")
"""Their workers see this machine's disk."""
OURS = ("runner", "job_name", "dry_run", "template_location", "dataflow_job_file", "help", "h")
"""Options that Lockstep sets itself, or that would keep the step from running."""
# Beam's DirectRunner tries first to download another runner; this is the one that it falls back on.
_IN_PROCESS = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
_MOST_LOCAL_WORKERS = 4
"""Each holds the records of one file in memory."""


JOBS = {"data": "examples", "embed": "embed"}
"""What a section's Beam job is called."""


def pipeline_options(runner: str, options: Mapping[str, Any], run_id: str, *, section: str = "data") -> PipelineOptions:
    """Beam's options of a job.

    Args:
        runner: a Beam runner's name.
        options: Beam's own options by name; a tuple or list for those that may be given several times.
        run_id: becomes part of the job's name, and a label.
        section: of the configuration, whose job it is.

    Raises:
        ConfigError: an option that Beam does not have, that Lockstep sets itself, or of the wrong type.
    """
    _check_names(options, section)
    job = re.sub(r"[^a-z0-9]+", "-", run_id.lower()).strip("-")
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    given["labels"] = [*_listed(given.get("labels", [])), f"lockstep-run={job}"]
    defaults: dict[str, Any] = {"save_main_session": False}
    if runner == "DirectRunner":
        workers = min(os.cpu_count() or 1, _MOST_LOCAL_WORKERS)
        defaults |= {"direct_num_workers": workers, "direct_running_mode": "multi_threading"}
        runner = _IN_PROCESS
    ours = {"runner": runner, "job_name": f"lockstep-{JOBS[section]}-{job}"}
    return _checked(PipelineOptions.from_dictionary(defaults | given | ours), section)


def _check_names(options: Mapping[str, Any], section: str) -> None:
    names: set[str] = set()
    PipelineOptions([]).get_all_options(
        add_extra_args_fn=lambda parser: names.update(flag.lstrip("-") for flag in parser._option_string_actions)
    )
    for name in options:
        if name in OURS:
            ours = f"Lockstep sets it itself; the runner is [{section}] runner"
            raise ConfigError(f"[{section}.beam] {name}: leave it out, {ours}")
        if name not in names:
            near = difflib.get_close_matches(name, sorted(names), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ": see its documentation of pipeline options"
            raise ConfigError(f"[{section}.beam] {name}: Beam has no such option{hint}")


def _checked(options: PipelineOptions, section: str) -> PipelineOptions:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options.get_all_options()
    except SystemExit:
        # argparse prints its usage and, last, what is wrong.
        problem = said.getvalue().strip().rpartition("error: ")[2]
        raise ConfigError(f"[{section}.beam]: {problem}; see Beam's documentation of its options") from None
    return options


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
