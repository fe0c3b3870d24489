"""Images made by hand have the form that runtimes read."""

import hashlib
import json
import tarfile
from pathlib import Path

from hack.cluster.images import write_image


def test_an_image_holds_its_programs_and_says_how_it_starts(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    archive = tmp_path / "image.tar"

    write_image(archive, name="example.com/tool:1", files={"/tool": program}, command=("/tool", "run"))

    with tarfile.open(archive) as image:
        content = {member.name: image.extractfile(member).read() for member in image}  # type: ignore[union-attr]
    (manifest,) = json.loads(content["manifest.json"])
    assert manifest == {"Config": "config.json", "RepoTags": ["example.com/tool:1"], "Layers": ["layer.tar"]}
    config = json.loads(content["config.json"])
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(content['layer.tar']).hexdigest()}"]
    assert config["config"]["Entrypoint"] == ["/tool", "run"]
    (tmp_path / "layer.tar").write_bytes(content["layer.tar"])
    with tarfile.open(tmp_path / "layer.tar") as layer:
        assert [(member.name, member.mode, member.size) for member in layer] == [("tool", 0o755, 4)]
