"""Arguments that several commands share, as tyro reads them from signatures."""

from typing import Annotated

from tyro.conf import Positional, arg

from igpt.config import RunConfig

Data = Positional[Annotated[str, arg(metavar="DATA")]]
Run = Positional[Annotated[str, arg(metavar="RUN")]]
Model = Positional[Annotated[str, arg(metavar="MODEL")]]
Source = Positional[Annotated[str, arg(metavar="SRC")]]
Out = Positional[Annotated[str, arg(metavar="OUT")]]
Config = Annotated[RunConfig, arg(name="")]
