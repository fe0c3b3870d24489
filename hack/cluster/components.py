"""The command lines of a control plane's components, and the files that they read."""

import json
import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from hack.cluster.certificates import Authority, KeyPair, service_account_key

MANIFESTS = Path(__file__).parent / "manifests"
SERVICE_ADDRESSES = "10.96.0.0/16"
_API_SERVICE = "10.96.0.1"
_LOOPBACK = "127.0.0.1"
_DATA_BYTES = 2**30
"""More than etcd needs for thousands of objects; containers often have 64 MB of shared memory, less than its log."""


@dataclass(frozen=True, slots=True)
class Component:
    """A program of the control plane."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Site:
    """Where one control plane keeps its files and listens."""

    folder: Path
    data: Path
    """Folder of etcd, on a file system in memory where there is one."""
    etcd_port: int
    etcd_peer_port: int
    api_port: int
    address: str = _LOOPBACK
    """Where clients reach the API server."""

    @classmethod
    def choose(cls, folder: Path, *, data: Path) -> "Site":
        """Take ports that are free now."""
        etcd, peer, api = _free_ports(3)
        return cls(folder=folder, data=data, etcd_port=etcd, etcd_peer_port=peer, api_port=api)

    @property
    def server(self) -> str:
        """Address of the API server."""
        return f"https://{self.address}:{self.api_port}"

    @property
    def kubeconfig(self) -> Path:
        """Kubeconfig of a cluster administrator."""
        return self.folder / "kubeconfig"

    @property
    def ca(self) -> Path:
        """Certificate that clients trust."""
        return self.folder / "pki" / "ca.crt"

    @property
    def admin(self) -> KeyPair:
        """Client certificate of a cluster administrator."""
        return KeyPair(certificate=self.folder / "pki" / "admin.crt", key=self.folder / "pki" / "admin.key")


@dataclass(frozen=True, slots=True)
class Layout:
    """What runs in one cluster, in the order in which it starts."""

    site: Site
    first: tuple[Component, ...]
    """The API server, and what needs none."""
    commands: tuple[tuple[str, ...], ...]
    """What is run to its end as soon as the API server is ready."""
    others: tuple[Component, ...]


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the components of one cluster know each other by."""

    authority: Authority
    tokens: KeyPair
    """Signs the tokens of service accounts."""

    @classmethod
    def make(cls, site: Site) -> "Credentials":
        """Make those of a new cluster, and the kubeconfigs of its administrator and its controllers."""
        pki = site.folder / "pki"
        made = cls(authority=Authority(pki), tokens=service_account_key(pki))
        made.write_kubeconfig(site, "admin", user="admin", group="system:masters").rename(site.kubeconfig)
        for name in ("kube-controller-manager", "kube-scheduler"):
            made.write_kubeconfig(site, name, user=f"system:{name}")
        return made

    def write_kubeconfig(self, site: Site, name: str, *, user: str, group: str = "") -> Path:
        """Write a kubeconfig of a user for a component."""
        pair = self.authority.client(name, user=user, group=group)
        identity = {"client-certificate": str(pair.certificate), "client-key": str(pair.key)}
        path = site.folder / f"{name}.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(kubeconfig_text(server=site.server, ca=self.authority.pair.certificate, user=identity))
        return path


def fake_nodes(folder: Path, *, data: Path, binaries: Mapping[str, Path]) -> Layout:
    """Return a control plane whose nodes only the API knows, and write what its components read."""
    site = Site.choose(folder, data=data)
    credentials = Credentials.make(site)
    credentials.write_kubeconfig(site, "kwok", user="kwok", group="system:masters")
    alone = (
        "--endpoint-reconciler-type=none",  # A loopback address is no valid endpoint.
        f"--bind-address={_LOOPBACK}",
    )
    return Layout(
        site=site,
        first=(etcd(site, binaries), apiserver(site, binaries, *alone, credentials=credentials)),
        commands=(apply_command(site, binaries, MANIFESTS / "cluster.yaml"),),
        others=(
            controller_manager(site, binaries, "--enable-hostpath-provisioner", credentials=credentials),
            scheduler(site, binaries),
            _kwok(site, binaries["kwok"]),
        ),
    )


def apply_command(site: Site, binaries: Mapping[str, Path], manifest: Path) -> tuple[str, ...]:
    """Return the command that applies a manifest."""
    apply = ("apply", "--server-side", f"--filename={manifest}")
    return (str(binaries["kubectl"]), f"--kubeconfig={site.kubeconfig}", *apply)


