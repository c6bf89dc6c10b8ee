"""Every test has its own cache folder for the session, one thread a process, and no network."""

import os
import signal

import pytest
import torch

# A shell that starts the tests in the background has Ctrl-C ignored, and `nohup` the end of the
# terminal, by them and their children.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """A cache folder that no earlier run has filled; `IGPT_TEST_CACHE` names one to keep."""
    kept = os.environ.get("IGPT_TEST_CACHE")
    os.environ["IGPT_CACHE"] = kept or str(tmp_path_factory.mktemp("cache"))
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"  # commands would take every core again
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits(own_cache):
    """scikit-learn's digits at 8 x 8, packed: 1,797 labelled images that need no download."""
    from igpt.images.prepare import open_data

    return open_data("digits", image_size=8)
