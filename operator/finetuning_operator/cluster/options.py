"""What an installation decides, read once from the environment of the operator's process.

| Variable | Meaning | Default |
|---|---|---|
| FINETUNING_NAMESPACES | Namespaces to serve, separated by commas; empty serves all | empty |
| FINETUNING_IMAGE_RELOCATOR, _TRAINER, _EVALUATOR, _SERVER | Image of each role | finetuning-<role>:<version> |
| FINETUNING_IMAGE_PULL_POLICY | Always, IfNotPresent or Never | IfNotPresent |
| FINETUNING_IMAGE_PULL_SECRETS | Names of pull secrets, separated by commas | empty |
| FINETUNING_STORAGE_PROFILES | YAML or JSON file: profile name to its fields | one profile, default |
| FINETUNING_POLICY | YAML or JSON file: presets, bounds, and what relocation may bring from where | nothing forbidden |
| FINETUNING_PRIORITY_CLASS | PriorityClass of pods whose object names none | empty |
| FINETUNING_HTTP_PROXY, FINETUNING_HTTPS_PROXY | Proxies of the pods that use the network | empty |
| FINETUNING_NO_PROXY | Hosts that they reach without one, separated by commas; the cluster's own always are | empty |
| FINETUNING_CA_BUNDLE | PEM file with authorities that these pods trust besides the public ones | empty |
| FINETUNING_OPERATOR_NAMESPACE | Namespace of the operator's own pod | finetuning-system |
| FINETUNING_PROGRESS_URL | Address at which pods reach the progress service; empty runs none | empty |
| FINETUNING_PROGRESS_PORT | Port on which the progress service listens | 8443 |
| FINETUNING_PROGRESS_CERTIFICATE, _KEY | PEM files of the progress service | made at each start |
| FINETUNING_PROGRESS_CA | PEM file with which pods verify it; set all three or none | made at each start |
| FINETUNING_STATUS_DELAY | Seconds that ordinary changes of a status are held to share one write | 1 |
| FINETUNING_RESYNC_SECONDS | Seconds between full lists | 300 |
| FINETUNING_API_QPS, FINETUNING_API_BURST | Writes a second to the API server, at length and at once | 200, 400 |
| FINETUNING_WORKERS | Objects reconciled at the same time | 16 |
| FINETUNING_HEALTH_PORT | Port of /healthz, /readyz and /metrics | 8080 |
| FINETUNING_LEASE_NAME | Lease that elects the active replica; empty elects nobody | finetuning-operator |
| FINETUNING_LEASE_SECONDS | Seconds after which another replica takes over from one that is silent | 15 |
| FINETUNING_TRASH_TTL_SECONDS | Seconds that a trashed adapter outlives its job | 604800 |
| FINETUNING_STALL_SECONDS | Seconds without a new byte after which a transfer has stalled | 60 |
| FINETUNING_STALLED_AFTER_SECONDS | Seconds of silence after which a running stage is called stalled | 600 |
| FINETUNING_SERVING_DOMAIN | Domain below which servers with `expose` answer; empty exposes none | empty |
| FINETUNING_SERVING_SCHEME | https or http: how they are asked there | https |
| FINETUNING_INGRESS_CLASS | IngressClass of their Ingresses; empty is the cluster's default | empty |
| FINETUNING_GATEWAY | namespace/name of a Gateway that gets HTTPRoutes instead of Ingresses | empty |
| FINETUNING_WAKE_PORT | Port that answers for servers without replicas, and wakes idle ones; empty: none | empty |
| FINETUNING_POD_IP | Address of the operator's own pod, for FINETUNING_WAKE_PORT | empty |
| FINETUNING_LOG_LEVEL | DEBUG, INFO, WARNING or ERROR | INFO |
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from importlib import metadata
from ipaddress import ip_address
from pathlib import Path
from tempfile import mkdtemp
from typing import TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from finetuning_api.base import ApiModel, Name, ObjectName, Quantity
from finetuning_api.finetuningjob import AccessMode, Preset
from finetuning_operator.reconcile.plan import ImageRole, Settings
from finetuning_operator.reconcile.policy import Bounds, SourcePolicy

_PREFIX = "FINETUNING_"
_LAST_PORT = 65535
_LONGEST_BUNDLE = 64 * 2**10
"""Bytes: the bundle is an annotation of each pod that uses the network, and all annotations share 256 KiB."""
_CERTIFICATE = "-----BEGIN CERTIFICATE-----"
_INSIDE = ("localhost", "127.0.0.1", "::1", ".svc", ".cluster.local")
"""Hosts that no proxy of a company can reach: the pod itself, and Services by their names in the cluster."""

_Number = TypeVar("_Number", int, float)
_Choice = TypeVar("_Choice", bound=StrEnum)
_Form = TypeVar("_Form")


class OptionsError(ValueError):
    """A variable of the environment cannot be used. The message names variable, value and what to do."""


class PullPolicy(StrEnum):
    """When a node pulls an image."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


