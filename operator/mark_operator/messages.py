"""Every reason the operator gives, with its sentence: what happened, where, what to do. No rule lives here."""

from dataclasses import dataclass

# A condition holds so many characters, an Event so many bytes.
LONGEST_BYTES = 1024

SENTENCES = {
    # Before the start
    "PlanReady": "The plan {hash} stands in status.plan and nothing runs. Read it; to run it: {command}",
    "InvalidSpec": "The spec cannot be used: {problem}. Correct it and apply it again",
    "PlanningFailed": "The operator failed to plan this run: {problem}. The log of the operator has the details; "
    "other runs go on",
    "PrerequisiteFailed": "{problem}. The operator looks again by itself; the run starts, if it is confirmed, "
    "when the check passes",
    "ConfirmedUnseen": "spec.confirm is true, but this plan did not stand in status.plan before that, so nobody "
    "can have read it. "
    "Read it; to run it: {command}",
    "PlanHashRequired": "spec.confirm is true, but the administrator asks for the plan's hash too. Read the plan;"
    " to run it: {command}",
    "PlanChanged": "spec.confirmPlan names plan {confirmed}, but what would run now is plan {hash}. Read the new "
    "plan; to run it: {command}",
    "PlanExpired": "The plan is older than the {seconds} s that the administrator allows. Set spec.confirm: "
    "false, read the new plan and confirm it",
    "Frozen": "The run is confirmed, but all starts are frozen: {why}. It starts by itself when the freeze ends",
    "ModelNotFound": "spec.model.name: there is no Model {model} in this namespace. Create it by a TrainingRun "
    "with output.model, or correct the name",
    "ModelWithoutVersion": "spec.model.name: the Model {model} has no version yet. Wait for a TrainingRun with "
    "output.model: {model} to succeed",
    "ModelElsewhere": "spec.workspace.claimName: version {digest} of the Model {model} lies in claim {claim}. Use"
    " that claim",
    "Confirmed": "Plan {hash} was confirmed{by}",
    "NotConfirmed": "spec.confirm is false, so nothing runs. To run this plan: {command}",
    "Planned": "Plan {hash} was made from generation {generation} of the spec",
    # On the way
    "Starting": "Stage {stage}, attempt {attempt}: {detail}",
    "Running": "Stage {stage}, attempt {attempt} is running in Job {job}",
    "NoProgress": "Stage {stage} has told no progress since {since} in Job {job}. See its log; "
    "spec.suspend stops "
    "its Pods and lets them start again",
    "Waiting": "Stage {stage}, attempt {attempt}, waits in Job {job}: {detail}",
    "Stopping": "Stage {stage}, attempt {attempt}: the Pods of Job {job} are ending",
    "StageDone": "Stage {stage} is done; the next one follows",
    "Queued": "Job {job} of stage {stage} waits for admission by queue {queue}",
    "Admitted": "Queue {queue} admitted Job {job}",
    "Evicted": "Queue {queue} took back the admission of Job {job}, so its Pods were stopped and it waits to be "
    "admitted again. It goes on from its last checkpoint, and nothing counts against spec.maxAttempts",
    "HeldByOther": "Job {job} of stage {stage} was suspended by another controller; if that is a queue, name it in "
    "spec.queueName",
    "Suspended": "spec.suspend is true, so no Pod runs; set it to false to go on with stage {stage}",
    "WaitingForPods": "Pods of an earlier run or attempt of this name still exist: {pods}. Stage {stage} starts "
    "when they are gone",
    "NameTaken": "{taken} exists already and does not belong to this run. It goes by itself when its owner was "
    "deleted; else delete or rename it",
    "PassFailed": "The operator cannot go on with this run, and tries again at least once a minute. {problem}",
    "RetryLater": "Stage {stage}, attempt {attempt} failed: {problem} The next attempt starts at {at}",
    "Cancelling": "spec.confirm was taken back: the Pods save a checkpoint and stop. If that lasts, see whether their "
    "node still answers: `kubectl get pods -o wide`",
    # The end
    "Succeeded": "All {count} stages are done",
    "Adopted": "Run {uid} did this work already and finished at {finished}; its result was adopted and nothing "
    "was trained. "
    "To train again, change spec.trainingRevision",
    "Cancelled": "spec.confirm was taken back, so the run was cancelled. Create a new run to train again",
    "PlanTampered": "ConfigMap {name} no longer holds the plan that was confirmed, so nothing more of it is run. "
    "Create a new run",
    "PlanLost": "There is no ConfigMap {name} with the confirmed plan, and the same plan cannot be made again. Create"
    " a new run",
    "TooManyAttempts": "Stage {stage} ended {attempts} times without result; the last time: {problem} Find out "
    "who stops its Pods, then create a new run",
    # Ends of an attempt
    "DeadlineExceeded": "Job {job} ran longer than spec.activeDeadlineSeconds. Raise it in a new run",
    "OutOfMemory": "Container {container} needed more memory than its limit. {cure}, in a new run",
    "Unschedulable": "Not all Pods of Job {job} ran within {seconds} s ({limit}), so the attempt "
    "gave back what it held: no node has room for a Pod with {needs} ({detail}). Free nodes, or ask for less in "
    "a new run",
    "ImageNotPulled": "Not all Pods of Job {job} ran within {seconds} s ({limit}), so the attempt "
    "gave back what it held: image {image} cannot be pulled ({detail}). Push it, or correct the image or "
    "its pull Secret",
    "PodNotCreated": "Not all Pods of Job {job} ran within {seconds} s ({limit}), so the attempt "
    "gave back what it held: they could not be created ({detail}). See `kubectl get events --field-selector "
    "involvedObject.name={job}` and `kubectl get resourcequota`",
    "PendingTooLong": "Not all Pods of Job {job} ran within {seconds} s ({limit}), so the attempt "
    "gave back what it held: {detail}. Mend that, or allow more time in a new run",
    "QueueTooLong": "Job {job} was not admitted by queue {queue} within {seconds} s (spec.queueDeadlineSeconds), so it "
    "left the queue. Raise the quota or the limit, or choose another queue, in a new run",
    "HeldByOtherRun": "Another run holds what this one needs: {problem}. It is asked again by itself, which does not "
    "count against spec.maxAttempts",
    "Disrupted": "Pod {pod} was taken away by the cluster ({detail}). This does not count against spec.maxAttempts",
    "Stopped": "The trainer stopped after a checkpoint. This does not count against spec.maxAttempts",
    "JobVanished": "Job {job} was deleted by somebody else while it worked. Leave the Jobs of a run alone; use "
    "spec.suspend or spec.confirm: false",
    "PodVanished": "Job {job} failed and its Pod was deleted, so its last words are lost ({detail}). Leave the Pods of "
    "a run alone; use spec.suspend or spec.confirm: false",
    "NoResult": "Job {job} ended well but left no usable result ({detail}). Use a trainer image of this version",
    "ContainerFailed": "Container {container} of Pod {pod} ended with exit code {code} and left no result. See its log",
    "UserMistake": "Container {container} of Pod {pod} ended with exit code {code}, a mistake in the spec, and "
    "left no result. See its log",
    "BadData": "Container {container} of Pod {pod} ended with exit code {code}, bad data, and left no result. See"
    " its log",
}


@dataclass(frozen=True)
class Note:
    """A reason for programs and its sentence for people."""

    reason: str
    message: str


def note(reason: str, **facts: object) -> Note:
    """The sentence for a reason, filled with facts."""
    return Note(reason, shorten(SENTENCES[reason].format(**facts)))


def shorten(text: str) -> str:
    """The text in one line, as long as a condition and an Event may hold, without characters that steer a terminal."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    whole, mark = line.encode(), "…"
    if len(whole) <= LONGEST_BYTES:
        return line
    return whole[: LONGEST_BYTES - len(mark.encode())].decode(errors="ignore") + mark
