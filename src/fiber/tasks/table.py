"""The tasks. A new one is a file like its neighbours and a row here; nothing else in the house asks for a task by its
name."""

from difflib import get_close_matches

from fiber.config.stage1 import Stage1Config
from fiber.config.stage2 import Stage2Config
from fiber.errors import ConfigError
from fiber.tasks import caption, classification, entailment, nlvr2, pretrain, regions, retrieval, vqa
from fiber.training.task import Task

TABLE: tuple[Task, ...] = (
    pretrain.TASK,
    vqa.TASK,
    nlvr2.TASK,
    entailment.TASK,
    retrieval.ITC,
    retrieval.ITM,
    caption.TASK,
    classification.TASK,
    regions.TASK,
)


def task_of(config: Stage1Config | Stage2Config) -> Task:
    """The row that a configuration speaks of: its `task` at image level, the one task at region level. Raises
    ConfigError for a name that is none."""
    if isinstance(config, Stage2Config):
        return regions.TASK
    rows = {row.name: row for row in TABLE if row.stage == "coarse"}
    if config.task not in rows:
        nearest = get_close_matches(config.task, rows, n=1, cutoff=0.0)[0]
        raise ConfigError(f"task: {config.task!r} is not a task; the nearest is {nearest} (of {', '.join(rows)})")
    return rows[config.task]
