"""Software bills of materials of images, in CycloneDX. Unlike the rest, this needs the environment of development."""

import uuid
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hack.images.build import image_names
from hack.images.contents import Origin, Package, packages
from hack.images.docker import Docker, ImageError
from hack.images.settings import Role, Settings
from packageurl import PackageURL


def write_bills(roles: Iterable[Role], settings: Settings, docker: Docker) -> Iterator[Path]:
    """Write a document for each image of this checkout; yield where it is."""
    folder = settings.repository / "build" / "sbom"
    folder.mkdir(parents=True, exist_ok=True)
    for role in roles:
        _, image = image_names(role, settings)
        if not docker.has(image):
            raise ImageError(f"{image} is not built; run: python -m hack.images build {role.name}")
        with docker.file_system(image) as files:
            found = packages(files)
        path = folder / f"{role.name}.cdx.json"
        path.write_text(bill_of_materials(image, found, created=docker.created(image)), encoding="utf-8")
        yield path


def bill_of_materials(image: str, content: Iterable[Package], *, created: datetime) -> str:
    """Return the document for an image; the same image has the same one.

    Raises:
        ValueError: It would not be valid.
    """
    name, _, tag = image.rpartition(":")
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"{image} {created.isoformat()}"))
    bom.metadata.timestamp = created
    bom.metadata.component = Component(name=name, version=tag, type=ComponentType.CONTAINER, bom_ref=image)
    bom.components.update(map(_component, content))
    bom.register_dependency(bom.metadata.component, bom.components)
    text = JsonV1Dot6(bom).output_as_string(indent=2)
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error is not None:
        raise ValueError(f"the bill of materials of {image} is not valid: {error}")
    return text + "\n"


def _component(package: Package) -> Component:
    group = "debian" if package.origin is Origin.DEBIAN else None
    qualifiers = {"arch": package.architecture} if package.architecture else {}
    purl = PackageURL(package.origin.value, group, package.name, package.version, qualifiers)
    return Component(
        name=package.name,
        version=package.version,
        purl=purl,
        bom_ref=purl.to_string(),
        licenses=[LicenseFactory().make_from_string(package.license)] if package.license else [],
    )