def kubeconfig_text(*, server: str, ca: Path, user: Mapping[str, str], namespace: str = "default") -> str:
    """Return a kubeconfig with one context; ``user`` has the fields of a kubeconfig's user."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority": str(ca)}}],
        "users": [{"name": "test", "user": dict(user)}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
    }
    return yaml.safe_dump(content, sort_keys=False)


def etcd(site: Site, binaries: Mapping[str, Path]) -> Component:
    """Return etcd, on loopback."""
    client, peer = f"http://{_LOOPBACK}:{site.etcd_port}", f"http://{_LOOPBACK}:{site.etcd_peer_port}"
    return component(
        "etcd",
        binaries["etcd"],
        f"--data-dir={site.data}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",  # Nothing here outlives the machine.
        "--snapshot-count=10000",
        "--log-level=warn",
    )


def apiserver(site: Site, binaries: Mapping[str, Path], *flags: str, credentials: Credentials) -> Component:
    """Return the API server."""
    authentication = site.folder / "authentication.json"
    authentication.write_text(
        json.dumps(
            {
                "apiVersion": "apiserver.config.k8s.io/v1",
                "kind": "AuthenticationConfiguration",
                "anonymous": {"enabled": False},
            }
        )
    )
    names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", _API_SERVICE, _LOOPBACK)
    server = credentials.authority.server("apiserver", hosts=(*names, site.address))
    return component(
        "kube-apiserver",
        binaries["kube-apiserver"],
        f"--etcd-servers=http://{_LOOPBACK}:{site.etcd_port}",
        f"--secure-port={site.api_port}",
        f"--tls-cert-file={server.certificate}",
        f"--tls-private-key-file={server.key}",
        f"--client-ca-file={site.ca}",
        f"--authentication-config={authentication}",
        "--authorization-mode=Node,RBAC",
        # The second is stricter than most clusters are, as OpenShift is.
        "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={credentials.tokens.certificate}",
        f"--service-account-signing-key-file={credentials.tokens.key}",
        f"--service-cluster-ip-range={SERVICE_ADDRESSES}",
        "--profiling=false",
        *flags,
    )


def controller_manager(site: Site, binaries: Mapping[str, Path], *flags: str, credentials: Credentials) -> Component:
    """Return the controllers of Kubernetes."""
    name = "kube-controller-manager"
    ca = credentials.authority.pair
    return component(
        name,
        binaries[name],
        *_client_flags(site, name),
        "--use-service-account-credentials",
        f"--service-account-private-key-file={credentials.tokens.key}",
        f"--root-ca-file={ca.certificate}",
        f"--cluster-signing-cert-file={ca.certificate}",
        f"--cluster-signing-key-file={ca.key}",
        *flags,
    )


def scheduler(site: Site, binaries: Mapping[str, Path]) -> Component:
    """Return the scheduler."""
    return component("kube-scheduler", binaries["kube-scheduler"], *_client_flags(site, "kube-scheduler"))


def _client_flags(site: Site, name: str) -> list[str]:
    kubeconfig = site.folder / f"{name}.kubeconfig"
    flags = [f"--{role}kubeconfig={kubeconfig}" for role in ("", "authentication-", "authorization-")]
    # No port is served: health is seen in what they do. Rates are those of a control plane that tests wait for.
    return [*flags, "--leader-elect=false", "--secure-port=0", "--kube-api-qps=500", "--kube-api-burst=1000"]


def _kwok(site: Site, program: Path) -> Component:
    return component(
        "kwok",
        program,
        f"--kubeconfig={site.folder / 'kwok.kubeconfig'}",
        "--manage-all-nodes",
        "--node-lease-duration-seconds=40",
        f"--config={MANIFESTS / 'stages.yaml'}",
    )


def component(name: str, program: str | Path, *flags: str) -> Component:
    """Return a component by its command line."""
    return Component(name=name, command=(str(program), *flags))


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on. All are held until the last is found, so that no two are the same."""
    sockets = [socket.create_server((_LOOPBACK, 0)) for _ in range(count)]
    ports: list[int] = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


def memory_folder(fallback: Path) -> Path:
    """Return a folder in memory where the machine has one with enough room that we may write to."""
    shared = Path("/dev/shm")  # noqa: S108  (the place of shared memory; a fresh folder of random name is made in it)
    usable = os.access(shared, os.W_OK) and shutil.disk_usage(shared).free >= _DATA_BYTES
    return shared if usable else fallback
