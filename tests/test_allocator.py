from __future__ import annotations

import sys
from typing import Any

import pytest

_SCRIPT = """
import resource, sys
from cachedet.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        b"x" * (48 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

handed_back = faults()
keep_freed_memory()
b"x" * (48 << 20)
sys.exit(0 if handed_back > 100 * max(faults(), 1) else 1)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone is told")
def test_freed_memory_is_used_again(nursery: Any) -> None:
    """Counted in page faults, which are not a matter of the machine's speed."""
    with nursery.start(_SCRIPT) as process:
        assert process.wait() == 0
