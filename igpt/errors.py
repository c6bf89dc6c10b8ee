"""The one exception for what a user can cause or cure, and what ends work early."""

import re


class UserError(Exception):
    """A mistake that the user can mend: the message says what, where and what to do.

    The command line prints it as one line, `igpt: error: ...`, and exits with status 2.
    """


NOT_FINITE = (
    "what the network gives is not finite: its training diverged; use an earlier checkpoint"
)

# Package that is not in the base install: the extra that brings it.
EXTRAS = {
    "pyarrow": "parquet",
    "huggingface_hub": "hub",
    "gradio": "web",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "tensorboard": "tracking",
    "wandb": "tracking",
    "transformers": "peers",
}


def missing_extra(error: Exception) -> UserError | None:
    """The line for an optional package that is not installed; none: it is another error."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    package = (name or "").partition(".")[0]
    if package not in EXTRAS:
        return None
    return UserError(f"this needs the package {package}: pip install 'igpt[{EXTRAS[package]}]'")


_NO_MEMORY = re.compile("out of memory|an(no|')t allocate memory|failed to map segment")


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's, an accelerator's, PyTorch's own, or a library's."""
    kinds = (RuntimeError, OSError, ImportError)
    return isinstance(error, MemoryError) or (
        isinstance(error, kinds) and _NO_MEMORY.search(str(error)) is not None
    )


def refused(error: BaseException) -> UserError | None:
    """The line for what the system did not give where nobody expected it; none: it is no such."""
    if is_lack_of_memory(error):
        return UserError("out of memory: give it more, or take fewer or smaller images at once")
    if isinstance(error, OSError) and error.errno:
        place = f"{error.filename}: " if error.filename else ""
        return UserError(
            f"{place}{error.strerror}: mend that, or choose another place (--debug shows the call)"
        )
    return None


class Diverged(UserError):
    """The loss of a run is no longer finite: a search goes on with a lower rate."""


class Stopped(KeyboardInterrupt):
    """A signal that asks a program to end came, and nothing had to be saved.

    Args:
        signal_number: the exit status is 128 above it.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


class Interrupted(Exception):
    """A signal asked a long run to stop, and what it had done is saved.

    Args:
        message: what was saved and how to go on.
        signal_number: SIGINT or SIGTERM; the exit status is 128 above it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class Elsewhere(UserError):
    """Another rank has failed, and says why; this one only ends with it."""
