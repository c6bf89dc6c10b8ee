"""`igpt pull`."""

from typing import Annotated

from tyro.conf import Positional, arg

from igpt.cli.outputs import Out, empty_folder

HubId = Positional[Annotated[str, arg(metavar="OWNER/NAME")]]


def pull(hub_id: HubId, out: Out, *, revision: str | None = None) -> None:
    """Fetch a model from the Hugging Face Hub into a folder.

    Args:
        hub_id: owner/name, such as openai/imagegpt-small.
        out: folder to write, new or empty; it then opens as any model folder.
        revision: branch, tag or commit; none: the newest.
    """
    folder = empty_folder(out)

    from igpt.loading import pull

    print(pull(hub_id, folder, revision=revision))
