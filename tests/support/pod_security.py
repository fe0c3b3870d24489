"""The Pod Security Standard `restricted`, and what the pod contract asks beyond it, as a table of fields."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]
Check = Callable[[Any], bool]

_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """A field by its path, and which of its values are allowed; an unset field is None."""

    path: str
    allowed: Check


def _is_unset(found: object) -> bool:
    return found is None


def _is_true(found: object) -> bool:
    return found is True


def _is_false(found: object) -> bool:
    return found is False


def _is_not_true(found: object) -> bool:
    return found in {None, False}


def _is_not_false(found: object) -> bool:
    return found in {None, True}


def _is_id(found: object) -> bool:
    return isinstance(found, int) and not isinstance(found, bool) and found > 0


def _drops_all(found: object) -> bool:
    return found == ["ALL"]


POD_RULES = (
    Rule("hostNetwork", _is_not_true),
    Rule("hostPID", _is_not_true),
    Rule("hostIPC", _is_not_true),
    Rule("securityContext.runAsNonRoot", _is_true),
    Rule("securityContext.runAsUser", _is_id),
    Rule("securityContext.seccompProfile.type", lambda found: found in {"RuntimeDefault", "Localhost"}),
    Rule("securityContext.sysctls", _is_unset),
    Rule("securityContext.seLinuxOptions", _is_unset),
    Rule("securityContext.windowsOptions", _is_unset),
    # The contract's own.
    Rule("securityContext.runAsGroup", _is_id),
    Rule("securityContext.fsGroup", _is_id),
    Rule("automountServiceAccountToken", _is_false),
    Rule("enableServiceLinks", _is_false),
    Rule("serviceAccountName", _is_unset),
)
CONTAINER_RULES = (
    Rule("securityContext.allowPrivilegeEscalation", _is_false),
    Rule("securityContext.capabilities.drop", _drops_all),
    Rule("securityContext.capabilities.add", _is_unset),
    Rule("securityContext.privileged", _is_not_true),
    Rule("securityContext.procMount", _is_unset),
    Rule("securityContext.runAsUser", _is_unset),
    Rule("securityContext.runAsNonRoot", _is_not_false),
    Rule("securityContext.seccompProfile", _is_unset),
    # The contract's own.
    Rule("securityContext.readOnlyRootFilesystem", _is_true),
    Rule("terminationMessagePath", lambda found: found == "/dev/termination-log"),
    Rule("terminationMessagePolicy", lambda found: found == "File"),
)


def breaches(spec: Spec) -> list[str]:
    """Return every field of a pod that Pod Security or the contract forbids."""
    return list(_breaches(spec))


def _breaches(spec: Spec) -> Iterator[str]:
    yield from _broken(spec, POD_RULES, where="")
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(kind, []):
            yield from _broken(container, CONTAINER_RULES, where=f"{kind}[{container['name']}].")
            yield from (f"{container['name']}: hostPort" for port in container.get("ports", []) if "hostPort" in port)
    for volume in spec.get("volumes", []):
        yield from (f"volume {volume['name']}: {kind}" for kind in volume.keys() - {"name"} - _VOLUMES)


def _broken(node: Spec, rules: tuple[Rule, ...], *, where: str) -> Iterator[str]:
    for rule in rules:
        found = _at(node, rule.path)
        if not rule.allowed(found):
            yield f"{where}{rule.path} is {found!r}"


def _at(node: Any, path: str) -> Any:  # noqa: ANN401  (a value of JSON)
    for part in path.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node
