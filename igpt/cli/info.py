"""`igpt info`."""

import platform
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from igpt.cli.outputs import print_facts, print_json
from igpt.errors import UserError
from igpt.system import at_home


def info(
    path: Positional[Annotated[str | None, arg(metavar="[PATH]")]] = None,
    *,
    build: bool = False,
    json: bool = False,
) -> None:
    """Versions, device and measured rates; or what a run, model, packed set or palette is.

    Args:
        path: a run, any MODEL, a packed set or a palette file; none: this machine.
        build: build the C++ parts now, also those whose last build failed.
        json: print the result as one JSON document.
    """
    if build and path is not None:
        raise UserError(f"--build is about this machine, not about {path}: leave one of them out")
    facts = _machine(build=build) if path is None else _describe(path)
    if json:
        print_json(facts)
        return
    print_facts(facts)


def _machine(*, build: bool) -> dict[str, Any]:
    import torch

    import igpt
    from igpt import compute, files

    threads = compute.set_threads()
    device = compute.default_device()
    rates = {
        f"matrix rate, {name}": f"{compute.matrix_rate(device, dtype) / 1e9:,.0f} GFLOP/s"
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    return {
        "igpt": igpt.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(device),
        "threads": threads,
        **rates,
        "copy rate": f"{compute.copy_rate(device) / 1e9:,.1f} GB/s",
        "number type": compute.name_of(compute.choose_dtype("auto", device)),
        **_cpp(build=build),
        "cache": str(files.cache_folder()),
    }


def _cpp(*, build: bool) -> dict[str, str]:
    """The state of each C++ part, with the line of the compiler where it failed."""
    from igpt import cpp
    from igpt.model.native import PARTS

    parts = {
        "sampler in C++": PARTS["decode"],
        "attention in C++": PARTS["attention"],
        "torch.compile": cpp.TORCH_COMPILE,
    }
    ask = cpp.rebuilt if build else cpp.status
    facts = {"C++ compiler": cpp.compiler() or "absent"}
    for name, part in parts.items():
        found = ask(part)
        told = "not built yet: when first needed, or now by igpt info --build"
        log = f" (log: {found.log})" if found.state == "failed" and found.log else ""
        facts[name] = told if found.state == "untried" else found.state
        if found.reason:
            facts[name] += f": {found.reason}{log}"
    return facts


def _describe(name: str) -> dict[str, Any]:
    from igpt.images.packed.format import is_packed

    path = at_home(name)
    if path.suffix == ".npy":
        return _palette(path)
    if is_packed(path):
        return _packed(path)
    if (path / "config.json").is_file() or _is_model(name):
        return _model(name)
    if not path.exists():
        raise UserError(f"{path} does not exist: check the path")
    raise UserError(f"{path} is no run, model folder, packed set or palette (.npy): check the path")


def _is_model(name: str) -> bool:
    """Whether MODEL may be this name, though it is no folder with a config.json."""
    from igpt import shipped
    from igpt.formats.hub import HUB
    from igpt.formats.openai import find_checkpoint

    known = name in shipped.names() or find_checkpoint(name) is not None
    return known or name.startswith(HUB)


def _palette(path: Path) -> dict[str, Any]:
    from igpt.tokens.palette import Palette

    palette = Palette.load(path)
    return {"kind": "palette", "colours": palette.n_colors, "sha256": palette.digest}


def _packed(path: Path) -> dict[str, Any]:
    from igpt.images.packed.read import PackedSet

    packed = PackedSet.open(path)
    return {
        "kind": "packed set",
        "source": packed.source,
        "image size": packed.image_size,
        "classes": "none" if packed.classes is None else len(packed.classes),
        **{f"{split} images": packed.n(split) for split in ("train", "valid", "test")},
        "digest": packed.digest,
    }


def _model(name: str) -> dict[str, Any]:
    from igpt.loading import load

    model = load(name)
    network, config = model.network, model.network.config
    is_run = (Path(name) / "metrics.jsonl").is_file()
    return {
        "kind": "run" if is_run else "model",
        "objective": model.facts.objective,
        "image size": model.image_size,
        "layers, heads, width": f"{config.n_layer}, {config.n_head}, {config.n_embd}",
        "tokens": f"{network.seq_len} an image, of {network.n_colors} ({model.facts.tokens})",
        "parameters": f"{sum(p.numel() for p in network.parameters()):,}",
        **{f"trained: {key}": value for key, value in model.facts.trained.items()},
    }
