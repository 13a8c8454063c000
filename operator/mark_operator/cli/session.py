"""The connection to the cluster: kubectl's defaults, a few verbs on plain dicts, and API errors turned into sentences.

The only module of `mark` that talks to the API server over HTTP. It must know nothing of plans or runs.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import config
from kubernetes.client import ApiClient, Configuration
from mark_crds import names

from mark_operator.cli.errors import ClusterError, InputError, NotFoundError, RefusedError

Json = dict[str, Any]

FIELD_MANAGER = "mark-cli"
_IN_CLUSTER_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_REQUEST_SECONDS = 30
# The API server has not looked at such a request, so it may be sent again whatever it asks for.
_BUSY = 429
_BUSY_PAUSES = (0.5, 1, 2, 4)
_MERGE_PATCH = "application/merge-patch+json"


@dataclass(frozen=True)
class Target:
    """Which cluster and namespace, as the options say; None takes kubectl's default."""

    namespace: str | None = None
    context: str | None = None
    kubeconfig: str | None = None


def path(plural: str, namespace: str | None = None, name: str = "", *, group: str = "", version: str = "v1") -> str:
    """The URL path of a collection or of one object; without a group it is the core API's."""
    parts = [f"/apis/{group}/{version}" if group else f"/api/{version}"]
    if namespace:
        parts.append(f"namespaces/{namespace}")
    parts.append(plural)
    if name:
        parts.append(name)
    return "/".join(parts)


def own_path(kind: str, namespace: str | None, name: str = "") -> str:
    """The URL path of a TrainingRun, EvalRun or Model."""
    return path(names.PLURALS[kind], namespace, name, group=names.GROUP, version=names.VERSION)


class Session:
    """One cluster, one namespace, one user."""

    def __init__(self, client: ApiClient, namespace: str) -> None:
        self.client = client
        self.namespace = namespace

    def get(self, url: str) -> Json:
        """One object; raises NotFoundError."""
        return self._request("GET", url)

    def items(self, url: str, **selectors: str) -> list[Json]:
        """The objects of a collection; `labelSelector` and `fieldSelector` narrow it."""
        found: list[Json] = self._request("GET", url, query=selectors)["items"]
        return found

    def create(self, url: str, body: Json) -> Json:
        """Create an object. A misspelt field is an error."""
        return self._request("POST", url, body=body, query={"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"})

    def patch(self, url: str, body: Json) -> Json:
        """Merge some fields into an object. A misspelt field is an error."""
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        return self._request("PATCH", url, body=body, query=query, content_type=_MERGE_PATCH)

    def delete(self, url: str, *, grace_period_seconds: int | None = None) -> None:
        """Delete an object; one that is gone already is deleted."""
        body: Json = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if grace_period_seconds is not None:
            body["gracePeriodSeconds"] = grace_period_seconds
        try:
            self._request("DELETE", url, body=body)
        except NotFoundError:
            return

    def lines(self, url: str, query: Mapping[str, str]) -> Iterator[str]:
        """The lines of an answer as they come, such as a log that is followed."""
        response = self._send("GET", url, query=query, timeout=(_REQUEST_SECONDS, None))
        try:
            rest = b""
            for chunk in response.response.stream(2**16):
                *whole, rest = (rest + chunk).split(b"\n")
                yield from (line.decode(errors="replace") for line in whole)
            if rest:
                yield rest.decode(errors="replace")
        except urllib3.exceptions.HTTPError as error:
            raise ClusterError(f"the connection to the API server broke: {error}", "run the command again") from error
        finally:
            response.response.release_conn()

    def user_name(self) -> str:
        """The name under which the API server knows this user."""
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        answer = self._request("POST", path("selfsubjectreviews", group="authentication.k8s.io"), body=review)
        return str(answer["status"]["userInfo"]["username"])

    def authorization_header(self) -> str | None:
        """The header that stands for this user, where it is not a client certificate."""
        headers: dict[str, str] = {}
        self.client.update_params_for_auth(headers, [], ["BearerToken"], "", "GET", None)
        return headers.get("authorization")

    def _request(
        self,
        method: str,
        url: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        content_type: str = "application/json",
    ) -> Json:
        response = self._send(method, url, query=query, body=body, content_type=content_type, timeout=_REQUEST_SECONDS)
        try:
            answer: Json = json.loads(response.read())
        except (ValueError, urllib3.exceptions.HTTPError) as error:
            raise ClusterError(f"{self.client.configuration.host} gave no readable answer: {error}") from error
        return answer

    def _send(
        self,
        method: str,
        url: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        content_type: str = "application/json",
        timeout: Any,
    ) -> Any:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = content_type
        request = self.client.param_serialize(
            method, url, query_params=list((query or {}).items()), header_params=headers, body=body,
            auth_settings=["BearerToken"],
        )  # fmt: skip
        try:
            response: Any = self.client.call_api(*request, _request_timeout=timeout)
            for pause in _BUSY_PAUSES:
                if response.status != _BUSY:
                    break
                response.read()
                time.sleep(pause)
                response = self.client.call_api(*request, _request_timeout=timeout)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise unreachable(self.client.configuration.host, error) from error
        if response.status >= 300:
            raise api_error(response.status, response.read())
        return response


