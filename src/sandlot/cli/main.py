"""The entry point. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sandlot import __version__
from sandlot.cli import (
    bench,
    compare,
    data,
    doctor,
    export,
    image,
    replay,
    report,
    run,
    score,
    shell,
    tasks,
    train,
    upkeep,
)
from sandlot.cli.outcome import BUG, INTERRUPTED, Interrupted, code_of_error, say
from sandlot.core.errors import SandlotError


class Commands(TyperGroup):
    """Every command leaves through here, so that each kind of bad news has one exit."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SandlotError as exc:
            say(f"sandlot: {exc}")
            raise typer.Exit(code_of_error(exc)) from None
        except Interrupted as exc:
            raise typer.Exit(exc.exit_code) from None
        except KeyboardInterrupt:
            say("sandlot: interrupted")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"sandlot {__version__}")
        raise typer.Exit()


@app.callback()
def sandlot(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show and exit.")
    ] = False,
) -> None:
    """Give any language model a computer: run it, look inside, go on."""


app.command("run")(run.run)
app.command("continue")(run.continue_)
app.command("bench")(bench.bench)
app.command("score")(score.score)
app.command("report")(report.report)
app.command("compare")(compare.compare)
app.command("shell")(shell.shell)
app.command("export")(export.export)
app.command("replay")(replay.replay)
app.command("doctor")(doctor.doctor)
app.add_typer(image.app, name="image")
app.add_typer(tasks.app, name="tasks")
app.add_typer(data.app, name="data")
app.add_typer(train.app, name="train")
app.command("ps")(upkeep.ps)
app.command("reap")(upkeep.reap)
app.command("clean")(upkeep.clean_)


def main() -> None:
    """Run the command line. A bug of ours shows its traceback and exits with 70."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    try:
        app()
    except BrokenPipeError:
        # Whoever read our output has gone; there is nobody left to tell.
        sys.stderr.close()
        raise SystemExit(141) from None
    except Exception:  # noqa: BLE001 - the outermost frame: shown in full, never swallowed
        import traceback

        traceback.print_exc()
        say("sandlot: this is a bug of sandlot's, not of yours or the model's; please report it")
        raise SystemExit(BUG) from None


if __name__ == "__main__":
    main()
