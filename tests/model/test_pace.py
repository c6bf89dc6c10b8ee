from igpt.model.decoder import Pace


def used(pace, span_s, n_steps):
    """Threads of each step when a step on n threads takes span_s(n)."""
    chosen = []
    for _ in range(n_steps):
        n = pace.next()
        pace.took(span_s(n))
        chosen.append(n)
    return chosen


def idle(n):
    return 1 / n


def test_one_thread_is_the_only_choice_where_there_is_one():
    assert set(used(Pace(1), idle, 200)) == {1}


def test_all_threads_are_used_where_they_are_fastest_but_for_a_look_now_and_then():
    assert used(Pace(2), idle, 1023).count(1) <= 23


def test_a_busy_machine_is_left_to_others_and_a_free_one_taken_again():
    pace = Pace(8)
    assert used(pace, lambda n: 1.0 * n, 200)[-100:].count(1) >= 90
    assert used(pace, idle, 1500)[-500:].count(8) >= 480


def test_a_small_network_takes_the_number_that_is_fastest():
    spans = {8: 3.0, 4: 1.0, 2: 2.0, 1: 4.0}
    assert used(Pace(8), spans.get, 1000)[-500:].count(4) >= 480


def test_few_slow_steps_change_nothing():
    pace = Pace(2)
    used(pace, idle, 200)
    used(pace, lambda n: 100.0, 2)
    assert used(pace, idle, 500).count(2) >= 480


def test_steps_that_become_slow_are_noticed_long_before_the_next_look():
    pace = Pace(2)
    used(pace, idle, 1000)  # the next look would come after hundreds of steps
    assert used(pace, lambda n: 5.0 * n, 60)[-30:].count(1) >= 25
