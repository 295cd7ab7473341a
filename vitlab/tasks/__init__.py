"""Tasks that models are trained for: one task a file, and the registry that finds it by the file's
name.
"""

from vitlab.tasks.registry import build, class_names_of, list_tasks, names_of, setting_of, task_of
from vitlab.tasks.task import Count, Evaluation, Result, Setting, Task, TaskOptions

__all__ = [
    "Count",
    "Evaluation",
    "Result",
    "Setting",
    "Task",
    "TaskOptions",
    "build",
    "class_names_of",
    "list_tasks",
    "names_of",
    "setting_of",
    "task_of",
]
