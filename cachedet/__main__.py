"""`cachedet ...`, `python -m cachedet ...` and `torchrun --nproc-per-node N -m cachedet ...`."""

from __future__ import annotations

from cachedet.commands.entry import run_command


def main() -> None:
    """Run the command line, whose imports are part of what is guarded."""
    run_command(_run)


def _run() -> None:
    from cachedet.cli import run_app

    run_app()


if __name__ == "__main__":
    main()
