"""The command lines and files of a cluster with one real node: containers, volumes and networks are real."""

import json
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hack.cluster.components import (
    MANIFESTS,
    SERVICE_ADDRESSES,
    Component,
    Credentials,
    Layout,
    Site,
    apiserver,
    apply_command,
    component,
    controller_manager,
    etcd,
    scheduler,
)
from hack.cluster.images import write_image
from hack.cluster.machine import SYSTEM_PATH, Machine
from hack.cluster.plane import Design

NODE_NAME = "node"
POD_ADDRESSES = "10.244.0.0/24"
CONTAINERD = "/run/containerd/containerd.sock"
REGISTRY_PORT = 5000
_ANNOUNCEMENTS = Path("/run/finetuning-agent.sock")
_DNS_SERVICE = "10.96.0.10"
_REPOSITORY = Path(__file__).parents[2]
_PAUSE, _COREDNS = "finetuning.dev/pause:node", "finetuning.dev/coredns:node"
_API_SERVER_USER = "kube-apiserver-kubelet-client"


def real_node(machine: Machine) -> Design:
    """Return the design of a cluster on a machine of its own."""
    return partial(_design, machine)


def _design(machine: Machine, folder: Path, *, data: Path, binaries: Mapping[str, Path]) -> Layout:
    site = Site(folder, data=data, etcd_port=2379, etcd_peer_port=2380, api_port=6443, address=machine.address)
    credentials = Credentials.make(site)
    agent = credentials.write_kubeconfig(site, "node-agent", user="node-agent", group="system:masters")
    return Layout(
        site=site,
        first=(
            etcd(site, binaries),
            apiserver(site, binaries, *_api_flags(site, credentials), credentials=credentials),
            _containerd(site, binaries),
            _registry(site),
        ),
        commands=(
            *(_import_command(archive) for archive in _images(folder, binaries)),
            ("ip", "route", "add", SERVICE_ADDRESSES, "via", machine.host_address),
            apply_command(site, binaries, MANIFESTS / "node.yaml"),
        ),
        others=(
            controller_manager(site, binaries, credentials=credentials),
            scheduler(site, binaries),
            _agent(folder, agent),
            _kubelet(site, binaries, credentials=credentials, cgroup=machine.cgroup),
            _proxy(site, binaries, credentials=credentials),
        ),
    )


def _api_flags(site: Site, credentials: Credentials) -> list[str]:
    client = credentials.authority.client("apiserver-kubelet", user=_API_SERVER_USER)
    return [
        "--bind-address=0.0.0.0",
        f"--advertise-address={site.address}",
        "--allow-privileged",
        f"--kubelet-client-certificate={client.certificate}",
        f"--kubelet-client-key={client.key}",
        f"--kubelet-certificate-authority={site.ca}",
        "--kubelet-preferred-address-types=InternalIP",
    ]


def _containerd(site: Site, binaries: Mapping[str, Path]) -> Component:
    networks = site.folder / "data" / "networks"
    plugins = site.folder / "data" / "plugins"
    for path in (networks, plugins):
        path.mkdir()
    for name in ("bridge", "host-local", "loopback", "portmap"):
        (plugins / name).symlink_to(binaries[name])
    announce = plugins / "announce"
    announce.write_text(f"#!/bin/sh\nexec {sys.executable} -I -S {Path(__file__).with_name('announce.py')}\n")
    announce.chmod(0o755)
    _write_json(networks / "10-pods.conflist", _network())
    hosts = site.folder / "data" / "hosts"
    registry = f"{site.address}:{REGISTRY_PORT}"
    (hosts / registry).mkdir(parents=True)
    (hosts / registry / "hosts.toml").write_text(f'[host."http://{registry}"]\ncapabilities = ["pull", "resolve"]\n')
    config = site.folder / "data" / "containerd.toml"
    text = (MANIFESTS / "containerd.toml").read_text()
    for name, value in {"DATA": site.folder / "data", "PAUSE": _PAUSE, "SOCKET": CONTAINERD}.items():
        text = text.replace(f"@{name}@", str(value))
    config.write_text(text)
    return component("containerd", _program("containerd"), f"--config={config}")


