"""The search for settings: examples once, then trial after trial."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

from lockstep.config import Config
from lockstep.tags import TAG_FILE
from pipelines.examples import make_examples
from pipelines.run import new_run_id


def tune(config: Config, root: Path, seed: int, say: Callable[[str], None]) -> str:
    """Search, and describe what was found.

        <root>/tune/<data>/examples/...    see pipelines.examples; made once for a [data] and [schema]
        <root>/tune/<data>/search/         see trainer.tune

    Returns:
        The settings as TOML, with how they compare.
    """
    from trainer import tune as job

    logging.basicConfig(format="%(message)s")  # to stderr: what is found can go into a file
    logging.getLogger(job.__name__).setLevel(logging.INFO)
    facts = json.dumps([config.data.to_dict(), config.schema_.digest], sort_keys=True)
    folder = root / "tune" / hashlib.sha256(facts.encode()).hexdigest()[:12]
    if (folder / "examples" / TAG_FILE).exists():
        say(f"using the examples in {folder}: remove it where the source's files have changed")
    else:
        make_examples(config, folder, new_run_id())
    best = job.run(
        examples=folder / "examples",
        preprocessing=folder / "preprocessing",
        work=folder / "search",
        model=config.model,
        train=config.train,
        tune=config.tune,
        seed=seed,
    )
    k = config.train.validation_k
    found = f"recall@{k} on the validation split: {best.recall:.4f}, against {best.start:.4f} of the configuration"
    heading = f"# {found}; {best.trials} trials, all in {folder / 'search' / 'trials.json'}"
    return f"{heading}\n{best.toml()}" if best.settings else f"{heading}\n# nothing better was found"
