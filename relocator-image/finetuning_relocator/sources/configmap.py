"""``configmap://``: the keys of a ConfigMap, as kubelet lays them into a folder."""

from collections.abc import Iterator
from pathlib import Path

from finetuning_api.reasons import Reason
from finetuning_relocator.faults import not_found, unsafe
from finetuning_relocator.sources.base import Block, Listing, RemoteFile, Request, Source
from finetuning_relocator.sources.local import read_local
from finetuning_workload.errors import EnvironmentFault


class ConfigMapSource(Source):
    """A mounted ConfigMap.

    kubelet keeps the values in a dated folder, points the link ``..data`` at it, and makes one link a key through
    ``..data``: an update replaces all keys at once.
    """

    def __init__(self, request: Request) -> None:
        if request.mount is None:
            message = f"{request.parsed.canonical} is not mounted"
            raise EnvironmentFault(Reason.INTERNAL, message, "A ConfigMap can be used on a cluster only.")
        self._name = request.parsed.canonical
        self._key = request.parsed.location.partition("/")[2]
        self._mount = request.mount

    def list_files(self) -> Listing:
        """List the keys; the links of kubelet are followed, but never out of the mount."""
        if not self._mount.is_dir():
            raise not_found(self._name, "Create the ConfigMap in the namespace of the job.")
        root = self._mount.resolve()
        files = []
        for path in sorted(self._mount.iterdir()):
            target = path.resolve()
            if path.name.startswith("..") or not target.is_file() or self._key not in {"", path.name}:
                continue
            if not target.is_relative_to(root):
                raise unsafe(f"{path.name} in {self._name} is a link out of its folder", "Put the value itself there.")
            files.append(_announced(path.name, target))
        if not files:
            raise not_found(f"any file in {self._name}", "Add a key to the ConfigMap, for example data.jsonl.")
        return Listing(files=tuple(files))

    def read(self, file: RemoteFile, *, offset: int) -> Iterator[Block]:
        """Read the value of a key."""
        yield from read_local(self._mount / file.key, offset=offset)


def _announced(name: str, target: Path) -> RemoteFile:
    return RemoteFile(path=name, key=name, size=target.stat().st_size, etag=str(target.stat().st_mtime_ns))
