"""Clients that are programs: what they bring is counted while they work."""

import shutil
import threading
from pathlib import Path

from finetuning_relocator.sources.process import folder_bytes


def test_folders_that_go_while_they_are_counted_are_no_failure(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"x" * 1000)
    done = threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            (tmp_path / "unpacked" / "deep" / "er").mkdir(parents=True)
            shutil.rmtree(tmp_path / "unpacked")

    beside = threading.Thread(target=come_and_go)
    beside.start()
    try:
        counted = {folder_bytes(tmp_path) for _ in range(2000)}
    finally:
        done.set()
        beside.join()

    assert counted == {1000}
