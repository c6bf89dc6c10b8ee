"""The linear probe of a model (paper §2.4), with all ranks where there are several."""

from pathlib import Path
from typing import Any

from igpt.config import ProbeConfig, check_acts, overlaid
from igpt.errors import UserError
from igpt.images.packed.read import PackedSet
from igpt.jobs.opening import open_labelled, opened, recorded
from igpt.loading import load_run
from igpt.manifest import fault_of
from igpt.pixelmodel import PixelModel
from igpt.probing.attentive import probe_attentive
from igpt.probing.exact import Seen, probe_model
from igpt.probing.large import LargePlan, plan_large, probe_large
from igpt.probing.solve import Solver
from igpt.progress import quietly, say
from igpt.report.record import write_record
from igpt.shipped import is_shipped
from igpt.system import as_text
from igpt.train.checkpoint import all_steps
from igpt.train.distributed import World, joined


def probe(
    model: str | Path | PixelModel,
    data: str | Path,
    /,
    *,
    max_images: int | None = None,
    config: ProbeConfig | None = None,
    verbose: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Linear probe of every layer, as `igpt probe` does; the best is saved with the model.

    Args:
        model: what `igpt.load` takes, or a model; one that ships keeps its own probe.
        data: labelled images: a name (cifar10), a packed set, a folder with one folder a class.
        max_images: look at so many images of each split at most, drawn at random; none: all.
        config: all settings.
        verbose: say on standard error what the command says.
        settings: of `ProbeConfig`, by name, in place of `config`.

    Returns:
        What `igpt probe --json` prints: `layer`, `valid_accuracy`, `test_accuracy` and the rest of
        `igpt.probing.protocol.ProbeResult`, and what was asked for beside it. Under torchrun, where
        every rank calls this, nothing on those after the first.

    Raises:
        UserError: the model, the data or a setting does not allow it.
    """
    config = overlaid(config or ProbeConfig(), settings)
    check_acts(config, ProbeConfig())
    with quietly(not verbose), joined() as world:
        place, loaded = opened(model)
        with world.first_alone():
            packed = open_labelled(loaded, as_text(data), max_images=max_images)
        figures = _probed(loaded, packed, config, world)
        if config.attentive:
            layer = world.from_first(figures.get("layer", 0))
            found = probe_attentive(
                loaded, packed, layer, seen=_seen(config), steps=config.attentive, world=world
            )
            figures = figures and {**figures, "attentive": found}
        if not figures:
            return {}
        if is_shipped(loaded.folder):
            say(
                f"not saved, as {place} ships with igpt: for `igpt classify`, probe a copy "
                f"(igpt convert {place} mine)"
            )
        return recorded(place, loaded, "probe", figures, data=packed, precision=config.precision)


def plan_probe(
    model: str | Path | PixelModel,
    data: str | Path,
    config: ProbeConfig,
    *,
    max_images: int | None = None,
) -> LargePlan:
    """What `probe` with `large` would take: memory, disk and time; nothing is computed."""
    loaded = opened(model)[1]
    packed = open_labelled(loaded, as_text(data), max_images=max_images)
    return plan_large(
        loaded,
        packed,
        seen=_seen(config),
        n_joined=config.joined,
        layer_images=config.layer_images,
        solver=_solver(config, loaded),
    )


def probe_checkpoints(
    run: Path, data: str | Path, *, max_images: int | None = None
) -> tuple[PackedSet, dict[int, dict[str, Any]]]:
    """The probe of each checkpoint of a run by its step, recorded as `probe-step-N`.

    Raises:
        UserError: the run keeps none that is intact.
    """
    packed = open_labelled(opened(run)[1], as_text(data), max_images=max_images)
    found = {}
    for step, path in sorted(all_steps(run)):
        if fault := fault_of(path):
            say(f"passed over {path}: {fault}")
            continue
        model = load_run(run, step=step)
        result = probe_model(model, packed, raw_pixels=False, save=False)
        name = f"probe-step-{step:07d}"
        write_record(run, name, result, model=model.digest(), data=packed.source, split="test")
        found[step] = result
    if not found:
        raise UserError(f"{run} keeps no checkpoint that can be probed: train it first")
    return packed, found


def _seen(config: ProbeConfig) -> Seen:
    normalised = not config.raw_residual
    return {"normalised": normalised, "pooling": config.pooling, "precision": config.precision}


def _solver(config: ProbeConfig, model: PixelModel) -> Solver:
    return Solver(name=config.solver, sgd_steps=config.sgd_steps, device=model.device)


def _probed(
    model: PixelModel, data: PackedSet, config: ProbeConfig, world: World
) -> dict[str, Any]:
    """The figures by one of the two paths; on every process but the first nothing."""
    if config.large:
        return probe_large(
            model,
            data,
            seen=_seen(config),
            solver=_solver(config, model),
            raw_pixels=config.raw_pixels,
            n_joined=config.joined,
            layer_images=config.layer_images,
            world=world,
        )
    return probe_model(
        model,
        data,
        **_seen(config),
        raw_pixels=config.raw_pixels,
        n_joined=config.joined,
        solver=config.solver,
        sgd_steps=config.sgd_steps,
        n_centers=config.kmeans,
        world=world,
    )
