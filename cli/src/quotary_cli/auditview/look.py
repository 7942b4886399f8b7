# SPDX-License-Identifier: Apache-2.0
"""How the report looks: one style sheet for light, dark, narrow, wide and paper. It names no other file."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from typing import Final

STYLE: Final = """
:root {
  color-scheme: light dark;
  --page: #fbfbfa; --card: #fff; --ink: #1d2126; --soft: #5b646e; --line: #dde1e5; --rail: #eef0f2;
  --ok: #2e7d4f; --bad: #b3261e; --bad-soft: #f6d5d2; --warn: #945700; --warn-fill: #d98a00;
  --open: #5f6973; --open-soft: #dfe3e8;
  --model: #3367b1; --boot: #8793a0; --boot-other: #aab4bf; --seen: #6a4bbc; --on: #fff; --in: #1d2126;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --card: #1c2024; --ink: #e7eaed; --soft: #a0a9b2; --line: #343b42; --rail: #262b30;
    --ok: #5cb885; --bad: #f2867e; --bad-soft: #5a2622; --warn: #e6a94a; --warn-fill: #e6a94a;
    --open: #97a1ab; --open-soft: #3a4148;
    --model: #7aa5e6; --boot: #66717c; --boot-other: #515b65; --seen: #b29cf0; --on: #101214; --in: #f4f6f8;
  }
}
* { box-sizing: border-box; }
html { background: var(--page); color: var(--ink); }
body {
  margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 70rem;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: .6rem 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
p { margin: .35rem 0; }
a { color: inherit; }
code, .hex { font: .875em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code, .hex, li, dd { overflow-wrap: anywhere; }
.soft, caption, .note { color: var(--soft); }
.badge {
  display: inline-block; padding: .15rem .7rem; border-radius: 1rem; font-weight: 650; color: var(--on);
  background: var(--open);
}
.badge.ok { background: var(--ok); } .badge.bad { background: var(--bad); } .badge.warn { background: var(--warn); }
.lead { font-size: 1.1rem; margin-top: .5rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .75rem; margin: 1.5rem 0 0; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; }
.tiles dt { color: var(--soft); font-size: .85rem; } .tiles dd { margin: 0; font-size: 1.35rem; font-weight: 600; }
.tiles dd small { display: block; color: var(--soft); font-size: .8rem; font-weight: 400; }
.findings { list-style: none; padding: 0; margin: 0; display: grid; gap: .6rem; }
.findings li {
  background: var(--card); border: 1px solid var(--line); border-left: .35rem solid var(--open);
  border-radius: .4rem; padding: .6rem .9rem;
}
.findings li.ok { border-left-color: var(--ok); }
.findings li.bad { border-left-color: var(--bad); } .findings li.warn { border-left-color: var(--warn); }
.findings .kind { font-weight: 650; margin-right: .5rem; }
.findings .bad .kind { color: var(--bad); } .findings .warn .kind { color: var(--warn); }
.findings .at { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; background: var(--card); }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--model); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
caption { text-align: left; padding: .6rem .8rem; font-size: .85rem; }
th, td { text-align: left; vertical-align: top; padding: .45rem .8rem; border-top: 1px solid var(--line); }
th { font-weight: 600; white-space: nowrap; color: var(--soft); font-size: .85rem; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td { min-width: 5rem; } td.n { min-width: 0; } td ul { margin: 0; padding-left: 1.1rem; min-width: 13rem; }
td details { min-width: 8rem; }
.tag { display: inline-block; border-radius: .3rem; padding: 0 .45rem; font-size: .85rem; border: 1px solid; }
.tag.ok { color: var(--ok); } .tag.bad { color: var(--bad); font-weight: 650; } .tag.warn { color: var(--warn); }
.tag.open { color: var(--open); }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
details { margin-top: .3rem; } summary { cursor: pointer; color: var(--soft); font-size: .85rem; }
.unknown { padding-left: 1.2rem; } .unknown li { margin: .25rem 0; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; padding: 0; margin: .5rem 0 0; list-style: none;
  font-size: .85rem; color: var(--soft); }
.legend svg { width: 1.1rem; height: .8rem; vertical-align: -1px; margin-right: .35rem; }
footer {
  margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1rem; font-size: .85rem; color: var(--soft);
}
.t { white-space: nowrap; }
.timeline { display: block; overflow: visible; } .timeline svg { overflow: visible; }
.rail { fill: var(--rail); } .grid { stroke: var(--line); stroke-width: 1; }
.tick { fill: var(--soft); font-size: 12px; } .lane { fill: var(--ink); font-size: 13px; }
.inside { fill: var(--in); font-size: 12px; text-anchor: middle; }
.boot { fill: var(--boot); } .boot.other { fill: var(--boot-other); } .model { fill: var(--model); }
rect.ok { fill: var(--ok); } rect.warn { fill: var(--warn-fill); }
rect.bad { fill: url(#hatching); stroke: var(--bad); } rect.open { fill: url(#dotting); stroke: var(--open); }
.hatched { fill: var(--bad-soft); } .hatch { stroke: var(--bad); stroke-width: 2; fill: none; }
.dotted { fill: var(--open-soft); } .dot { fill: var(--open); }
.mark { stroke: var(--card); stroke-width: 1.5; } .mark.bad { fill: var(--bad); } .mark.open { fill: var(--warn-fill); }
.mark.seen { fill: var(--seen); }
@media (max-width: 40rem) {
  body { padding: 1.25rem .8rem 3rem; } h1 { font-size: 1.25rem; }
  th, td { padding: .4rem .55rem; }
}
@media print {
  :root { --page: #fff; --card: #fff; --ink: #000; --soft: #444; --line: #bbb; --rail: #eee; --ok: #2e7d4f;
    --bad: #b3261e; --bad-soft: #f6d5d2; --warn: #945700; --warn-fill: #d98a00;
    --open: #666; --open-soft: #ddd; --model: #3367b1;
    --boot: #777; --boot-other: #999; --on: #fff; --in: #000; }
  body { max-width: none; padding: 0 1px; font-size: 10pt; }
  .scroll { overflow: visible; } tr, .findings li, .tiles div, .timeline { break-inside: avoid; }
  h2 { break-after: avoid; } thead { display: table-header-group; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

SECURITY_POLICY: Final = (
    "default-src 'none'; "
    f"style-src 'sha256-{b64encode(sha256(STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'"
)
"""What a browser may do with the report: show it in this style. No script, image, font, frame or form."""
