import os
from pathlib import Path

import pytest
import torch

from finetuning_api.finetuningjob import Precision
from finetuning_workload.hardware import choose_dtype, cpu_quota, memory_limit, thread_count

CPU = torch.device("cpu")


def control_group(root: Path, files: dict[str, str], *, membership: str = "0::/pod") -> dict[str, Path]:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (root / "membership").write_text(membership)
    return {"root": root, "membership": root / "membership"}


@pytest.mark.parametrize(
    ("files", "membership", "expected"),
    [
        ({"cpu.max": "150000 100000"}, "0::/", 1.5),
        ({"cpu.max": "max 100000", "pod/cpu.max": "50000 100000"}, "0::/pod/container", 0.5),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, "1:cpu,cpuacct:/", 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "1:cpu:/", None),
        ({"cpu.max": "max 100000"}, "0::/", None),
        ({}, "0::/", None),
    ],
)
def test_the_quota_of_both_versions_of_control_groups_is_read(
    tmp_path: Path, files: dict[str, str], membership: str, expected: float | None
) -> None:
    assert cpu_quota(**control_group(tmp_path, files, membership=membership)) == expected


def test_memory_is_what_the_tightest_control_group_allows(tmp_path: Path) -> None:
    files = {"memory.max": "max", "pod/memory.max": "1000000", "pod/inner/memory.max": "2000000"}
    assert memory_limit(**control_group(tmp_path, files, membership="0::/pod/inner")) == 1_000_000


def test_memory_without_a_limit_is_the_machine_s(tmp_path: Path) -> None:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory_limit(**control_group(tmp_path, {"memory.max": "max"})) == physical


@pytest.mark.parametrize(("quota", "expected"), [(0.2, 1), (0.5, 1), (1.0, 1)])
def test_threads_do_not_exceed_the_quota(quota: float, expected: int) -> None:
    assert thread_count({}, quota=quota) == expected


def test_threads_that_the_user_set_are_used() -> None:
    assert thread_count({"OMP_NUM_THREADS": "5"}, quota=1.0) == 5
    assert thread_count({"OMP_NUM_THREADS": "many"}, quota=1.0) == 1


@pytest.mark.parametrize(
    ("precision", "speedup", "dtype", "why"),
    [
        (Precision.FP32, 9.0, torch.float32, "spec.training.precision is fp32"),
        (Precision.BF16, 0.1, torch.bfloat16, "spec.training.precision is bf16"),
        (Precision.AUTO, 3.1, torch.bfloat16, "bf16 measured 3.1x as fast"),
        (Precision.AUTO, 0.4, torch.float32, "bf16 measured only 0.4x as fast"),
    ],
)
def test_auto_takes_bf16_only_where_it_is_measured_to_be_faster(
    precision: Precision, speedup: float, dtype: torch.dtype, why: str
) -> None:
    choice = choose_dtype(precision, CPU, speedup=lambda: speedup)
    assert choice.dtype is dtype
    assert choice.why.startswith(why)