def _network() -> dict[str, Any]:
    """Return how pods are connected: by a bridge, with no way out of the node."""
    ranges = [[{"subnet": POD_ADDRESSES}]]
    bridge = {
        "type": "bridge",
        "bridge": "pods",
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]},
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    announce = {"type": "announce", "socket": str(_ANNOUNCEMENTS)}
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, ports, announce]}


def _registry(site: Site) -> Component:
    config = site.folder / "data" / "registry.json"
    storage = {"filesystem": {"rootdirectory": str(site.folder / "data" / "registry")}, "delete": {"enabled": True}}
    address = f"{site.address}:{REGISTRY_PORT}"
    _write_json(config, {"version": 0.1, "log": {"level": "warn"}, "storage": storage, "http": {"addr": address}})
    return component("registry", _program("docker-registry"), "serve", str(config))


def _kubelet(site: Site, binaries: Mapping[str, Path], *, credentials: Credentials, cgroup: str) -> Component:
    server = credentials.authority.server("kubelet-server", hosts=(NODE_NAME, site.address))
    user = f"system:node:{NODE_NAME}"
    kubeconfig = credentials.write_kubeconfig(site, "kubelet", user=user, group="system:nodes")
    names = site.folder / "resolv.conf"
    names.write_text(f"nameserver {_DNS_SERVICE}\n")
    config = site.folder / "kubelet.json"
    content = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": str(site.ca)}},
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(server.certificate),
        "tlsPrivateKeyFile": str(server.key),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,  # Where a node is a container itself, its kernel refuses scores below its own.
        "containerRuntimeEndpoint": f"unix://{CONTAINERD}",
        "clusterDNS": [_DNS_SERVICE],
        "clusterDomain": "cluster.local",
        "resolvConf": str(names),
        "readOnlyPort": 0,
        # Disks of developers are full, and their memory is theirs.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        # An image may be pulled here and loaded there; which of both it was is nothing that a test should trip over.
        "imagePullCredentialsVerificationPolicy": "NeverVerify",
        "serializeImagePulls": False,
        "syncFrequency": "5s",  # A changed Secret reaches running pods at the next sync.
    }
    _write_json(config, content)
    flags = (f"--config={config}", f"--kubeconfig={kubeconfig}", f"--node-ip={site.address}")
    return component("kubelet", binaries["kubelet"], *flags, f"--hostname-override={NODE_NAME}")


def _proxy(site: Site, binaries: Mapping[str, Path], *, credentials: Credentials) -> Component:
    kubeconfig = credentials.write_kubeconfig(site, "kube-proxy", user="system:kube-proxy")
    config = site.folder / "kube-proxy.json"
    content = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "clusterCIDR": POD_ADDRESSES,
        "hostnameOverride": NODE_NAME,
        "iptables": {"minSyncPeriod": "0s"},
        # Limits of connections are the whole kernel's, so they are left alone.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }
    _write_json(config, content)
    return component("kube-proxy", binaries["kube-proxy"], f"--config={config}")


def _agent(folder: Path, kubeconfig: Path) -> Component:
    volumes = folder / "data" / "volumes"
    python = (sys.executable, "-m", "hack.cluster.agent")
    place = (f"--kubeconfig={kubeconfig}", f"--volumes={volumes}", f"--socket={_ANNOUNCEMENTS}", f"--node={NODE_NAME}")
    return component("agent", "/usr/bin/env", f"PYTHONPATH={_REPOSITORY}", *python, *place)


def _images(folder: Path, binaries: Mapping[str, Path]) -> list[Path]:
    archives = []
    for name, program in ((_PAUSE, "pause"), (_COREDNS, "coredns")):
        archive = folder / "data" / f"{program}.tar"
        write_image(archive, name=name, files={program: binaries[program]}, command=(f"/{program}",))
        archives.append(archive)
    return archives


def _import_command(archive: Path) -> tuple[str, ...]:
    return (_program("ctr"), "--connect-timeout=10s", "--namespace=k8s.io", "images", "import", str(archive))


def _program(name: str) -> str:
    return str(shutil.which(name, path=SYSTEM_PATH))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Write what programs that ask for YAML read as well."""
    path.write_text(json.dumps(content, indent=1))
