"""Tells the mount which files a training job reads next, so that they are there when it opens them.

A job that reads in random order knows the order of a whole epoch before it begins; a file system cannot guess it. With
PyTorch, wrap the sampler that the job has:

    from luxfuse.training import ScheduledSampler

    sampler = ScheduledSampler(DistributedSampler(dataset), dataset.paths)   # dataset[i] opens dataset.paths[i]
    loader = DataLoader(dataset, sampler=sampler, num_workers=8)

Elsewhere, go through the files with `in_order`, or say with `told` what any code, of this process or another, opens next:

    for path in in_order(paths): ...

    with told(paths, order):
        program_that_reads_them()

Nothing here needs torch. Where the paths are in no mount, or its daemon cannot be reached, a line in the log
("luxfuse.training") says so, and the job goes on as without.
"""

from luxfuse.training.sampler import ScheduledSampler
from luxfuse.training.telling import in_order, told

__all__ = ["ScheduledSampler", "in_order", "told"]
