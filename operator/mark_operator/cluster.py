"""The only module that talks to Kubernetes: a few verbs over plain dicts. It holds no rule about runs."""

import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from copy import copy
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode
from urllib.request import getproxies

import aiohttp
from kubernetes.aio import client, config
from mark_crds import names

from mark_operator.seen import Body

log = logging.getLogger(__name__)

Answered = Callable[[str, str, int], None]
FIELD_MANAGER = "mark-operator"
PROGRESS_MANAGER = "mark-progress"
PAGE_SIZE = 500
REQUEST_SECONDS = 30
# A list from before what was known is refused for so long; what goes on longer is a cluster restored from a backup.
REFUSED_SECONDS = 300.0
FROM_THE_PAST = "ListFromThePast"
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
JSON = "application/json"


@dataclass(frozen=True)
class Resource:
    """A kind as the API server serves it."""

    api_version: str
    kind: str
    plural: str

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        root = "/apis/" if "/" in self.api_version else "/api/"
        parts = [*(["namespaces", namespace] if namespace else []), self.plural, *([name] if name else [])]
        return root + "/".join([self.api_version, *map(quote, parts), *([subresource] if subresource else [])])


RESOURCES = {
    resource.kind: resource
    for resource in (
        *(Resource(names.API_VERSION, kind, plural) for kind, plural in names.PLURALS.items()),
        Resource("batch/v1", "Job", "jobs"),
        Resource("v1", "Pod", "pods"),
        Resource("v1", "ConfigMap", "configmaps"),
        Resource("v1", "Service", "services"),
        Resource("v1", "Event", "events"),
        Resource("v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
        Resource("v1", "ServiceAccount", "serviceaccounts"),
        Resource("v1", "ResourceQuota", "resourcequotas"),
        Resource("v1", "Secret", "secrets"),
        Resource("v1", "Node", "nodes"),
        Resource("storage.k8s.io/v1", "StorageClass", "storageclasses"),
        Resource("coordination.k8s.io/v1", "Lease", "leases"),
        Resource("authentication.k8s.io/v1", "TokenReview", "tokenreviews"),
    )
}


class ApiError(Exception):
    """What the API server answered instead of success; status 0 when there was no answer at all."""

    def __init__(self, status: int, reason: str, message: str, causes: tuple[str, ...] = ()) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.causes = causes

    @property
    def missing(self) -> bool:
        return self.status == 404

    @property
    def exists_already(self) -> bool:
        return self.reason == "AlreadyExists"

    @property
    def from_the_past(self) -> bool:
        return self.reason == FROM_THE_PAST

    @property
    def lacks_rights(self) -> bool:
        """Refused by RBAC, not by admission."""
        return self.status in (401, 403) and " cannot " in self.message and " resource " in self.message

    @property
    def namespace_terminates(self) -> bool:
        return "NamespaceTerminating" in self.causes

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed a little later."""
        return self.status in (0, 401, 408, 409, 429) or self.status >= 500


class Past:
    """Knows the newest resourceVersion of each kind that was heard of, and refuses lists from before."""

    def __init__(self) -> None:
        self._newest: dict[str, int] = {}
        self._refused_since: dict[str, float] = {}

    def newest(self, kind: str) -> int:
        return self._newest.get(kind, 0)

    def note(self, kind: str, body: Body) -> None:
        self._newest[kind] = max(self.newest(kind), _version(body))

    def check(self, kind: str, page: Body, known: int) -> None:
        """Raise for a list that is older than what was known when it was asked for."""
        version, now = _version(page), time.monotonic()
        # Only numbers of one kind can be compared; an API server that counts otherwise is believed.
        if 0 < version < known and now - self._refused_since.setdefault(kind, now) < REFUSED_SECONDS:
            raise ApiError(503, FROM_THE_PAST, f"the list of {kind} is of version {version}, before {known}")
        self._refused_since.pop(kind, None)
        self._newest[kind] = version if version < known else max(self.newest(kind), version)


class Cluster:
    """One connection to one API server."""

    def __init__(self, configuration: client.Configuration, answered: Answered | None = None) -> None:
        # Where there is no proxy, nobody needs to look for one, in a thread, before each request.
        configuration.client_session_kwargs = {"trust_env": bool(getproxies())}
        self._client = client.ApiClient(configuration)
        self._answered = answered or (lambda verb, resource, status: None)
        self._past = Past()
        self._may_write: Callable[[], bool] = lambda: True

    @classmethod
    async def connect(cls, answered: Answered | None = None) -> "Cluster":
        """The cluster around this Pod, or the one that KUBECONFIG names. `answered` hears of every answer: verb,
        resource, HTTP status."""
        configuration = client.Configuration()
        try:
            config.load_incluster_config(configuration)
        except config.ConfigException:
            await config.load_kube_config(client_configuration=configuration)
        return cls(configuration, answered)

    def writing_while(self, allowed: Callable[[], bool]) -> "Cluster":
        """The same connection, for who may write only while this is so. Anything else but reading is refused then, with
        a passing error and without asking the API server."""
        guarded = copy(self)
        guarded._may_write = allowed
        return guarded

    async def close(self) -> None:
        await self._client.close()

    async def get(self, kind: str, namespace: str | None, name: str) -> Body | None:
        """The object, read live; None when there is none."""
        try:
            found = await self._call("GET", RESOURCES[kind].path(namespace, name))
        except ApiError as error:
            if error.missing:
                return None
            raise
        self._past.note(kind, found)
        return found

    async def list_all(
        self, kind: str, namespace: str | None = None, labels: dict[str, str] | None = None
    ) -> AsyncIterator[Body]:
        """Every object of a kind, page by page; in all namespaces unless one is given. A list from before what is known
        by now is refused with a passing error: whoever decided on it would undo what came since."""
        resource = RESOURCES[kind]
        query = {"limit": str(PAGE_SIZE)}
        if labels:
            query["labelSelector"] = ",".join(f"{name}={value}" for name, value in labels.items())
        known = self._past.newest(kind)
        while True:
            page = await self._call("GET", resource.path(namespace), query)
            if not isinstance(page.get("items"), list):
                raise _not_kubernetes(f"a list of {kind} without items")
            self._past.check(kind, page, known)
            for item in page["items"]:
                yield {"apiVersion": resource.api_version, "kind": kind, **item}
            token = page.get("metadata", {}).get("continue")
            if not token:
                return
            query["continue"] = token

    async def create(self, body: Body, dry_run: bool = False) -> Body:
        """The created object. Misspelt fields are refused, not dropped."""
        query = {"fieldValidation": "Strict", "fieldManager": FIELD_MANAGER, **({"dryRun": "All"} if dry_run else {})}
        path = RESOURCES[body["kind"]].path(body["metadata"].get("namespace"))
        created = await self._call("POST", path, query, body)
        self._past.note(body["kind"], created)
        return created

    async def review_token(self, token: str, audience: str) -> Body:
        """What the API server knows of a token."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        }
        answer = await self._call("POST", RESOURCES["TokenReview"].path(), {}, body)
        status: Body = answer.get("status", {})
        return status

    async def apply_status(self, body: Body, manager: str = FIELD_MANAGER) -> Body:
        """The object with this status, ours alone.
        With a resourceVersion in the body, only if it is still the newest."""
        metadata = body["metadata"]
        path = RESOURCES[body["kind"]].path(metadata["namespace"], metadata["name"], "status")
        return await self._call("PATCH", path, {"fieldManager": manager, "force": "true"}, body, APPLY)

    async def apply(self, body: Body, manager: str = FIELD_MANAGER) -> Body:
        """The object with these fields, ours alone."""
        metadata = body["metadata"]
        path = RESOURCES[body["kind"]].path(metadata["namespace"], metadata["name"])
        return await self._call("PATCH", path, {"fieldManager": manager, "force": "true"}, body, APPLY)

    async def annotate(self, kind: str, namespace: str, name: str, uid: str, annotations: dict[str, str]) -> None:
        """Set annotations of this very object. Gone, or another one by now, is fine."""
        try:
            await self._merge(kind, namespace, name, uid, {"metadata": {"annotations": annotations}}, PROGRESS_MANAGER)
        except ApiError as error:
            if not (error.missing or error.reason == "Conflict"):
                raise

    async def set_suspend(self, namespace: str, job: str, uid: str, suspend: bool) -> None:
        """Change `suspend` of this very Job and nothing else."""
        await self._merge("Job", namespace, job, uid, {"spec": {"suspend": suspend}}, FIELD_MANAGER)

    async def _merge(self, kind: str, namespace: str, name: str, uid: str, change: Body, manager: str) -> None:
        """Change this very object. The API server calls another uid invalid; here it is the conflict that it is."""
        body = {**change, "metadata": {**change.get("metadata", {}), "uid": uid}}
        try:
            await self._call("PATCH", RESOURCES[kind].path(namespace, name), {"fieldManager": manager}, body, MERGE)
        except ApiError as error:
            if error.status == 422 and "metadata.uid:" in error.message:
                raise ApiError(409, "Conflict", error.message) from error
            raise

    async def replace(self, body: Body) -> Body:
        """The object as replaced; refused when somebody else changed it since it was read."""
        metadata = body["metadata"]
        path = RESOURCES[body["kind"]].path(metadata["namespace"], metadata["name"])
        return await self._call("PUT", path, {"fieldManager": FIELD_MANAGER}, body)

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        """Delete this very object and, behind it, what it owns. Gone already is fine."""
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": uid},
        }
        try:
            await self._call("DELETE", RESOURCES[kind].path(namespace, name), {}, body)
        except ApiError as error:
            if not (error.missing or error.reason == "Conflict"):
                raise

    async def _call(
        self, method: str, path: str, query: dict[str, str] | None = None, body: Body | None = None, content: str = JSON
    ) -> Body:
        url = path + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": JSON, "Content-Type": content}
        if method != "GET" and not self._may_write():
            raise ApiError(0, "NotLeading", f"{method} {path} was not sent: another replica may lead by now")
        try:
            request = await self._client.param_serialize(
                method, url, header_params=headers, body=body, auth_settings=["BearerToken"]
            )
            response = await self._client.call_api(*request, _request_timeout=REQUEST_SECONDS)
            data = await response.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            self._answered(method, _resource_of(path), 0)
            raise ApiError(0, "NoAnswer", f"{type(error).__name__}: {error}") from error
        self._answered(method, _resource_of(path), response.status)
        return _read(response.status, data)


