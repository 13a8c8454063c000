"""`mark run --local`: the plan of a manifest, and its stages as processes of this machine once it was confirmed."""

from pathlib import Path

import click
from mark_crds import names
from mark_crds.job_input import JobInput
from mark_crds.job_output import LOCKED, Result
from mark_crds.job_output import ExitCode as TrainerExit

from mark_operator.cli.commands.confirm import SHORTEST_HASH
from mark_operator.cli.errors import ExitCode, InputError, RefusedError
from mark_operator.cli.local.checks import EARLIER_STAGE, local_checks, results_folder, run_first, spelled
from mark_operator.cli.local.kept_plan import KeptPlan, keep_seen, read_plan, run_uid
from mark_operator.cli.local.progress_lines import Bars, Lines, shown
from mark_operator.cli.local.trainer import Ended, Place, Stop, only_one, run_stage, stop_on_signals
from mark_operator.cli.offline import namespace_of, planned_run, read_runs, read_settings_of, render_offline
from mark_operator.cli.options import say, show
from mark_operator.cli.session import Json, Target
from mark_operator.cli.view.formatting import short_digest
from mark_operator.cli.view.measures import measures_view
from mark_operator.cli.view.plan import local_plan_view
from mark_operator.run.plan import Rendering
from mark_operator.settings import Settings

SEEN = "the plan that was seen"
INTERRUPTED = 130

_EXAMPLES = """\b
Examples:
  mark run --local -f run.yaml                             the plan; starts nothing
  mark run --local -f run.yaml --confirm                   run exactly that, all stages
  mark run --local -f run.yaml --stage data_prep           one stage: first its plan,
  mark run --local -f run.yaml --stage data_prep --confirm ... then the stage
  mark run --local -f run.yaml --confirm 3f9a1c27b8de      only if the plan is still this one

\b
DIR has the layout of a workspace claim: corpus/ and base/ are yours, the stages write chroma/, datasets/,
adapters/, reward-models/, reports/ and runs/. Ctrl-C keeps a checkpoint; the same command goes on there.
Exit codes: 0 done, 1 a check or a stage failed, 2 wrong usage, 3 not seen or not confirmed, 130 interrupted.
"""


@click.command(epilog=_EXAMPLES)
@click.option("--local", is_flag=True, help="On this machine, without a cluster; needed.")
@click.option("-f", "--file", type=click.Path(path_type=Path), required=True, help="Manifest of one run.")
@click.option(
    "--stage",
    metavar="STAGE",
    help="One stage: ingest, data_prep, lora, reward, ppo or eval; default: all of the spec.",
)
@click.option(
    "--confirm",
    is_flag=False,
    flag_value=SEEN,
    metavar="[HASH]",
    help="Start the plan that was seen, or the one with this hash.",
)
@click.option(
    "--workspace",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The workspace; default: a folder named as spec.workspace.claimName.",
)
@click.option(
    "--settings",
    type=click.Path(path_type=Path),
    help="Settings from `mark settings`, for the hash that the cluster would give.",
)
@click.option("-n", "--namespace", help="Namespace in the plan; default: that of the manifest, then `default`.")
def run(
    local: bool,
    file: Path,
    stage: str | None,
    confirm: str | None,
    workspace: Path | None,
    settings: Path | None,
    namespace: str | None,
) -> None:
    """Run the stages of a manifest as processes of this machine: the same plan, the same two steps as in a cluster.

    Without --confirm it prints the plan and its hash and starts nothing.
    """
    if not local:
        raise InputError("mark run: runs on this machine only, with --local", f"in a cluster: kubectl apply -f {file}")
    chosen_settings = read_settings_of(settings)
    manifest = _one_run(file)
    outer: Target = click.get_current_context().find_object(Target) or Target()
    rendering = render_offline(file, manifest, namespace_of(manifest, namespace or outer.namespace), chosen_settings)
    stages = _stages(rendering.job_input, stage)
    place = Place(_workspace(workspace, rendering), run_uid(rendering))
    plan = read_plan(place.folder, rendering)
    again = _again(file, stage=stage, workspace=workspace, settings=settings, namespace=namespace)
    checks = local_checks(rendering.job_input, stages, place.workspace, results_folder(place.workspace, place.uid))
    failed = [check for check in checks if check["outcome"] == "Failed"]
    seen = _is_seen(plan, confirm, stages, chosen_settings)
    if confirm is None or not seen:
        show(local_plan_view(planned_run(rendering), checks, ending=_ending(stages, place, again, failed)))
        keep_seen(place.folder, plan, stages)
    if confirm is None:
        if failed:
            raise click.exceptions.Exit(ExitCode.RUN_FAILED)
        return
    if not seen:
        raise RefusedError(
            f"nothing was started: the plan {short_digest(plan.hash)} was not seen before, or has changed",
            f"read it above; to run exactly this: {again} --confirm",
        )
    if failed:
        raise RefusedError(
            f"{rendering.means.key.name} cannot run", "\n".join(f"{c['name']}: {c['message']}" for c in failed)
        )
    _require_confirmable(file, manifest, rendering, chosen_settings)
    keep_seen(place.folder, plan, stages)
    _run_stages(plan, stages, place, again)


