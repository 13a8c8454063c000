"""The chart's rights on a real API server: what the operator and each role for people may do, to the last verb, and who may confirm."""

import json
import secrets
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from release import CHART, helm, installed

GROUP = "training.mark.dev"
POLICY_SECONDS = 30

# (API group, resource, name) -> verbs. These tables are the whole truth: one verb more or less fails a test.
READ = {"get", "list", "watch"}
FOR_RUNS = {
    (GROUP, "trainingruns", ""): READ,
    (GROUP, "evalruns", ""): READ,
    (GROUP, "trainingruns/status", ""): {"patch"},
    (GROUP, "evalruns/status", ""): {"patch"},
    (GROUP, "models/status", ""): {"patch"},
    (GROUP, "models", ""): READ | {"create"},
    ("batch", "jobs", ""): READ | {"create", "patch", "delete"},
    ("", "pods", ""): READ | {"create"},
    ("", "configmaps", ""): {"get", "create", "patch"},
    ("", "services", ""): {"get", "create"},
    ("", "events", ""): {"create"},
    ("", "persistentvolumeclaims", ""): {"get"},
    ("", "serviceaccounts", ""): {"get"},
    ("", "resourcequotas", ""): {"list"},
}
FOR_CLUSTER = {
    ("", "nodes", ""): {"list"},
    ("storage.k8s.io", "storageclasses", ""): {"get"},
    ("authentication.k8s.io", "tokenreviews", ""): {"create"},
}
IN_OWN_NAMESPACE = {
    ("coordination.k8s.io", "leases", ""): {"create"},
    ("coordination.k8s.io", "leases", "mark-operator"): {"get", "update"},
    ("", "secrets", "mark-operator-authority"): {"get", "patch"},
    ("", "configmaps", "mark-freeze"): {"get"},
}

ACTIONS = {
    "read runs": (GROUP, "trainingruns", "list"),
    "read evaluations": (GROUP, "evalruns", "watch"),
    "read models": (GROUP, "models", "get"),
    "read logs": ("", "pods/log", "get"),
    "create a run": (GROUP, "trainingruns", "create"),
    "change a run": (GROUP, "trainingruns", "patch"),
    "delete a run": (GROUP, "trainingruns", "delete"),
    "create an evaluation": (GROUP, "evalruns", "create"),
    "confirm a run": (GROUP, "trainingruns", "confirm"),
    "confirm an evaluation": (GROUP, "evalruns", "confirm"),
    "promote a model": (GROUP, "models", "patch"),
    "write a status": (GROUP, "trainingruns/status", "patch"),
    "create a Job": ("batch", "jobs", "create"),
    "read secrets": ("", "secrets", "get"),
}
READING = {"read runs", "read evaluations", "read models", "read logs"}
AUTHORING = {"create a run", "change a run", "delete a run", "create an evaluation"}
CONFIRMING = {"change a run", "confirm a run", "confirm an evaluation"}
ALLOWED = {
    "nobody": set(),
    "mark-viewer": READING,
    "mark-author": READING | AUTHORING,
    "mark-approver": READING | CONFIRMING,
    "mark-admin": READING | AUTHORING | CONFIRMING | {"promote a model"},
    "mark-author and mark-approver": READING | AUTHORING | CONFIRMING,
}


@pytest.fixture(scope="module")
def everywhere(api_server) -> Iterator[str]:
    """Namespace of a release that serves all namespaces."""
    with installed(api_server, "mark-operator") as namespace:
        yield namespace


@pytest.fixture(scope="module")
def fenced(api_server, everywhere: str) -> Iterator[tuple[str, str]]:
    """(release's namespace, run namespace) of a second release, for one namespace and with the confirm policy."""
    runs = f"mark-{secrets.token_hex(4)}"
    api_server.must("create", "namespace", runs)
    # The roles for people are the first release's.
    values = ("userRoles.create=false", "confirmPolicy.enabled=true", f"watchNamespaces={{{runs}}}")
    with installed(api_server, "fenced", *values) as own:
        yield own, runs


