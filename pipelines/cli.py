"""The console script `lockstep`; heavy imports wait for the command that needs them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from components.console import SentencesGroup, debug_option
from lockstep import __version__


@click.group(cls=SentencesGroup, context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]})
@debug_option
@click.version_option(__version__, prog_name="lockstep")
def main(debug: bool) -> None:
    """Candidate retrieval in which only equal model versions ever meet."""


_CONFIG = click.option(
    "--config",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="The configuration (TOML); examples are in configs/.",
)
_DATA = click.option("--data", metavar="FOLDER", help="Where the source's files are; overrides [data] path.")
_ROOT = click.option("--root", metavar="FOLDER", help="Where everything is written; overrides [run] root.")
_IMAGE = click.option("--image", metavar="IMAGE", help="The pushed container image; overrides [run] image.")


def _configured(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that make a configuration, and passes the command that configuration."""

    @_CONFIG
    @_DATA
    @_ROOT
    @wraps(command)
    def wrapped(config: Path, data: str | None, root: str | None, **rest: Any) -> None:
        from lockstep.config import load_config

        overrides: dict[str, dict[str, Any]] = {"data": {}, "run": {}}
        if data is not None:
            overrides["data"]["path"] = data
        if root is not None:
            overrides["run"]["root"] = root
        if rest.get("image") is not None:
            overrides["run"]["image"] = rest["image"]
        rest.pop("image", None)
        command(load_config(config, overrides), **rest)

    return wrapped


@main.command()
@_configured
def run(config: Any) -> None:
    """Train a new model version on this machine and make it live."""
    from pipelines.report import describe_run
    from pipelines.run import new_run_id, run_pipeline

    run_id = new_run_id()
    root = run_pipeline(config, run_id, click.echo)
    click.echo(describe_run(root, run_id))


@main.command()
@_configured
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where the artifacts are written; <root>/examples/<run> by default.",
)
@click.option("--dry-run", is_flag=True, help="Only tell what BigQuery would read and cost.")
@click.option("--price-per-tib", type=click.FloatRange(min=0), default=6.25, show_default=True, help="USD, on demand.")
def examples(config: Any, output: Path | None, dry_run: bool, price_per_tib: float) -> None:
    """Make training examples, preprocessing and entities, and nothing else."""
    from pipelines.examples import describe_costs, make_examples

    if dry_run:
        click.echo(describe_costs(config, price_per_tib))
        return
    from pipelines.run import new_run_id

    run_id = new_run_id()
    if output is None:
        if "://" in config.run.root:
            raise click.UsageError(f"[run] root is {config.run.root}: give --output, a local or mounted folder.")
        output = Path(config.run.root) / "examples" / run_id
    tag = make_examples(config, output, run_id)
    click.echo(f"wrote {tag.rows} examples to {output}/examples, with {output}/preprocessing and {output}/entities")


@main.command()
@_configured
@click.option("--trials", type=click.IntRange(min=1), help="How many; overrides [tune] trials.")
@click.option("--seed", type=int, default=1, show_default=True, help="Decides what is tried.")
def tune(config: Any, trials: int | None, seed: int) -> None:
    """Search for better settings of [model] and [train], on the validation split.

    A search that was stopped goes on where it stood; with more --trials, a finished one does.
    """
    from pipelines.tune import tune as search

    if "://" in config.run.root:
        raise click.UsageError(f"[run] root is {config.run.root}: give --root, a local or mounted folder.")
    if trials is not None:
        config = config.model_copy(update={"tune": config.tune.model_copy(update={"trials": trials})})
    click.echo(search(config, Path(config.run.root), seed, click.echo))


@main.command("compile")
@_configured
@_IMAGE
@click.option("--output", type=click.Path(path_type=Path), default="build/train_and_deploy.yaml", show_default=True)
def compile_(config: Any, output: Path) -> None:
    """Compile the pipeline to YAML, for the KFP or Vertex AI console."""
    if output.suffix not in (".yaml", ".yml") or output.is_dir():
        raise click.UsageError(f"--output is {output}: name a .yaml file.")
    from pipelines.compile import compile_pipeline

    click.echo(f"wrote {compile_pipeline(config, output)}")


@main.command()
@_configured
@_IMAGE
@click.option("--to", type=click.Choice(["kfp", "vertex"]), required=True, help="The engine.")
@click.option("--host", metavar="URL", help="kfp: the address of the API.")
@click.option("--project", help="vertex: the Google Cloud project.")
@click.option("--location", default="us-central1", show_default=True, help="vertex: the region.")
@click.option("--service-account", help="vertex: the account that the steps run as.")
def submit(
    config: Any, to: str, host: str | None, project: str | None, location: str, service_account: str | None
) -> None:
    """Submit the compiled pipeline to a KFP cluster or Vertex AI."""
    from pipelines.run import new_run_id
    from pipelines.submit import check_backends, submit_to_kfp, submit_to_vertex

    if to == "kfp" and host is None:
        raise click.UsageError("--to kfp needs --host, the address of the KFP API.")
    if to == "vertex" and project is None:
        raise click.UsageError("--to vertex needs --project.")
    check_backends(config, to)
    run_id = new_run_id()
    if to == "kfp":
        started = submit_to_kfp(config, run_id, str(host))
    else:
        started = submit_to_vertex(config, run_id, str(project), location, service_account)
    click.echo(f"submitted run {run_id} as {started}")


