# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report as one HTML page that needs nothing else: no script, no network, light and dark."""

from __future__ import annotations

from typing import Any, List, Mapping, Tuple

from . import figures
from .build import LIVE, RESTART, carried_on, longest_pause, pauses
from .picture import svg, text
from .summary import RESULT_WORDS, VM_WORDS
from .timeline import timeline

# The browser is told to load and run nothing: a second lock behind the escaping of every value.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

_STYLE = """
:root { color-scheme: light dark;
  --paper: #f5f6f4; --card: #ffffff; --ink: #1c2430; --soft: #5d6878; --line: #e1e4e3; --grid: #eceeed;
  --good: #1d7a5f; --good-wash: #e3f2ec; --warn: #8f5b00; --warn-wash: #fbf1dc; --bad: #b3382c; --bad-wash: #fbe9e6;
  --save: #d9983a; --held: #b9d5cb; --load: #2f8f73;
  --early: #c3c9ce; --suspend: #d9983a; --jump: #7d74c9; --boot: #5b8fc4; --attach: #4aa6a8;
  --libvirt: #94a1ad; --restore: #2f8f73; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14181d; --card: #1c2228; --ink: #e6e9ec; --soft: #98a3b0; --line: #2d353d; --grid: #262d34;
  --good: #63c7a5; --good-wash: #17352c; --warn: #e2b35a; --warn-wash: #362a12; --bad: #f08a7d; --bad-wash: #3d1f1b;
  --save: #c98d38; --held: #33554a; --load: #4aae90;
  --early: #4b555f; --suspend: #c98d38; --jump: #8d85d8; --boot: #5f97d0; --attach: #48a3a5;
  --libvirt: #77848f; --restore: #4aae90; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif; }
main { max-width: 1140px; margin: 0 auto; padding: 44px 24px 32px; }
header { margin: 0 0 28px; }
h1 { font-size: 28px; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 6px; overflow-wrap: anywhere; }
header p { margin: 0; color: var(--soft); }
section { margin: 0 0 44px; }
h2 { font-size: 20px; margin: 0; overflow-wrap: anywhere; }
h3 { font-size: 13px; font-weight: 600; color: var(--soft); margin: 0 0 12px; }
.host { display: flex; flex-wrap: wrap; align-items: center; gap: 12px; margin: 0 0 14px; }
.pill { font-size: 13px; font-weight: 600; padding: 3px 12px; border-radius: 99px; }
.pill.upgraded { color: var(--good); background: var(--good-wash); }
.pill.skipped { color: var(--soft); background: var(--line); }
.pill.fell_back, .pill.aborted { color: var(--warn); background: var(--warn-wash); }
.pill.failed { color: var(--bad); background: var(--bad-wash); }
.panel { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 20px 24px;
  margin: 0 0 16px; overflow-x: auto; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 12px; margin: 0 0 16px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px; }
.card dt { color: var(--soft); font-size: 13px; }
.card dd { margin: 2px 0 0; font-size: 18px; font-weight: 600; letter-spacing: -0.015em; overflow-wrap: anywhere; }
.card dd small { display: block; font-size: 13px; font-weight: 400; letter-spacing: 0; color: var(--soft); }
dl { margin: 0; }
.error { border-color: var(--bad); color: var(--bad); background: var(--bad-wash); overflow-wrap: anywhere;
  white-space: pre-line; }
.error.mild { border-color: var(--line); color: var(--soft); background: var(--card); }
.warnings { background: var(--warn-wash); border-color: transparent; }
.warnings h3 { color: var(--warn); }
.warnings ul { margin: 0; padding-left: 20px; } .warnings li { overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th { text-align: left; font-weight: 500; font-size: 13px; color: var(--soft);
  padding: 0 14px 8px 0; white-space: nowrap; }
td { border-top: 1px solid var(--line); padding: 9px 14px 9px 0; vertical-align: top; }
th.number, td.number { text-align: right; white-space: nowrap; padding-right: 28px; }
td.name { min-width: 130px; max-width: 260px; overflow-wrap: anywhere; }
td small { display: block; color: var(--soft); font-size: 12px; overflow-wrap: anywhere; }
td .resumed, td .untouched, td .moved, td .returned, td .started { color: var(--good); }
td .restarted { color: var(--warn); font-weight: 600; }
td .suspended, td .failed, td .lost, td .given_up { color: var(--bad); font-weight: 600; }
td code, .ids { font: 12px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  color: var(--soft); }
.ids { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; overflow-wrap: anywhere; padding: 0 2px; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 20px; margin: 12px 0 0; font-size: 13px; color: var(--soft); }
.legend i { display: inline-block; width: 18px; height: 10px; margin-right: 7px; vertical-align: 0; }
.legend .save { background: var(--save); }
.legend .held { background: var(--held); } .legend .load { background: var(--load); }
.legend .lost { background: var(--bad); opacity: 0.45; }
svg.timeline { display: block; width: 100%; min-width: 860px; height: auto; font-size: 13px; }
svg text { fill: var(--ink); font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--grid); } svg .zero { stroke: var(--soft); stroke-dasharray: 2 3; }
svg .tick { fill: var(--soft); font-size: 12px; text-anchor: middle; }
svg .heading { fill: var(--soft); font-size: 12px; text-anchor: end; }
svg .phase-name { font-size: 12.5px; text-anchor: middle; font-weight: 600; }
svg .phase-time { font-size: 12px; text-anchor: middle; fill: var(--soft); }
svg .leader { fill: none; stroke: var(--early); }
svg .phase { fill: var(--early); } svg .phase.suspend { fill: var(--suspend); } svg .phase.jump { fill: var(--jump); }
svg .phase.boot { fill: var(--boot); } svg .phase.attach { fill: var(--attach); }
svg .phase.libvirt { fill: var(--libvirt); } svg .phase.restore { fill: var(--restore); }
svg .name { font-weight: 500; } svg .empty { fill: var(--soft); }
svg .pause { text-anchor: end; font-weight: 600; } svg .size { text-anchor: end; fill: var(--soft); font-size: 12.5px; }
svg .saving { fill: var(--save); } svg .held { fill: var(--held); } svg .restoring { fill: var(--load); }
svg .held.lost { fill: var(--bad); opacity: 0.35; }
svg .restoring.lost, svg .saving.lost { fill: var(--bad); opacity: 0.6; }
svg .good circle { fill: var(--good-wash); } svg .good path { stroke: var(--good); stroke-width: 1.8; fill: none; }
svg .unsure circle { fill: var(--warn-wash); } svg .unsure path { stroke: var(--warn); stroke-width: 1.8; }
svg .bad circle { fill: var(--bad-wash); } svg .bad path { stroke: var(--bad); stroke-width: 1.8; }
footer { color: var(--soft); font-size: 13px; border-top: 1px solid var(--line); padding-top: 16px; }
@media print { body { background: none; } .panel, .card { break-inside: avoid; } }
"""