def _one_run(file: Path) -> Json:
    runs = read_runs(file)
    if len(runs) > 1:
        found = ", ".join(f"{run['kind']} {run['metadata']['name']}" for run in runs)
        raise InputError(f"{file}: holds {len(runs)} runs: {found}", "put the one to run into a file of its own")
    return runs[0]


def _stages(job: JobInput, asked: str | None) -> tuple[str, ...]:
    """The stages to run now: the one that was asked for, in any of its spellings, else all of the spec."""
    if asked is None:
        return job.stages
    stage = next((s for s in names.STAGE_ORDER if asked in (s, *names.STAGE_NAMES[s])), None)
    if stage is None:
        raise InputError(f"--stage: there is no stage {asked}", f"one of {', '.join(map(spelled, names.STAGE_ORDER))}")
    if stage not in job.stages:
        raise InputError(
            f"--stage: {asked} is not one of the run's stages ({', '.join(map(spelled, job.stages))})",
            "list it in spec.stages, or choose one of these",
        )
    return (stage,)


def _again(file: Path, **options: object) -> str:
    """This command without --confirm."""
    given = (f" --{name} {value}" for name, value in options.items() if value is not None)
    return f"mark run --local -f {file}{''.join(given)}"


def _workspace(chosen: Path | None, rendering: Rendering) -> Path:
    claim = rendering.means.spec.workspace.claim_name
    folder = chosen or Path(claim)
    if not folder.is_dir():
        raise InputError(
            f"{'--workspace' if chosen else 'workspace'}: there is no folder {folder}",
            "make it, with corpus/ (PDF files) and base/ (base models) in it as in a workspace claim,\n"
            "or name another with --workspace DIR",
        )
    return folder.resolve()


def _is_seen(plan: KeptPlan, confirm: str | None, stages: tuple[str, ...], settings: Settings) -> bool:
    """Whether this confirmation counts: the same rules as in a cluster, by the setting `approval`."""
    if confirm is None:
        return False
    if confirm != SEEN:
        if len(confirm) < SHORTEST_HASH:
            raise InputError(
                f"--confirm {confirm}: too short", f"give at least {SHORTEST_HASH} digits of the plan's hash"
            )
        return plan.hash.startswith(confirm)
    if settings.approval == "PlanHash":
        raise InputError("--confirm: the setting approval: PlanHash asks for the plan's hash", "--confirm HASH")
    return settings.approval == "Field" or set(stages) <= set(plan.seen_stages)


def _require_confirmable(file: Path, manifest: Json, rendering: Rendering, settings: Settings) -> None:
    """What the API server refuses of a confirmed run is refused here too, in the same words."""
    confirmed = {**manifest, "spec": {**manifest["spec"], "dryRun": False, "confirm": True}}
    render_offline(file, confirmed, rendering.means.key.namespace, settings)
    if rendering.means.spec.suspend:
        raise RefusedError("spec.suspend: is true, which keeps a run from working", "set suspend: false")


