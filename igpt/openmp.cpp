// What torch.compile's own C++ needs: OpenMP and Python's headers. Built as a trial, before it is relied on.

#include <Python.h>
#include <omp.h>

extern "C" int count_threads() {
    int n = 0;
#pragma omp parallel reduction(+ : n)
    n += 1;
    return n;
}
