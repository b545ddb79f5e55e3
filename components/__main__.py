"""Run one component alone: `python -m components NAME --help`.

The options are read off the component's own signature, so they cannot drift from it: an artifact is a folder, a
section of the configuration comes from `--config FILE`, everything else is a plain value.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

import components
from components.console import SentencesGroup, debug_option
from lockstep.config import load_config

_PLAIN = {str: click.STRING, int: click.INT}


def names() -> list[str]:
    """Every component, by its file's name."""
    modules = (module.name for module in pkgutil.iter_modules(components.__path__))
    return [name for name in modules if name not in ("__main__", "console", "envelope")]


class _Components(SentencesGroup):
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
    for parameter in _parameters(function).values():
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

    outputs = [name for name, parameter in _parameters(function).items() if _is_output(parameter)]

    def run(**values: Any) -> None:
        _check_folders(values, outputs)
        config = values.pop("config", None)
        if config is not None:
            loaded = load_config(config)
            for section in sections:
                values[section] = (loaded.schema_ if section == "schema" else getattr(loaded, section)).to_dict()
        result = function(**{name: _artifact(v) if isinstance(v, Path) else v for name, v in values.items()})
        if result is not None:
            click.echo(result)

    return click.Command(name, params=options, callback=run, help=function.__doc__.split("Args:")[0].strip())


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _is_output(parameter: inspect.Parameter) -> bool:
    from kfp.dsl.types.type_annotations import OutputAnnotation

    return any(kind is OutputAnnotation for kind in getattr(parameter.annotation, "__metadata__", ()))


def _check_folders(values: Mapping[str, Any], outputs: list[str]) -> None:
    """Refuse to write into, above or below what is read: the output's folder is emptied first."""
    folders = {name: value.expanduser().resolve() for name, value in values.items() if isinstance(value, Path)}
    for output in outputs:
        for name, folder in folders.items():
            if name != output and (folder.is_relative_to(folders[output]) or folders[output].is_relative_to(folder)):
                raise click.UsageError(
                    f"--{output.replace('_', '-')} and --{name.replace('_', '-')} overlap: give each its own folder."
                )


def _descriptions(function: Any) -> dict[str, str]:
    import docstring_parser

    found = docstring_parser.parse(function.__doc__)
    return {param.arg_name: param.description or "" for param in found.params}


def _artifact(folder: Path) -> Any:
    from kfp.dsl import Artifact

    path = folder.expanduser().resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    return Artifact(name=path.name, uri=str(path))


@click.group(cls=_Components)
@debug_option
def main(debug: bool) -> None:
    """Run one step of the pipeline alone, on artifacts that lie in folders."""


if __name__ == "__main__":
    main(prog_name="python -m components")
