"""Images made by hand: an archive of one layer, as ``docker save`` writes it and every runtime reads it."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

_PROGRAM = 0o755


def write_image(archive: Path, *, name: str, files: Mapping[str, Path], command: tuple[str, ...]) -> None:
    """Write an image that holds programs by their paths in it, and starts with a command."""
    layer = _layer(files)
    digest = hashlib.sha256(layer).hexdigest()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": list(command), "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, "w") as image:
        for member, content in (
            ("layer.tar", layer),
            ("config.json", _json(config)),
            ("manifest.json", _json(manifest)),
        ):
            _add(image, member, content)


def _layer(files: Mapping[str, Path]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as layer:
        for member, path in files.items():
            _add(layer, member.lstrip("/"), path.read_bytes())
    return content.getvalue()


def _add(archive: tarfile.TarFile, member: str, content: bytes) -> None:
    entry = tarfile.TarInfo(member)
    entry.size, entry.mode = len(content), _PROGRAM
    archive.addfile(entry, io.BytesIO(content))


def _json(content: object) -> bytes:
    return json.dumps(content).encode()
