"""The command `mark`, also `kubectl mark`: its global options, its commands, and how errors end. Nothing else."""

import sys
from pathlib import Path

import click
from mark_crds import names

from mark_operator.cli.commands.cancel import cancel
from mark_operator.cli.commands.confirm import confirm
from mark_operator.cli.commands.freeze import freeze, unfreeze
from mark_operator.cli.commands.get import get
from mark_operator.cli.commands.logs import logs
from mark_operator.cli.commands.models import models
from mark_operator.cli.commands.plan import plan
from mark_operator.cli.commands.put import put
from mark_operator.cli.commands.report import report
from mark_operator.cli.commands.run import run
from mark_operator.cli.commands.settings import settings
from mark_operator.cli.commands.status import status
from mark_operator.cli.errors import CommandError
from mark_operator.cli.options import say
from mark_operator.cli.session import Target

INTERRUPTED = 130

_EPILOG = f"""\b
A run from beginning to end:
  mark put contracts/ corpus --claim mark-workspace     documents into the workspace
  kubectl apply -f run.yaml                             plans the run; starts nothing
  mark plan contracts-lora                              what would run
  mark confirm contracts-lora                           run exactly that
  mark status contracts-lora --watch                    follow it to the end
  mark report contracts-lora                            is the tuned model better?
  mark run --local -f run.yaml                          or on this machine, without a cluster

\b
Exit codes:
  0    done
  1    the run failed or was cancelled, or a check of its plan failed
  2    the command line, or a file it names, is wrong
  3    refused: the state of the run or of the target does not allow it
  4    the cluster cannot be reached, forbids it, or does not have the object
  130  interrupted

NAME is a TrainingRun; write trun/NAME or erun/NAME to say which kind. Kinds: {names.API_VERSION}.
"""


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("-n", "--namespace", help="Namespace; default: that of the kubectl context.")
@click.option("--context", help="kubectl context; default: the current one.")
@click.option("--kubeconfig", help="Path of a kubeconfig; default: $KUBECONFIG, then ~/.kube/config.")
@click.version_option(package_name="mark-training-operator", prog_name="mark")
@click.pass_context
def mark(context_: click.Context, namespace: str | None, context: str | None, kubeconfig: str | None) -> None:
    """Train legal-AI models on Kubernetes: every run is planned, read and confirmed before it starts."""
    context_.obj = Target(namespace=namespace, context=context, kubeconfig=kubeconfig)


for command in (put, plan, confirm, status, logs, get, report, cancel, models, run, settings, freeze, unfreeze):
    mark.add_command(command)


def main() -> None:
    """Run the command line; errors of ours and of the cluster become a sentence and an exit code."""
    try:
        plugin = Path(sys.argv[0]).name.startswith("kubectl")
        code = mark.main(standalone_mode=False, prog_name="kubectl mark" if plugin else "mark")
    except CommandError as error:
        say(f"error: {error.message}")
        for line in error.remedy.splitlines():
            say(f"  {line}")
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        say("interrupted")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough.
        sys.stderr.close()
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)
