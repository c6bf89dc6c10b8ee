"""C++ is built once, kept whole, tried apart, and never loaded from where others may write."""

import json
import shutil
import subprocess
import sys

import pytest

from igpt import cpp, system

needs_compiler = pytest.mark.skipif(cpp.compiler() is None, reason="no C++ compiler")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of this test's own, and nothing remembered from other tests."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("IGPT_CACHE", str(folder))
    cpp.built.cache_clear()
    yield folder
    cpp.built.cache_clear()


@pytest.fixture
def part(tmp_path):
    """A function that gives 42."""
    source = tmp_path / "answer.cpp"
    source.write_text('extern "C" int answer() { return 42; }\n')
    return cpp.Part(name="answer", sources=(source,), flags=("-O1",))


def compiler_that(tmp_path, monkeypatch, script):
    """Put in front of all others: counts its calls in a file."""
    path = tmp_path / "shim" / "g++"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\necho called >> {tmp_path}/calls\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))


def n_calls(tmp_path):
    return len((tmp_path / "calls").read_text().splitlines())


def again(part):
    """What another process would find."""
    cpp.built.cache_clear()
    return cpp.built(part)


@needs_compiler
def test_a_library_is_built_once_and_its_log_lies_beside_it(cache, part, tmp_path, monkeypatch):
    compiler_that(tmp_path, monkeypatch, f'exec {shutil.which("g++")} "$@"')
    build = cpp.built(part)
    assert build.state == "built" and cpp.library(part).answer() == 42
    assert "built in" in build.log.read_text() and str(part.sources[0]) in build.log.read_text()
    assert again(part) == build
    assert n_calls(tmp_path) == 1
    assert {p.suffix for p in cache.iterdir()} == {".so", ".log"}  # nothing half done is left


@needs_compiler
@pytest.mark.parametrize("damage", ["cut", "flipped", "of another machine", "empty"])
def test_a_damaged_library_is_built_anew(cache, part, damage):
    path = cpp.built(part).path
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[len(data) // 2] ^= 255
    elif damage == "of another machine":
        data[18:20] = (183).to_bytes(2, "little")  # e_machine: AArch64
    else:
        data.clear()
    path.unlink()
    path.write_bytes(data)
    build = again(part)
    assert build.state == "built" and cpp.library(part).answer() == 42
    assert build.path.read_bytes() != bytes(data)


def test_a_failed_build_is_told_by_the_compilers_own_line_and_not_tried_again(
    cache, part, tmp_path, monkeypatch
):
    script = 'echo "In file included from x:"; echo "g++: fatal error: no cc1plus" >&2; exit 1'
    compiler_that(tmp_path, monkeypatch, script)
    build = cpp.built(part)
    assert build.state == "failed" and build.path is None and cpp.library(part) is None
    assert build.reason == "the C++ compiler: g++: fatal error: no cc1plus"
    assert "In file included" in build.log.read_text()
    assert again(part) == build and n_calls(tmp_path) == 1
    assert cpp.rebuilt(part).state == "failed" and n_calls(tmp_path) == 2


@needs_compiler
def test_another_compiler_gets_a_trial_of_its_own(cache, part, tmp_path, monkeypatch):
    compiler_that(tmp_path, monkeypatch, "exit 1")
    assert cpp.built(part).reason == "the C++ compiler: status 1"
    compiler_that(tmp_path, monkeypatch, f'exec {shutil.which("g++")} "$@"')
    assert again(part).state == "built"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("kill -9 $$", "ended by SIGKILL"),
        ('for a; do [ "$p" = -o ] && echo nonsense > "$a"; p=$a; done', "OSError"),
        ("exit 0", "OSError"),
    ],
    ids=["killed", "writes nonsense", "writes nothing"],
)
def test_bad_compilers_end_in_one_line(cache, part, tmp_path, monkeypatch, script, words):
    compiler_that(tmp_path, monkeypatch, script)
    build = cpp.built(part)
    assert build.state == "failed" and words in build.reason and "\n" not in build.reason


def test_a_compiler_that_is_no_program_is_named_and_not_tried_again(
    cache, part, tmp_path, monkeypatch
):
    compiler_that(tmp_path, monkeypatch, "")
    (tmp_path / "shim" / "g++").write_bytes(b"of another machine")
    build = cpp.built(part)
    assert build.state == "failed" and "cannot be started: Exec format error" in build.reason
    assert "IGPT_CACHE" not in build.reason and build.log.is_file() and again(part) == build


