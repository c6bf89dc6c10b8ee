"""`igpt serve`."""

import importlib.util
import os
from pathlib import Path

from igpt.cli.outputs import Model
from igpt.errors import UserError

MAX_PORT = 65535


def serve(
    model: Model, *, host: str = "127.0.0.1", port: int = 7860, names: tuple[str, ...] = ()
) -> None:
    """A page to play with a model: complete, sample, see what surprises it.

    It needs no network and talks to none. Ctrl-C ends it.

    Args:
        model: a run, a model folder or a shipped name.
        host: address to listen on; the default can be reached from this machine alone.
        port: port to listen on.
        names: further names that the page is asked for by, such as behind a proxy; by number, as
            localhost and by this machine's own name it always answers.
    """
    if not 0 <= port <= MAX_PORT:
        raise UserError(f"--port is {port}: choose from 0 to {MAX_PORT}; 0 takes one that is free")
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs Gradio: pip install 'igpt[web]'")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

    from igpt import compute
    from igpt.loading import load
    from igpt.progress import say
    from igpt.web.app import build, listen, serve_forever
    from igpt.web.gate import own_uploads

    compute.set_threads()
    with listen(host, port) as listener, own_uploads() as uploads:
        page = build(load(model), name=Path(model).name, uploads=uploads)
        shown = f"[{host}]" if ":" in host else host
        say(f"serving on http://{shown}:{listener.getsockname()[1]} - Ctrl-C ends it")
        serve_forever(page, listener, uploads, names=names)
