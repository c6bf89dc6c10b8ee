"""Write the locks anew from pyproject.toml, by `uv pip compile`, with a hash of every file.

    python tools/lock.py            # keeps the versions that the locks have
    python tools/lock.py --upgrade  # takes the newest ones

requirements-base.lock is what using igpt needs beside torch, requirements.lock what working on it
needs. torch stands apart: requirements-torch-cpu.lock is its build for CPUs, where pip finds one
here, requirements-torch.lock that of the package index, with what NVIDIA's cards need on Linux:
some gigabytes.
"""

import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
TORCH = re.compile(r"(torch==|nvidia-|cuda-|triton)")
HEAD = "# Written by tools/lock.py; the oldest Python is 3.11.5.\n"


def compiled(extras: list[str], kept: list[Path], more: list[str]) -> dict[str, str]:
    """Package to its pinned lines, with markers and hashes, for every system and Python."""
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "kept"
        names = [re.sub(r" \\$| --hash=\S+", "", line) for path in kept for line in entries(path)]
        pins.write_text("\n".join(name.split("\n")[0].rstrip(" \\") for name in names))
        build = Path(folder) / "build.in"
        build.write_text("setuptools>=77\n")  # installs igpt itself, without the network
        command = ["uv", "pip", "compile", "pyproject.toml", str(build), "--universal", "--quiet"]
        command += [
            "--python-version",
            "3.11.5",
            "--generate-hashes",
            "--no-annotate",
            "--no-header",
        ]
        command += [word for extra in extras for word in ("--extra", extra)]
        command += [] if "--upgrade" in more else ["--constraint", str(pins)]
        out = Path(folder) / "lock"
        subprocess.run([*command, "--output-file", str(out)], cwd=ROOT, check=True)
        return {re.split(r"[= ]", entry)[0] + entry.split("\n")[0]: entry for entry in entries(out)}


def entries(lock: Path) -> list[str]:
    """A lock's requirements, each with the lines of its hashes."""
    if not lock.exists():
        return []
    text = "\n".join(line for line in lock.read_text().splitlines() if not line.startswith("#"))
    return [entry for entry in re.split(r"\n(?=\S)", text) if entry.strip()]


def cpu_build(torch: str) -> str:
    """The pin of the build for CPUs that pip finds here, for the system and Python of its file."""
    version = re.findall(r"torch==([\w.]+)", torch)[0]
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip"]
        wanted = f"torch=={version}+cpu"
        subprocess.run([*pip, "download", "-q", "--no-deps", "-d", folder, wanted], check=True)
        (wheel,) = Path(folder).iterdir()
        done = subprocess.run([*pip, "hash", wheel], check=True, capture_output=True, text=True)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    here = f"python_version == '{python}' and sys_platform == '{sys.platform}'"
    found = re.findall(r"--hash=\S+", done.stdout)[0]
    return f"{wanted} ; {here} and platform_machine == '{platform.machine()}' \\\n    {found}"


def main() -> None:
    base, dev = ROOT / "requirements-base.lock", ROOT / "requirements.lock"
    torch, torch_cpu = ROOT / "requirements-torch.lock", ROOT / "requirements-torch-cpu.lock"
    more = sys.argv[1:]
    kept = [dev, torch]
    everything, needed = compiled(["dev"], kept, more), compiled([], kept, more)

    def write(path: Path, chosen: list[str]) -> None:
        path.write_text(HEAD + "\n".join(chosen) + "\n")

    write(dev, [entry for entry in everything.values() if not TORCH.match(entry)])
    write(base, [entry for entry in needed.values() if not TORCH.match(entry)])
    write(torch, [entry for entry in needed.values() if TORCH.match(entry)])
    (pin,) = [entry for entry in needed.values() if entry.startswith("torch==")]
    write(torch_cpu, [cpu_build(pin)])


if __name__ == "__main__":
    main()
