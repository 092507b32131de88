"""Runs of several seeds: whether other settings make a difference that chance does not."""

import json
from typing import Any

from kappaface_dist.margin_study.intervals import difference_interval, mean_interval, plus_minus
from kappaface_dist.training.run_table import NAMES

SEED = "run.seed"


def compare_runs(runs: dict[str, dict[str, Any]], against: str) -> dict[str, Any]:
    """Runs that differ in their seed alone are an arm; arms are compared seed by seed.

    Args:
        runs: folder -> what `read_run` gives.
        against: the folder of a run; its arm is what the others are compared to.

    Returns:
        arms: first folder -> seeds, and by set of verification the accuracies at the runs' ends, a
        `mean_interval`, and where it is not the arm of `against` the `difference_interval` over the
        seeds of both; left_out: runs that are not finished.

    Raises:
        ValueError: there is no such run, or nothing to compare, or an arm has a seed twice.
    """
    if against not in runs:
        raise ValueError(f"--against is {against}, which is none of {', '.join(runs)}")
    left_out = [folder for folder, run in runs.items() if run["state"] != "finished"]
    if against in left_out:
        raise ValueError(f"--against is {against}, a run that is not finished: let it end first")
    arms: dict[str, dict[int, str]] = {}
    for folder, run in runs.items():
        if folder not in left_out:
            seeds = arms.setdefault(_but_the_seed(run), {})
            seed = run["settings"][SEED]
            if seed in seeds:
                raise ValueError(
                    f"{seeds[seed]} and {folder} have the same settings and the same seed {seed}:"
                    " name one of them"
                )
            seeds[seed] = folder
    reference = arms.pop(_but_the_seed(runs[against]))
    if not arms:
        raise ValueError(
            f"all finished runs have the settings of {against}: name some of other settings too"
        )
    found = {_name(reference): _arm(runs, reference, None, len(arms))}
    found |= {_name(seeds): _arm(runs, seeds, reference, len(arms)) for seeds in arms.values()}
    return {"arms": found, "left_out": left_out}


def _but_the_seed(run: dict[str, Any]) -> str:
    settings = {k: v for k, v in run["settings"].items() if k not in (*NAMES, SEED)}
    return json.dumps(settings, default=str, sort_keys=True)


def _name(seeds: dict[int, str]) -> str:
    return next(iter(seeds.values()))


def _arm(
    runs: dict[str, dict[str, Any]],
    seeds: dict[int, str],
    reference: dict[int, str] | None,
    comparisons: int,
) -> dict[str, Any]:
    shared = sorted(seeds if reference is None else seeds.keys() & reference.keys())
    sets = {}
    for name in sorted(set().union(*(runs[folder]["last"] for folder in seeds.values()))):
        own = _accuracies(runs, seeds, name)
        sets[name] = {"by_seed": own, **mean_interval(list(own.values()))}
        if reference is not None:
            other = _accuracies(runs, reference, name)
            differences = [own[seed] - other[seed] for seed in own if seed in other]
            sets[name]["difference"] = (
                difference_interval(differences, comparisons) if differences else None
            )
    return {"seeds": sorted(seeds), "shared_seeds": shared, "sets": sets}


def _accuracies(
    runs: dict[str, dict[str, Any]], seeds: dict[int, str], name: str
) -> dict[int, float]:
    """On one set, by seed, of the runs that were verified on it."""
    last = {seed: runs[folder]["last"] for seed, folder in sorted(seeds.items())}
    return {seed: found[name] for seed, found in last.items() if name in found}


def seeds_table(report: dict[str, Any], against: str) -> str:
    """A line for each arm and set: mean, and difference in points, with 95 % intervals."""
    lines = [
        f"accuracy at the end, % (95 % interval over seeds); difference to the arm of {against} in"
        " points, by the seeds of both: interval, [for all arms together]"
    ]
    for folder, arm in report["arms"].items():
        lines.append(f"{folder} and its other seeds: {len(arm['seeds'])} seed(s)")
        only = len(arm["seeds"]) - len(arm["shared_seeds"])
        if only:
            lines.append(f"  {only} of them have no partner among those of {against}: left out")
        for name, found in arm["sets"].items():
            cells = [f"  {name:<24}{100 * found['mean']:7.2f}{plus_minus(found['interval'])}"]
            difference = found.get("difference")
            if difference is not None:
                cells.append(
                    f"{100 * difference['mean']:+.2f}{plus_minus(difference['interval'])}"
                    f" [{plus_minus(difference['corrected']).strip() or 'one seed'}]"
                )
            lines.append("   ".join(cells))
    if report["left_out"]:
        lines.append(f"not finished, left out: {', '.join(report['left_out'])}")
    return "\n".join(lines)
