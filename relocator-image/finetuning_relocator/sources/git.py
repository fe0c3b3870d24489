"""``git+https://``: the files of one commit, through the git program."""

import base64
import re
import shutil
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from finetuning_api.reasons import Reason
from finetuning_relocator.faults import (
    access_denied,
    authentication_required,
    not_found,
    revision_not_found,
    unavailable,
    unreachable,
    unsafe,
)
from finetuning_relocator.sources.base import (
    ANSWER_SECONDS,
    BLOCK_BYTES,
    Announcement,
    Block,
    Listing,
    RemoteFile,
    Request,
    Source,
)
from finetuning_relocator.sources.process import ClientFailed, run_client
from finetuning_workload.errors import EnvironmentFault, ProgramError

TOKEN_KEYS = ("GIT_TOKEN", "token")
USER_KEYS = ("GIT_USERNAME", "username")
_COMMIT = re.compile(r"^[0-9a-f]{40}([0-9a-f]{24})?$")
_TREE_LINE = re.compile(
    r"(?P<mode>\d{6}) (?P<type>\w+) (?P<object>[0-9a-f]+) +(?P<size>\d+|-)\t(?P<path>.*)", re.DOTALL
)
_SYMLINK = "120000"
_PASSED_ON = (
    *("PATH", "HOME", "TMPDIR", "LANG", "GIT_SSL_CAINFO", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"),
)
_FAILURES = (
    ("Authentication failed|could not read Username|HTTP 401|error: 401|terminal prompts disabled", "authentication"),
    ("HTTP 403|error: 403", "denied"),
    (
        "not found|error: 404|HTTP 404|does not appear to be a git repository|not valid: is this a git repository",
        "missing",
    ),
    (
        "Could not resolve host|Failed to connect|Couldn't connect|Connection refused|timed out|SSL|certificate",
        "network",
    ),
    ("couldn't find remote ref|not our ref|unadvertised object|no such remote ref|bad object", "revision"),
)


class GitSource(Source):
    """One commit of a repository, without its history.

    The commit is fetched into a bare repository and its files are read as objects: nothing is checked out, so no hook,
    filter, submodule or link of the repository can do anything.
    """

    staged = True

    def __init__(self, request: Request) -> None:
        self._request = request
        self._what = request.parsed.canonical
        self._url = f"https://{request.parsed.location}"
        self._revision = request.revision or "HEAD"
        self._repository: Path | None = None
        self._git = shutil.which("git", path=request.environment.get("PATH"))

    def announce(self) -> Announcement:
        """Resolve the revision; git does not tell sizes before it has fetched."""
        return Announcement(listing=None, resolved_revision=self._resolve())

    def _resolve(self) -> str:
        if _COMMIT.match(self._revision):
            return self._revision
        answer = self._run("ls-remote", self._url, self._revision, f"{self._revision}^{{}}")
        found = {name: commit for commit, _, name in (line.partition("\t") for line in answer.splitlines())}
        # An annotated tag is an object of its own; the entry that ends in ^{} is the commit that it points to.
        wanted = (f"refs/tags/{self._revision}^{{}}", f"refs/heads/{self._revision}", f"refs/tags/{self._revision}")
        commit = next((found[name] for name in (*wanted, self._revision) if name in found), None)
        if commit is None:
            hint = "Set revision to a branch, a tag, or a commit with all its 40 digits."
            raise revision_not_found(self._what, self._revision, hint)
        return commit

    def stage(self, folder: Path) -> Generator[int, None, None]:
        """Fetch the one commit, unless an earlier run did."""
        commit = self._resolve()
        self._revision = commit
        self._repository = repository = folder / commit
        if (repository / "FETCHED").exists():
            return
        shutil.rmtree(repository, ignore_errors=True)
        self._run("init", "--quiet", "--bare", "--template=", str(repository))
        fetch = ("--git-dir", str(repository), "fetch", "--quiet", "--depth=1", "--no-tags", self._url, commit)
        try:
            yield from run_client(
                self._command(*fetch), environment=self._environment(), folder=repository, log=folder / "git.log"
            )
        except ClientFailed as error:
            raise self._failure(error.output) from error
        (repository / "FETCHED").touch()

    def list_files(self) -> Listing:
        """List the files of the commit with their git objects; raises UserError for a link."""
        tree = self._run("--git-dir", str(self._fetched), "ls-tree", "-r", "-l", "-z", "--full-tree", self._revision)
        files = []
        for line in filter(None, tree.split("\0")):
            entry = _TREE_LINE.fullmatch(line)
            if entry is None or entry["type"] != "blob":
                continue
            if entry["mode"] == _SYMLINK:
                hint = "Replace the link by the file, or name the folder without links after #."
                raise unsafe(f"{entry['path']} in {self._what} is a symbolic link", hint)
            files.append(
                RemoteFile(
                    path=entry["path"], key=entry["object"], size=int(entry["size"]), git_blob=_sha1(entry["object"])
                )
            )
        return Listing(files=tuple(files), resolved_revision=self._revision)

    def read(self, file: RemoteFile, *, offset: int) -> Iterator[Block]:
        """Stream an object; git reads it from the beginning only."""
        del offset
        command = self._command("--git-dir", str(self._fetched), "cat-file", "blob", file.key)
        position = 0
        with subprocess.Popen(command, env=self._environment(), stdout=subprocess.PIPE) as process:
            output = process.stdout
            while output is not None and (data := output.read(BLOCK_BYTES)):
                yield Block(position, data)
                position += len(data)

    @property
    def _fetched(self) -> Path:
        if self._repository is None:
            raise EnvironmentFault(Reason.INTERNAL, f"{self._what} was not fetched before it was read")
        return self._repository

    def _command(self, *arguments: str) -> list[str]:
        if self._git is None:
            raise EnvironmentFault(Reason.INTERNAL, "the git program is not installed", "Install git.")
        return [self._git, *arguments]

    def _environment(self) -> dict[str, str]:
        """Return an environment in which git asks nobody and obeys only us; a token is in no argument."""
        given = self._request.environment
        kept = {name: given[name] for name in _PASSED_ON if name in given}
        config = {
            "core.hooksPath": "/dev/null",
            "protocol.allow": "never",
            "protocol.https.allow": "always",
            "http.lowSpeedLimit": "1",
            "http.lowSpeedTime": f"{self._request.read_seconds:.0f}",
            "gc.auto": "0",
        }
        credentials = self._request.credentials
        token = credentials.get_secret(*TOKEN_KEYS, "password", "PASSWORD")
        if token:
            user = credentials.get_secret(*USER_KEYS) or "x-access-token"
            encoded = base64.b64encode(f"{user}:{token}".encode()).decode()
            config["http.extraHeader"] = f"Authorization: Basic {encoded}"
        pairs: dict[str, str] = {}
        for index, (key, value) in enumerate(config.items()):
            pairs |= {f"GIT_CONFIG_KEY_{index}": key, f"GIT_CONFIG_VALUE_{index}": value}
        fixed = {
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "LC_ALL": "C",
        }
        return {**kept, **fixed, **pairs, "LC_ALL": "C", "GIT_CONFIG_COUNT": str(len(config))}

    def _run(self, *arguments: str) -> str:
        try:
            done = subprocess.run(
                self._command(*arguments),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=ANSWER_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise unreachable(urlsplit(self._url).netloc, f"no answer in {ANSWER_SECONDS:g} s") from error
        if done.returncode != 0:
            raise self._failure(done.stderr.decode(errors="replace"))
        return done.stdout.decode(errors="surrogateescape")

    def _failure(self, output: str) -> ProgramError:
        """Return what the words of git mean."""
        said = next((line for line in output.splitlines() if line.startswith(("fatal:", "error:"))), output.strip())
        kind = next((kind for pattern, kind in _FAILURES if re.search(pattern, output, re.IGNORECASE)), "")
        match kind:
            case "authentication":
                return authentication_required(self._what, self._request.credentials, "GIT_TOKEN")
            case "denied":
                return access_denied(self._what, "Allow the token to read the repository.")
            case "missing":
                return not_found(self._what)
            case "network":
                return unreachable(urlsplit(self._url).netloc, said)
            case "revision":
                return revision_not_found(self._what, self._revision)
            case _:
                return unavailable(self._what, said)


def _sha1(name: str) -> str | None:
    """Return the name of an object where it is a sha1; repositories of the newer kind name objects by sha256."""
    return name if len(name) == 40 else None  # noqa: PLR2004  (hex digits of a sha1)
