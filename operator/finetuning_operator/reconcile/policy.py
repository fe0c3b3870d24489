"""What an administrator allows: which sources may be brought, and how much of everything may be asked for."""

from collections.abc import Mapping, Sequence
from typing import Annotated
from urllib.parse import unquote

from pydantic import Field

from finetuning_api import patterns
from finetuning_api.base import ApiModel, LabelKey, Quantity
from finetuning_api.sources import Scheme, SourceRef

_INSIDE = frozenset({Scheme.FILE, Scheme.PVC, Scheme.CONFIGMAP})
"""Schemes of what is there already: nothing comes from outside by them."""
MIRRORED = (Scheme.HF, Scheme.S3, Scheme.GS, Scheme.OCI, Scheme.PYPI)
"""Schemes whose sources may name an endpoint."""

Address = Annotated[str, Field(max_length=512, pattern=patterns.HTTP_ADDRESS.regex)]
Beginning = Annotated[str, Field(max_length=2048, pattern=r"^[a-z][a-z0-9+.-]*://[^ ]*$")]
"""How an address begins: ``s3://models/``, or ``pypi://`` for all of a scheme."""


class Mirrors(ApiModel):
    """By scheme, where sources are asked for that name no endpoint of their own; None is the public place."""

    hf: Address | None = None
    s3: Address | None = None
    gs: Address | None = None
    oci: Address | None = None
    pypi: Address | None = None

    def of(self, scheme: Scheme) -> str | None:
        """Return the mirror of a scheme, None where it has none."""
        found: str | None = getattr(self, scheme.value) if scheme in MIRRORED else None
        return found


class SourcePolicy(ApiModel):
    """What may be brought from where. Both lists empty allow everything."""

    allowed_sources: tuple[Beginning, ...] = ()
    """Beginnings of sources; empty allows all of them."""
    allowed_endpoints: tuple[Address, ...] = ()
    """Beginnings of the endpoints that sources may name."""
    endpoints: Mirrors = Field(default_factory=Mirrors)

    @property
    def restricts(self) -> bool:
        """Whether anything is forbidden."""
        return bool(self.allowed_sources or self.allowed_endpoints)

    def allows_source(self, ref: SourceRef) -> bool:
        """Whether a source may be brought. What lies inside the namespace already always may."""
        inside = ref.parsed.scheme in _INSIDE
        return inside or not self.allowed_sources or _is_below(ref.parsed.canonical, self.allowed_sources)

    def allows_endpoint(self, ref: SourceRef) -> bool:
        """Whether a source may be asked for where it says; once anything is forbidden, endpoints are unless listed."""
        return ref.endpoint is None or self.allows_address(ref.endpoint)

    def allows_address(self, address: str) -> bool:
        """Whether jobs may reach an address of the web, by the same rule."""
        return not self.restricts or _is_below(address, self.allowed_endpoints)


class Bounds(ApiModel):
    """The most that objects may ask for. What is unset has no bound."""

    resources: Mapping[LabelKey, Quantity] = Field(default_factory=dict)
    """Of each pod that trains, evaluates or serves."""
    server_replicas: int | None = Field(default=None, ge=0)
    """Pods of each server."""
    preset_required: bool = False
    """Whether every FineTuningJob must pick a preset."""
    metric_code: bool = True
    """Whether metrics of users' own may be computed, which are code."""


def _is_below(address: str, beginnings: Sequence[str]) -> bool:
    """Whether an address lies below one of some beginnings; one that climbs (``..``) lies below none."""
    if ".." in unquote(address).split("/"):
        return False
    return any(_continues(address, beginning) for beginning in beginnings)


def _continues(address: str, beginning: str) -> bool:
    """Whether an address goes on where a beginning ends: ``https://host/a`` does at ``https://host``.

    Neither ``https://host.evil`` does, nor another port; after a path, ``:`` and ``@`` begin a tag or a digest.
    """
    if not address.startswith(beginning):
        return False
    rest = address[len(beginning) :]
    ends = "/#?=:@" if "/" in beginning.partition("://")[2] else "/#?="
    return not rest or beginning.endswith("/") or rest[0] in ends
