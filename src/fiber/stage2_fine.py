"""Everything at region level: fine pre-training, fine-tuning on grounding and detection data, and their evaluation.

    deepspeed src/fiber/stage2_fine.py --config FILE [--mode train|eval] [key.path=value ...]

Running the same command again goes on where the run stopped. What is read, computed and scored is
`tasks/regions.py`; the model is `fine/model.py` on the same `backbone/fusion.py` as stage 1.
"""

from fiber.config.command import Command
from fiber.config.stage2 import Stage2Config, validate_stage2
from fiber.evaluation.report import report_of_run
from fiber.tasks.preset import fitted
from fiber.tasks.table import task_of
from fiber.training import process, run
from fiber.training.watchdog import Watchdog


def stage2(command: Command, watchdog: Watchdog) -> None:
    """One run: shards -> batches -> backbone -> pyramid and head -> losses, until the end of `train.steps`."""
    job = run.Job.open(fitted(command), task_of(command.config), watchdog, command.given)
    if command.mode == "eval":
        job.evaluate_only()
        return
    stream = job.open_stream()  # which sample stands at which position of training
    module = job.build()  # the detector of the configuration, and its losses
    job.start(module, stream)  # weights of stage 1, of another run, or pre-trained towers
    job.train(module, stream)  # the loop, checkpoints, evaluations, and the export at the end
    report_of_run(command.config.output)  # RUN/report: a page to look at


if __name__ == "__main__":
    process.main(Stage2Config, validate_stage2, stage2)