class LogLevel(StrEnum):
    """Least severity that is logged."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


class Scheme(StrEnum):
    """How clients outside the cluster ask servers."""

    HTTPS = "https"
    HTTP = "http"


@dataclass(frozen=True, slots=True)
class GatewayRef:
    """A Gateway of the Gateway API, by which servers are reached from outside."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Doorway:
    """Where the operator answers for servers that have no replica."""

    address: str
    """Of the operator's own pod."""
    port: int


class StorageProfile(ApiModel):
    """What claims of a profile look like where a user sets nothing, and the bounds of their size."""

    storage_class_name: ObjectName | None = None
    """None takes the cluster's default class."""
    access_modes: tuple[AccessMode, ...] = Field(default=(AccessMode.READ_WRITE_ONCE,), min_length=1)
    default_size: Quantity = "10Gi"
    """Of a claim whose need could not be measured."""
    min_size: Quantity | None = None
    max_size: Quantity | None = None


class Policy(ApiModel):
    """What an administrator allows and offers."""

    presets: dict[Name, Preset] = Field(default_factory=dict)
    bounds: Bounds = Field(default_factory=Bounds)
    relocation: SourcePolicy = Field(default_factory=SourcePolicy)
    egress: tuple[dict[str, object], ...] = ()
    """Rules of a NetworkPolicy: what the pods that use the network may reach besides DNS; empty allows everything."""


@dataclass(frozen=True, slots=True)
class Outside:
    """How pods that use the network get there."""

    http_proxy: str = ""
    https_proxy: str = ""
    no_proxy: tuple[str, ...] = ()
    ca_bundle: str = ""
    """PEM text of further authorities."""
    egress: tuple[dict[str, object], ...] = ()

    @property
    def variables(self) -> dict[str, str]:
        """The variables by which programs find their proxies, in both spellings: each client knows one of them."""
        proxies = {"http_proxy": self.http_proxy, "https_proxy": self.https_proxy}
        found = {name: address for name, address in proxies.items() if address}
        if found:
            found["no_proxy"] = ",".join(dict.fromkeys((*_INSIDE, *self.no_proxy)))
        return found | {name.upper(): value for name, value in found.items()}


@dataclass(frozen=True, slots=True)
class ProgressOptions:
    """Where the progress service is found, and with what it proves who it is."""

    url: str
    """As pods reach it, without a path."""
    port: int
    certificate: Path
    key: Path
    ca: str
    """PEM text, handed to pods."""


def _own_images() -> dict[ImageRole, str]:
    version = metadata.version("finetuning-operator")
    return {role: f"finetuning-{role.value}:{version}" for role in ImageRole}


@dataclass(frozen=True, slots=True)
class Options:
    """Everything that an installation decides; see the module for the variables behind each field."""

    namespaces: tuple[str, ...] = ()
    """Empty means all namespaces."""
    images: Mapping[ImageRole, str] = field(default_factory=_own_images)
    image_pull_policy: str = PullPolicy.IF_NOT_PRESENT
    image_pull_secrets: tuple[str, ...] = ()
    storage_profiles: Mapping[str, StorageProfile] = field(default_factory=lambda: {"default": StorageProfile()})
    outside: Outside = field(default_factory=Outside)
    priority_class: str | None = None
    """Of pods whose object names none; None takes the cluster's default."""
    operator_namespace: str = "finetuning-system"
    progress: ProgressOptions | None = None
    status_delay: float = 1.0
    resync_seconds: float = 300.0
    api_qps: float = 200.0
    api_burst: int = 400
    workers: int = 16
    health_port: int = 8080
    lease_name: str | None = "finetuning-operator"
    lease_seconds: int = 15
    trash_ttl_seconds: int = 7 * 24 * 3600
    ingress_class: str | None = None
    """None takes the cluster's default class."""
    gateway: GatewayRef | None = None
    doorway: Doorway | None = None
    log_level: str = LogLevel.INFO
    settings: Settings = field(default_factory=Settings)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Options":
        """Read the options. Raises OptionsError for the first variable that cannot be used."""
        read = _Variables(environ)
        standard = cls()
        policy = read.document("POLICY", Policy, default=Policy())
        return cls(
            namespaces=read.names("NAMESPACES"),
            images={role: read.text(f"IMAGE_{role.name}", image) for role, image in standard.images.items()},
            image_pull_policy=read.choice("IMAGE_PULL_POLICY", PullPolicy.IF_NOT_PRESENT),
            image_pull_secrets=read.names("IMAGE_PULL_SECRETS"),
            storage_profiles=read.storage_profiles(standard.storage_profiles),
            outside=read.outside(policy),
            priority_class=read.subdomain("PRIORITY_CLASS"),
            operator_namespace=read.text("OPERATOR_NAMESPACE", standard.operator_namespace),
            progress=read.progress(),
            status_delay=read.number("STATUS_DELAY", standard.status_delay, kind=float, least=0),
            resync_seconds=read.number("RESYNC_SECONDS", standard.resync_seconds, kind=float, least=1),
            api_qps=read.number("API_QPS", standard.api_qps, kind=float, least=1),
            api_burst=read.number("API_BURST", standard.api_burst, kind=int, least=1),
            workers=read.number("WORKERS", standard.workers, kind=int, least=1),
            health_port=read.port("HEALTH_PORT", standard.health_port),
            lease_name=read.optional("LEASE_NAME", standard.lease_name),
            lease_seconds=read.number("LEASE_SECONDS", standard.lease_seconds, kind=int, least=3),
            trash_ttl_seconds=read.number("TRASH_TTL_SECONDS", standard.trash_ttl_seconds, kind=int, least=0),
            ingress_class=read.subdomain("INGRESS_CLASS"),
            gateway=read.gateway(),
            doorway=read.doorway(),
            log_level=read.choice("LOG_LEVEL", LogLevel.INFO),
            settings=read.settings(standard.settings, policy),
        )


