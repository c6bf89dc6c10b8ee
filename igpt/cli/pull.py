"""`igpt pull`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from igpt.cli.arguments import Out

HubId = Positional[Annotated[str, arg(metavar="OWNER/NAME")]]


def pull(hub_id: HubId, out: Out, *, revision: str | None = None) -> None:
    """Fetch a model from the Hugging Face Hub into a folder.

    Args:
        hub_id: owner/name, such as openai/imagegpt-small.
        out: folder to write; it then opens as any model folder.
        revision: branch, tag or commit; none: the newest.
    """
    from igpt.interop import hub

    print(hub.pull(hub_id, Path(out), revision=revision))
