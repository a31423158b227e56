"""Launcher for a checkout: `python cli.py extract ...` without installing."""

from cachedet.cli import main

if __name__ == "__main__":
    main()
