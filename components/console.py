"""The manners of both command lines: a mistake ends in one sentence, and `--debug` shows the traceback."""

from __future__ import annotations

from typing import Any

import click

from lockstep.errors import LockstepError


class SentencesGroup(click.Group):
    """A group of commands whose errors end in one sentence; it has the option `--debug`."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LockstepError as error:
            if ctx.params["debug"]:
                raise
            raise click.ClickException(str(error)) from error
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except KeyboardInterrupt:
            raise click.Abort from None
        except Exception as error:
            if ctx.params["debug"]:
                raise
            raise click.ClickException(
                f"unexpected {type(error).__name__}: {error}; this is a bug of Lockstep: "
                "run again with --debug and report the traceback"
            ) from error


debug_option = click.option("--debug", is_flag=True, help="Show the traceback of an error.")
