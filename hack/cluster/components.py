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

    @classmethod
    def choose(cls, folder: Path, *, data: Path) -> "Site":
        """Take ports that are free now."""
        etcd, peer, api = _free_ports(3)
        return cls(folder=folder, data=data, etcd_port=etcd, etcd_peer_port=peer, api_port=api)

    @property
    def server(self) -> str:
        """Address of the API server."""
        return f"https://{_LOOPBACK}:{self.api_port}"

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


def prepare(site: Site, binaries: Mapping[str, Path]) -> list[Component]:
    """Write what the components read and return them in the order in which they start."""
    pki = site.folder / "pki"
    authority = Authority(pki)
    names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", "10.96.0.1", _LOOPBACK)
    server = authority.server("apiserver", hosts=names)
    tokens = service_account_key(pki)
    for user, group in (("admin", "system:masters"), ("kwok", "system:masters")):
        _write_kubeconfig(site, authority, name=user, user=user, group=group)
    for user in ("kube-controller-manager", "kube-scheduler"):
        _write_kubeconfig(site, authority, name=user, user=f"system:{user}")
    (site.folder / "admin.kubeconfig").rename(site.kubeconfig)
    return [
        _etcd(site, binaries["etcd"]),
        _apiserver(site, binaries["kube-apiserver"], ca=authority.pair, server=server, tokens=tokens),
        _controller_manager(site, binaries["kube-controller-manager"], ca=authority.pair, tokens=tokens),
        _component("kube-scheduler", binaries["kube-scheduler"], *_client_flags(site, "kube-scheduler")),
        _kwok(site, binaries["kwok"]),
    ]


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


def _etcd(site: Site, program: Path) -> Component:
    client, peer = f"http://{_LOOPBACK}:{site.etcd_port}", f"http://{_LOOPBACK}:{site.etcd_peer_port}"
    return _component(
        "etcd",
        program,
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


def _apiserver(site: Site, program: Path, *, ca: KeyPair, server: KeyPair, tokens: KeyPair) -> Component:
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
    return _component(
        "kube-apiserver",
        program,
        f"--etcd-servers=http://{_LOOPBACK}:{site.etcd_port}",
        f"--bind-address={_LOOPBACK}",
        f"--secure-port={site.api_port}",
        f"--tls-cert-file={server.certificate}",
        f"--tls-private-key-file={server.key}",
        f"--client-ca-file={ca.certificate}",
        f"--authentication-config={authentication}",
        "--authorization-mode=Node,RBAC",
        # The second is stricter than most clusters are, as OpenShift is.
        "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
        "--endpoint-reconciler-type=none",  # A loopback address is no valid endpoint.
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={tokens.certificate}",
        f"--service-account-signing-key-file={tokens.key}",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--profiling=false",
    )


def _controller_manager(site: Site, program: Path, *, ca: KeyPair, tokens: KeyPair) -> Component:
    name = "kube-controller-manager"
    return _component(
        name,
        program,
        *_client_flags(site, name),
        "--use-service-account-credentials",
        f"--service-account-private-key-file={tokens.key}",
        f"--root-ca-file={ca.certificate}",
        f"--cluster-signing-cert-file={ca.certificate}",
        f"--cluster-signing-key-file={ca.key}",
        "--enable-hostpath-provisioner",
    )


def _client_flags(site: Site, name: str) -> list[str]:
    kubeconfig = site.folder / f"{name}.kubeconfig"
    flags = [f"--{role}kubeconfig={kubeconfig}" for role in ("", "authentication-", "authorization-")]
    # No port is served: health is seen in what they do. Rates are those of a control plane that tests wait for.
    return [*flags, "--leader-elect=false", "--secure-port=0", "--kube-api-qps=500", "--kube-api-burst=1000"]


def _kwok(site: Site, program: Path) -> Component:
    return _component(
        "kwok",
        program,
        f"--kubeconfig={site.folder / 'kwok.kubeconfig'}",
        "--manage-all-nodes",
        "--node-lease-duration-seconds=40",
        f"--config={MANIFESTS / 'stages.yaml'}",
    )


def _component(name: str, program: Path, *flags: str) -> Component:
    return Component(name=name, command=(str(program), *flags))


def _write_kubeconfig(site: Site, authority: Authority, *, name: str, user: str, group: str = "") -> None:
    pair = authority.client(name, user=user, group=group)
    identity = {"client-certificate": str(pair.certificate), "client-key": str(pair.key)}
    path = site.folder / f"{name}.kubeconfig"
    path.touch(mode=0o600)
    path.write_text(kubeconfig_text(server=site.server, ca=authority.pair.certificate, user=identity))


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
