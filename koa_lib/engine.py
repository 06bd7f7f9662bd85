"""Where jobs are done: one after another in this process (`local`), or as tasks of a Ray cluster (`ray`).

What a job makes goes through the store of the run folder, which all machines see under the same path: both
engines leave the same files, and finished work is never repeated. No training is spread over several GPUs: at
this size one is enough for each, and arms, folds and seeds keep the others busy.
"""

import os
import sys
from collections import deque
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO

from koa_lib.errors import GOES_ON, StudyError
from koa_lib.progress import WATCHED
from koa_lib.store import Store

CHOICE = "KOA_ENGINE"  # the environment variable by which `make` tells of ENGINE
AHEAD = 1000  # tasks that a cluster is given before the first of them is waited for
RETRIES = 3  # of a task whose worker died


class Missing(Exception):
    """An artefact that would have to be made."""


class Looking(Store):
    """A run's store that makes nothing: what is missing is told by `Missing`."""

    def missing(self, name, key, build):
        """Raise `Missing`."""
        raise Missing(name)


def chosen():
    """Name of the engine; StudyError when there is none of this name, or it is not installed."""
    name = os.environ.get(CHOICE) or "local"
    if name not in ENGINES:
        raise StudyError(f"ENGINE={name} is unknown. Use one of: {', '.join(ENGINES)}.")
    if name == "ray" and not find_spec("ray"):
        raise StudyError("ENGINE=ray needs the extra `cluster`: pip install -e '.[cluster]'")
    return name


def each(work, jobs, threads, found=None):
    """What ``work(*job)`` gives for each job, one by one and in their order.

    Parameters
    ----------
    work : callable
        Gives the same when it is tried again.
    jobs : iterable of tuples
    threads : int
        In which `work` computes: the CPUs that a task asks for, beside a GPU where the cluster has some.
    found : callable, optional
        ``found(*job)`` is what a finished job has given, which is not sent to a cluster, or else None.

    Raises
    ------
    StudyError
        An engine that is not there, or a task whose worker died again and again; beside what `work` raises.
    """
    return ENGINES[chosen()](work, jobs, threads, found or (lambda *_: None))


def _local(work, jobs, threads, found):
    return (work(*job) for job in jobs)


def _ray(work, jobs, threads, found):
    waiting, task = deque(), None
    for job in jobs:
        known = found(*job)
        if known is None:
            task = task or _task(threads)
            known = task.remote(work, *job)
        waiting.append(known)
        if len(waiting) == AHEAD:
            yield _given(waiting.popleft())
    while waiting:
        yield _given(waiting.popleft())


def _task(threads):
    import ray

    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told of this run
        place = os.environ.get("RAY_ADDRESS", "local")
        own = {"num_cpus": max(threads, os.cpu_count())} if place == "local" else {}
        try:
            ray.init(place, logging_level="error", log_to_driver=False, include_dashboard=False, **own)
        except Exception as error:  # Ray has several, none of its own
            raise StudyError(
                f"No Ray cluster at RAY_ADDRESS={place} ({' '.join(str(error).split())}). Correct it. "
                "A busy machine may be too slow for 'local': run 'ray start --head' and use RAY_ADDRESS=auto."
            ) from error
    told = {name: os.environ[name] for name in (WATCHED,) if name in os.environ}
    alike = {"env_vars": {"OMP_NUM_THREADS": str(threads), **told}}
    gpus = min(1, ray.cluster_resources().get("GPU", 0))
    return ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=RETRIES, runtime_env=alike)(_call)


def _call(work, *job):
    # What a job tells is told by the process that sent it.
    with redirect_stdout(StringIO()) as told:
        return work(*job), told


def _given(result):
    import ray

    if not isinstance(result, ray.ObjectRef):
        return result
    try:
        given, told = ray.get(result)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise StudyError(
            f"The worker of a job died {RETRIES + 1} times ({type(error).__name__}). Most often memory runs "
            f"out: use machines with more of it for each CPU. {GOES_ON}"
        ) from error
    sys.stdout.write(told.getvalue())
    return given


ENGINES = {"local": _local, "ray": _ray}
