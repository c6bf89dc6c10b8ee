import time

import pytest

from igpt.errors import UserError
from igpt.images.workers import alarm, limited, n_workers, worker_pool


def test_decoding_for_too_long_is_stopped() -> None:
    end_s = time.monotonic() + 20
    with alarm(), pytest.raises(UserError, match="takes too long to decode"), limited(0.05):
        while time.monotonic() < end_s:
            pass
    assert time.monotonic() < end_s


def test_a_machine_that_pauses_costs_no_image() -> None:
    with alarm(), limited(0.2):
        time.sleep(0.5)


def test_the_number_of_processes_is_checked() -> None:
    assert n_workers(3) == 3
    assert n_workers(0) >= 1
    with pytest.raises(UserError, match="--workers -2 is not possible"):
        n_workers(-2)


def threads_of_products() -> set[int]:
    """In a worker: threads of each library that multiplies matrices, once numpy is there."""
    import numpy as np
    from threadpoolctl import threadpool_info

    assert np.ones(2) @ np.ones(2) == 2
    return {pool["num_threads"] for pool in threadpool_info()}


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_worker_has_one_thread_however_it_was_started(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # the tests' own limit
    with worker_pool(1, method=method) as pool:
        assert pool.submit(threads_of_products).result() == {1}
