"""To a hub: one commit with all files of an artifact, which ``hf://`` brings back."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from finetuning_relocator.faults import authentication_required, unreachable
from finetuning_relocator.sources.http import explained
from finetuning_relocator.sources.hub import TOKEN_KEY, HubSource
from finetuning_workload.artifact import Manifest


class HubDestination(HubSource):
    """The branch of a model's repository."""

    def push(self, folder: Path, manifest: Manifest, on_bytes: Callable[[int], None]) -> str:
        """Commit the files and return the commit; what has not changed is no part of it.

        A repository that is not there is made, and made private: who may see it is its owner's decision.
        """
        if self._token is None:
            raise authentication_required(self._what, self._request.credentials, TOKEN_KEY)
        api = HfApi(endpoint=self._endpoint, token=self._token)
        try:
            with explained(self._host), ExitStack() as stack:
                api.create_repo(self._repository, private=True, exist_ok=True)
                if self._request.revision is not None:
                    api.create_branch(self._repository, branch=self._request.revision, exist_ok=True)
                # Opened files go the way that every hub knows (LFS), and in one commit; by their paths the client would
                # send them in several, through a store that only the public hub has.
                files = {file.path: stack.enter_context((folder / file.path).open("rb")) for file in manifest.files}
                commit = api.create_commit(
                    self._repository,
                    [CommitOperationAdd(path, opened) for path, opened in files.items()],
                    revision=self._request.revision,
                    commit_message=f"{manifest.format} {manifest.digest}",
                )
        except HfHubHTTPError as error:
            raise self._failure(error) from error
        except OfflineModeIsEnabled as error:
            raise unreachable(self._host, "HF_HUB_OFFLINE is set") from error
        on_bytes(manifest.total_bytes)
        return commit.oid
