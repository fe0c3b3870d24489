"""Every manifest is one that Kubernetes knows by heart, and every pod passes Pod Security `restricted`."""

from copy import deepcopy
from typing import Any

import kubernetes_validate
import pytest
from tests.support.pod_security import breaches
from tests.support.rendered import EVERY_MANIFEST, Rendered

VERSIONS = ("1.30", "1.35", kubernetes_validate.latest_version())
"""From the first that can end a replica after a pause to the newest that is known here."""


def pod_specs(rendered: Rendered) -> list[dict[str, Any]]:
    kinds = {"Job", "Deployment"}
    return [each["spec"]["template"]["spec"] for each in rendered.manifests if each["kind"] in kinds]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("rendered", EVERY_MANIFEST, ids=str)
def test_kubernetes_knows_every_field(rendered: Rendered, version: str) -> None:
    for manifest in rendered.manifests:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("rendered", EVERY_MANIFEST, ids=str)
def test_every_pod_is_restricted(rendered: Rendered) -> None:
    assert [breaches(spec) for spec in pod_specs(rendered)] == [[] for _ in pod_specs(rendered)]


def test_the_check_of_pods_finds_what_is_not_restricted() -> None:
    (spec,) = pod_specs(EVERY_MANIFEST[0])
    loose = deepcopy(spec)
    loose["hostNetwork"] = True
    del loose["securityContext"]["seccompProfile"]
    loose["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    loose["volumes"].append({"name": "root", "hostPath": {"path": "/"}})

    assert breaches(loose) == [
        "hostNetwork is True",
        "securityContext.seccompProfile.type is None",
        "containers[program].securityContext.allowPrivilegeEscalation is True",
        "volume root: hostPath",
    ]