def page(report: Mapping[str, Any]) -> str:
    """The whole page for a report that keeps to the schema. Every value in it is taken for hostile."""
    body = "".join(_host(host) for host in report["hosts"]) or "<p>No host took part.</p>"
    title = f"holdfast: {text(report['campaign'])}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{text(report['campaign'])}</h1><p>{_headline(report)}</p></header>\n"
        f"{body}\n<footer>Report of holdfast, schema {text(report['schema_version'])}, "
        f"written {text(report['created'])}.</footer>\n</main>\n</body>\n</html>\n"
    )


def _headline(report: Mapping[str, Any]) -> str:
    hosts, vms = report["hosts"], [vm for host in report["hosts"] for vm in host["vms"]]
    upgraded = sum(1 for host in hosts if host["result"] == "upgraded")
    told = [f"{upgraded} of {_count(len(hosts), 'host')} upgraded"]
    if vms:
        told.append(f"{carried_on(vms)} of {_count(len(vms), 'VM')} carried on")
    if longest_pause(vms) is not None:
        told.append(f"longest pause {figures.seconds(longest_pause(vms))}")
    return ", ".join(told)


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _host(host: Mapping[str, Any]) -> str:
    return (
        f'<section>\n<div class="host"><h2>{text(host["host"])}</h2>'
        f'<span class="pill {text(host["result"])}">{RESULT_WORDS[host["result"]]}</span></div>\n'
        + _error(host)
        + _cards(host)
        + _timeline(host)
        + _vms(host)
        + _boot(host)
        + _warnings(host)
        + _ids(host)
        + "</section>\n"
    )


def _error(host: Mapping[str, Any]) -> str:
    if not host["error"]:
        return ""
    mild = " mild" if host["result"] == "skipped" else ""
    lines = "\n".join(text(line) for line in host["error"].splitlines())
    return f'<div class="panel error{mild}">{lines}</div>\n'


def _cards(host: Mapping[str, Any]) -> str:
    cards = [_change_card("Kernel", host["kernel"]), _change_card("QEMU", host["qemu"])]
    if host["vms"]:
        cards.append(("VMs carried on", f"{carried_on(host['vms'])} of {len(host['vms'])}", ""))
        cards.append(("Longest pause", figures.seconds(longest_pause(host["vms"])), _shortest(host)))
    shown = [_card(*card) for card in cards if card[1] != figures.UNKNOWN]
    return f'<div class="cards">{"".join(shown)}</div>\n' if shown else ""