def _version(body: Body) -> int:
    """The resourceVersion of an object or a list, 0 for none that is a number."""
    text = str(body.get("metadata", {}).get("resourceVersion", ""))
    return int(text) if text.isdecimal() else 0


def _resource_of(path: str) -> str:
    """The resource in a path, with its subresource: `jobs`, `trainingruns/status`."""
    parts = path.strip("/").split("/")
    parts = parts[3:] if parts[0] == "apis" else parts[2:]
    parts = parts[2:] if parts[0] == "namespaces" and len(parts) > 2 else parts
    return "/".join([parts[0], *parts[2:3]])


def _read(status: int, data: bytes) -> Body:
    text = data[:500].decode(errors="replace")
    try:
        told: Any = json.loads(data)
    except ValueError:
        told = None
    answer: Body = told if isinstance(told, dict) else {}
    if status < 400 and not answer:
        raise _not_kubernetes(text)
    if status < 400:
        return answer
    if answer.get("kind") != "Status":
        answer = {"message": text}
    causes = tuple(cause.get("reason", "") for cause in (answer.get("details") or {}).get("causes") or ())
    raise ApiError(status, answer.get("reason") or "Unknown", answer.get("message") or "no message", causes)


def _not_kubernetes(told: str) -> ApiError:
    """Something between us and the API server says that all is well, with words that no API server has."""
    return ApiError(502, "NotKubernetes", f"not an answer of the API server: {told}")