def test_a_compiler_that_never_ends_is_stopped(cache, part, tmp_path, monkeypatch):
    monkeypatch.setattr(cpp, "BUILD_TIMEOUT_S", 0.1)
    compiler_that(tmp_path, monkeypatch, "exec sleep 5")
    assert "took longer" in cpp.built(part).reason


@needs_compiler
def test_instructions_that_this_processor_lacks_end_the_trial_only(cache, part):
    part.sources[0].write_text('extern "C" int answer() { __builtin_trap(); }\n')
    part = cpp.Part(
        name="answer", sources=part.sources, flags=(), trial="lambda library: library.answer()"
    )
    build = cpp.built(part)
    assert build.state == "failed" and build.reason.startswith("what it built: ended by SIG")


def test_without_a_compiler_the_line_says_what_to_install(cache, part, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    build = cpp.built(part)
    assert build.state == "absent" and "install g++" in build.reason
    assert not cache.exists()


@needs_compiler
@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_a_folder_that_others_may_write_is_refused(cache, part, mode):
    cache.mkdir()
    cache.chmod(mode)
    build = cpp.built(part)
    assert build.state == "refused" and build.path is None
    assert "may be written by others" in build.reason and "IGPT_CACHE" in build.reason
    assert not list(cache.iterdir())


@needs_compiler
def test_a_file_that_others_may_write_or_own_is_refused(cache, part, monkeypatch):
    path = cpp.built(part).path
    path.chmod(0o777)
    assert again(part).state == "refused"
    path.chmod(0o755)
    monkeypatch.setattr(system.os, "geteuid", lambda: 12345)
    if path.stat().st_uid != 0:  # what root wrote may be loaded by all
        assert "belongs to another user" in again(part).reason


def test_a_cache_that_cannot_be_made_is_named(cache, part):
    cache.write_text("a file")
    build = cpp.built(part)
    assert build.state in ("failed", "absent") and build.path is None
    if build.state == "failed":
        assert "IGPT_CACHE" in build.reason


@needs_compiler
def test_processes_that_build_at_once_all_end_well(cache, part, tmp_path):
    code = (
        "import pathlib; from igpt import cpp\n"
        f"part = cpp.Part(name='answer', sources=(pathlib.Path({str(part.sources[0])!r}),), "
        "flags=('-O1',))\n"
        "assert cpp.library(part).answer() == 42, cpp.built(part)"
    )
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert len(list(cache.glob("*.so"))) == 1


@needs_compiler
def test_a_log_that_tells_of_no_failure_is_none(cache, part):
    build = cpp.built(part)
    build.path.unlink()  # as another process sees it that looks before the library stands
    assert again(part).state == "built"


@needs_compiler
def test_a_compiler_without_openmp_still_builds_the_sampler(cache, tmp_path, monkeypatch):
    from igpt.model import native

    script = (
        'case "$*" in *-fopenmp*) echo "clang: error: unsupported option -fopenmp" >&2; exit 1;; '
        f"esac; touch {tmp_path}/sampler; exit 1"
    )
    compiler_that(tmp_path, monkeypatch, script)
    assert "unsupported option -fopenmp" in cpp.built(native.PARTS["attention"]).reason
    assert "unsupported option -fopenmp" in cpp.built(cpp.TORCH_COMPILE).reason
    cpp.built(native.PARTS["decode"])  # goes on to be compiled; other tests do so to the end
    assert (tmp_path / "sampler").exists()


def test_info_shows_each_part_and_builds_when_asked(cache, tmp_path, monkeypatch, capsys):
    from tests.cli.test_main import run

    compiler_that(tmp_path, monkeypatch, 'echo "g++: error: nothing works"; exit 1')
    status, out, _ = run(["info", "--json"], capsys)
    assert status == 0 and json.loads(out)["sampler in C++"].startswith("not built yet")
    status, out, _ = run(["info", "--build", "--json"], capsys)
    told = json.loads(out)["attention in C++"]
    assert status == 0 and told.startswith("failed: the C++ compiler: g++: error: nothing works")
    assert ".log" in told
    _, out, _ = run(["info", "--json"], capsys)
    assert json.loads(out)["attention in C++"] == told
    status, _, err = run(["info", "--build", "runs/a"], capsys)
    assert status == 2 and "leave one of them out" in err
