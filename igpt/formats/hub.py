"""Models on the Hugging Face Hub: fetch a folder, put one there."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from igpt.errors import UserError
from igpt.files import LIST

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Before a name that is asked for on the Hub: without it no local name becomes a request.
HUB = "hf:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# What a model folder may hold; nothing else is fetched, and nothing that runs.
FILES = ("config.json", "preprocessor_config.json", "probe.json", "README.md", "*.png")
WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "probe.safetensors")
OLD_WEIGHTS = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


def fetch(hub_id: str, *, revision: str | None = None) -> Path:
    """The folder of a model on the Hub, from the Hub's own cache where it was fetched before.

    Args:
        hub_id: `owner/name`, after `hf:` or not, with `@revision` or not.
        revision: branch, tag or commit; none: the newest.

    Raises:
        UserError: there is none, it may not be read, or the Hub cannot be reached.
    """
    place = hub_id
    hub_id, named = parts_of(hub_id)
    revision = revision or named

    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        names = [*FILES, *WEIGHTS]
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=names))
        if not any(folder.glob("model*.safetensors")):
            names = [*FILES, *OLD_WEIGHTS]
            folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=names))
    except LocalEntryNotFoundError as error:
        raise UserError(f"cannot fetch {place}: {_unreachable()}") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(f"cannot fetch {place} from the Hub: {_first_line(error)}") from error
    return folder


def parts_of(name: str) -> tuple[str, str | None]:
    """`owner/name` and the revision, if any, of `[hf:]owner/name[@revision]`.

    Raises:
        UserError: it is no such name.
    """
    hub_id, _, revision = name.removeprefix(HUB).partition("@")
    check_hub_id(hub_id)
    return hub_id, revision or None


def check_can_publish(hub_id: str) -> None:
    """Refuse early what `publish` cannot do.

    Raises:
        UserError: not a Hub id, or offline.
    """
    check_hub_id(hub_id)
    if _is_offline():
        raise UserError(f"cannot push to {hub_id}: {_unreachable()}")


def check_hub_id(hub_id: str) -> None:
    """Refuse what is not `owner/name`.

    Raises:
        UserError: it is not.
    """
    if not _HUB_ID.fullmatch(hub_id):
        raise UserError(f"{hub_id} is no Hub id: write owner/name")


def publish(folder: Path, hub_id: str, *, private: bool = False) -> str:
    """Put a model folder on the Hub, under the login that `hf auth login` left.

    Args:
        folder: every file in it is sent.
        hub_id: `owner/name`; made where it does not exist.
        private: make it visible to its owner only.

    Returns:
        the address of the commit.

    Raises:
        UserError: not a Hub id, not logged in, refused, offline or unreachable.
    """
    check_can_publish(hub_id)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        _check_visibility(api, hub_id, private=private)
        api.create_repo(hub_id, private=private, exist_ok=True)
        _check_visibility(api, hub_id, private=private)
        sent = api.upload_folder(
            repo_id=hub_id,
            folder_path=folder,
            commit_message="Upload an igpt model",
            ignore_patterns=[LIST],
        )
    except HfHubHTTPError as error:
        if getattr(error.response, "status_code", 0) in (401, 403):
            raise UserError(
                f"{hub_id} may not be written: log in by `hf auth login` as someone who may"
            ) from error
        raise UserError(f"cannot push to {hub_id}: {_first_line(error)}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot push to {hub_id}: {_first_line(error)}") from error
    return str(sent.commit_url)


def _check_visibility(api: "HfApi", hub_id: str, *, private: bool) -> None:
    """Ask the Hub before anything is sent; what is public stays public whatever is asked for.

    Raises:
        UserError: it is to be private, and everybody can see it.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    if not private:
        return
    try:
        is_private = api.repo_info(hub_id).private
    except RepositoryNotFoundError:
        return
    if not is_private:
        raise UserError(
            f"{hub_id} is public on the Hub and --private would not change that: nothing was sent: "
            "make it private in its settings there, or choose another name"
        )


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _unreachable() -> str:
    if _is_offline():
        return "HF_HUB_OFFLINE forbids asking the Hub: unset it, or fetch the model beforehand"
    return "the Hub cannot be reached: check the name and the connection"


def _first_line(error: Exception) -> str:
    """What a person needs of the Hub's long messages."""
    text = " ".join(str(error).split())
    return text.split(" (Request ID")[0][:200] or type(error).__name__