class _Variables:
    """Typed reading of variables; every error names the variable, its value and what to do."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, name: str, default: str) -> str:
        return self._environ.get(_PREFIX + name, "").strip() or default

    def optional(self, name: str, default: str | None) -> str | None:
        """Return None for a variable that is set and empty, the default for one that is not set."""
        value = self._environ.get(_PREFIX + name)
        return default if value is None else value.strip() or None

    def names(self, name: str) -> tuple[str, ...]:
        words = tuple(word.strip() for word in self.text(name, "").split(",") if word.strip())
        try:
            TypeAdapter(list[Name]).validate_python(list(words))
        except ValidationError as error:
            wrong = words[int(error.errors()[0]["loc"][0])]
            raise _unusable(name, wrong, "name lower-case DNS labels, separated by commas") from None
        return words

    def choice(self, name: str, default: _Choice) -> _Choice:
        value = self.text(name, default.value)
        try:
            return type(default)(value)
        except ValueError:
            raise _unusable(name, value, f"choose one of {', '.join(type(default))}") from None

    def number(self, name: str, default: _Number, *, kind: Callable[[str], _Number], least: float) -> _Number:
        value = self.text(name, str(default))
        wanted = "a whole number" if kind is int else "a number"
        try:
            number = kind(value)
        except ValueError:
            raise _unusable(name, value, f"give {wanted}, for example {default:g}") from None
        # Infinity and not-a-number fail this comparison or the one behind it.
        if not least <= number < float("inf"):
            raise _unusable(name, value, f"give {wanted} of at least {least:g}")
        return number

    def port(self, name: str, default: int) -> int:
        port = self.number(name, default, kind=int, least=1)
        if port > _LAST_PORT:
            raise _unusable(name, str(port), f"give a port of at most {_LAST_PORT}")
        return port

    def settings(self, standard: Settings, policy: Policy) -> Settings:
        return Settings(
            presets=policy.presets,
            bounds=policy.bounds,
            sources=policy.relocation,
            stall_seconds=self.number("STALL_SECONDS", standard.stall_seconds, kind=int, least=1),
            stalled_after_seconds=self.number(
                "STALLED_AFTER_SECONDS", standard.stalled_after_seconds, kind=int, least=1
            ),
            serving_domain=self.subdomain("SERVING_DOMAIN"),
            serving_scheme=self.choice("SERVING_SCHEME", Scheme.HTTPS),
            wake_by_request=bool(self.text("WAKE_PORT", "")),
        )

    def outside(self, policy: Policy) -> Outside:
        return Outside(
            http_proxy=self._proxy("HTTP_PROXY"),
            https_proxy=self._proxy("HTTPS_PROXY"),
            no_proxy=tuple(word.strip() for word in self.text("NO_PROXY", "").split(",") if word.strip()),
            ca_bundle=self._ca_bundle(),
            egress=policy.egress,
        )

    def _proxy(self, name: str) -> str:
        address = self.text(name, "")
        if "@" in address:
            # Not quoted: what stands before the @ is a secret.
            raise _unusable(name, "...@...", "give an address without a user: variables of pods are read by many")
        if address and (urlsplit(address).scheme not in {"http", "https"} or not urlsplit(address).hostname):
            raise _unusable(name, address, "give an address that begins with http:// or https://")
        return address

    def _ca_bundle(self) -> str:
        if not self.text("CA_BUNDLE", ""):
            return ""
        path = self._file("CA_BUNDLE")
        bundle = _content("CA_BUNDLE", path)
        if _CERTIFICATE not in bundle:
            raise _unusable("CA_BUNDLE", str(path), f"it must hold certificates in PEM: {_CERTIFICATE}")
        if len(bundle.encode()) > _LONGEST_BUNDLE:
            remedy = f"it may hold {_LONGEST_BUNDLE} bytes: leave the public authorities out, images know them"
            raise _unusable("CA_BUNDLE", str(path), remedy)
        return bundle

    def subdomain(self, name: str) -> str | None:
        """Return a name as DNS has it, None where the variable is empty."""
        value = self.text(name, "")
        try:
            return TypeAdapter(ObjectName).validate_python(value) if value else None
        except ValidationError:
            raise _unusable(name, value, "give lower-case letters, digits, '-' and '.'") from None

    def gateway(self) -> GatewayRef | None:
        """Return the Gateway for servers. Raises OptionsError where it has no domain to serve, or a rival."""
        value = self.text("GATEWAY", "")
        if not value:
            return None
        namespace, slash, name = value.partition("/")
        if not (namespace and slash and name) or "/" in name:
            raise _unusable("GATEWAY", value, "give namespace/name of a Gateway")
        if not self.text("SERVING_DOMAIN", ""):
            raise _unusable("GATEWAY", value, "set FINETUNING_SERVING_DOMAIN too: routes need names of hosts")
        if self.text("INGRESS_CLASS", ""):
            raise _unusable("GATEWAY", value, "servers get an HTTPRoute or an Ingress; unset FINETUNING_INGRESS_CLASS")
        return GatewayRef(namespace, name)

    def doorway(self) -> Doorway | None:
        """Return where requests wake servers. Raises OptionsError where nobody could be sent there."""
        if not self.text("WAKE_PORT", ""):
            return None
        address = self.text("POD_IP", "")
        try:
            ip_address(address)
        except ValueError:
            remedy = "give the pod's own address (status.podIP): requests are sent there"
            raise _unusable("POD_IP", address, remedy) from None
        return Doorway(address, self.port("WAKE_PORT", 0))

    def progress(self) -> ProgressOptions | None:
        url = self.text("PROGRESS_URL", "").rstrip("/")
        if not url:
            return None
        if urlsplit(url).scheme != "https" or not urlsplit(url).hostname:
            raise _unusable("PROGRESS_URL", url, "give an https:// address that pods can reach")
        port = self.port("PROGRESS_PORT", 8443)
        if not any(self.text(name, "") for name in ("PROGRESS_CERTIFICATE", "PROGRESS_KEY", "PROGRESS_CA")):
            return _self_signed(url, port)
        return ProgressOptions(
            url=url,
            port=port,
            certificate=self._file("PROGRESS_CERTIFICATE"),
            key=self._file("PROGRESS_KEY"),
            ca=_content("PROGRESS_CA", self._file("PROGRESS_CA")),
        )

    def storage_profiles(self, default: Mapping[str, StorageProfile]) -> Mapping[str, StorageProfile]:
        """Return the profiles of the file; ``default`` fills in where the file has no profile of that name."""
        return {**default, **self.document("STORAGE_PROFILES", dict[Name, StorageProfile], default={})}

    def document(self, name: str, form: type[_Form], *, default: _Form) -> _Form:
        """Return what the YAML file that a variable names holds; the default where it names none."""
        if not self.text(name, ""):
            return default
        path = self._file(name)
        try:
            return TypeAdapter(form).validate_python(yaml.safe_load(_content(name, path)) or {}, extra="forbid")
        except yaml.YAMLError:
            raise _unusable(name, str(path), "its content must be YAML or JSON") from None
        except ValidationError as error:
            first = error.errors()[0]
            field_name = ".".join(str(part) for part in first["loc"]) or "the file"
            raise _unusable(name, str(path), f"correct {field_name}: {first['msg']}") from None

    def _file(self, name: str) -> Path:
        value = self.text(name, "")
        path = Path(value)
        if not value or not path.is_file():
            raise _unusable(name, value, "name a file that exists")
        return path


def _self_signed(url: str, port: int) -> ProgressOptions:
    """Return options with a certificate of this process alone: pods that were told of an earlier one distrust it."""
    # Loaded here, because most of what reads options never needs it.
    from finetuning_operator.cluster.progress.certificates import self_signed

    signed = self_signed([urlsplit(url).hostname or ""], now=datetime.now(UTC))
    certificate, key = signed.write(Path(mkdtemp(prefix="finetuning-progress-")))
    return ProgressOptions(url=url, port=port, certificate=certificate, key=key, ca=signed.ca)


def _content(name: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(name, str(path), f"make it a readable text file ({type(error).__name__})") from error


def _unusable(name: str, value: str, remedy: str) -> OptionsError:
    return OptionsError(f"{_PREFIX}{name}={value!r}: {remedy}")