def rights(api_server, namespace: str, account: str) -> dict[tuple[str, str, str], set[str]]:
    """Everything that the service account may do in the namespace, less what every authenticated user may."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    ask = ["create", "--validate=false", "-f", "-", "-o", "json"]
    everybody = _rules(api_server.must(*ask, "--as=system:serviceaccount:none:none", stdin=review))
    found = _rules(api_server.must(*ask, f"--as={account}", stdin=review))
    extra = {key: verbs - everybody.get(key, set()) for key, verbs in found.items()}
    return {key: verbs for key, verbs in extra.items() if verbs}


def _rules(text: str) -> dict[tuple[str, str, str], set[str]]:
    result: dict[tuple[str, str, str], set[str]] = {}
    for rule in json.loads(text)["status"]["resourceRules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for name in rule.get("resourceNames") or [""]:
                    result.setdefault((group, resource, name), set()).update(rule["verbs"])
    return result


def account_of(release_namespace: str, name: str = "mark-operator") -> str:
    return f"system:serviceaccount:{release_namespace}:{name}"


def test_operator_everywhere_in_a_run_namespace(api_server, namespace: str, everywhere: str) -> None:
    assert rights(api_server, namespace, account_of(everywhere)) == FOR_RUNS | FOR_CLUSTER


def test_operator_everywhere_in_its_own_namespace(api_server, everywhere: str) -> None:
    assert rights(api_server, everywhere, account_of(everywhere)) == FOR_RUNS | FOR_CLUSTER | IN_OWN_NAMESPACE


def test_fenced_operator_in_its_run_namespace(api_server, fenced: tuple[str, str]) -> None:
    own, runs = fenced
    assert rights(api_server, runs, account_of(own, "fenced-mark-operator")) == FOR_RUNS | FOR_CLUSTER


def test_fenced_operator_elsewhere(api_server, namespace: str, fenced: tuple[str, str]) -> None:
    assert rights(api_server, namespace, account_of(fenced[0], "fenced-mark-operator")) == FOR_CLUSTER


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("list", "secrets"),
        ("get", "secrets"),
        ("create", "secrets"),
        ("patch", "trainingruns"),
        ("update", "trainingruns"),
        ("create", "trainingruns"),
        ("delete", "trainingruns"),
        ("patch", "evalruns"),
        ("patch", "models"),
        ("delete", "models"),
        ("confirm", "trainingruns"),
        ("delete", "pods"),
        ("create", "pods/exec"),
        ("get", "pods/log"),
        ("list", "configmaps"),
        ("delete", "configmaps"),
        ("create", "roles"),
        ("bind", "clusterroles"),
        ("impersonate", "users"),
        ("create", "serviceaccounts/token"),
    ],
)
def test_operator_cannot(api_server, namespace: str, everywhere: str, verb: str, resource: str) -> None:
    main, _, sub = resource.partition("/")
    words = [verb, main, "-n", namespace, f"--as={account_of(everywhere)}", *([f"--subresource={sub}"] if sub else [])]
    done = api_server.kubectl("auth", "can-i", *words)
    assert done.stdout.strip() == "no", f"{verb} {resource}: {done.stdout}{done.stderr}"


def test_no_rule_has_a_wildcard(api_server) -> None:
    rendered = helm(api_server, "template", "mark-operator", str(CHART))
    roles = [
        document
        for document in yaml.safe_load_all(rendered)
        if document and document["kind"] in ("Role", "ClusterRole")
    ]
    assert len(roles) >= 6
    for role in roles:
        for rule in role["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]], role["metadata"]["name"]


@pytest.mark.parametrize("role", ALLOWED)
def test_roles_for_people(api_server, namespace: str, everywhere: str, role: str) -> None:
    user = f"user-{secrets.token_hex(4)}"
    for name in [] if role == "nobody" else role.split(" and "):
        words = [f"--clusterrole={name}", f"--user={user}", "-n", namespace]
        api_server.must("create", "rolebinding", f"{user}-{name}", *words)
    reviews = [
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": user, "resourceAttributes": _attributes(namespace, *action)},
        }
        for action in ACTIONS.values()
    ]
    items = {"apiVersion": "v1", "kind": "List", "items": reviews}
    answers = api_server.must("create", "-f", "-", "-o", "jsonpath={.status.allowed}{'\\n'}", stdin=items).splitlines()
    allowed = {action for action, answer in zip(ACTIONS, answers, strict=True) if answer == "true"}
    assert allowed == ALLOWED[role]


def _attributes(namespace: str, group: str, resource: str, verb: str) -> dict[str, str]:
    main, _, sub = resource.partition("/")
    return {"namespace": namespace, "group": group, "resource": main, "subresource": sub, "verb": verb}


# The confirm policy.

HASH = "a" * 64
CONFIRM = {"dryRun": False, "confirm": True}
SPECS = {
    "TrainingRun": {
        "workspace": {"claimName": "mark-workspace"},
        "baseModel": {"path": "base/tiny-llama"},
        "lora": {"epochs": 1},
    },
    "EvalRun": {
        "workspace": {"claimName": "mark-workspace"},
        "model": {"name": "transformer-lora"},
        "dataset": {"path": "datasets/abc"},
    },
}
KINDS = pytest.mark.parametrize("kind", SPECS)


def run(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    metadata = {"generateName": name} if name.endswith("-") else {"name": name}
    return {"apiVersion": f"{GROUP}/v1alpha1", "kind": kind, "metadata": metadata, "spec": {**SPECS[kind], **spec}}


class Person:
    """A user of the fenced namespace."""

    def __init__(self, api_server: Any, namespace: str, name: str) -> None:
        self._api_server, self._namespace, self.name = api_server, namespace, name

    def does(self, *words: str, stdin: Any = None) -> subprocess.CompletedProcess[str]:
        return self._api_server.kubectl(*words, "-n", self._namespace, f"--as={self.name}", stdin=stdin)

    def may(self, *words: str, stdin: Any = None) -> None:
        done = self.does(*words, stdin=stdin)
        assert done.returncode == 0, done.stderr

    def is_refused(self, message: str, *words: str, stdin: Any = None) -> None:
        done = self.does(*words, stdin=stdin)
        assert done.returncode != 0, f"{self.name} was let through: {done.stdout}"
        assert message in done.stderr

    def may_not_confirm(self, *words: str, stdin: Any = None) -> None:
        self.is_refused(f"{self.name} may not confirm", *words, stdin=stdin)


@pytest.fixture(scope="module")
def people(api_server, fenced: tuple[str, str]) -> tuple[Person, Person]:
    """(an author, an approver) where the policy is in force."""
    _, namespace = fenced
    for name, role in {"anna": "mark-author", "paul": "mark-approver"}.items():
        api_server.must("create", "rolebinding", name, f"--clusterrole={role}", f"--user={name}", "-n", namespace)
    author, approver = Person(api_server, namespace, "anna"), Person(api_server, namespace, "paul")
    end = time.monotonic() + POLICY_SECONDS
    trial = run("TrainingRun", "trial", **CONFIRM)
    while author.does("create", "--dry-run=server", "-f", "-", stdin=trial).returncode == 0:
        assert time.monotonic() < end, "the policy did not come into force"
        time.sleep(0.2)
    return author, approver


@pytest.fixture
def name() -> str:
    return f"run-{secrets.token_hex(4)}"


def merge(**spec: Any) -> list[str]:
    return ["--type=merge", "-p", json.dumps({"spec": spec})]


@KINDS
def test_author_writes_runs_but_cannot_create_a_confirmed_one(people, kind: str, name: str) -> None:
    author, _ = people
    author.may_not_confirm("create", "-f", "-", stdin=run(kind, name, **CONFIRM))
    author.may_not_confirm("create", "-f", "-", stdin=run(kind, "generated-", **CONFIRM))
    author.may_not_confirm("apply", "-f", "-", stdin=run(kind, name, **CONFIRM))
    author.may_not_confirm("apply", "--server-side", "-f", "-", stdin=run(kind, name, **CONFIRM, confirmPlan=HASH))
    author.may("create", "-f", "-", stdin=run(kind, name))
    author.may("create", "-f", "-", stdin=run(kind, "generated-"))


@KINDS
def test_author_cannot_confirm_what_exists(people, kind: str, name: str) -> None:
    author, _ = people
    plural = f"{kind.lower()}s"
    author.may("create", "-f", "-", stdin=run(kind, name))
    author.may("patch", plural, name, *merge(dryRun=False))
    author.may_not_confirm("patch", plural, name, *merge(confirm=True))
    author.may_not_confirm(
        "patch",
        plural,
        name,
        "--type=json",
        "-p",
        json.dumps([{"op": "replace", "path": "/spec/confirm", "value": True}]),
    )
    author.may_not_confirm("apply", "-f", "-", stdin=run(kind, name, **CONFIRM))
    author.may_not_confirm("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=run(kind, name, **CONFIRM))
    author.may_not_confirm("replace", "-f", "-", stdin=run(kind, name, **CONFIRM))
    author.may_not_confirm("patch", plural, name, *merge(confirm=True, confirmPlan=HASH, confirmedBy="anna"))
    author.may("delete", plural, name)
    author.may_not_confirm("create", "-f", "-", stdin=run(kind, name, **CONFIRM))


@KINDS
def test_author_cannot_move_a_confirmation_to_another_plan_or_name(people, kind: str, name: str) -> None:
    author, approver = people
    plural = f"{kind.lower()}s"
    author.may("create", "-f", "-", stdin=run(kind, name))
    approver.may("patch", plural, name, *merge(**CONFIRM))
    author.may_not_confirm("patch", plural, name, *merge(confirmPlan=HASH, activeDeadlineSeconds=120))
    author.may_not_confirm("patch", plural, name, *merge(confirmPlan=HASH))
    author.may_not_confirm("patch", plural, name, *merge(confirmedBy="anna"))
    author.may("patch", plural, name, *merge(suspend=True))
    author.may("patch", plural, name, *merge(confirm=False))
    author.may_not_confirm("patch", plural, name, *merge(confirm=True))


@KINDS
def test_approver_confirms_by_every_path(people, kind: str, name: str) -> None:
    author, approver = people
    plural = f"{kind.lower()}s"
    for number, words in enumerate((["apply", "-f", "-"], ["apply", "--server-side", "--force-conflicts", "-f", "-"])):
        author.may("create", "-f", "-", stdin=run(kind, f"{name}-{number}"))
        approver.may(*words, stdin=run(kind, f"{name}-{number}", **CONFIRM))
    author.may("create", "-f", "-", stdin=run(kind, name))
    approver.may("patch", plural, name, *merge(**CONFIRM, confirmPlan=HASH, confirmedBy="paul"))


@KINDS
def test_confirmed_by_is_the_one_who_asks(people, kind: str, name: str) -> None:
    author, approver = people
    plural = f"{kind.lower()}s"
    refusal = "spec.confirmedBy: must be the name of the user who confirms, which is"
    author.is_refused(refusal, "create", "-f", "-", stdin=run(kind, name, confirmedBy="paul"))
    author.may("create", "-f", "-", stdin=run(kind, name))
    approver.is_refused(refusal, "patch", plural, name, *merge(**CONFIRM, confirmedBy="anna"))
    approver.is_refused(refusal, "patch", plural, name, *merge(confirmedBy="Paul"))
    approver.may("patch", plural, name, *merge(**CONFIRM, confirmedBy="paul"))
    author.may("patch", plural, name, *merge(suspend=True))


def test_a_grant_for_one_run_confirms_no_other(api_server, fenced, people, name: str) -> None:
    _, namespace = fenced
    author, _ = people
    helper = Person(api_server, namespace, "hedda")
    api_server.must("create", "rolebinding", "hedda", "--clusterrole=mark-author", "--user=hedda", "-n", namespace)
    rule = {"apiGroups": [GROUP], "resources": ["trainingruns"], "resourceNames": [name], "verbs": ["confirm"]}
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name}, "rules": [rule]}
    api_server.must("create", "-n", namespace, "-f", "-", stdin=role)
    api_server.must("create", "rolebinding", name, f"--role={name}", "--user=hedda", "-n", namespace)
    for run_name in (name, f"{name}-b"):
        author.may("create", "-f", "-", stdin=run("TrainingRun", run_name))
    helper.may("patch", "trainingruns", name, *merge(**CONFIRM))
    helper.may_not_confirm("patch", "trainingruns", f"{name}-b", *merge(**CONFIRM))
    helper.may_not_confirm("create", "-f", "-", stdin=run("TrainingRun", "generated-", **CONFIRM))


def test_the_policy_ends_at_the_served_namespaces(api_server, people, namespace: str) -> None:
    api_server.must(
        "create", "-n", namespace, "-f", "-", stdin=run("TrainingRun", "elsewhere", **CONFIRM, confirmedBy="anna")
    )
