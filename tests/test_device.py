from __future__ import annotations

import threading

import torch

from cachedet.device import single_core_threads


def test_threads_of_one_core_leave_the_others_to_the_caller() -> None:
    """The caller is a thread that has not computed yet, as a command's may be."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen = []

    def call() -> None:
        with single_core_threads(1, "reader", begin=lambda: seen.append("began")) as threads:
            seen.append(threads.submit(torch.get_num_threads).result())
        seen.append(torch.get_num_threads())

    try:
        caller = threading.Thread(target=call)
        caller.start()
        caller.join()
    finally:
        torch.set_num_threads(before)
    assert seen == ["began", 1, 2]
