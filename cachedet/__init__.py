"""Train strong object detectors on cached features of a frozen backbone."""

from cachedet.version import __version__

__all__ = ["__version__"]