def _ending(stages: tuple[str, ...], place: Place, again: str, failed: list[Json]) -> list[str]:
    told = [
        f"On this machine {', '.join(('preflight', *map(spelled, stages)))} would run as processes, "
        f"in {place.workspace} and below it in runs/{place.uid},",
        "with the trainer of this Python environment instead of the image. CPU, memory and GPUs are not reserved.",
    ]
    if failed:
        return [*told, "", "It cannot be confirmed until the failed checks pass."]
    return [*told, "", "Nothing runs until this plan is confirmed:", f"  {again} --confirm"]


def _run_stages(plan: KeptPlan, stages: tuple[str, ...], place: Place, again: str) -> None:
    """Preflight for the chosen stages, then these; ends the command at the first that does not succeed."""
    job_input = plan.job_input
    # Preflight looks at what is asked for now: what an earlier stage makes must be there by then.
    looked_at = job_input.model_copy(update={"stages": stages})
    with only_one(place) as hold, stop_on_signals() as stop, shown() as display:
        for stage in ("preflight", *stages):
            before = _done_before(place, stage)
            display.start(stage)
            ended = run_stage(
                plan.job(stage),
                looked_at if stage == "preflight" else job_input,
                place,
                hold=hold,
                stop=stop,
                hear=lambda line: _hear(display, line),
            )
            display.end()
            result = _require_done(ended, stage, job_input, stop, again)
            display.line(f"{spelled(stage)}: {result.message}")
            if before:
                display.line(
                    f"{spelled(stage)}: was done before and is whole; to do it again, change spec.trainingRevision"
                )
            if result.outcome == "Adopted":
                break
    _show_end(result, place)


def _hear(display: Bars | Lines, line: str) -> None:
    """Hand on what the trainer says, without the Result at its end, which is for programs."""
    if line.strip() and not (line.startswith("{") and '"formatVersion"' in line):
        display.line(line)


def _done_before(place: Place, stage: str) -> bool:
    return (results_folder(place.workspace, place.uid) / f"{stage}.json").exists()


def _require_done(ended: Ended, stage: str, job_input: JobInput, stop: Stop, again: str) -> Result:
    """The Result of a stage that is done; anything else ends the command in words."""
    result, name = ended.result, spelled(stage)
    if ended.code == TrainerExit.DONE and result is not None:
        return result
    said = result.message if result is not None else f"{name} {_death(ended.code)}"
    if ended.late:
        raise _StageError(
            f"{name} took longer than spec.activeDeadlineSeconds: {said}", f"raise it; to go on: {again} --confirm"
        )
    if stop.requests:
        say(f"{said}\nto go on: {again} --confirm")
        raise click.exceptions.Exit(INTERRUPTED)
    if result is not None and result.reason == LOCKED:
        raise RefusedError(said, f"to go on then: {again} --confirm")
    raise _StageError(said, _remedy(ended, result, job_input, again))


def _remedy(ended: Ended, result: Result | None, job_input: JobInput, again: str) -> str:
    log = f"all that it printed: {ended.log}"
    earlier = EARLIER_STAGE.get(result.reason) if result is not None else None
    if earlier in job_input.stages:
        what = f"collection {job_input.data_prep.collection}" if earlier == "ingest" else "dataset"
        return f"{run_first(f'no {what}', str(earlier))}\n{log}"
    match ended.code:
        case TrainerExit.USER_MISTAKE | TrainerExit.BAD_DATA:
            return f"it will not succeed before that is put right; then: {again} --confirm\n{log}"
        case TrainerExit.STOPPED | TrainerExit.MACHINE_TROUBLE:
            return f"another attempt can succeed and goes on from what is kept: {again} --confirm\n{log}"
        case _:
            return log


def _death(code: int) -> str:
    if code < 0:
        return f"was killed by signal {-code}" + (" (out of memory, perhaps)" if code == -9 else "")
    return f"ended with exit code {code} and left no result"


class _StageError(RefusedError):
    exit_code = ExitCode.RUN_FAILED


def _show_end(result: Result, place: Place) -> None:
    for view in measures_view([measure.to_dict() for measure in result.measures]):
        show(view)
    for artifact in result.artifacts:
        say(f"  {artifact.kind}: {place.workspace / artifact.path}")
