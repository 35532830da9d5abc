"""How an insight's page looks, on a screen, light or dark, and on paper. Colours are named by what they are for."""

STYLE = """
:root { --page: #fff; --text: #1d2430; --soft: #5b6675; --rule: #d9dee5; --ours: #1f5fbf; --theirs: #8a94a3;
  --wide: #1f5fbf1f; --narrow: #1f5fbf33; --good: #146c43; --usable: #8a5a00; --poor: #b02a37; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14181f; --text: #e6e9ee; --soft: #a3adba; --rule: #333b47; --ours: #7db1ff; --theirs: #8a94a3;
    --wide: #7db1ff1f; --narrow: #7db1ff3d; --good: #62c796; --usable: #e5b454; --poor: #ff8a94; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 800px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 12px; overflow-wrap: anywhere; }
h2 { font-size: 21px; margin: 44px 0 10px; }
h3 { font-size: 16px; margin: 22px 0 6px; }
.above { color: var(--soft); margin: 0; }
.headline { font-size: 20px; line-height: 1.4; margin: 0 0 8px; padding-left: 14px; border-left: 5px solid; }
.headline.good { border-color: var(--good); }
.headline.usable { border-color: var(--usable); }
.headline.poor { border-color: var(--poor); }
.short { margin: 4px 0 0 19px; }
strong.good { color: var(--good); }
strong.usable { color: var(--usable); }
strong.poor { color: var(--poor); }
.note, figcaption { color: var(--soft); font-size: 14px; }
.reason { border-left: 3px solid var(--rule); padding-left: 12px; }
figure { margin: 18px 0 26px; }
svg { width: 100%; height: auto; display: block; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); vertical-align: bottom; }
th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--rule); }
td { overflow-wrap: anywhere; }
h1, td { unicode-bidi: isolate; }
details { margin-top: 18px; }
summary { cursor: pointer; font-weight: 600; }
.grid { stroke: var(--rule); stroke-width: 1; }
.axis { stroke: var(--soft); stroke-width: 1; }
.mark { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 3; }
.tick, .label { fill: var(--soft); font-size: 12px; }
.label { fill: var(--text); font-weight: 600; }
.end { text-anchor: end; }
.middle { text-anchor: middle; }
.line { fill: none; stroke-width: 2.5; stroke-linejoin: round; }
.line.ours { stroke: var(--ours); }
.line.general { stroke: var(--theirs); stroke-dasharray: 7 4; stroke-width: 2; }
.line.chance { stroke: var(--theirs); stroke-dasharray: 1 4; stroke-linecap: round; stroke-width: 2; }
.band { fill: var(--narrow); }
.band.wide { fill: var(--wide); }
.key { display: flex; flex-wrap: wrap; gap: 4px 22px; margin: 4px 0 8px; padding-left: 62px; font-size: 14px; }
.key span { display: flex; align-items: center; gap: 7px; }
.sample { width: 26px; height: 10px; }
.bars { width: 130px; height: 14px; }
.bar.ours { fill: var(--ours); }
.bar.theirs { fill: var(--theirs); }
@media print {
  :root { --page: #fff; --text: #000; --soft: #444; --rule: #ccc; --ours: #1f5fbf; --theirs: #777; --wide: #1f5fbf1f;
    --narrow: #1f5fbf33; --good: #146c43; --usable: #8a5a00; --poor: #b02a37; }
  main { max-width: none; padding: 0; }
  figure, tr, .reason { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""
