"""The TensorBoard tab of the energy account.

TensorBoard finds `plugin.EnergyPlugin` by the entry point `tensorboard_plugins`. What a
person sees is in `static/`: ES modules without a library, and a style sheet.

| File | What lives there |
|---|---|
| `data.py` | from event files to plain data: counts, prices, progress, numerics |
| `plugin.py` | the routes, a thin shell around `data.py` |
| `http_api.md` | the routes with an example of each |
| `static/main.js` | start, state, reload |
| `static/api.js` | requests |
| `static/pricing.js` | counts times prices; the only arithmetic on energies |
| `static/views.js` | one function per section of the page |
| `static/charts.js` | bars, lines, scatter, treemap, histogram as SVG |
| `static/table.js` | sortable tables, CSV and JSON |
| `static/dom.js`, `static/format.js` | elements and tooltips; numbers with SI units |
"""
