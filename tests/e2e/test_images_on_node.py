"""The images as a careful platform runs them: any user, nothing writable, no capabilities, nobody to ask."""

import json
from collections.abc import Iterator

import pytest
from tests.support.cluster import Cluster, Object, temporary_namespace
from tests.support.e2e_images import Image

_ANY_UID = 1_000_740_000  # As OpenShift gives them: in no image's /etc/passwd.
_PROGRAMS = {
    "operator": "finetuning_operator.main",
    "relocator": "finetuning_relocator.__main__",
    "trainer": "finetuning_trainer.__main__",
    "evaluator": "finetuning_evaluator.__main__",
    "server": "finetuning_server.__main__",
}
_LOOK = """
import getpass, importlib.util, json, os, shutil, sys
def writable(folder):
    try:
        open(os.path.join(folder, "probe"), "w").close()
    except OSError:
        return False
    return True
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "uid": os.getuid(),
    "user": getpass.getuser(),
    "capabilities": int(status["CapEff"], 16),
    "writable": [folder for folder in ("/", "/opt/finetuning", os.getcwd(), "/tmp") if writable(folder)],
    "compilers": [name for name in ("cc", "gcc", "g++", "clang", "make", "ld") if shutil.which(name)],
    "program": importlib.util.find_spec(sys.argv[1]) is not None,
    "torch": importlib.util.find_spec("torch") is not None,
    "compiled": os.path.exists(importlib.util.cache_from_source(importlib.util.find_spec(sys.argv[1]).origin)),
}))
"""
_IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1].split(".")[0])
for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
"""


@pytest.fixture(scope="module")
def namespace(cluster: Cluster, images: dict[str, Image]) -> Iterator[str]:
    """A namespace where Pod Security ``restricted`` is enforced."""
    assert images
    with temporary_namespace(cluster, "images") as name:
        yield name


def ended(cluster: Cluster, namespace: str, name: str, image: Image, *command: str) -> tuple[str, str]:
    """Run a command in an image and return the phase in which its pod ended, and what it printed."""
    cluster.create(_pod(namespace, name, image.reference, command))

    def is_over(pod: Object) -> bool:
        return pod["status"].get("phase") in {"Succeeded", "Failed"}

    pod = cluster.wait_for_object("Pod", name, namespace, where=is_over)
    return pod["status"]["phase"], cluster.kubectl("logs", name, "-n", namespace).stdout


def _pod(namespace: str, name: str, image: str, command: tuple[str, ...]) -> Object:
    container = {
        "name": "look",
        "image": image,
        "command": list(command),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108  (of the pod)
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _ANY_UID,
                "runAsGroup": _ANY_UID,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    }


@pytest.mark.parametrize(("role", "module"), _PROGRAMS.items())
def test_an_image_runs_as_anybody_and_writes_nowhere(
    cluster: Cluster, namespace: str, images: dict[str, Image], role: str, module: str
) -> None:
    phase, said = ended(cluster, namespace, role, images[role], "python", "-c", _LOOK, module)

    assert phase == "Succeeded", said
    assert json.loads(said) == {
        "uid": _ANY_UID,
        "user": "finetuning",
        "capabilities": 0,
        "writable": ["/tmp"],  # noqa: S108
        "compilers": [],
        "program": True,
        "torch": role in {"trainer", "evaluator", "server"},
        "compiled": True,
    }


@pytest.mark.parametrize(("role", "module"), _PROGRAMS.items())
def test_every_module_of_a_program_is_in_its_image(
    cluster: Cluster, namespace: str, images: dict[str, Image], role: str, module: str
) -> None:
    phase, said = ended(cluster, namespace, f"{role}-all", images[role], "python", "-c", _IMPORT_ALL, module)

    assert phase == "Succeeded", said


def test_git_in_the_relocators_image_speaks_https(cluster: Cluster, namespace: str, images: dict[str, Image]) -> None:
    shell = (
        "git init --quiet --bare --template= /tmp/here"
        " && git -c http.lowSpeedLimit=1 ls-remote https://127.0.0.1:1/nobody 2>&1 | grep 'Failed to connect'"
    )
    phase, said = ended(cluster, namespace, "git", images["relocator"], "sh", "-c", shell)

    assert (phase, said.startswith("fatal: unable to access")) == ("Succeeded", True), said