def connect(target: Target) -> Session:
    """A session with the cluster that kubectl would use."""
    configuration = Configuration()
    configuration.retries = False
    try:
        namespace = _configure(target, configuration)
    except config.ConfigException as error:
        raise InputError(f"no cluster to talk to: {error}", _CONFIGURATION_REMEDY) from error
    except OSError as error:
        raise InputError(f"the kubeconfig cannot be read: {error}", _CONFIGURATION_REMEDY) from error
    return Session(ApiClient(configuration), namespace)


_CONFIGURATION_REMEDY = (
    "name a file with --kubeconfig or $KUBECONFIG, and a context with --context; "
    "`kubectl config get-contexts` lists them"
)


def _configure(target: Target, configuration: Configuration) -> str:
    """Fill the configuration; the namespace to use comes back."""
    library: Any = config  # without annotations
    if target.kubeconfig is not None and not Path(target.kubeconfig).expanduser().is_file():
        raise InputError(f"--kubeconfig: there is no file {target.kubeconfig}", _CONFIGURATION_REMEDY)
    if target.kubeconfig is None and not _has_kubeconfig() and _IN_CLUSTER_NAMESPACE.exists():
        library.load_incluster_config(client_configuration=configuration)
        return target.namespace or _IN_CLUSTER_NAMESPACE.read_text().strip()
    file = target.kubeconfig and str(Path(target.kubeconfig).expanduser())
    library.load_kube_config(file, target.context, configuration, persist_config=False)
    contexts, current = library.list_kube_config_contexts(file)
    if target.context:
        current = next(context for context in contexts if context["name"] == target.context)
    return target.namespace or current["context"].get("namespace") or "default"


def _has_kubeconfig() -> bool:
    places = [*os.environ.get("KUBECONFIG", "").split(os.pathsep), "~/.kube/config"]
    return any(place and Path(place).expanduser().exists() for place in places)


def unreachable(host: str, error: Exception) -> ClusterError:
    """The error of a request that got no answer."""
    reason = getattr(error, "reason", None) or error
    return ClusterError(
        f"the API server {host} does not answer: {reason}",
        "is the cluster up, and is it the right context? `kubectl cluster-info` asks the same server",
    )


def api_error(status: int, body: bytes) -> ClusterError | RefusedError:
    """What the API server answered, as an error with the fields it names."""
    try:
        answer: Json = json.loads(body)
    except ValueError:
        # What the API server says of a path that nobody serves is no JSON.
        answer = {"message": "the server could not find the requested resource" if status == 404 else text_of(body)}
    message = str(answer.get("message", f"HTTP {status}"))
    if status == 404:
        return NotFoundError(message, _missing_remedy(message))
    if status == 401:
        return ClusterError(
            "the API server does not know this user", "log in to the cluster again, or choose another --context"
        )
    if status == 403:
        return ClusterError(message, "ask the administrator for the right, or choose another --context or --namespace")
    if status in (409, 422):
        causes = answer.get("details", {}).get("causes", [])
        return RefusedError("the API server refuses the change", "\n".join(_cause(c) for c in causes) or message)
    return ClusterError(message)


def text_of(body: bytes) -> str:
    """An answer that is no JSON, such as one of a proxy."""
    return body.decode(errors="replace").strip()[:500]


def _cause(cause: Json) -> str:
    text = str(cause.get("message", "")).removeprefix("Invalid value: ").removeprefix('"object": ')
    # Messages of ours name their field; those of the API server do not.
    return text if text.startswith(("spec", "metadata", "baseModel")) else f"{cause.get('field', '')}: {text}"


def _missing_remedy(message: str) -> str:
    if "could not find the requested resource" in message:
        return (
            "the kinds of MARK are not installed in this cluster:\n"
            "helm install mark-operator helm/mark-operator -n mark-system --create-namespace"
        )
    return "look at the name and at --namespace"
