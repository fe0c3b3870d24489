"""Tasks in the format of lm-evaluation-harness: their files and data, read without running anything of them."""

from finetuning_workload.task_files.documents import Document, LoadedTask, load_task
from finetuning_workload.task_files.file import OutputType, TaskFile

__all__ = ["Document", "LoadedTask", "OutputType", "TaskFile", "load_task"]
