"""`igpt serve`."""

import importlib.util
import os
from pathlib import Path

from igpt.cli.arguments import Model
from igpt.errors import UserError

MAX_PORT = 65535


def serve(model: Model, *, host: str = "127.0.0.1", port: int = 7860) -> None:
    """A page to play with a model: complete, sample, see what surprises it.

    It needs no network and talks to none. Ctrl-C ends it.

    Args:
        model: a run, a model folder or a shipped name.
        host: address to listen on; the default can be reached from this machine alone.
        port: port to listen on.
    """
    if not 0 <= port <= MAX_PORT:
        raise UserError(f"--port is {port}: choose from 0 to {MAX_PORT}; 0 takes one that is free")
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs Gradio: pip install 'igpt[web]'")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

    from igpt import compute
    from igpt.pixelmodel import load
    from igpt.progress import say
    from igpt.web.app import build
    from igpt.web.server import listen, serve_forever

    compute.set_threads()
    with listen(host, port) as listener:
        page = build(load(model), name=Path(model).name)
        say(f"serving on http://{host}:{listener.getsockname()[1]} - Ctrl-C ends it")
        serve_forever(page, listener)
