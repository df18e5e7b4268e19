"""The report of a run: PNG pictures and one self-contained HTML page that asks nothing of any network."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from unicuco.report.accuracy import draw_accuracy
from unicuco.report.domains import draw_domains
from unicuco.report.front import draw_front
from unicuco.report.progress import draw_progress
from unicuco.report.run import HeldOut, Run, read_run
from unicuco.report.strategies import draw_strategies
from unicuco.report.style import Picture
from unicuco.report.stylesheet import STYLESHEET
from unicuco.storage import atomic_file

_WIDE = ("Preparation", "Versions", "Command")
"""Facts that need a line of their own."""

PICTURES = (draw_front, draw_domains, draw_strategies, draw_accuracy, draw_progress)


def write_report(run: Path, target: Path | None = None) -> Path:
    """Draws a run, finished or still going, into ``target`` (default: ``report`` in the run folder).

    Args:
        run: the folder that training wrote.
        target: folder for ``index.html`` and the PNGs; made when missing, other files in it stay.

    Returns:
        The path of ``index.html``.

    Raises:
        EvaluationLogError: ``run`` is no run folder, or one of its files is broken.
        DiskFullError: the pictures or the page could not be written.
    """
    found = read_run(run)
    folder = Path(target) if target is not None else found.folder / "report"
    pictures = [picture for draw in PICTURES if (picture := draw(found)) is not None]
    images: dict[str, bytes] = {}
    for picture in pictures:
        path = folder / f"{picture.name}.png"
        if picture.figure is None:
            path.unlink(missing_ok=True)  # of an earlier report
            continue
        with atomic_file(path) as scratch:
            picture.save(scratch)
        images[picture.name] = path.read_bytes()
    page = folder / "index.html"
    with atomic_file(page) as scratch:
        scratch.write_text(render_page(found, pictures, images), encoding="utf-8")
    return page


def render_page(run: Run, pictures: Sequence[Picture], images: dict[str, bytes]) -> str:
    """The whole page as HTML. ``images``: PNG bytes by picture name, embedded as base64."""
    model = _text(_model(run))
    parts = [
        _section("settings", "What was run", _settings(run)),
        _section("sizes", "Sizes", _sizes(run)),
        *(_section(p.name, p.title, _picture(p, images.get(p.name))) for p in pictures),
        _section("evaluations", "The measured front", _front_table(run)),
    ]
    links = [("settings", "What was run"), ("sizes", "Sizes"), *((p.name, p.title) for p in pictures)]
    links.append(("evaluations", "The measured front"))
    navigation = "".join(f'<li><a href="#{name}">{_text(title)}</a></li>' for name, title in links)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>UniCuCo: {model}</title>
<style>{STYLESHEET}</style>
</head>
<body>
<a class="skip" href="#settings">Skip to the report</a>
<header>
<h1>{model}, compressed to every size</h1>
<p>{_text(_summary(run))}</p>
<nav aria-label="Parts of this report"><ul>{navigation}</ul></nav>
</header>
<main>
{"".join(parts)}
</main>
</body>
</html>
"""


def _summary(run: Run) -> str:
    if not run.evaluations:
        return "The run has no finished evaluation yet."
    hours = sum(e.seconds for e in run.evaluations) / 3600
    spent = f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"
    failed = run.progress[-1].failed if run.progress else 0
    count = f"{len(run.evaluations):,} strategies were evaluated ({spent} of evaluator time)"
    text = f"{count}, {len(run.front)} of them on the front."
    if failed:
        text += f" {failed} more failed."
    if not run.heldout:
        text += " The run has no held-out measurements yet: it is still going or was stopped."
    return " ".join([text, *run.notes])


def _model(run: Run) -> str:
    model = run.setting("model", "model_spec", "spec")
    if isinstance(model, dict):
        model = model.get("spec") or model.get("name")
    return str(model or run.folder.name)


def _settings(run: Run) -> str:
    def measured(name: str) -> str:
        """What the evaluations themselves say, which cannot differ from what was done."""
        values = sorted({getattr(e, name) for e in run.evaluations}, key=str)
        return ", ".join(f"{v:,}" if isinstance(v, int) else str(v) for v in values)

    corpora = sorted({domain for e in run.evaluations for domain in e.domains})
    versions, config = run.setting("versions"), run.settings.get("config")
    latency = config.get("latency") if isinstance(config, dict) else None
    facts = {
        "Base model": _model(run),
        "Corpus": ", ".join(corpora) or run.setting("corpus", "calibration", "domains"),
        "Tokens per evaluation": measured("tokens") or run.setting("tokens"),
        "Latency, an objective": f"table '{latency.get('name')}'" if isinstance(latency, dict) else None,
        "Seed": run.setting("seed"),
        "Number type": measured("dtype") or run.setting("dtype"),
        "Device": measured("device") or run.setting("device"),
        "Threads per evaluator": measured("threads") or run.setting("threads"),
        "Preparation": measured("preparation") or run.setting("preparation"),
        "Versions": ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else versions,
        "Command": run.setting("command"),
    }
    known = {name: value for name, value in facts.items() if value not in (None, "")}
    rows = "".join(
        f"<div{' class=wide' * (name in _WIDE)}><dt>{_text(name)}</dt><dd>{_value(name, value)}</dd></div>"
        for name, value in known.items()
    )
    everything = _text(json.dumps(run.settings, indent=2, sort_keys=True, ensure_ascii=False))
    details = f"<summary>All settings (run.json)</summary><pre tabindex='0'>{everything}</pre>"
    return f"<dl>{rows}</dl><details>{details}</details>"


