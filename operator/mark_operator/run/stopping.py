"""Stopping what runs, because a person or a broken plan asks for it."""

from mark_operator.decision import Decision, Deletion
from mark_operator.job_facts import is_finished, pod_is_live
from mark_operator.messages import note
from mark_operator.run.view import View, of_run
from mark_operator.seen import Body


def cancel(view: View) -> Decision:
    """Stop what runs; the end is written once no Pod works any more."""
    working = [job for job in view.seen.own_jobs.values() if not is_finished(job)]
    live = [pod for pod in view.seen.pods if of_run(pod, view.seen.uid) and pod_is_live(pod)]
    if not working and not live:
        return Decision(status=view.end("Cancelled", note("Cancelled")), again_in=0)
    status = view.stand("Running", note("Cancelling"))
    return Decision(status=status, delete=deletions(working), again_in=view.settings.timings.first_retry_seconds)


def delete_working(view: View) -> tuple[Deletion, ...]:
    """The deletion of every Job of the run that has not ended."""
    return deletions([job for job in view.seen.own_jobs.values() if not is_finished(job)])


def deletions(jobs: list[Body]) -> tuple[Deletion, ...]:
    return tuple(
        Deletion("Job", job["metadata"]["name"], job["metadata"]["uid"])
        for job in jobs
        if "deletionTimestamp" not in job["metadata"]
    )
