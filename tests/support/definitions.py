"""Definitions of other projects' kinds, read from their Go modules: what their API servers would check is checked."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from hack.cluster.binaries import find_go
from tests.support.cluster import Cluster, Object

_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Source:
    """A module of one version, its content by Go's hash, and the file of a definition in it."""

    module: str
    checksum: str
    file: str


GATEWAY_ROUTES = Source(
    module="sigs.k8s.io/gateway-api@v1.2.1",
    checksum="h1:fZZ/+RyRb+Y5tGkwxFKuYuSRQHu9dZtbjenblleOLHM=",
    file="config/crd/standard/gateway.networking.k8s.io_httproutes.yaml",
)
SCALED_OBJECTS = Source(
    module="github.com/kedacore/keda/v2@v2.16.1",
    checksum="h1:LfYsxfSX8DjetLW8q9qnriImH936POrQJvE+caRoScI=",
    file="config/crd/bases/keda.sh_scaledobjects.yaml",
)


def install(cluster: Cluster, source: Source, *, folder: Path) -> None:
    """Have a cluster know the kind of a definition; fails where its module cannot be had."""
    definition: Object = yaml.safe_load((_download(source, folder) / source.file).read_text())
    name = definition["metadata"]["name"]
    cluster.apply(definition)
    cluster.wait_for_object("CustomResourceDefinition", name, where=_is_established)


def _download(source: Source, folder: Path) -> Path:
    """Return the unpacked module; Go keeps it, so it is fetched once per machine."""
    command = [find_go(), "mod", "download", "-json", source.module]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=_SECONDS)
    if said.returncode != 0:
        trouble = f"{said.stdout[-300:]}{said.stderr[-300:]}"
        pytest.fail(f"`go mod download {source.module}` failed; GOPROXY names where modules come from: {trouble}")
    told = json.loads(said.stdout)
    assert told["Sum"] == source.checksum, f"{source.module} is not what it was: {told['Sum']}"
    return Path(told["Dir"])


def _is_established(definition: Object) -> bool:
    conditions = definition.get("status", {}).get("conditions") or []
    return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)
