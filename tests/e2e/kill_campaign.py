"""Jobs killed with SIGKILL again and again, at chosen moments, and what becomes of them.

    python tests/e2e/kill_campaign.py --kills 60 --seed 0 [--out DIR] [--only stage2:2]

Every run is a real job of `deepspeed`. It is killed a few times (all of its processes at once), started again by the
same command each time, and at the end compared with a run that nothing has interrupted: every line of metrics.jsonl
and faults.jsonl (speed and memory aside), every file of the last checkpoint, the export and the summary, byte for
byte. At every start it must go on from the newest checkpoint that the kill has left. Prints a table in Markdown.
"""

import argparse
import contextlib
import os
import random
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from launcher import REPO, Job, metrics, processes_of_session

from fiber.data.convert.writer import write_dataset
from fiber.data.records import Sample
from fiber.data.shapes.tokenizer import train_bpe
from fiber.data.shapes.world import WORLDS, categories, generate

STEPS, SAVE_EVERY, EVAL_EVERY = 12, 3, 4
MOMENTS = ("start", "step", "save", "evaluation", "export")
SCRIPTS = {"stage1": REPO / "src" / "fiber" / "stage1_coarse.py", "stage2": REPO / "src" / "fiber" / "stage2_fine.py"}
CASES = ("stage1:2", "stage2:2", "stage1:1", "stage2:1")  # stage and ranks
UNSTEADY = re.compile(r"seconds/|pairs_per_second|memory/|tflops|mfu")  # what no two runs have alike


