"""A hub on loopback: what huggingface_hub asks of a model hub to read and to write, answered from memory.

    with Hub() as hub:
        commit = hub.add_model("acme/tiny", {"config.json": b"{}", "model.safetensors": weights})
        ... endpoint=hub.url ...

Files whose names end in ``LARGE`` suffixes are stored as the hub stores large files: listed with a sha256, and
redirected to another address. ``hub.fail_file("acme/tiny", "model.safetensors", Fault(...))`` spoils their bytes.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from tests.support.loopback import Answer, Fault, LoopbackServer, Seen

LARGE = (".safetensors", ".gguf", ".bin", ".parquet")
_SHA = 40


@dataclass(slots=True)
class Repository:
    """One repository with its commits; names of branches and tags point to commits."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    license_accepted: bool = True


class Hub(LoopbackServer):
    """The server. ``tokens`` are those that it knows."""

    def __init__(self, *, tokens: Iterable[str] = ("hf_valid",)) -> None:
        super().__init__(self._answer)
        self.tokens = frozenset(tokens)
        self._repositories: dict[tuple[str, str], Repository] = {}
        self._large: dict[str, bytes] = {}

    def add_model(self, name: str, files: Mapping[str, bytes], **options: bool) -> str:
        """Add a commit to the main branch of a model repository and return it.

        ``gated=True`` asks for a known token, and with ``license_accepted=False`` refuses it; ``private=True`` hides
        the repository from everybody without one.
        """
        return self._add("models", name, files, options)

    def add_dataset(self, name: str, files: Mapping[str, bytes], **options: bool) -> str:
        """Add a commit to the main branch of a data set repository and return it."""
        return self._add("datasets", name, files, options)

    def tag(self, name: str, tag: str, commit: str) -> None:
        """Give a name to a commit of a model repository."""
        self._repositories["models", name].references[tag] = commit

    def fail_file(self, name: str, path: str, fault: Fault) -> None:
        """Let the next requests for the bytes of a file of the main branch of a model repository fail."""
        self.fail(self.bytes_path(name, path), fault)

    def bytes_path(self, name: str, path: str) -> str:
        """Return the path at which the bytes of a file of a model are served."""
        repository = self._repositories["models", name]
        commit = repository.references["main"]
        if path.endswith(LARGE):
            return f"/cdn/{hashlib.sha256(repository.commits[commit][path]).hexdigest()}"
        return f"/{name}/resolve/{commit}/{path}"

    def _add(
        self, kind: str, name: str, files: Mapping[str, bytes], options: Mapping[str, bool], *, branch: str = "main"
    ) -> str:
        repository = self._repositories.setdefault((kind, name), Repository())
        for option, value in options.items():
            setattr(repository, option, value)
        content = dict(files)
        identity = repr((name, len(repository.commits), sorted(content.items())))
        commit = hashlib.sha1(identity.encode(), usedforsecurity=False).hexdigest()
        repository.commits[commit] = content
        repository.references[branch] = commit
        self._large |= {
            hashlib.sha256(data).hexdigest(): data for path, data in content.items() if path.endswith(LARGE)
        }
        return commit

    def _answer(self, seen: Seen) -> Answer:
        parts = seen.path.strip("/").split("/")
        if seen.method in {"POST", "PUT"}:
            return self._write(seen, parts)
        if parts[0] == "cdn":
            return Answer(body=self._large[parts[1]], headers={"ETag": f'"{parts[1]}"'}, ranges=True)
        if parts[0] == "api" and len(parts) >= 4:
            return self._describe(seen, kind=parts[1], name="/".join(parts[2:4]), rest=parts[4:])
        kind = "datasets" if parts[0] == "datasets" else "models"
        parts = parts[1:] if kind == "datasets" else parts
        if len(parts) >= 5 and parts[2] == "resolve":
            return self._resolve(seen, kind=kind, name="/".join(parts[:2]), revision=parts[3], path="/".join(parts[4:]))
        return _error("EntryNotFound", HTTPStatus.NOT_FOUND)

    def files(self, name: str, revision: str = "main") -> Mapping[str, bytes]:
        """Return the files of a branch or commit of a model repository."""
        repository = self._repositories["models", name]
        return repository.commits[repository.references.get(revision, revision)]

    def is_private(self, name: str) -> bool:
        """Whether a model repository is hidden from strangers."""
        return self._repositories["models", name].private

    def _write(self, seen: Seen, parts: list[str]) -> Answer:
        """Answer what ``create_repo``, ``create_branch`` and ``upload_folder`` send, for those with a token."""
        if parts[0] == "uploads":
            # A store of large files is asked with an address that is a secret of its own, not with the token.
            self._large[parts[1]] = seen.body
            return Answer()
        if seen.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            headers = {"X-Error-Message": "Invalid credentials in Authorization header"}
            return Answer(status=HTTPStatus.UNAUTHORIZED, headers=headers)
        content = seen.body.decode()
        if parts == ["api", "repos", "create"]:
            return self._create(json.loads(content))
        if parts[-4:] == ["info", "lfs", "objects", "batch"]:
            return self._large_files(json.loads(content))
        if parts[:2] == ["api", "validate-yaml"]:
            return _json({"warnings": [], "errors": []})
        return self._write_to("/".join(parts[2:4]), action=parts[4], branch=parts[5], content=content)

    def _write_to(self, name: str, *, action: str, branch: str, content: str) -> Answer:
        repository = self._repositories["models", name]
        if action == "branch":
            known = branch in repository.references
            repository.references.setdefault(branch, repository.references.get("main", ""))
            return _error("Conflict", HTTPStatus.CONFLICT) if known else _json({})
        if action == "preupload":
            return _json({"files": [_upload_mode(file["path"]) for file in json.loads(content)["files"]]})
        return self._commit_files(name, branch, [json.loads(line) for line in content.splitlines()])

    def _create(self, asked: Mapping[str, str | bool]) -> Answer:
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else str(asked["name"])
        known = ("models", name) in self._repositories
        private = asked.get("private") is True or asked.get("visibility") == "private"
        self._repositories.setdefault(("models", name), Repository(private=private))
        return Answer(
            status=HTTPStatus.CONFLICT if known else HTTPStatus.OK,
            body=json.dumps({"url": f"{self.url}/{name}"}).encode(),
            headers={"Content-Type": "application/json"},
        )

    def _large_files(self, asked: Mapping[str, list[dict[str, object]]]) -> Answer:
        """Tell where each large file is to be sent; nothing of what is there already."""
        objects = [
            file | {"actions": {"upload": {"href": f"{self.url}/uploads/{file['oid']}"}}}
            if file["oid"] not in self._large
            else file
            for file in asked["objects"]
        ]
        return _json({"transfer": "basic", "objects": objects})

    def _commit_files(self, name: str, branch: str, lines: list[dict[str, dict[str, str]]]) -> Answer:
        repository = self._repositories["models", name]
        content = dict(repository.commits.get(repository.references.get(branch, ""), {}))
        for line in lines:
            match str(line["key"]):
                case "file":
                    content[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                case "lfsFile":
                    content[line["value"]["path"]] = self._large[line["value"]["oid"]]
        commit = self._add("models", name, content, {}, branch=branch)
        return _json({"commitUrl": f"{self.url}/{name}/commit/{commit}", "commitOid": commit})

    def _find(self, seen: Seen, kind: str, name: str) -> Repository | Answer:
        repository = self._repositories.get((kind, name))
        token = seen.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.tokens:
            headers = {"X-Error-Message": "Invalid credentials in Authorization header"}
            return Answer(status=HTTPStatus.UNAUTHORIZED, headers=headers)
        if repository is None or (repository.private and not token):
            # A hub does not tell strangers whether a repository exists.
            return _error("RepoNotFound", HTTPStatus.NOT_FOUND if token else HTTPStatus.UNAUTHORIZED)
        return repository

    def _describe(self, seen: Seen, *, kind: str, name: str, rest: list[str]) -> Answer:
        repository = self._find(seen, kind, name)
        if isinstance(repository, Answer):
            return repository
        revision = rest[1] if len(rest) > 1 else "main"
        commit = _commit(repository, revision)
        if commit is None:
            return _error("RevisionNotFound", HTTPStatus.NOT_FOUND)
        files = repository.commits[commit]
        if rest[:1] == ["tree"]:
            return _json([_tree_entry(path, data) for path, data in sorted(files.items())])
        siblings = [_sibling(path, data) for path, data in sorted(files.items())]
        gated = "manual" if repository.gated else False
        return _json({"id": name, "modelId": name, "sha": commit, "gated": gated, "siblings": siblings, "tags": []})

    def _resolve(self, seen: Seen, *, kind: str, name: str, revision: str, path: str) -> Answer:
        repository = self._find(seen, kind, name)
        if isinstance(repository, Answer):
            return repository
        commit = _commit(repository, revision)
        if commit is None:
            return _error("RevisionNotFound", HTTPStatus.NOT_FOUND)
        if repository.gated:
            token = "authorization" in seen.headers
            if not token or not repository.license_accepted:
                return _error("GatedRepo", HTTPStatus.FORBIDDEN if token else HTTPStatus.UNAUTHORIZED)
        data = repository.commits[commit].get(path)
        if data is None:
            return _error("EntryNotFound", HTTPStatus.NOT_FOUND)
        if not path.endswith(LARGE):
            headers = {"ETag": f'"{_git_blob(data)}"', "X-Repo-Commit": commit}
            return Answer(body=data, headers=headers, ranges=True)
        digest = hashlib.sha256(data).hexdigest()
        headers = {
            "Location": f"{self.url}/cdn/{digest}",
            "X-Repo-Commit": commit,
            "X-Linked-Size": str(len(data)),
            "X-Linked-ETag": f'"{digest}"',
        }
        return Answer(status=HTTPStatus.FOUND, headers=headers)


def _upload_mode(path: str) -> dict[str, object]:
    return {"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False}


def _commit(repository: Repository, revision: str) -> str | None:
    if revision in repository.references:
        return repository.references[revision]
    # A short name of a commit is none, on the real hub as well.
    return revision if len(revision) == _SHA and revision in repository.commits else None


def _git_blob(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()


def _sibling(path: str, data: bytes) -> dict[str, object]:
    described: dict[str, object] = {"rfilename": path, "size": len(data), "blobId": _git_blob(data)}
    if path.endswith(LARGE):
        described["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return described


def _tree_entry(path: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": _git_blob(data)}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


def _json(content: object) -> Answer:
    return Answer(body=json.dumps(content).encode(), headers={"Content-Type": "application/json"})


def _error(code: str, status: HTTPStatus) -> Answer:
    return Answer(status=status, headers={"X-Error-Code": code, "X-Error-Message": code})
