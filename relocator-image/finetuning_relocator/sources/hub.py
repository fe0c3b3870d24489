"""``hf://``: models and data sets of a Hugging Face hub, through huggingface_hub."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from http import HTTPStatus
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import DatasetInfo, ModelInfo, RepoSibling
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import get_session, hf_raise_for_status

from finetuning_api.reasons import Reason
from finetuning_relocator.faults import (
    access_denied,
    authentication_required,
    from_status,
    not_found,
    revision_not_found,
    unreachable,
)
from finetuning_relocator.sources.base import ANSWER_SECONDS, Block, Listing, RemoteFile, Request, Source
from finetuning_relocator.sources.http import explained, read_blocks, timeouts
from finetuning_workload.errors import ProgramError, UserError

TOKEN_KEY = "HF_TOKEN"  # noqa: S105  (the name of a key)


class HubSource(Source):
    """A repository at one commit.

    Files are listed with their checksums, and their bytes are streamed from the address that huggingface_hub names, so
    that progress, resuming, stopping and verifying are the engine's, as for every other source.
    """

    def __init__(self, request: Request) -> None:
        location = request.parsed.location
        self._request = request
        self._what = request.parsed.canonical
        self._type = "dataset" if location.startswith("datasets/") else "model"
        self._repository = location.removeprefix("datasets/")
        self._endpoint = (request.ref.endpoint or constants.ENDPOINT).rstrip("/")
        self._host = urlsplit(self._endpoint).netloc
        self._token = request.credentials.get(TOKEN_KEY, "token")
        self._commit: str | None = None

    def list_files(self) -> Listing:
        """Resolve the revision to a commit and list its files with size and checksum."""
        info = self._info()
        self._commit = info.sha
        siblings = info.siblings or []
        return Listing(files=tuple(_announced(sibling) for sibling in siblings), resolved_revision=info.sha)

    def _info(self) -> ModelInfo | DatasetInfo:
        api = HfApi(endpoint=self._endpoint, token=self._token or False)
        ask = api.dataset_info if self._type == "dataset" else api.model_info
        try:
            with explained(self._host):
                return ask(
                    self._repository, revision=self._request.revision, timeout=ANSWER_SECONDS, files_metadata=True
                )
        except HfHubHTTPError as error:
            raise self._failure(error) from error
        except OfflineModeIsEnabled as error:
            raise unreachable(self._host, "HF_HUB_OFFLINE is set") from error

    def read(self, file: RemoteFile, *, offset: int) -> Iterator[Block]:
        """Stream a file of the commit that was listed."""
        url = hf_hub_url(
            self._repository,
            file.key,
            repo_type=self._type,
            revision=self._commit or self._request.revision,
            endpoint=self._endpoint,
        )
        hub_headers = build_hf_headers(token=self._token or False)

        def open_response(headers: Mapping[str, str]) -> AbstractContextManager[httpx2.Response]:
            return get_session().stream(
                "GET", url, headers={**hub_headers, **headers}, timeout=timeouts(self._request.read_seconds)
            )

        with explained(self._host):
            yield from read_blocks(open_response, file, offset=offset, require_success=self._require_success)

    def _require_success(self, response: httpx2.Response) -> None:
        try:
            hf_raise_for_status(response)
        except HfHubHTTPError as error:
            raise self._failure(error) from error

    def _failure(self, error: HfHubHTTPError) -> ProgramError:
        """Return what an answer of the hub means. A hub says 401 for what does not exist, unless one has a token."""
        status = error.response.status_code
        credentials = self._request.credentials
        if isinstance(error, GatedRepoError | DisabledRepoError):
            if self._token is None:
                return authentication_required(self._what, credentials, TOKEN_KEY)
            return access_denied(self._what, f"Accept its license at {self._page}, with the account of the token.")
        if isinstance(error, RevisionNotFoundError):
            return revision_not_found(self._what, self._request.revision or constants.DEFAULT_REVISION)
        if status == HTTPStatus.UNAUTHORIZED:
            return authentication_required(self._what, credentials, TOKEN_KEY)
        if isinstance(error, RepositoryNotFoundError):
            hint = f"Check owner and name; a private one needs a token ({TOKEN_KEY})."
            return not_found(self._what, hint, status=status)
        failure = from_status(status, what=self._what, credentials=credentials, keys=(TOKEN_KEY,))
        return failure or UserError(Reason.SOURCE_NOT_FOUND, f"{self._what}: {error}", "Check source and endpoint.")

    @property
    def _page(self) -> str:
        """Address of the repository's page, where a person accepts its license."""
        return f"{self._endpoint}/{'datasets/' if self._type == 'dataset' else ''}{self._repository}"


def _announced(sibling: RepoSibling) -> RemoteFile:
    return RemoteFile(
        path=sibling.rfilename,
        key=sibling.rfilename,
        size=sibling.lfs.size if sibling.lfs else sibling.size,
        sha256=sibling.lfs.sha256 if sibling.lfs else None,
        # The git object of a large file is its pointer, not its bytes.
        git_blob=None if sibling.lfs else sibling.blob_id,
    )
