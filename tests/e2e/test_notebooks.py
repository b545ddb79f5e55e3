"""The notebooks run, on the root of the shared tiny pipeline."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent.parent / "notebooks").glob("*.ipynb"))

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_there_are_notebooks() -> None:
    assert [path.name for path in NOTEBOOKS] == ["01_quickstart.ipynb"]


def test_the_quickstart_runs_and_shows_what_it_says(
    first_root: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCKSTEP_ROOT", str(first_root[0]))
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOKS[0].parent)}}).execute()
    printed = "".join(
        output["text"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stdout"
    )
    for expected in (
        "v1.1     live",
        "index v1 300 rows",
        "is of v1, but its reader is of v2: rerun the step that writes index for v2",
        "release:   v1.1 | rung: kv v1 | degraded: False",
        "release: v1.1 | rung: tower v1",
        "rung: popular | degraded: True",
    ):
        assert expected in printed, printed
