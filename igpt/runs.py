"""The old name of `igpt.files`."""

from igpt.files import *  # noqa: F403
