"""igpt: generative pre-training from pixels (Image GPT, 2020).

The public names are loaded on first use, so that `import igpt` and `igpt --help` stay quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from igpt import sklearn as sklearn
    from igpt.errors import Interrupted as Interrupted
    from igpt.errors import UserError as UserError
    from igpt.jobs.evaluate import evaluate as evaluate
    from igpt.jobs.finetune import finetune as finetune
    from igpt.jobs.pretrain import Run as Run
    from igpt.jobs.pretrain import pretrain as pretrain
    from igpt.jobs.probe import probe as probe
    from igpt.loading import load as load
    from igpt.pixelmodel import PixelModel as PixelModel
    from igpt.tokens.palette import Palette as Palette

__version__ = "0.1.0"

_HOME_OF = {
    "Interrupted": "igpt.errors",
    "UserError": "igpt.errors",
    "Palette": "igpt.tokens.palette",
    "PixelModel": "igpt.pixelmodel",
    "Run": "igpt.jobs.pretrain",
    "load": "igpt.loading",
    "pretrain": "igpt.jobs.pretrain",
    "evaluate": "igpt.jobs.evaluate",
    "finetune": "igpt.jobs.finetune",
    "probe": "igpt.jobs.probe",
}

__all__ = [
    "Interrupted",
    "Palette",
    "PixelModel",
    "Run",
    "UserError",
    "evaluate",
    "finetune",
    "load",
    "pretrain",
    "probe",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home module on first use (PEP 562)."""
    from igpt.system import refuse_windows

    if name == "sklearn":  # the estimators, which need scikit-learn's seconds of import
        return import_module("igpt.sklearn")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'igpt' has no attribute {name!r}")
    refuse_windows()
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "sklearn", "__version__"]
