"""The report's looks, embedded in the page; follows the reader's light or dark setting."""

STYLESHEET = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #57606a; --page: #ffffff; --card: #f6f8fa; --line: #d0d7de;
  --link: #0550ae; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --soft: #a8b3bf; --page: #0d1117; --card: #161b22; --line: #3d444d; --link: #7cb7ff; }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem; background: var(--page); color: var(--text);
  font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; }
p, figcaption { max-width: 75ch; }
figcaption, dt, section > p { color: var(--soft); }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -999rem; }
.skip:focus { left: 1rem; top: .5rem; background: var(--page); padding: .5rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.25rem; list-style: none; margin: 1rem 0 0; padding: 0; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr));
  gap: .75rem 1.5rem; margin: 0 0 1rem; }
dl .wide { grid-column: 1 / -1; }
dt { font-size: .85rem; }
dd { margin: 0; overflow-wrap: anywhere; }
code, pre { font: .9rem/1.5 ui-monospace, monospace; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .75rem;
  overflow: auto; max-height: 24rem; }
figure { margin: 0; }
img { display: block; max-width: 100%; height: auto; background: #fff;
  border: 1px solid var(--line); border-radius: 8px; padding: .5rem; }
figcaption { margin-top: .6rem; }
.scroll { overflow: auto; max-height: 32rem; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .4rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { white-space: normal; vertical-align: bottom; position: sticky; top: 0; background: var(--card);
  font-weight: 600; }
tbody tr:last-child > * { border-bottom: 0; }
@media print { .scroll { overflow: visible; max-height: none; } nav, .skip { display: none; } }
"""
