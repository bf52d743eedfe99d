"""Everything at image level: coarse pre-training, the tasks fine-tuned from it, and their evaluation.

    deepspeed src/fiber/stage1_coarse.py --config FILE [--mode train|eval] [key.path=value ...]

Running the same command again goes on where the run stopped. What a task reads, computes and scores is one file in
`tasks/`; the model is `coarse/model.py` on `backbone/fusion.py`.
"""

from fiber.config.command import Command
from fiber.config.stage1 import Stage1Config, validate
from fiber.evaluation.report import report_of_run
from fiber.tasks.preset import fitted
from fiber.tasks.table import task_of
from fiber.training import process, run
from fiber.training.watchdog import Watchdog


def stage1(command: Command, watchdog: Watchdog) -> None:
    """One run: shards -> batches -> backbone -> heads -> losses, until the end of `train.steps`."""
    job = run.Job.open(fitted(command), task_of(command.config), watchdog, command.given)
    if command.mode == "eval":
        job.evaluate_only()
        return
    stream = job.open_stream()  # which sample stands at which position of training
    module = job.build()  # the model of the configuration, and the task's losses
    job.start(module, stream)  # weights of another run, an export, or pre-trained towers
    job.train(module, stream)  # the loop, checkpoints, evaluations, and the export at the end
    report_of_run(command.config.output)  # RUN/report: a page to look at


if __name__ == "__main__":
    process.main(Stage1Config, validate, stage1)
