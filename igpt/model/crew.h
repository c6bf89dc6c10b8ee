// Threads that share the parts of one phase of work after another.
//
// Why not OpenMP: at its barriers every thread waits for every other, so that on a machine which is
// busy with something else each of some sixty barriers a step could cost a time slice, and a step
// became a hundred times slower. Here a thread that has no core is waited for only if it left a
// part half done; what it has not begun, the others take.

#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <unistd.h>

namespace crew {

// Waits a little longer at each call: first on the core, then giving it away.
class Patience {
    int calls = 0;

  public:
    void wait() {
        constexpr int ON_THE_CORE = 2000, GIVING_WAY = 2200;
        if (++calls < ON_THE_CORE) {
#if defined(__x86_64__) || defined(__i386__)
            __builtin_ia32_pause();
#endif
        } else if (calls < GIVING_WAY) {
            std::this_thread::yield();
        } else {
            std::this_thread::sleep_for(std::chrono::microseconds(50));
        }
    }
};

// The phases of one piece of work; all threads go through them in the same order.
class Phases {
    struct alignas(64) Counter {
        std::atomic<int64_t> value{0};
    };
    const int64_t n_threads;
    std::vector<Counter> counters;  // a phase: parts done, then parts that each thread's share gave

  public:
    Phases(int64_t n_phases, int64_t n_threads)
        : n_threads(n_threads), counters(n_phases * (n_threads + 1)) {}

    // do_part(part) for all parts of a phase: one's own share first, then what others have left.
    template <class DoPart>
    void share(int64_t phase, int64_t thread, int64_t n_parts, DoPart do_part) {
        Counter *done = &counters[phase * (n_threads + 1)], *given = done + 1;
        int64_t mine = 0;
        for (int64_t i = 0; i < n_threads; i++) {
            int64_t whose = (thread + i) % n_threads;
            int64_t end = (whose + 1) * n_parts / n_threads, part;
            int64_t first = whose * n_parts / n_threads;
            if (given[whose].value.load(std::memory_order_relaxed) >= end - first) continue;
            while ((part = first + given[whose].value.fetch_add(1)) < end) {
                do_part(part);
                mine++;
            }
        }
        done->value.fetch_add(mine, std::memory_order_acq_rel);
        Patience patience;
        while (done->value.load(std::memory_order_acquire) < n_parts) patience.wait();
    }
};

typedef std::function<void(int64_t thread)> Work;

class Crew {
    std::mutex mutex;
    std::condition_variable changed;
    std::atomic<int64_t> n_orders{0};
    std::shared_ptr<Work> order;  // a thread that comes late still holds what it works on
    int64_t wanted = 0, hired = 0;

    void serve(int64_t thread, int64_t seen) {
        for (;;) {
            Patience patience;
            for (int i = 0; i < 2000 && n_orders.load(std::memory_order_acquire) == seen; i++)
                patience.wait();
            std::shared_ptr<Work> work;
            {
                std::unique_lock<std::mutex> hold(mutex);
                changed.wait(hold, [&] { return n_orders.load() != seen; });
                seen = n_orders.load();
                if (thread < wanted) work = order;
            }
            if (work) (*work)(thread);
        }
    }

  public:
    // Ends when the caller's own call of work(0) ends; others may still be about to find that
    // nothing is left, so `work` must own what it reads then.
    void run(int64_t n_threads, Work work) {
        std::shared_ptr<Work> shared = std::make_shared<Work>(std::move(work));
        if (n_threads > 1) {
            std::lock_guard<std::mutex> hold(mutex);
            for (; hired < n_threads - 1; hired++)
                std::thread(&Crew::serve, this, hired + 1, n_orders.load()).detach();
            order = shared;
            wanted = n_threads;
            n_orders.fetch_add(1, std::memory_order_release);
            changed.notify_all();
        }
        (*shared)(0);
    }
};

// The process's crew. A forked child has none of its parent's threads, so it hires its own.
inline Crew &own() {
    static std::mutex mutex;
    static Crew *crew = nullptr;
    static pid_t owner = 0;
    std::lock_guard<std::mutex> hold(mutex);
    if (owner != getpid()) {
        crew = new Crew;  // never deleted: its threads wait on it until the process ends
        owner = getpid();
    }
    return *crew;
}

}  // namespace crew
