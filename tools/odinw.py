"""Object detection in the wild: the AP of each set and their mean, over ODinW's 13 or 35 sets or any others.

The mean is plain, no set weighs more than another. A few-shot figure is the mean over seeds; its spread is the sample
standard deviation over seeds, for a mean over sets that of the means. A mean over other sets than were asked for is
another figure, so it is refused unless it is wanted, and then says over how many sets it goes.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

# Sets by the names that the converter makes of GLIP's configuration files. Of plantdoc's two the 416 px one counts.
ODINW_13 = (
    *("AerialMaritimeDrone_large", "Aquarium_Aquarium_Combined_v2-raw-1024_coco", "CottontailRabbits"),
    *("EgoHands_generic", "NorthAmericaMushrooms_North_American_Mushrooms_v1-416x416_coco", "Packages_Raw"),
    *("PascalVOC", "Raccoon_Raccoon_v2-raw_coco", "ShellfishOpenImages_raw", "VehiclesOpenImages_416x416"),
    *("pistols_export", "pothole", "thermalDogsAndPeople"),
)
ODINW_35 = (
    *ODINW_13,
    *("AerialMaritimeDrone_tiled", "AmericanSignLanguageLetters_American_Sign_Language_Letters_v1-v1_coco"),
    *("BCCD_BCCD_v3-raw_coco", "ChessPieces_Chess_Pieces_v23-raw_coco", "DroneControl_Drone_Control_v3-raw_coco"),
    *("EgoHands_specific", "HardHatWorkers_raw", "MaskWearing_raw", "MountainDewCommercial", "OxfordPets_by-breed"),
    *("OxfordPets_by-species", "PKLot_640", "ThermalCheetah", "UnoCards_raw", "WildfireSmoke"),
    *("boggleBoards_416x416AutoOrient_export_", "brackishUnderwater_960x540", "dice_mediumColor_export"),
    *("openPoetryVision_512x512", "plantdoc_416x416", "selfdrivingCar_fixedLarge_export_", "websiteScreenshots"),
)
SUITES = {"13": ODINW_13, "35": ODINW_35}

Scores = Mapping[tuple[str, str], Mapping[int | None, float]]
"""By (set, setting), the AP (fraction) by seed; None where nothing was drawn."""


@dataclass(frozen=True)
class Cell:
    """An AP (fraction), its standard deviation over `seeds` (None for fewer than two), and of how many sets."""

    mean: float
    spread: float | None
    seeds: int
    sets: int = 1


def read_runs(folder: str | Path) -> dict[tuple[str, str], dict[int | None, float]]:
    """The scores of FOLDER/SET/{zero_shot,full_MODE,K_shot_MODE_SEED}, as launch/odinw.sh leaves them.

    Settings are "zero-shot", "K-shot MODE", "full MODE", of the set that chose the weights, and each with ", test".
    Runs that have not ended are left out. ValueError names a file without `ap`, or says that there is no run.
    """
    scores: dict[tuple[str, str], dict[int | None, float]] = {}
    for run in sorted(Path(folder).glob("*/*")):
        setting, seed = _setting(run.name) or ("", None)
        ended = "figures.json" if run.name == "zero_shot" else "summary.json"
        for column, file in ((setting, run / ended), (f"{setting}, test", run / "test.json")):
            if setting and (run / ended).is_file() and file.is_file() and file.stat().st_size:
                scores.setdefault((run.parent.name, column), {})[seed] = _ap(file)
    if not scores:
        raise ValueError(f"{folder}: no finished run in SET/zero_shot, SET/full_MODE or SET/K_shot_MODE_SEED")
    return scores


def drawn_subsets(folder: str | Path) -> list[str]:
    """SET/K_SEED of the few-shot subsets that launch/odinw.sh drew itself, having no published ones."""
    return sorted(
        f"{info.parents[2].name}/{info.parent.name}" for info in Path(folder).glob("*/shards/*/dataset.json")
    )


def settings_of(scores: Scores) -> list[str]:
    """Zero-shot, then few-shot by shots, then full, each by mode."""

    def order(setting: str) -> tuple[int, str]:
        shots = re.match(r"(\d+)-shot", setting)
        return (int(shots[1]) if shots else 0 if setting.startswith("zero-shot") else 10**9), setting

    return sorted({setting for _, setting in scores}, key=order)


def set_cell(scores: Scores, name: str, setting: str) -> Cell | None:
    """The figure of one set; None where it has none."""
    return _cell(list(scores.get((name, setting), {}).values()))


def mean_cell(scores: Scores, sets: Sequence[str], setting: str, allow_missing: bool = False) -> Cell:
    """The mean over `sets`. ValueError names those that lack the setting or one of its seeds; with `allow_missing`
    the mean is over the sets that have every seed that any has."""
    seeds = {seed for name in sets for seed in scores.get((name, setting), {})}
    whole = [name for name in sets if seeds and scores.get((name, setting), {}).keys() == seeds]
    missing = [name for name in sets if name not in whole]
    if missing and not (allow_missing and whole):
        few = f"{', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}"
        raise ValueError(
            f"{setting}: {len(missing)} of {len(sets)} sets have no figure for every seed ({few}); a mean over the "
            "others is not theirs: finish the runs, or say --allow-missing"
        )
    return _cell([fmean(scores[name, setting][seed] for name in whole) for seed in seeds], len(whole))


def table(scores: Scores, sets: Sequence[str], allow_missing: bool = False) -> tuple[str, dict[str, dict[str, Cell]]]:
    """A Markdown table in percent, one row a set and the mean below, and its cells by setting and row. ValueError as
    `mean_cell`, for every setting at once."""
    settings, cells, faults = settings_of(scores), {}, []
    for setting in settings:
        column = {name: cell for name in sets if (cell := set_cell(scores, name, setting))}
        try:
            cells[setting] = column | {"mean": mean_cell(scores, sets, setting, allow_missing)}
        except ValueError as fault:
            faults.append(str(fault))
    if faults:
        raise ValueError("\n".join(faults))
    lines = [_row("set", settings), "|---" * (len(settings) + 1) + "|"]
    for name in (*sets, "mean"):
        shown = (cells[setting].get(name) for setting in settings)
        lines.append(_row(name, [_text(cell, len(sets) if name == "mean" else 1) for cell in shown]))
    return "\n".join(lines), cells


def _ap(file: Path) -> float:
    ap = (found := json.loads(file.read_text())).get("eval", found).get("ap")
    if not isinstance(ap, int | float) or ap < 0:
        raise ValueError(f"{file}: no ap in it, but {ap!r}; was the set evaluated by its boxes?")
    return ap


def _setting(run: str) -> tuple[str, int | None] | None:
    """(setting, seed) of a run's folder name; None for other folders."""
    if run == "zero_shot":
        return "zero-shot", None
    if few := re.fullmatch(r"(\d+)_shot_(\w+)_(\d+)", run):
        return f"{few[1]}-shot {few[2]}", int(few[3])
    return (f"full {run.removeprefix('full_')}", None) if run.startswith("full_") else None


def _cell(values: Sequence[float], sets: int = 1) -> Cell | None:
    spread = stdev(values) if len(values) > 1 else None
    return Cell(fmean(values), spread, len(values), sets) if values else None


def _row(name: str, cells: Iterable[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def _text(cell: Cell | None, sets: int) -> str:
    if cell is None:
        return "–"
    text = f"{100 * cell.mean:.1f}" + (f" ± {100 * cell.spread:.1f}" if cell.spread is not None else "")
    return text + (f" ({cell.sets} of {sets} sets)" if cell.sets < sets else "")
