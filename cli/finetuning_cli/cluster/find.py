"""Names on a command line: NAME, or KIND/NAME in any spelling that kubectl takes."""

from collections.abc import Sequence

from finetuning_api import KINDS
from finetuning_client import Client, ClusterError, NotFoundError
from finetuning_client.api import Kind, Object, kind_of

ALL_KINDS: Sequence[Kind] = tuple(kind_of(kind) for kind in KINDS)


def split_name(text: str) -> tuple[Sequence[Kind], str]:
    """Return the kinds that a name may be of, jobs first, and the name. Raises ClusterError for an unknown kind."""
    word, slash, name = text.rpartition("/")
    found = [kind for kind in ALL_KINDS if not slash or word.lower() in kind.aliases]
    if not found or not name:
        known = ", ".join(kind.aliases[0] for kind in ALL_KINDS)
        raise ClusterError(f"{text!r} names no object", f"Write NAME or KIND/NAME with KIND one of {known}.")
    return found, name


def find(client: Client, text: str) -> tuple[Kind, Object]:
    """Return the object of a name and its kind. Raises NotFoundError saying where was looked."""
    kinds, name = split_name(text)
    for kind in kinds:
        try:
            return kind, client.api.get(kind, name)
        except NotFoundError:
            continue
    what = "no object" if len(kinds) > 1 else f"no {kinds[0].name}"
    hint = "See what there is: finetune status --cluster. Other places are named with -n and --context."
    raise NotFoundError(f"there is {what} named {name!r} in {client.connection.place}", hint)
