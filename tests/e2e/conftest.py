"""Fixtures of the tests on a real node: the node, the project installed on it, and places for jobs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cluster import Cluster, temporary_namespace
from tests.support.e2e import Installation, Place
from tests.support.e2e_images import Image, built_images, chart_values
from tests.support.e2e_site import install_site
from tests.support.real_node import RealNode, real_node

_LONGEST = (
    "test_flow.py",
    "test_faults.py",
    "test_training_on_node.py",
    "test_chart_on_node.py",
    "test_faults_resume.py",
    "test_beside_jobs.py",
)
"""Files that take minutes, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest: of several workers, each with files of its own, the last to end decides."""
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    """A cluster with a real node: that of KUBECONFIG, else one of our own that ends with the session."""
    with real_node(tmp_path_factory.mktemp("node")) as running:
        yield running


@pytest.fixture(scope="session")
def cluster(node: RealNode) -> Cluster:
    """The node's cluster, as its administrator sees it."""
    return node.connect()


@pytest.fixture(scope="session")
def images(node: RealNode, cluster: Cluster) -> dict[str, Image]:
    """The images under test; the node has them all."""
    found = built_images()
    listed = [image for each in cluster.objects("Node") for image in each["status"].get("images", ())]
    there = {name.rpartition("/")[2] for image in listed for name in image.get("names", ())}
    for archive in {image.archive for image in found.values() if image.reference not in there}:
        node.load_image(archive)
    return found


@pytest.fixture(scope="session")
def site(cluster: Cluster, images: dict[str, Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test site, filled; the folder holds what was brought to it."""
    folder = tmp_path_factory.mktemp("site")
    install_site(cluster, images["site"].reference, folder=folder)
    return folder


@pytest.fixture(scope="session")
def installation(cluster: Cluster, images: dict[str, Image], site: Path) -> Iterator[Installation]:  # noqa: ARG001  (jobs need it)
    """The chart, installed once for all tests, with something to relocate from."""
    installed = Installation(cluster, chart_values(images))
    installed.install()
    yield installed
    installed.uninstall()


@pytest.fixture
def place(installation: Installation) -> Iterator[Place]:
    """A fresh namespace where Pod Security ``restricted`` is enforced; its objects go with the test."""
    with temporary_namespace(installation.cluster, "e2e") as name:
        yield Place(installation.cluster, name)


@pytest.fixture(scope="module")
def shared_place(installation: Installation) -> Iterator[Place]:
    """The same, of a whole module: what was relocated for one of its tests is there for the next."""
    with temporary_namespace(installation.cluster, "e2e") as name:
        yield Place(installation.cluster, name)
