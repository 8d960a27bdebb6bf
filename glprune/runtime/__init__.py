"""Processes, workers, checkpoints and the output folder of a run.

launcher: rank and size from the environment of torchrun, accelerate or Open MPI.
process_group: collective operations of data-parallel processes; failure: how all end if one fails.
worker_pool: workers for independent parts, on process_pool (local) or ray_pool (a cluster).
checkpoint: results of long steps, for ``--resume``; output_folder: writes a bundle completely or not at all.
determinism: seeds and threads; events: progress reports.
"""
