"""Private by construction, on a node that enforces it: who reaches whom, sees which volume, and runs as whom."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from tests.support.cluster import Object, has_condition
from tests.support.e2e import OPERATOR, OPERATOR_PODS, SYSTEM, Installation, Place, endless, is_stepping, record
from tests.support.e2e_images import PROGRAMS, Image
from tests.support.e2e_site import NAMESPACE as SITE
from tests.support.e2e_site import STORE_PORT
from tests.support.inside import OPEN, Inside, visitor

from finetuning_operator.reconcile import labels

FREE_PORT = 9999
"""A port that nothing but a test listens on."""
SERVER_PORT = 8000
PROGRESS_PORT = 8443
METRICS_PORT = 8080
KUBELET_PORT = 10250
USER = 65532
ANY_USER = 1000660000
"""A user that no image knows, as some clusters give to their pods."""
OF_A_RELOCATION = {labels.MANAGED_BY: labels.OPERATOR, "finetuning.dev/network": "open"}
"""Labels by which a pod is bound like one that relocates."""


@dataclass(frozen=True, slots=True)
class House:
    """A namespace in which one job trains, the result of another is served, and somebody else has pods."""

    place: Place
    training: Inside
    server: Inside
    stranger: Inside
    """A pod that no policy binds."""
    relocating: Inside
    """A pod that is bound like one that relocates."""

    def address(self, pod: Inside, port: int) -> str:
        """Return where a pod is reached."""
        return f"{self.place.get('Pod', pod.pod)['status']['podIP']}:{port}"


@pytest.fixture(scope="module")
def house(shared_place: Place, images: Mapping[str, Image]) -> House:
    place, image = shared_place, images["relocator"].reference
    place.tiny_job("neighbour", {"training.maxSteps": 2, "serving": {"afterGate": False}})
    place.tiny_job("trains", endless())
    place.cluster.create(visitor(place.namespace, "stranger", image=image))
    place.cluster.create(visitor(place.namespace, "relocates", image=image, labels=OF_A_RELOCATION))
    place.wait_complete("neighbour")
    place.wait_for_job("trains", is_stepping)
    pods = (
        one(place, f"{labels.selector('FineTuningJob', 'trains')},{labels.STEP}=train"),
        one(place, labels.selector("InferenceServer", "neighbour")),
        running(place, "stranger"),
        running(place, "relocates"),
    )
    return House(place, *(Inside(place.cluster, place.namespace, name) for name in pods))


def one(place: Place, selector: str) -> str:
    """Return the name of the only pod with these labels that runs."""
    (name,) = [pod["metadata"]["name"] for pod in place.objects("Pod", labels=selector) if is_ready(pod)]
    return str(name)


def running(place: Place, name: str) -> str:
    """Return the name of a pod once it runs."""
    place.wait("Pod", name, is_ready)
    return name


def is_ready(pod: Object) -> bool:
    return has_condition(pod, "Ready")


@pytest.fixture(scope="module")
def elsewhere(house: House) -> Mapping[str, str]:
    """What a program might try to reach, by what it is."""
    cluster = house.place.cluster
    (site,) = cluster.objects("Pod", SITE)
    (operator,) = cluster.objects("Pod", SYSTEM, labels=OPERATOR_PODS)
    node = cluster.get("Node", site["spec"]["nodeName"])
    address = next(each["address"] for each in node["status"]["addresses"] if each["type"] == "InternalIP")
    return {
        "a pod of another namespace": f"{site['status']['podIP']}:{STORE_PORT}",
        "a Service, by its name": f"site.{SITE}.svc:{STORE_PORT}",
        "the node": f"{address}:{KUBELET_PORT}",
        "the API server": "kubernetes.default.svc:443",
        "the operator's metrics": f"{operator['status']['podIP']}:{METRICS_PORT}",
        "the progress service": f"{OPERATOR}-progress.{SYSTEM}.svc:{PROGRESS_PORT}",
        "the server": house.address(house.server, SERVER_PORT),
    }


def test_whoever_no_policy_binds_reaches_all_of_it(house: House, elsewhere: Mapping[str, str]) -> None:
    assert house.stranger.reach(elsewhere) == dict.fromkeys(elsewhere, OPEN)


def test_training_reaches_nothing_but_the_progress_service(house: House, elsewhere: Mapping[str, str]) -> None:
    found = house.training.reach(elsewhere)

    record("Egress of a training pod", table(found))
    assert [name for name, outcome in found.items() if outcome == OPEN] == ["the progress service"]


def test_relocation_reaches_everything(house: House, elsewhere: Mapping[str, str]) -> None:
    found = house.relocating.reach(elsewhere)

    record("Egress of a relocating pod", table(found))
    assert found == dict.fromkeys(elsewhere, OPEN)


def test_a_server_reaches_nothing(house: House, elsewhere: Mapping[str, str]) -> None:
    others = {name: address for name, address in elsewhere.items() if name != "the server"}
    found = house.server.reach(others)

    record("Egress of a server", table(found))
    assert [name for name, outcome in found.items() if outcome == OPEN] == []


def test_a_server_answers_on_its_port_alone_and_nobody_else_is_reached(house: House) -> None:
    bound = {"the server": house.server, "training": house.training, "relocation": house.relocating}
    found: dict[str, str] = {}
    for name, pod in (bound | {"whoever no policy binds": house.stranger}).items():
        with pod.listening(FREE_PORT):
            visitor = house.relocating if pod is house.stranger else house.stranger
            found |= visitor.reach({name: house.address(pod, FREE_PORT)})
    found |= house.stranger.reach({"the server, on its port": house.address(house.server, SERVER_PORT)})

    record("Ingress, on a port that a program opened by itself", table(found))
    assert [name for name, outcome in found.items() if outcome == OPEN] == [
        "whoever no policy binds",
        "the server, on its port",
    ]


def table(found: Mapping[str, str]) -> str:
    return "\n".join(f"{name:<28} {outcome}" for name, outcome in found.items())


def test_a_job_sees_its_own_volumes_and_writes_only_its_adapters(house: House) -> None:
    job = house.place.get("FineTuningJob", "trains")
    inputs = {job["status"]["artifacts"][each]["relocation"] for each in ("dataset", "model")}
    volumes = {f"/volumes/{name}": "ro" for name in inputs} | {"/volumes/trains-adapter": "rw"}
    mounts = house.training.mounts()
    read_only = [path for path, mode in volumes.items() if mode == "ro"]
    found = house.training.write([*volumes, "/", "/etc/finetuning", "/tmp", "/dev/shm"])  # noqa: S108  (the pod's own)

    record("Volumes of a training pod, and what became of writing there", table(found))
    assert {path: mode for path, mode in mounts.items() if path.startswith("/volumes")} == volumes
    assert house.training.python(_LISTED, "/volumes") == sorted(path.rpartition("/")[2] for path in volumes)
    assert found == dict.fromkeys([*read_only, "/", "/etc/finetuning"], "EROFS") | dict.fromkeys(
        ["/volumes/trains-adapter", "/tmp", "/dev/shm"],  # noqa: S108
        "written",
    )


def test_a_server_cannot_write_the_adapter_that_it_serves(house: House) -> None:
    mounted = {path: mode for path, mode in house.server.mounts().items() if path.startswith("/volumes")}

    assert "/volumes/neighbour-adapter" in mounted
    assert house.server.write(mounted) == dict.fromkeys(mounted, "EROFS")


_LISTED = "import json, os, sys; print(json.dumps(sorted(os.listdir(sys.argv[1]))))"
_STATUS = """
import json
lines = (line.partition(":") for line in open("/proc/self/status"))
print(json.dumps({name: text.split() for name, _, text in lines}))
"""


def test_programs_run_without_root_capabilities_or_a_token_of_the_api(house: House) -> None:
    for pod in (house.training, house.server):
        status = pod.python(_STATUS)

        assert (status["Uid"], status["Gid"]) == ([str(USER)] * 4, [str(USER)] * 4)
        assert [int(status[name][0], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")] == [0] * 5
        assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])
        assert not [path for path in pod.mounts() if "kubernetes.io" in path]


def test_the_namespace_of_all_this_refuses_a_privileged_pod(house: House) -> None:
    place = house.place
    asked = visitor(place.namespace, "privileged", image="any")
    asked["spec"]["containers"][0]["securityContext"] = {"privileged": True}

    refused = place.cluster.kubectl("create", "-f", "-", stdin=json.dumps(asked), check=False)

    record("A privileged pod beside them", refused.stderr)
    assert refused.returncode != 0
    assert 'violates PodSecurity "restricted:latest": privileged' in refused.stderr


@pytest.mark.parametrize("role", PROGRAMS)
def test_programs_start_as_a_user_that_their_image_does_not_know(
    place: Place, images: Mapping[str, Image], role: str
) -> None:
    place.cluster.create(visitor(place.namespace, role, image=images[role].reference, user=ANY_USER))
    pod = Inside(place.cluster, place.namespace, running(place, role))
    modules = {"relocator": "work", "trainer": "train", "evaluator": "evaluate", "server": "serve"}

    found = pod.python(
        f"import finetuning_{role}.{modules[role]}, os, json; print(json.dumps([os.getuid(), os.getgid()]))"
    )

    assert found == [ANY_USER, 0]


def test_the_operator_works_as_a_user_that_its_image_does_not_know(installation: Installation) -> None:
    cluster, former = installation.cluster, installation.wait_ready()
    security = {"runAsUser": ANY_USER, "runAsGroup": 0, "fsGroup": ANY_USER}
    change = {"spec": {"template": {"spec": {"securityContext": security}}}}
    deployment = ("deployment", OPERATOR, "-n", SYSTEM)
    try:
        cluster.kubectl("patch", *deployment, "--patch", json.dumps(change))
        ready = installation.wait_ready(other_than=(former["metadata"]["uid"],))
        found = Inside(cluster, SYSTEM, ready["metadata"]["name"]).python(_STATUS)
    finally:
        cluster.kubectl("rollout", "undo", *deployment)
        cluster.kubectl("rollout", "status", *deployment, "--timeout=120s")

    assert found["Uid"] == [str(ANY_USER)] * 4
