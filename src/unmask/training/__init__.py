"""Training: recipes (one file per paper), data and packing, the loop. `run(load_config(path))` trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unmask.training.config import TrainConfig, load_config

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["TrainConfig", "load_config", "main", "run"]


def run(config: TrainConfig) -> dict[str, Any]:
    """Trains as the config says; see `loop.run`."""
    from unmask.training.loop import run as run_loop

    return run_loop(config)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m unmask.training CONFIG.yaml [--set key=value ...]`."""
    import argparse
    import sys

    from unmask.errors import UnmaskError

    parser = argparse.ArgumentParser(prog="python -m unmask.training", description="Trains a model.")
    parser.add_argument("config", help="YAML file of options (see unmask.training.config)")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="changes")
    given = parser.parse_args(arguments)
    try:
        figures = run(load_config(given.config, given.changes))
    except UnmaskError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        from unmask.training.ranks import Ranks

        main_process = Ranks.close()
    if main_process:
        print(figures)
    return 0
