"""What is told about the packages in an image."""

import io
import json
import tarfile
from datetime import UTC, datetime

import pytest
from hack.images.contents import Origin, Package, packages
from hack.images.sbom import bill_of_materials

CREATED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STATUS = """\
Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u9
Description: libraries
 with a second line
 .
 and a third

Package: perl
Status: deinstall ok config-files
Architecture: amd64
Version: 5.36.0-7
"""
METADATA = "Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n{more}\nLong words\nName: another\n"


def image(files: dict[str, str]) -> io.BytesIO:
    """Return the files of an image, as a container runtime exports them."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    stream.seek(0)
    return stream


def test_installed_packages_of_python_and_debian_are_found() -> None:
    files = {
        "./var/lib/dpkg/status": STATUS,
        "opt/finetuning/lib/python3.11/site-packages/Py_Yaml-1.0.dist-info/METADATA": METADATA.format(
            name="Py_Yaml", more="License-Expression: MIT\n"
        ),
        "usr/lib/python3/dist-packages/pip-1.0.dist-info/METADATA": METADATA.format(name="pip", more=""),
        "opt/finetuning/lib/python3.11/site-packages/pip/_vendor/x-1.0.dist-info/METADATA.txt": "",
        "home/METADATA": METADATA.format(name="nothing", more=""),
    }

    assert packages(image(files)) == [
        Package(Origin.DEBIAN, "libc6", "2.36-9+deb12u9", architecture="amd64"),
        Package(Origin.PYTHON, "pip", "1.0"),
        Package(Origin.PYTHON, "py-yaml", "1.0", license="MIT"),
    ]


def test_images_without_a_package_manager_tell_their_packages_one_by_one() -> None:
    files = {"var/lib/dpkg/status.d/libc6": "Package: libc6\nVersion: 2.36\nArchitecture: arm64\n"}

    assert packages(image(files)) == [Package(Origin.DEBIAN, "libc6", "2.36", architecture="arm64")]


def test_the_document_names_the_image_and_every_package_by_its_address() -> None:
    found = [
        Package(Origin.DEBIAN, "libc6", "2.36-9+deb12u9", architecture="amd64"),
        Package(Origin.PYTHON, "torch", "2.13.0+cpu", license="BSD-3-Clause"),
    ]
    document = json.loads(bill_of_materials("registry.example.org/finetuning-trainer:in-1", found, created=CREATED))

    assert document["metadata"]["component"] == {
        "bom-ref": "registry.example.org/finetuning-trainer:in-1",
        "name": "registry.example.org/finetuning-trainer",
        "type": "container",
        "version": "in-1",
    }
    assert [component["purl"] for component in document["components"]] == [
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u9?arch=amd64",
        "pkg:pypi/torch@2.13.0%2Bcpu",
    ]
    assert document["components"][1]["licenses"] == [{"license": {"id": "BSD-3-Clause"}}]


def test_the_same_image_has_the_same_document() -> None:
    found = [Package(Origin.PYTHON, name, "1.0") for name in ("b", "a")]

    assert bill_of_materials("a:1", found, created=CREATED) == bill_of_materials("a:1", found[::-1], created=CREATED)


def test_a_license_that_is_no_expression_is_told_as_it_was_written() -> None:
    found = [Package(Origin.PYTHON, "odd", "1.0", license="Mine, all mine")]
    document = json.loads(bill_of_materials("a:1", found, created=CREATED))

    assert document["components"][0]["licenses"] == [{"license": {"name": "Mine, all mine"}}]


def test_a_package_without_a_name_is_refused_rather_than_written() -> None:
    with pytest.raises(ValueError, match="name"):
        bill_of_materials("a:1", [Package(Origin.PYTHON, "", "1.0")], created=CREATED)