def _value(name: str, value: Any) -> str:
    text = _text(value if isinstance(value, str | int | float) else json.dumps(value))
    return f"<code>{text}</code>" if name in _WIDE else text


def _sizes(run: Run) -> str:
    if not run.heldout:
        return "<p>No answer of the policy has been measured on held-out windows yet.</p>"
    timed = any(point.latency_ms is not None for point in run.heldout)
    rows = [_size_row(run, point) + [_milliseconds(point)] * timed for point in run.heldout]
    heads = ["kept", "KL held out", "predicted (90 %)", "uniform held out", "policy ÷ uniform", "KL search", "ratio",
             "parameters", "weights", "KV cache / token", "FLOPs / token", *["predicted ms"] * timed]  # fmt: skip
    note = (
        "<p>kept: share of the blocks' parameters; ratio: share of all parameters; weights and cache at two bytes a "
        "number. KL(dense ‖ pruned) in nats per token. Policy ÷ uniform below 1: better than uniform pruning within "
        "the same size.</p>"
    )
    return _table(heads, rows, "Sizes and their measured quality") + note


def _milliseconds(point: HeldOut) -> str:
    return "" if point.latency_ms is None else f"{point.latency_ms:.4g}"


def _size_row(run: Run, point: HeldOut) -> list[str]:
    size = run.size(point.levels)
    interval = "" if point.kl_low is None or point.kl_high is None else f" ({point.kl_low:.3f} to {point.kl_high:.3f})"
    against = point.kl_heldout / point.kl_uniform_heldout if point.kl_uniform_heldout else None
    return [
        f"{size.kept if size else point.kept:.3f}",
        _number(point.kl_heldout),
        _number(point.kl_predicted) + interval,
        _number(point.kl_uniform_heldout),
        _number(against),
        _number(point.kl_search),
        f"{size.ratio:.3f}" if size else "",
        f"{size.params:,}" if size else "",
        f"{size.bytes / 1e6:,.1f} MB" if size else "",
        f"{size.kv_bytes_per_token / 1024:,.1f} KiB" if size else "",
        f"{size.flops_per_token / 1e6:,.0f} M" if size else "",
    ]


def _front_table(run: Run) -> str:
    if not run.front:
        return "<p>No evaluation is on disk yet.</p>"
    heads = [
        "kept",
        "parameters",
        "KL(dense ‖ pruned)",
        "KL(pruned ‖ dense)",
        "perplexity",
        "origin",
        "policy version",
        "id",
    ]
    rows = [
        [f"{e.kept:.3f}", f"{e.params:,}", _number(e.kl), _number(e.kl_reverse), f"{e.perplexity:.2f}", e.origin,
         str(e.policy_version), e.eval_id]
        for e in reversed(run.front)
    ]  # fmt: skip
    note = "<p>Measured on the search windows; no other evaluation of this run is both smaller and better.</p>"
    return note + _table(heads, rows, "Evaluations on the front")


def _picture(picture: Picture, image: bytes | None) -> str:
    if image is None or picture.figure is None:
        return f"<p>{_text(picture.caption)}</p>"
    source = "data:image/png;base64," + base64.b64encode(image).decode("ascii")
    width = round(100 * picture.figure.get_figwidth())  # letters of one size in all pictures
    shown = f'<img width="{width}" alt="{_text(picture.alt)}" src="{source}">'
    return f"<figure>{shown}<figcaption>{_text(picture.caption)}</figcaption></figure>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], label: str) -> str:
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in heads)
    body = "".join(
        f'<tr><th scope="row">{_text(row[0])}</th>' + "".join(f"<td>{_text(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    # A wide table scrolls in its own box, and the box takes the keyboard focus so that arrow keys reach all of it.
    return (
        f'<div class="scroll" role="region" aria-label="{_text(label)}" tabindex="0">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _section(name: str, title: str, content: str) -> str:
    head = f'<h2 id="{name}-title">{_text(title)}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">{head}{content}</section>\n'


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _text(value: object) -> str:
    return escape(str(value))
