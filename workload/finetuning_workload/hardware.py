"""What the machine offers: threads, memory, device and number format, each measured rather than assumed."""

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from finetuning_api.finetuningjob import Precision

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_CGROUP_UNLIMITED = 1 << 60
_PROBE_ROWS, _PROBE_WIDTH, _PROBE_ROUNDS = 512, 768, 15
_WORTHWHILE_SPEEDUP = 1.25


@dataclass(frozen=True, slots=True)
class DtypeChoice:
    """Number format of frozen weights and activations, and the reason for it in words."""

    dtype: torch.dtype
    why: str


def cpu_quota(*, root: Path = _CGROUP_ROOT, membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return the CPU time that the control group allows, in cores; None where nothing limits it."""
    quotas = []
    for folder in _cgroup_folders(root, membership, controller="cpu"):
        words = _words(folder / "cpu.max")
        if not words:
            words = [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
        if len(words) == 2 and words[0].isdigit() and int(words[1]) > 0:  # noqa: PLR2004  (quota and period)
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def memory_limit(*, root: Path = _CGROUP_ROOT, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Return the bytes of memory that this process may use: the control group's limit or the machine's memory."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder in _cgroup_folders(root, membership, controller="memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limits += [int(word) for word in _words(folder / name) if word.isdigit()]
    return min(limit for limit in limits if 0 < limit < _CGROUP_UNLIMITED)


def thread_count(environment: Mapping[str, str], *, quota: float | None) -> int:
    """Return the number of compute threads: what the user set, else the cores that this process really has."""
    wanted = environment.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def set_threads(environment: Mapping[str, str], *, processes: int = 1) -> int:
    """Set torch's compute threads from the control group and return their number.

    So many processes share the cores, unless the user set the threads of each.

    OpenMP follows the host's cores, not the container's quota; too many make a limited pod several times slower.
    """
    threads = thread_count(environment, quota=cpu_quota())
    if not environment.get("OMP_NUM_THREADS"):
        threads = max(1, threads // processes)
    torch.set_num_threads(threads)
    return threads


def choose_device() -> torch.device:
    """Return the accelerator where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_dtype(
    precision: Precision, device: torch.device, *, speedup: Callable[[], float] | None = None
) -> DtypeChoice:
    """Return the number format for a precision; AUTO takes bf16 only where it is measured to be faster.

    ``speedup`` measures how many times faster bf16 is than fp32 on the CPU.
    """
    if precision is Precision.FP32:
        return DtypeChoice(torch.float32, "spec.training.precision is fp32")
    if precision is Precision.BF16:
        return DtypeChoice(torch.bfloat16, "spec.training.precision is bf16")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return DtypeChoice(torch.bfloat16, "the GPU computes bf16 natively")
        return DtypeChoice(torch.float32, "the GPU has no native bf16")
    measured = (speedup or bf16_speedup)()
    if measured >= _WORTHWHILE_SPEEDUP:
        return DtypeChoice(torch.bfloat16, f"bf16 measured {measured:.1f}x as fast as fp32 on this CPU")
    return DtypeChoice(torch.float32, f"bf16 measured only {measured:.1f}x as fast as fp32 on this CPU")


def bf16_speedup() -> float:
    """Measure how many times faster one core multiplies matrices in bf16 than in fp32.

    One thread and the fastest of many rounds: threads that wait for a core that somebody else holds would measure the
    neighbour.
    """
    timings: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    operands = {
        dtype: (torch.ones(_PROBE_ROWS, _PROBE_WIDTH, dtype=dtype), torch.ones(_PROBE_WIDTH, _PROBE_WIDTH, dtype=dtype))
        for dtype in timings
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(_PROBE_ROUNDS):
            for dtype, seconds in timings.items():
                rows, weight = operands[dtype]
                started = time.perf_counter()
                torch.nn.functional.linear(rows, weight)
                seconds.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return min(timings[torch.float32]) / min(timings[torch.bfloat16])


def _cgroup_folders(root: Path, membership: Path, *, controller: str) -> tuple[Path, ...]:
    """Return the folders whose limits hold for this process, of both versions of control groups."""
    folders = {root, root / controller}
    for line in _lines(membership):
        _, controllers, path = line.split(":", 2)
        base = root / controller if controller in controllers.split(",") else root
        if controllers and base == root:
            continue
        here = base / path.strip("/")
        folders.update(folder for folder in (here, *here.parents) if folder.is_relative_to(root))
    return tuple(sorted(folders))


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text().splitlines() if line.count(":") >= 2]  # noqa: PLR2004  (id:names:path)
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