@main.command()
@click.option("--root", default="lockstep-root", show_default=True, metavar="FOLDER")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def releases(root: str, as_json: bool) -> None:
    """List the releases: which is live, which are retained, and how good they are."""
    from pipelines.report import describe_releases

    click.echo(describe_releases(root, as_json))


@main.command()
@click.option("--root", default="lockstep-root", show_default=True, metavar="FOLDER")
@click.option("--entity", metavar="ID", help="A known query entity.")
@click.option("--features", metavar="JSON", help="Raw query features; the query tower embeds them.")
@click.option("-k", type=click.IntRange(1, 10_000), default=10, show_default=True, help="How many candidates.")
@click.option("--restrict", "restricts", multiple=True, metavar="NS=TOKEN", help="Only candidates with this token.")
@click.option("--deny", "denies", multiple=True, metavar="NS=TOKEN", help="Only candidates without this token.")
@click.option("--number", "numbers", multiple=True, metavar="NS<=N", help="Only such numbers: < <= = >= > !=.")
@click.option("--per-crowding-tag", type=click.IntRange(min=1), metavar="N", help="At most so many of one tag.")
@click.option("--exclude", multiple=True, metavar="ID", help="Leave out a candidate.")
@click.option("--new-only", is_flag=True, help="Leave out what the query's own history holds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def query(
    root: str,
    entity: str | None,
    features: str | None,
    k: int,
    restricts: tuple[str, ...],
    denies: tuple[str, ...],
    numbers: tuple[str, ...],
    per_crowding_tag: int | None,
    exclude: tuple[str, ...],
    new_only: bool,
    as_json: bool,
) -> None:
    """Retrieve candidates for a query entity or for raw features, from the live release."""
    if entity is None and features is None:
        raise click.UsageError("give --entity ID, --features JSON, or both.")
    from pipelines.query import answer_query, parse_restricts

    asked = parse_restricts(restricts, denies, numbers)
    click.echo(answer_query(root, entity, features, k, asked, exclude, new_only, per_crowding_tag, as_json))


def _listed(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], list[Any]]:
    """Reads values that commas separate."""

    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> list[Any]:
        try:
            return [parse(one.strip()) for one in (value or "").split(",") if one.strip()]
        except ValueError as error:
            raise click.BadParameter(f"{error}.", ctx, param) from error

    return callback


def _version(text: str) -> Any:
    from lockstep.version import ModelVersion

    return ModelVersion.parse(text)


def _depth(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10_000:
        raise ValueError(f"a k is a whole number from 1 to 10,000, found {text!r}")
    return int(text)


@main.command()
@click.option("--root", default="lockstep-root", show_default=True, metavar="FOLDER")
@click.option(
    "--versions",
    callback=_listed(_version),
    metavar="V,V",
    help="Such as v5,v6,v7; by default those of all retained releases.",
)
@click.option("--k", "ks", callback=_listed(_depth), default="20,100", show_default=True, metavar="K,K")
@click.option("--queries", type=click.IntRange(min=1), default=2_000, show_default=True, help="At most so many.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where table and heat map are written; <root>/skew/<moment> by default.",
)
def skew(root: str, versions: list[Any], ks: list[int], queries: int, output: Path | None) -> None:
    """Measure offline what it would cost to mix model versions.

    Queries of each version are ranked against candidates of each other, on purpose and outside of serving, which never
    does so.
    """
    if not ks:
        raise click.UsageError("--k names no depth: give one or more, such as 20,100.")
    if output is None:
        if "://" in root:
            raise click.UsageError(f"--root is {root}: give --output, a local or mounted folder.")
        from pipelines.run import new_run_id

        output = Path(root).expanduser() / "skew" / new_run_id()
    from pipelines.skew import measure_skew

    click.echo(measure_skew(root, versions, ks, queries, output))


@main.command("export-candidates")
@click.option("--root", default="lockstep-root", show_default=True, metavar="FOLDER")
@click.option("--release", metavar="VN.M", help="The release; the live one by default.")
@click.option("--format", "file_format", type=click.Choice(["json", "avro"]), default="avro", show_default=True)
@click.option("--output", required=True, metavar="FOLDER", help="A local or mounted folder, new or empty.")
def export_candidates(root: str, release: str | None, file_format: str, output: str) -> None:
    """Write a release's candidates as files that Vertex AI Vector Search ingests."""
    if "://" in output:
        raise click.UsageError(f"--output is {output}: name a local or mounted folder, and copy it to the bucket.")
    from pipelines.export import export

    click.echo(export(root, release, file_format, Path(output)))


if __name__ == "__main__":
    sys.exit(main())
