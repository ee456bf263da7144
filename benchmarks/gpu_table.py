"""The results of ``benchmarks/gpu.py`` as a Markdown page."""

from __future__ import annotations

from typing import Any

from fge.report import markdown_table

Facts = dict[str, Any]
PUBLISHED = {
    ("vgg16", "single"): "6.75 ± 0.16 (1803.05407)",
    ("vgg16", "fge"): "6.48 ± 0.09 (1802.10026)",
    ("vgg16", "swa"): "6.41 ± 0.16 (1803.05407)",
    ("preresnet110", "single"): "4.97 ± 0.05 (1803.05407)",
    ("preresnet110", "swa"): "4.49 ± 0.10 (1803.05407)",
}
"""Test errors (%) on the original CIFAR-10 at one budget; the papers give no NLL."""


def page(content: Facts) -> str:
    """Return the whole page."""
    environment, steps = content["environment"], content["steps"]
    facts = (
        f"{environment['hardware']}, {environment['cpu_count']} CPU cores, torch "
        f"{environment['torch']}, torchvision {environment['torchvision']}, Python "
        f"{environment['python']}"
    )
    parts = [f"# What `benchmarks/gpu.py` found on this card\n\n{facts}.", steps_table(steps)]
    fast = {n[5:]: s["results"] for n, s in steps.items() if n[:5] == "fast " and "results" in s}
    measured = {name: found for name, found in fast.items() if "train" in found}
    if measured:
        parts += [
            f"## Training\n\n{training_table(measured)}",
            f"## Evaluation\n\n{eval_table(measured)}",
        ]
        parts += [f"## Choices\n\n{choices(measured)}"]
    curves = results_of(steps, "curves")
    if curves:
        parts.append(f"## Curves\n\n{curve_lines(curves)}")
    hessian = {n: r for n, r in results_of(steps, "hessian").items() if isinstance(r, dict)}
    if hessian:
        parts.append(f"## Top Hessian eigenvalue\n\n{hessian_table(hessian)}")
    runs = paper_rows(steps)
    if runs:
        headings = ["model", "method", "members", "epochs", "seed", "error %", "NLL"]
        headings += ["published error % (original images, whole budget)", "FGE training s"]
        parts.append(
            "## CIFAR-10 (JPEG q75)\n\nThe JPEG files are slightly harder than the original "
            f"images.\n\n{markdown_table(headings, runs)}"
        )
    if content.get("skipped"):
        parts.append(f"No time was left for: {', '.join(content['skipped'])}.")
    return "\n\n".join(parts) + "\n"


def results_of(steps: Facts, name: str) -> Facts:
    """Return the results of a step, empty if there are none yet."""
    found: Facts = steps.get(name, {}).get("results", {})
    return found


def steps_table(steps: Facts) -> str:
    """Return how each step ended."""
    rows = []
    for name, step in steps.items():
        note = results_of(steps, name).get("skipped", "")
        if step.get("error"):
            note = step["error"]
        counts = results_of(steps, name).get("counts")
        if counts:
            note = ", ".join(f"{n} {what}" for what, n in counts.items()) + (
                f"; {note}" if note else ""
            )
        row = [
            name,
            step.get("status", "running"),
            step.get("seconds", ""),
            step.get("date", ""),
            note,
        ]
        rows.append([str(cell).replace("|", "/").replace("\n", " ") for cell in row])
    return markdown_table(["step", "status", "seconds", "date", "note"], rows)


def training_table(fast: Facts) -> str:
    """Return images/s in training, as ratios to the hand-written loops, and what limits them."""
    rows = []
    for name, found in fast.items():
        train, larger = found["train"], found.get("larger", {})
        best = max(larger, key=larger.__getitem__, default="")
        loader = found.get("dataloader", {}).get("train", {})
        rows.append(
            [
                name,
                rate(train["ours"]),
                rate(train["in-memory"]),
                f"{train['ratio']:.2f} x",
                times_loader(train["ours"]["median"], loader),
                f"{larger[best]:,.0f} ({best})" if best else "",
                percent(found.get("share_of_peak")),
                percent(found.get("gpu_waits")),
                str(found.get("host_waits", "")),
            ]
        )
    headings = ["model", "images/s, batch 128", "in-memory loop", "ratio (aim 1.5)"]
    headings += [
        "against DataLoader",
        "best larger batch",
        "of bf16 peak",
        "GPU waits",
        "host waits",
    ]
    return markdown_table(headings, rows)