def _change_card(title: str, pair: Mapping[str, str]) -> Tuple[str, str, str]:
    before, after = pair["from"], pair["to"]
    return title, after or before or figures.UNKNOWN, f"from {before}" if before and after and before != after else ""


def _shortest(host: Mapping[str, Any]) -> str:
    found = pauses(host["vms"])
    return f"shortest {figures.seconds(min(found))}" if len(found) > 1 else ""


def _card(title: str, value: str, note: str) -> str:
    small = f"<small>{text(note)}</small>" if note else ""
    return f'<dl class="card"><dt>{title}</dt><dd>{text(value)}{small}</dd></dl>'


def _timeline(host: Mapping[str, Any]) -> str:
    drawing, picture = svg(host), timeline(host)
    if picture is None:
        return ""
    earlier = ", ".join(f"{text(phase.name)} {figures.seconds(phase.seconds)}" for phase in picture.earlier)
    before = f"<span>before the picture: {earlier}</span>" if earlier else ""
    lost = "" if all(bar.ended for bar in picture.bars) else '<span><i class="lost"></i>never resumed</span>'
    legend = (
        '<div class="legend"><span><i class="save"></i>pausing, saving device state</span>'
        '<span><i class="held"></i>paused, RAM stays in place</span>'
        f'<span><i class="load"></i>restoring device state</span>{lost}{before}</div>'
    )
    return f'<div class="panel"><h3>From pause to resume</h3>{drawing}{legend if picture.bars else before}</div>\n'


def _vms(host: Mapping[str, Any]) -> str:
    if not host["vms"]:
        return ""
    heads = (
        ("", "VM"),
        ("", "Treatment"),
        ("", "Result"),
        ("number", "Pause"),
        ("number", "RAM"),
        ("number", "State"),
        ("", "RAM verified"),
    )
    head = "".join(f'<th class="{css}">{word}</th>' for css, word in heads)
    rows = "".join(_vm(vm) for vm in host["vms"])
    return f'<div class="panel"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>\n'


def _vm(vm: Mapping[str, Any]) -> str:
    reason = f"<small>{text(vm['reason'])}</small>" if vm["reason"] else ""
    error = f"<small>{text(vm['error'])}</small>" if vm["error"] else ""
    verified = "yes" if vm["ram_verified"] else "" if vm["treatment"] in (LIVE, RESTART) else "no"
    return (
        f'<tr><td class="name">{text(vm["name"])}<small><code>{text(vm["uuid"])}</code></small></td>'
        f"<td>{text(vm['treatment'].replace('_', ' '))}{reason}</td>"
        f'<td><span class="{text(vm["result"])}">{text(VM_WORDS.get(vm["result"], vm["result"]))}</span>{error}</td>'
        f'<td class="number">{figures.seconds(vm["pause_s"])}{_prediction(vm)}</td>'
        f'<td class="number">{figures.size(vm["ram_bytes"])}</td>'
        f'<td class="number">{figures.size(vm["state_bytes"])}</td><td>{verified}</td></tr>'
    )


def _prediction(vm: Mapping[str, Any]) -> str:
    """What the plan had said, beside what happened."""
    if vm["predicted_pause_s"] is None:
        return ""
    return f"<small>planned: up to {figures.seconds(vm['predicted_pause_s'])}</small>"


def _boot(host: Mapping[str, Any]) -> str:
    if not host["boot"]:
        return ""
    rows = "".join(
        f'<tr><td class="name">{text(step["name"])}</td><td class="number">{figures.seconds(step["start"])}</td>'
        f'<td class="number">{figures.seconds(step["seconds"])}</td></tr>'
        for step in host["boot"]
    )
    head = '<th>Waited for</th><th class="number">Began</th><th class="number">Took</th>'
    return (
        '<div class="panel"><h3>From the new kernel\'s start to the restore</h3>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>\n"
    )


def _warnings(host: Mapping[str, Any]) -> str:
    if not host["warnings"]:
        return ""
    items = "".join(f"<li>{text(line)}</li>" for line in host["warnings"])
    return f'<div class="panel warnings"><h3>Warnings</h3><ul>{items}</ul></div>\n'


def _ids(host: Mapping[str, Any]) -> str:
    rows: List[Tuple[str, str]] = [("generation", host["generation"])]
    rows += [("boot id", f"{host['boot_id']['from']} → {host['boot_id']['to']}")] if host["boot_id"]["to"] else []
    cells = "".join(f"<span>{name}</span><span>{text(value)}</span>" for name, value in rows if value)
    return f'<div class="ids">{cells}</div>\n' if cells else ""
