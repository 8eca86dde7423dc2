// Starts the page where it is opened on its own: data/plugin/lns_energy/static/index.html.

import { render } from "./main.js";

render();
