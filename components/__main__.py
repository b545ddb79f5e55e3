"""Run one component alone: `python -m components NAME --help`.

The options are read off the component's own signature, so they cannot drift from it: an artifact is a folder, a
section of the configuration comes from `--config FILE`, everything else is a plain value.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from pathlib import Path
from typing import Any

import click

import components
from lockstep.config import load_config
from lockstep.errors import LockstepError

_PLAIN = {str: click.STRING, int: click.INT}


def names() -> list[str]:
    """Every component, by its file's name."""
    modules = (module.name for module in pkgutil.iter_modules(components.__path__))
    return [name for name in modules if name not in ("__main__", "envelope")]


class _Components(click.Group):
    """Imports a component, and with it KFP, only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return names()

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        name = name.replace("-", "_")
        return _command(name) if name in names() else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in names():
            # The module's docstring, read without importing it.
            line = (Path(components.__path__[0]) / f"{name}.py").read_text().split('"""')[1]
            line = line.removeprefix("Component: ").splitlines()[0]
            rows.append((name, line[0].upper() + line[1:]))
        with formatter.section("Components"):
            formatter.write_dl(rows)


def _command(name: str) -> click.Command:
    component = getattr(importlib.import_module(f"components.{name}"), name)
    function = component.python_func
    described = _descriptions(function)
    options: list[click.Parameter] = []
    sections: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        flag = f"--{parameter.name.replace('_', '-')}"
        help_text = described.get(parameter.name)
        if parameter.annotation is dict:
            sections.append(parameter.name)
        elif parameter.annotation in _PLAIN:
            options.append(click.Option([flag], type=_PLAIN[parameter.annotation], required=True, help=help_text))
        else:
            folder = click.Path(path_type=Path)
            options.append(click.Option([flag], type=folder, required=True, metavar="FOLDER", help=help_text))
    if sections:
        wanted = ", ".join(f"[{section}]" for section in sections)
        options.append(
            click.Option(
                ["--config"],
                type=click.Path(path_type=Path),
                required=True,
                metavar="FILE",
                help=f"TOML with {wanted}.",
            )
        )

    def run(**values: Any) -> None:
        config = values.pop("config", None)
        if config is not None:
            loaded = load_config(config)
            for section in sections:
                values[section] = (loaded.schema_ if section == "schema" else getattr(loaded, section)).to_dict()
        result = function(**{name: _artifact(v) if isinstance(v, Path) else v for name, v in values.items()})
        if result is not None:
            click.echo(result)

    return click.Command(name, params=options, callback=run, help=function.__doc__.split("Args:")[0].strip())


def _descriptions(function: Any) -> dict[str, str]:
    import docstring_parser

    found = docstring_parser.parse(function.__doc__)
    return {param.arg_name: param.description or "" for param in found.params}


def _artifact(folder: Path) -> Any:
    from kfp.dsl import Artifact

    path = folder.expanduser().resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    return Artifact(name=path.name, uri=str(path))


@click.command(cls=_Components)
def main() -> None:
    """Run one step of the pipeline alone, on artifacts that lie in folders."""


if __name__ == "__main__":
    try:
        main(prog_name="python -m components", standalone_mode=True)
    except LockstepError as error:
        sys.exit(f"Error: {error}")
