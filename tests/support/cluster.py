"""A Kubernetes cluster as tests see it: objects in, objects out, and waiting for what the cluster does with them."""

import json
import secrets
import ssl
import subprocess
import tempfile
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml
from tests.support.processes import wait_until

Object = dict[str, Any]
_T = TypeVar("_T")

FIELD_OWNER = "tests"
WAIT_SECONDS = 60
_DISCOVERY = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_REQUEST_SECONDS = 30


class Refused(Exception):
    """The API server said no."""

    def __init__(self, status: int, *, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Served:
    """Where the API serves a kind."""

    prefix: str
    plural: str
    namespaced: bool


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster as one user sees it."""

    kubeconfig: Path
    server: str
    ca: Path
    program: Path
    """kubectl."""
    http: httpx.Client
    pause_seconds: float
    """Between two looks at what is waited for."""
    _served: dict[str, Served] = field(default_factory=dict)

    @classmethod
    def connect(cls, kubeconfig: Path, *, program: Path, pause_seconds: float = 0.02) -> "Cluster":
        """Use the current context of a kubeconfig that identifies its user by certificate or token."""
        content = yaml.safe_load(kubeconfig.read_text())
        entry = _named(content["contexts"], content["current-context"])["context"]
        target = _named(content["clusters"], entry["cluster"])["cluster"]
        user = _named(content["users"], entry["user"])["user"]
        context, headers = _identity(target, user)
        http = httpx.Client(base_url=target["server"], verify=context, headers=headers, timeout=_REQUEST_SECONDS)
        ca = Path(target.get("certificate-authority", ""))
        return cls(kubeconfig, server=target["server"], ca=ca, program=program, http=http, pause_seconds=pause_seconds)

    def kubectl(
        self, *arguments: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl against the cluster, with a text as its standard input."""
        command = [str(self.program), f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done

    def request(self, method: str, path: str, *, body: Object | None = None, **headers: str) -> Object:
        """Send one request. Raises Refused for any answer but 2xx."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self.http.request(method, path, content=None if body is None else json.dumps(body), headers=named)
        content: Object = answer.json() if answer.content[:1] == b"{" else {"text": answer.text}
        if not answer.is_success:
            reason = content.get("reason", "")
            raise Refused(answer.status_code, reason=reason, message=content.get("message", answer.text))
        return content

    def path(self, kind: str, name: str = "", *, namespace: str = "", subresource: str = "") -> str:
        """Return where the API serves an object, or all of a kind."""
        served = self._find(kind)
        inner = f"/namespaces/{namespace}" if served.namespaced and namespace else ""
        tail = "".join(f"/{part}" for part in (name, subresource) if part)
        return f"{served.prefix}{inner}/{served.plural}{tail}"

    def create(self, manifest: Object) -> Object:
        """Create an object; its name may be left to the server."""
        metadata = manifest["metadata"]
        path = self.path(manifest["kind"], namespace=metadata.get("namespace", ""))
        return self.request("POST", path, body=manifest, content_type="application/json")

    def apply(self, *manifests: Object) -> list[Object]:
        """Apply objects on the server's side and return what they became."""
        return [self._apply(manifest) for manifest in manifests]

    def get(self, kind: str, name: str, namespace: str = "") -> Object:
        """Return an object. Raises Refused when it is not there."""
        return self.request("GET", self.path(kind, name, namespace=namespace))

    def find(self, kind: str, name: str, namespace: str = "") -> Object | None:
        """Return an object, or None when it is not there."""
        try:
            return self.get(kind, name, namespace)
        except Refused as refused:
            if refused.status == httpx.codes.NOT_FOUND:
                return None
            raise

    def objects(self, kind: str, namespace: str = "", *, labels: str = "") -> list[Object]:
        """Return the objects of a kind, of one namespace or of all."""
        query = f"?labelSelector={labels}" if labels else ""
        answer = self.request("GET", self.path(kind, namespace=namespace) + query)
        # Items of a list do not name their kind.
        kind_of_items = {"apiVersion": answer["apiVersion"], "kind": answer["kind"].removesuffix("List")}
        return [kind_of_items | item for item in answer["items"]]

    def patch(self, target: Object, change: Object, *, subresource: str = "") -> Object:
        """Merge a change into an object, without regard to what it became since."""
        return self.request("PATCH", self._path_of(target, subresource=subresource), body=change, content_type=_MERGE)

    def delete(self, target: Object, *, propagation: str = "Background") -> None:
        """Ask for the end of an object; it may take its time."""
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        self.request("DELETE", self._path_of(target), body=options, content_type="application/json")

    def refresh(self, target: Object) -> Object:
        """Return what an object is now."""
        return self.request("GET", self._path_of(target))

    def wait_for(self, condition: Callable[[], _T | None], *, what: str, seconds: float = WAIT_SECONDS) -> _T:
        """Return the first answer of a condition that is neither None nor false."""
        answers: list[_T] = []

        def is_met() -> bool:
            answer = condition()
            if answer is not None and answer is not False:
                answers.append(answer)
            return bool(answers)

        wait_until(is_met, seconds=seconds, what=what, pause_seconds=self.pause_seconds)
        return answers[0]

    def wait_for_object(
        self,
        kind: str,
        name: str,
        namespace: str = "",
        *,
        where: Callable[[Object], bool] = lambda _: True,
        seconds: float = WAIT_SECONDS,
    ) -> Object:
        """Return an object as soon as it is there and as it should be; else fail and show what it is."""
        last: list[Object | None] = [None]

        def look() -> Object | None:
            last[0] = self.find(kind, name, namespace)
            return last[0] if last[0] is not None and where(last[0]) else None

        try:
            return self.wait_for(look, what=f"{kind} {namespace}/{name}", seconds=seconds)
        except AssertionError as error:
            error.add_note(f"it is: {json.dumps(last[0], indent=1)}")
            raise

    def wait_gone(self, kind: str, name: str, namespace: str = "", *, seconds: float = WAIT_SECONDS) -> None:
        """Return as soon as an object is not there any more."""
        what = f"{kind} {namespace}/{name} is gone"
        self.wait_for(lambda: self.find(kind, name, namespace) is None, what=what, seconds=seconds)

    def events(self, namespace: str, *, name: str = "") -> list[Object]:
        """Return the Events of a namespace, or those about one name."""
        found = self.objects("Event", namespace)
        return [event for event in found if not name or event["involvedObject"]["name"] == name]

    def _apply(self, manifest: Object) -> Object:
        query = f"?fieldManager={FIELD_OWNER}&force=true"
        return self.request("PATCH", self._path_of(manifest) + query, body=manifest, content_type=_APPLY)

    def _path_of(self, target: Object, *, subresource: str = "") -> str:
        metadata = target["metadata"]
        place = metadata.get("namespace", "")
        return self.path(target["kind"], metadata["name"], namespace=place, subresource=subresource)

    def _find(self, kind: str) -> Served:
        if kind not in self._served:
            # Asked for again when a kind is new: definitions are applied while tests run.
            self._served.update(self._discover())
        assert kind in self._served, f"the cluster does not serve {kind}"
        return self._served[kind]

    def _discover(self) -> dict[str, Served]:
        found: dict[str, Served] = {}
        for root in ("/api", "/apis"):
            for group in self.request("GET", root, accept=_DISCOVERY)["items"]:
                name = group["metadata"].get("name", "")
                for version in group["versions"]:
                    prefix = f"{root}/{name}/{version['version']}" if name else f"{root}/{version['version']}"
                    for resource in version.get("resources", []):
                        served = Served(prefix, resource["resource"], resource["scope"] == "Namespaced")
                        found.setdefault(resource["responseKind"]["kind"], served)
        return found


def new_namespace(cluster: Cluster, prefix: str, *, labels: Mapping[str, str] | None = None) -> str:
    """Create a namespace of a fresh name that refuses pods which Pod Security calls unsafe."""
    name = f"{prefix}-{secrets.token_hex(4)}"
    enforced = {"pod-security.kubernetes.io/enforce": "restricted", **(labels or {})}
    cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": enforced}})
    # Without its service account, no pod can be created there.
    cluster.wait_for_object("ServiceAccount", "default", name)
    return name


@contextmanager
def temporary_namespace(cluster: Cluster, prefix: str) -> Iterator[str]:
    """Lend a namespace; what is left in it goes by and by."""
    name = new_namespace(cluster, prefix)
    try:
        yield name
    finally:
        cluster.delete({"kind": "Namespace", "metadata": {"name": name}})


def install_definitions(cluster: Cluster, folder: Path) -> None:
    """Apply the custom resource definitions of a folder and wait until the API serves them."""
    definitions = [yaml.safe_load(path.read_text()) for path in sorted(folder.glob("*.yaml"))]
    assert definitions, f"no definitions in {folder}"
    for definition in cluster.apply(*definitions):
        cluster.wait_for_object("CustomResourceDefinition", definition["metadata"]["name"], where=_is_established)
    kinds = [definition["spec"]["names"]["kind"] for definition in definitions]
    cluster.wait_for(lambda: all(_is_served(cluster, kind) for kind in kinds), what=f"{kinds} are served")


def has_condition(target: Object, kind: str, status: str = "True") -> bool:
    """Whether an object's status has a condition of a type."""
    conditions = target.get("status", {}).get("conditions") or []  # Of a new definition they are null.
    return any(each["type"] == kind and each["status"] == status for each in conditions)


def _is_served(cluster: Cluster, kind: str) -> bool:
    """Whether objects of a kind can be listed; for a moment after its definition is established they cannot."""
    try:
        cluster.objects(kind)
    except (Refused, AssertionError):
        return False
    return True


def _is_established(definition: Object) -> bool:
    return has_condition(definition, "Established")


def _named(entries: list[Object], name: str) -> Object:
    return next(entry for entry in entries if entry["name"] == name)


def _identity(target: Object, user: Object) -> tuple[ssl.SSLContext, dict[str, str]]:
    """Return how to trust a cluster, and how to say who we are, by certificate or by token."""
    authority = target.get("certificate-authority-data")
    if authority:
        context = ssl.create_default_context(cadata=b64decode(authority).decode())
    else:
        context = ssl.create_default_context(cafile=target.get("certificate-authority"))
    if "client-certificate" in user:
        context.load_cert_chain(user["client-certificate"], user["client-key"])
    elif "client-certificate-data" in user:
        with tempfile.NamedTemporaryFile() as pair:  # Python reads certificates from files only.
            pair.write(b64decode(user["client-certificate-data"]) + b"\n" + b64decode(user["client-key-data"]))
            pair.flush()
            context.load_cert_chain(pair.name)
    token = user.get("token") or (Path(user["tokenFile"]).read_text() if "tokenFile" in user else "")
    return context, {"authorization": f"Bearer {token}"} if token else {}
