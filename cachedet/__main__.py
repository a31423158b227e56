"""`python -m cachedet ...`, and `torchrun --nproc-per-node N -m cachedet train-heads ...`."""

from cachedet.cli import main

if __name__ == "__main__":
    main()
