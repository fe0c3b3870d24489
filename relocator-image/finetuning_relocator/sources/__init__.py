"""One module a scheme; the engine knows them only as ``Source``."""

from importlib import import_module

from finetuning_api.sources import Scheme
from finetuning_relocator.sources.base import Request, Source


def open_source(request: Request) -> Source:
    """Return the source of a request. Only the module of its scheme, and so only the client it needs, is loaded."""
    module, name = _class_of(request.parsed.scheme)
    source: Source = getattr(import_module(f"{__name__}.{module}"), name)(request)
    return source


def _class_of(scheme: Scheme) -> tuple[str, str]:
    return {
        Scheme.FILE: ("folder", "FolderSource"),
        Scheme.PVC: ("folder", "FolderSource"),
        Scheme.CONFIGMAP: ("configmap", "ConfigMapSource"),
        Scheme.HF: ("hub", "HubSource"),
        Scheme.HTTPS: ("web", "WebSource"),
        Scheme.HTTP: ("web", "WebSource"),
        Scheme.S3: ("objects", "ObjectSource"),
        Scheme.GS: ("objects", "ObjectSource"),
        Scheme.GIT_HTTPS: ("git", "GitSource"),
        Scheme.OCI: ("registry", "RegistrySource"),
        Scheme.PYPI: ("packages", "PackageSource"),
    }[scheme]
