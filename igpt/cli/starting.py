"""The configuration that a command's options are laid over."""

from pathlib import Path

from igpt.cli.rates import TABLE
from igpt.config import RunConfig
from igpt.errors import UserError
from igpt.files import read_json
from igpt.recipes import recipe


def starting_config(args: list[str]) -> RunConfig:
    """Of the run or search to be resumed, else of `--recipe`, else the plain defaults."""
    name = _value_of("--recipe", args)
    if "--resume" in args:
        from igpt.train.setup import read_run

        for place in (a for a in args if not a.startswith("-")):
            if (Path(place) / "config.json").is_file():
                return read_run(Path(place))[0]
            if (Path(place) / TABLE).is_file():
                held = read_json(Path(place) / TABLE)["config"]
                return RunConfig.from_dict(held, where=str(Path(place) / TABLE))
    return recipe(name) if name is not None else RunConfig()


def _value_of(option: str, args: list[str]) -> str | None:
    for index, argument in enumerate(args):
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
        if argument == option:
            if index + 1 == len(args):
                raise UserError(f"{option} needs a name")
            return args[index + 1]
    return None
