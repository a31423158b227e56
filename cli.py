"""Launcher for a checkout: `python cli.py extract ...` without installing."""

from cachedet.__main__ import main

if __name__ == "__main__":
    main()
