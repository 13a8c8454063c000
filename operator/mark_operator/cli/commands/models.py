"""`mark models`: the registry of a namespace."""

import click
from mark_crds.shared import BaseModelReference

from mark_operator.cli.errors import NotFoundError
from mark_operator.cli.options import Connection, connection_options, output_option, print_data, say, show
from mark_operator.cli.session import Json, own_path
from mark_operator.cli.view.models import model_view, models_view
from mark_operator.registry.autopipeline import choose

_EXAMPLES = """\b
Examples:
  mark models
  mark models transformer-lora        its versions, with the numbers of their evaluation
"""


@click.command(epilog=_EXAMPLES)
@click.argument("name", required=False)
@output_option()
@connection_options
def models(name: str | None, output: str | None, connection: Connection) -> None:
    """List the models of the registry, or show the versions of the model NAME."""
    session = connection.open()
    found = session.items(own_path("Model", session.namespace))
    if name is not None:
        chosen = [model for model in found if model["metadata"]["name"] == name]
        if not chosen:
            raise NotFoundError(
                f"there is no Model {name} in the namespace {session.namespace}", "`mark models` lists them"
            )
        if output:
            print_data(chosen[0], output)
        else:
            show(model_view(chosen[0]))
    elif output:
        print_data(found, output)
    elif found:
        show(models_view(found, picks(found)))
    else:
        say(f"no models in the namespace {session.namespace}; a run with spec.output.model makes one")


def picks(models: list[Json]) -> dict[str, str]:
    """For each base model, what the AutoPipeline picks."""
    versions = [version for model in models for version in model.get("status", {}).get("versions", [])]
    bases = sorted({version["base"] for version in versions})
    # Only the name is compared, so a hub id may stand in the place of a path.
    return {base: choose(tuple(models), BaseModelReference.model_construct(path=base)).why for base in bases}
