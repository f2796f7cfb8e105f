# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan as one HTML page that needs nothing else: no script, no network, light and dark."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence

from .._report import figures
from .._report.picture import text
from .table import WHY, begins, bound_line, headline, longest_pause, moved

# The browser is told to load and run nothing: a second lock behind the escaping of every value.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

_STYLE = """
:root { color-scheme: light dark; --paper: #f5f6f4; --card: #fff; --ink: #1c2430; --soft: #5d6878; --line: #e1e4e3;
  --bar: #5b8fc4; --move: #d9983a; --warn: #8f5b00; --warn-wash: #fbf1dc; --bad: #b3382c; --bad-wash: #fbe9e6; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --card: #1c2228; --ink: #e6e9ec; --soft: #98a3b0;
  --line: #2d353d; --bar: #5f97d0; --move: #c98d38; --warn: #e2b35a; --warn-wash: #362a12; --bad: #f08a7d;
  --bad-wash: #3d1f1b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif; }
main { max-width: 1140px; margin: 0 auto; padding: 44px 24px 32px; }
h1 { font-size: 28px; letter-spacing: -0.015em; margin: 0 0 6px; }
h2 { font-size: 18px; margin: 32px 0 10px; }
header p, small, footer { color: var(--soft); } header p { margin: 0; }
.panel { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px 20px;
  margin: 0 0 12px; overflow-x: auto; }
.warn { background: var(--warn-wash); color: var(--warn); border-color: transparent; }
.bad { background: var(--bad-wash); color: var(--bad); border-color: var(--bad); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th { text-align: left; font-weight: 500; font-size: 13px; color: var(--soft); padding: 0 14px 6px 0; }
td { border-top: 1px solid var(--line); padding: 7px 14px 7px 0; vertical-align: top; overflow-wrap: anywhere; }
td.number, th.number { text-align: right; white-space: nowrap; } td small { display: block; font-size: 12px; }
ul { margin: 0; padding-left: 20px; } li { overflow-wrap: anywhere; }
td.when { min-width: 220px; } .track { position: relative; height: 12px; margin-top: 5px; background: var(--line); }
.track i { position: absolute; top: 0; bottom: 0; background: var(--move); } .track i.up { background: var(--bar); }
footer { font-size: 13px; border-top: 1px solid var(--line); padding-top: 16px; margin-top: 32px; }
@media print { body { background: none; } .panel { break-inside: avoid; } }
"""


def page(plan: Mapping[str, Any]) -> str:
    """The whole page for a ``plan.json``. Every value in it is taken for hostile."""
    body = _left_out(plan) + _warnings(plan) + _batches(plan) + _vms(plan)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>holdfast: plan</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>Plan</h1><p>{text(headline(plan))}</p><p>{text(bound_line(plan))}</p></header>\n{body}"
        f"<footer>Plan of holdfast, schema {text(plan['schema_version'])}, made {text(plan['created'])}. "
        f"Fleet {text(plan['fleet_sha256'][:16])}.</footer>\n</main>\n</body>\n</html>\n"
    )


def _left_out(plan: Mapping[str, Any]) -> str:
    panels = [_absent(entry) for entry in plan["left_out"]]
    return f"<h2>Not in this plan</h2>\n{''.join(panels)}" if panels else ""


def _absent(entry: Mapping[str, Any]) -> str:
    css = "panel bad" if entry["why"] in ("blocked", "impossible") else "panel"
    told = "".join(
        f"<li>{text(vm['vm'])}: {text(vm['reason'])}<br><small>{text(vm['remedy'])}</small></li>" for vm in entry["vms"]
    )
    listed = f"<ul>{told}</ul>" if told else ""
    return (
        f'<div class="{css}"><b>{text(entry["host"])}</b> {WHY[entry["why"]]}: {text(entry["reason"])}{listed}</div>\n'
    )


def _warnings(plan: Mapping[str, Any]) -> str:
    items = "".join(f"<li>{text(line)}</li>" for line in plan["warnings"])
    return f'<div class="panel warn"><ul>{items}</ul></div>\n' if items else ""


def _batches(plan: Mapping[str, Any]) -> str:
    rows = "".join(_batch(batch, plan) for batch in plan["batches"])
    heads = _heads(("", "Batch"), ("", "Hosts"), ("", "When"), ("", "Moved"), ("number", "Longest pause"))
    return f'<h2>Batches</h2>\n<div class="panel"><table>{heads}<tbody>{rows}</tbody></table></div>\n' if rows else ""


def _batch(batch: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    moves = [f"{moved(move)}" for move in batch["evacuations"]] + [f"home {moved(move)}" for move in batch["returns"]]
    times = f"{begins(batch['start_s'])}, {figures.seconds(batch['seconds'])} long"
    return (
        f"<tr><td>{text(batch['number'])}</td><td>{text(', '.join(batch['hosts']))}</td>"
        f'<td class="when">{text(times)}{_track(batch, plan["seconds"])}</td>'
        f"<td>{''.join(f'<small>{text(line)}</small>' for line in moves)}</td>"
        f'<td class="number">{figures.seconds(longest_pause(batch, plan))}</td></tr>\n'
    )


def _track(batch: Mapping[str, Any], total_s: float) -> str:
    """Migrations and upgrade of one batch on the time of the whole campaign."""
    whole = total_s or 1.0
    spans = [("", batch["start_s"], batch["seconds"]), (' class="up"', batch["upgrade_start_s"], batch["upgrade_s"])]
    bars = (
        f'<i{css} style="left:{100 * start / whole:.2f}%;width:{max(100 * length / whole, 0.3):.2f}%"></i>'
        for css, start, length in spans
    )
    return f'<div class="track">{"".join(bars)}</div>'


def _vms(plan: Mapping[str, Any]) -> str:
    by_host: Dict[str, List[Mapping[str, Any]]] = {}
    for vm in plan["vms"]:
        by_host.setdefault(vm["host"], []).append(vm)
    ordered = [host for batch in plan["batches"] for host in batch["hosts"]]
    return "".join(_host(host, by_host[host]) for host in ordered if host in by_host)


def _host(host: str, vms: Sequence[Mapping[str, Any]]) -> str:
    heads = _heads(("", "VM"), ("", "Treatment"), ("number", "Pause, median"), ("number", "95 of 100"))
    rows = "".join(_vm(vm) for vm in vms)
    note = f"<small>pauses: {text(vms[0]['basis'])}</small>"
    return f'<h2>{text(host)}</h2>\n<div class="panel"><table>{heads}<tbody>{rows}</tbody></table>{note}</div>\n'


def _vm(vm: Mapping[str, Any]) -> str:
    rule = f"<small>{text(vm['rule'])}</small>" if vm["reason"] != vm["rule"] else ""
    return (
        f"<tr><td>{text(vm['name'])}</td>"
        f"<td>{text(vm['treatment'].replace('_', ' '))}<small>{text(vm['reason'])}</small>{rule}</td>"
        f'<td class="number">{figures.seconds(vm["pause_p50_s"])}</td>'
        f'<td class="number">{figures.seconds(vm["pause_p95_s"])}</td></tr>\n'
    )


def _heads(*heads: Sequence[str]) -> str:
    cells = "".join(f'<th class="{css}">{word}</th>' for css, word in heads)
    return f"<thead><tr>{cells}</tr></thead>"
