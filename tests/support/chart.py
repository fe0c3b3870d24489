"""The project's chart, rendered and installed by the real helm."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from hack.cluster.binaries import require_binaries
from tests.support.processes import REPOSITORY

CHART = REPOSITORY / "charts" / "finetuning-operator"
_SECONDS = 120

Values = Mapping[str, Any]


def helm(
    *arguments: str, kubeconfig: Path | None = None, values: Values | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run helm; ``values`` are its values file."""
    # Nothing of the user's own clusters or repositories may reach a test.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HELM_", "KUBE"))}
    command = [str(require_binaries()["helm"]), *arguments]
    if kubeconfig is not None:
        command += ["--kubeconfig", str(kubeconfig)]
    if values is not None:
        command += ["--values", "-"]
    done = subprocess.run(
        command,
        input=json.dumps(values or {}),
        env=environment,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode == 0 or not check, f"{' '.join(arguments)}: {done.stderr}"
    return done


def rendered(release: str, namespace: str, values: Values | None = None) -> list[dict[str, Any]]:
    """Return the objects of a release as `helm template` writes them, its hooks included."""
    done = helm("template", release, str(CHART), "--namespace", namespace, values=values or {})
    return [each for each in yaml.safe_load_all(done.stdout) if each]
