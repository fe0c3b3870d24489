"""Secrets and ConfigMaps of a local run: documents beside the job, or the user's own environment."""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import SECRET_ENV_PREFIX
from finetuning_api.sources import Scheme
from finetuning_workload.errors import UserError

_USUAL_KEYS: Mapping[Scheme, tuple[str, ...]] = {
    Scheme.HF: ("HF_TOKEN",),
    Scheme.S3: ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    Scheme.GS: ("GOOGLE_APPLICATION_CREDENTIALS",),
}
_PASSED_ON = ("HF_TOKEN", "AWS_", "GOOGLE_", "GCS_", "GIT_", "OCI_", "HTTP_", "PIP_")
_NO_CREDENTIALS = ("HF_TOKEN", "AWS_", "MLFLOW_")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@dataclass(frozen=True, slots=True)
class Secrets:
    """The Secret documents of a manifest, by name. They are held in memory and never written to the state folder."""

    documents: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)

    def environment(self, name: str, *, scheme: Scheme, own: Mapping[str, str]) -> dict[str, str]:
        """Return the variables that carry a Secret to a step.

        Without a document of that name the user's ``own`` environment serves. Raises UserError naming what to set when
        that holds nothing for the source either.
        """
        document = self.documents.get(name)
        if document is not None:
            return {f"{SECRET_ENV_PREFIX}{key}": value for key, value in document.items()}
        usual = _USUAL_KEYS.get(scheme, ())
        missing = [key for key in usual if not own.get(key)]
        if missing and not (scheme is Scheme.S3 and own.get("AWS_PROFILE")):
            message = f"the Secret {name!r} of a {scheme}:// source is neither in the manifest nor in the environment"
            hint = f"Add a Secret document named {name} to the file, or set {' and '.join(missing)} in the environment."
            raise UserError(Reason.AUTHENTICATION_REQUIRED, message, hint)
        return {f"{SECRET_ENV_PREFIX}{key}": value for key, value in own.items() if key.startswith(_PASSED_ON)}

    def receiver(self, name: str, *, own: Mapping[str, str]) -> dict[str, str]:
        """Return the variables that carry the Secret of a notification, a destination or a tracking server to its step.

        Without a document of that name, key ``url`` of Secret ``team-hook`` is the user's own variable TEAM_HOOK_URL.
        """
        document = self.documents.get(name)
        if document is None:
            prefix = f"{re.sub('[^A-Z0-9]', '_', name.upper())}_"
            document = {
                key.removeprefix(prefix).lower(): value
                for key, value in own.items()
                if key.startswith(prefix) and value
            }
        return {f"{SECRET_ENV_PREFIX}{key}": value for key, value in document.items()}


def offline(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a step that may not use the network: told so, and without credentials."""
    kept = {key: value for key, value in environment.items() if not key.startswith(_NO_CREDENTIALS)}
    return kept | _OFFLINE


def secret_values(document: Mapping[str, object]) -> dict[str, str]:
    """Return the keys of a Secret document: ``data`` in base64, ``stringData`` as it is.

    Raises UserError for data that is not base64.
    """
    name = _name(document)
    values: dict[str, str] = {}
    for key, value in _entries(document, "data").items():
        try:
            values[key] = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            hint = "Encode it, or put the plain value under stringData."
            message = f"data.{key} of the Secret {name!r} is not base64 of a text"
            raise UserError(Reason.INVALID_SPEC, message, hint) from error
    return values | _entries(document, "stringData")


def config_map_files(document: Mapping[str, object]) -> dict[str, bytes]:
    """Return the files of a ConfigMap document. Raises UserError for binaryData that is not base64."""
    files = {key: value.encode() for key, value in _entries(document, "data").items()}
    for key, value in _entries(document, "binaryData").items():
        try:
            files[key] = base64.b64decode(value, validate=True)
        except binascii.Error as error:
            message = f"binaryData.{key} of the ConfigMap {_name(document)!r} is not base64"
            raise UserError(Reason.INVALID_SPEC, message, "Encode it, or put text under data.") from error
    bad = [key for key in files if "/" in key or key in {".", ".."} or not key]
    if bad:
        message = f"{bad[0]!r} of the ConfigMap {_name(document)!r} is no name of a file"
        raise UserError(Reason.INVALID_SPEC, message, "Use letters, digits, '.', '-' and '_'.")
    return files


def _entries(document: Mapping[str, object], name: str) -> dict[str, str]:
    entries = document.get(name) or {}
    texts = isinstance(entries, Mapping) and all(isinstance(value, str) for value in entries.values())
    if not isinstance(entries, Mapping) or not texts:
        message = f"{name} of {document.get('kind')} {_name(document)!r} must map names to texts"
        raise UserError(Reason.INVALID_SPEC, message, "Put quotes around the values.")
    return {str(key): str(value) for key, value in entries.items()}


def _name(document: Mapping[str, object]) -> str:
    metadata = document.get("metadata")
    return str(metadata.get("name", "")) if isinstance(metadata, Mapping) else ""