def prepare(folder: Path) -> None:
    """Shards with one image that cannot be read, a tokenizer, and a configuration for each stage and number of
    ranks, with dropout, an average and, in stage 1, a choice of the best weights."""
    world = WORLDS["easy"]
    about = {"categories": categories(world), "provenance": "drawn", "licence": "none"}
    samples: list[Sample] = list(generate(world, "train", 64, seed=0))
    texts = [caption["text"] for sample in samples for caption in sample.record["captions"]]
    extension, image = samples[9].images[0]
    samples[9] = Sample(samples[9].key, [(extension, image[: len(image) // 3])], samples[9].record)
    write_dataset(samples, folder / "train", name="train", split="train", **about)
    write_dataset(generate(world, "val", 8, seed=0), folder / "val", name="val", split="val", **about)
    train_bpe(texts, 400, folder / "tokenizer")
    image_tower = {"embed_dim": 8, "depths": [1, 1, 2, 1], "heads": [1, 2, 2, 4], "window": 2, "drop_path": 0.1}
    text_tower = {"width": 16, "layers": 3, "heads": 2, "intermediate": 32, "dropout": 0.1}
    train, val = str(folder / "train"), str(folder / "val")
    for case in CASES:
        stage, ranks = case.split(":")
        tree = {
            "tokenizer": str(folder / "tokenizer"),
            "max_text": 24,
            "model": {"image": image_tower, "text": text_tower, "num_fused": 2},
            "data": {"workers": 1},
            "optim": {"lr": 1e-3, "warmup": 2},
            "train": {
                "steps": STEPS, "global_batch": 8, "micro_batch": 8 // int(ranks), "log_every": 1,
                "save_every": SAVE_EVERY, "keep": 2, "ema": 0.9, "hang_timeout_s": 120,
            },
            "eval": {"every": EVAL_EVERY, "batch": 4},
        }  # fmt: skip
        if stage == "stage1":
            tree["model"]["head_width"] = 16
            tree |= {"image_size": 32, "pretrain": {"queue_size": 16}}
            tree["data"]["train"], tree["eval"]["data"] = [{"path": train}], [{"path": val}]
            tree["eval"]["rerank_k"], tree["train"]["best"] = 2, "t2i_r1"
        else:
            tree["detector"] = {
                "channels": 8, "head_channels": 8, "head_blocks": 1, "groups": 4, "anchor_sizes": [24, 48, 96],
                "strides": [8, 16, 32],
            }  # fmt: skip
            tree["regions"] = {"short_sides": [48], "test_side": 48, "max_side": 48, "max_negatives": 4}
            sets = ("captions", "boxes")
            tree["data"]["train"] = [{"path": train, "field": name, "weight": 1} for name in sets]
            tree["eval"]["data"] = [{"path": val, "field": name} for name in sets]
        (folder / f"{case}.yaml").write_text(yaml.safe_dump(tree | {"output": "unused"}))


@dataclass
class Outcome:
    """What happened to the runs of a case."""

    runs: int = 0
    kills: Counter = field(default_factory=Counter)  # by moment
    half_saves: int = 0  # kills that left a save half done
    repeated: int = 0  # the most steps that had to be made again
    faults: list[str] = field(default_factory=list)


def start(folder: Path, case: str, run: Path) -> Job:
    stage, ranks = case.split(":")
    arguments = ("--config", folder / f"{case}.yaml", f"output={run}")
    return Job(SCRIPTS[stage], *arguments, folder=run.parent, ranks=int(ranks))


def steps_of(run: Path) -> list[int]:
    """Steps of the finished checkpoints, ascending."""
    names = (path.name.removeprefix("step_") for path in (run / "checkpoints").glob("step_*"))
    return sorted(int(name) for name in names)


def reached(job: Job, run: Path, moment: str, step: int) -> bool:
    """Whether a run has come to a moment. `step`: the one from which on it counts."""
    if moment == "start":
        return "spawned with command" in job.output
    if moment == "step":
        return any(line["step"] >= step for line in metrics(run) if "loss/total" in line)
    if moment == "save":
        return any(int(re.findall(r"\d+", p.name)[0]) >= step for p in (run / "checkpoints").glob(".step_*.partial"))
    if moment == "evaluation":  # after its save, before its line
        done = [line["step"] + 1 for line in metrics(run) if "eval/images" in line or "eval/ap50" in line]
        due = [s for s in steps_of(run) if s % EVAL_EVERY == 0 and s >= step]
        return any(s not in done for s in due)
    return (run / "export.partial").exists() or (run / "export").exists() or (run / "summary.json").exists()


def kill_at(job: Job, run: Path, moment: str, step: int, delay: float) -> bool:
    """Kill the whole job at a moment and some seconds; -> whether it was still running."""
    begun = time.monotonic()
    while not reached(job, run, moment, step):
        if job.process.poll() is not None:
            return False
        if time.monotonic() - begun > 300:
            raise TimeoutError(f"{moment} of step {step} did not come in 300 s\n{job.output}")
        time.sleep(0.002)
    time.sleep(delay)
    running = job.process.poll() is None
    for pid in processes_of_session(job.process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    job.process.wait()
    return running


def one_run(folder: Path, case: str, run: Path, kills: list[tuple[str, float]], outcome: Outcome) -> None:
    """A run killed at `kills` (moment, share of its span), each time started again, and compared at the end."""
    outcome.runs += 1
    expected: int | None = None
    whole = folder / f"whole_{case}"
    for number, (moment, share) in enumerate([*kills, ("end", 0.0)]):
        known = steps_of(run)
        with start(folder, case, run) as job:
            if moment == "end":
                if job.wait() != 0:
                    outcome.faults.append(f"{run}: exit status {job.wait()}, see {job.log}")
                    return
            else:
                first = (known[-1] if known else 0) + 1
                span = {"start": 8.0, "step": 0.2, "save": 0.05, "evaluation": 0.5, "export": 0.2}[moment]
                step = min(first + int(share * 997) % 4, STEPS - 1)
                if kill_at(job, run, moment, step if moment == "step" else first, share * span):
                    outcome.kills[moment] += 1
            output = job.output
        if expected is not None and "going on from" in output and f"step_{expected:06d}\n" not in output:
            outcome.faults.append(f"{run}: start {number} did not go on from step {expected}, see {job.log}")
        if "Traceback" in output:
            outcome.faults.append(f"{run}: a traceback, see {job.log}")
        outcome.half_saves += any((run / "checkpoints").glob(".step_*.partial"))
        expected = max(steps_of(run), default=None)
        made = [line["step"] + 1 for line in metrics(run) if "loss/total" in line]
        outcome.repeated = max(outcome.repeated, max(made, default=0) - (expected or 0))
    outcome.faults += [f"{run}: {what}" for what in differences(whole, run)]


def differences(whole: Path, run: Path) -> Iterator[str]:
    """What two finished runs do not have alike."""

    def steady(path: Path) -> list[dict]:
        return [{k: v for k, v in line.items() if not UNSTEADY.search(k)} for line in metrics(path)]

    if steady(whole) != steady(run):
        yield f"metrics.jsonl: {len(metrics(run))} lines for {len(metrics(whole))}, or other values"
    checkpoint = f"checkpoints/step_{STEPS:06d}"
    tensors = [f"{checkpoint}/{name}.safetensors" for name in ("model", "optimizer", "ema")]
    files = [*tensors, f"{checkpoint}/state.json", f"{checkpoint}/evaluated.json", f"{checkpoint}/rng.pt"]
    for name in [*files, "faults.jsonl", "summary.json", "export/model.safetensors"]:
        if (whole / name).read_bytes() != (run / name).read_bytes():
            yield f"{name} differs"
    left = [path.name for path in run.rglob("*") if path.name.endswith((".partial", ".new"))]
    if left:
        yield f"left behind: {left}"


def campaign(
    folder: Path, cases: tuple[str, ...], kills: int, seed: int, moments: tuple[str, ...] = MOMENTS
) -> dict[str, Outcome]:
    """Kill jobs `kills` times in all, in turns over `cases`, and each run at all of `moments`; -> outcome by case."""
    draw, outcomes, done, number = random.Random(seed), {case: Outcome() for case in cases}, 0, 0
    prepare(folder)
    while done < kills:
        case = cases[number % len(cases)]
        whole = folder / f"whole_{case}"
        if not whole.exists():
            with start(folder, case, whole) as job:
                job.succeed()
        earlier = [moment for moment in moments if moment != "export"]
        chosen = draw.sample(earlier, len(earlier))
        chosen += ["export"] * (len(moments) - len(earlier))  # it comes last: little is left to do after it
        chosen = chosen[-(kills - done) :]
        plan, run = [(moment, draw.random()) for moment in chosen], folder / f"run_{number}" / "run"
        before = outcomes[case].kills.total()
        one_run(folder, case, run, plan, outcomes[case])
        done, number = done + max(outcomes[case].kills.total() - before, 1), number + 1
        print(f"{run} ({case}): {plan}; {done} kills; faults: {outcomes[case].faults}", flush=True)
    return outcomes


def table(outcomes: dict[str, Outcome]) -> str:
    """Markdown."""
    rows = [
        "| stage, ranks | runs | kills | "
        + " | ".join(MOMENTS)
        + " | half-done saves | steps again, at most | faults |"
    ]
    rows.append("|" + "---|" * (len(MOMENTS) + 6))
    for case, found in outcomes.items():
        counts = [found.kills[moment] for moment in MOMENTS]
        cells = [case.replace(":", ", "), found.runs, sum(counts), *counts, found.half_saves, found.repeated]
        rows.append("| " + " | ".join(map(str, [*cells, len(found.faults)])) + " |")
    return "\n".join(rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where the runs stay; else they go")
    parser.add_argument("--only", action="append", choices=CASES, help="stage:ranks; may be given again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as aside:
        folder = (arguments.out or Path(aside)).resolve()
        outcomes = campaign(folder, tuple(arguments.only or CASES), arguments.kills, arguments.seed)
    print(table(outcomes))
    faults = [fault for found in outcomes.values() for fault in found.faults]
    raise SystemExit("\n".join(faults) or 0)


if __name__ == "__main__":
    main()