def eval_table(fast: Facts) -> str:
    """Return images/s in evaluation; the better batch size of the in-memory loop counts."""
    rows = []
    for name, found in fast.items():
        facts = found.get("eval")
        if facts:
            others = {k: v for k, v in facts.items() if k.startswith("in-memory")}
            best = max(others, key=lambda key: others[key]["median"])
            loader = found.get("dataloader", {}).get("eval", {})
            cells = [name, rate(facts["ours"]), f"{rate(others[best])} ({best.split()[-1]})"]
            cells += [f"{facts['ratio']:.2f} x", times_loader(facts["ours"]["median"], loader)]
            rows.append(cells)
    headings = [
        "model",
        "images/s",
        "in-memory loop (batch)",
        "ratio (aim 2)",
        "against DataLoader",
    ]
    return markdown_table(headings, rows)


def times_loader(ours: float, loader: Facts) -> str:
    """Return ours over the faster ``DataLoader`` loop."""
    rates = [facts["median"] for facts in loader.values() if isinstance(facts, dict)]
    return f"{ours / max(rates):.1f} x" if rates else ""


def choices(fast: Facts) -> str:
    """Return what ``auto`` chose for each model, and why."""
    lines = []
    for name, found in fast.items():
        lines += [f"- `{name}`", *(f"    - {reason}" for reason in found.get("reasons", []))]
    return "\n".join(lines)


def curve_lines(curves: Facts) -> str:
    """Return the cost of a curve's step and of its points."""
    lines = []
    step = dict(curves.get("step", {}))
    name = step.pop("model", "")
    for objective, facts in step.items():
        if objective != "plain":
            low, high = facts["ratio_quartiles"]
            lines.append(
                f"- a step of `{objective}` on `{name}`: {facts['ratio']:.3f} x a plain step "
                f"(quartiles {low:.3f} to {high:.3f}; aim 1.05)"
            )
    points = curves.get("points")
    if points:
        lines.append(
            f"- points of a curve of `{points['model']}`: {points['per_second']:.2f} a second, "
            f"{points['times_faster_than_full_passes']:.1f} x faster than full passes"
        )
    return "\n".join(lines)


def hessian_table(found: Facts) -> str:
    """Return the time to within 1 % of ``eigsh`` against PyHessian."""
    rows = []
    for name, facts in found.items():
        ratio = facts["times_faster"]["reach"]
        mark = "at least " if ratio["at_least"] else ""
        spread = f"{ratio['low']:.1f} to {ratio['high']:.1f}, {ratio['count']} rounds"
        ours = sorted(run["seconds"] for run in facts["contenders"]["reach fge"])
        cells = [name, str(facts["images"]), f"{facts['top']:.3f}"]
        rows.append(
            [*cells, f"{ours[len(ours) // 2]:.3f}", f"{mark}{ratio['median']:.1f} x ({spread})"]
        )
    headings = ["network", "images", "top eigenvalue", "seconds to 1 %", "PyHessian / this"]
    return markdown_table(headings, rows)


def paper_rows(steps: Facts) -> list[list[str]]:
    """Return a line per run and method at the papers' settings."""
    rows, seen = [], []
    for name in steps:
        for run in results_of(steps, name).get("runs", []) if name.startswith("paper ") else []:
            model, mark = name.split()[1], (name.split()[1], run["epochs"], run["seed"])
            if mark in seen:
                continue
            seen.append(mark)
            for method in run["methods"]:
                cells = [
                    model,
                    method["name"],
                    method["members"],
                    method["train_epochs"],
                    run["seed"],
                ]
                figures = [f"{method['error']:.2f}", f"{method['nll']:.4f}"]
                published = PUBLISHED.get((model, method["name"]), "")
                seconds = run["fge_training_seconds"] if method["name"] == "fge" else ""
                rows.append([*map(str, cells), *figures, published, str(seconds)])
    return rows


def rate(facts: Facts) -> str:
    """Return the median with the range."""
    return f"{facts['median']:,.0f} ({facts['low']:,.0f} to {facts['high']:,.0f})"


def percent(share: float | None) -> str:
    """Return a share in percent, or "" if it is unknown."""
    return "" if share is None else f"{100 * share:.0f} %"
