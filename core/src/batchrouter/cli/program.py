"""The command group, without the commands: `batchrouter --help` imports none of them."""

import sys
from collections.abc import Sequence
from importlib import import_module

import click

from batchrouter._version import __version__
from batchrouter.cli.failures import EXIT_CODES_HELP, exit_code_for
from batchrouter.manifest.process import own_process

_COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo:demo", "The whole story on a bundled table: no account, no network."),
    "check": ("jobs:check", "Hold a job file against its source; nothing is sent."),
    "quote": ("jobs:quote", "Say what a job would cost, by which lanes, and why."),
    "run": ("jobs:run", "Run a job to its table, or go on with it. Buys each item once."),
    "runs": ("runs:runs", "The runs there are, and how far each has come."),
    "cancel": ("runs:cancel", "Stop a run: nothing more is bought."),
    "land": ("runs:land", "Write the table of a run whose batches have ended; buys nothing."),
    "batches": ("batches:batches", "The batches that the router knows."),
    "serve": ("serve:serve", "Run the embedded router."),
    "migrate": ("migrate:migrate", "Make or update the tables of a router's shared database."),
    "lanes": ("lanes:lanes", "Try the router's lanes; settle what a provider left open."),
    "keys": ("keys:keys", "Create, list and revoke the embedded router's keys."),
    "webhooks": ("webhooks:webhooks", "Receive webhook deliveries into an inbox."),
    "doctor": ("doctor:doctor", "Say what is wrong with a set-up, and what to do."),
}


class _Group(click.Group):
    """Knows its commands by name and one line; imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the base's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - the base's signature
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(f"batchrouter.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - the base's signature
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(
    cls=_Group,
    epilog=EXIT_CODES_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "--version", message="batchrouter %(version)s")
@click.option("--traceback", is_flag=True, help="Show where in the code an error came from.")
def program(*, traceback: bool) -> None:
    """LLM batch jobs over tables: a locked price, a batch bought once, every row accounted for.

    Settings come from the environment: BATCHROUTER_BASE_URL, BATCHROUTER_API_KEY,
    BATCHROUTER_RUNS_URL and others; `batchrouter doctor` shows them all. New here? Start with
    `batchrouter demo`.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the code of its kind of failure."""
    if arguments is None:
        own_process()
    argv = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code: object = program.main(args=argv, prog_name="batchrouter", standalone_mode=False)
    except BaseException as error:  # noqa: BLE001 - what is not ours is raised again in there
        code = exit_code_for(error, as_json="--json" in argv, traceback="--traceback" in argv)
    sys.exit(code if isinstance(code, int) else 0)
