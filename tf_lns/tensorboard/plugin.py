"""`EnergyPlugin`: the routes of the TensorBoard tab; see http_api.md for what each returns."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Iterable
from typing import Any

from tensorboard import plugin_util
from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from tf_lns.energy.events import PLUGIN_NAME
from tf_lns.tensorboard.data import EnergyData, NotFoundError, RequestError

_TYPES = {".css": "text/css", ".html": "text/html", ".js": "application/javascript"}
_STATIC = importlib.resources.files("tf_lns.tensorboard") / "static"


class EnergyPlugin(base_plugin.TBPlugin):
    """The tab "LNS Energy" of TensorBoard.

    Args:
        context: What TensorBoard hands to each plugin.
    """

    plugin_name = PLUGIN_NAME

    def __init__(self, context: base_plugin.TBContext):
        hints = context.sampling_hints or {}
        self._data = EnergyData(context.data_provider, hints.get(PLUGIN_NAME))

    def get_plugin_apps(self) -> dict[str, Callable[..., Any]]:
        """One route per kind of data and one per file: no path is taken from a request."""
        data = self._data
        apps = {
            "/runs": _json(data.runs),
            "/counts": _json(data.counts, "run"),
            "/progress": _json(data.progress, "run"),
            "/numerics": _json(data.numerics, "run", optional=("step",)),
            "/tables": _json(data.tables),
        }
        for file in _STATIC.iterdir():
            type_ = _TYPES.get(file.name[file.name.rfind(".") :])
            if type_:
                apps[f"/static/{file.name}"] = _file(file, type_)
        return apps

    def is_active(self) -> bool:
        """Never by itself: TensorBoard shows the tab where `data_plugin_names` have data."""
        return False

    def data_plugin_names(self) -> tuple[str, ...]:
        """Whose data make the tab appear."""
        return (PLUGIN_NAME,)

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """The page reloads by itself, so TensorBoard's own reload is not needed."""
        return base_plugin.FrontendMetadata(
            es_module_path="/static/main.js", tab_name="LNS Energy", disable_reload=True
        )


def _json(
    answer: Callable[..., Any], *required: str, optional: Iterable[str] = ()
) -> Callable[..., Any]:
    """Route that calls `answer(context, experiment, *arguments of the query)`."""

    @wrappers.Request.application
    def route(request: wrappers.Request) -> wrappers.Response:
        if request.method not in ("GET", "HEAD"):
            return _error(request, f"Only GET is understood. Received: {request.method}", 405)
        missing = [name for name in required if name not in request.args]
        if missing:
            return _error(request, f"The query lacks {missing[0]!r}: ?{missing[0]}=...", 400)
        arguments = [request.args.get(name) for name in (*required, *optional)]
        environ = request.environ
        try:
            content = answer(
                plugin_util.context(environ), plugin_util.experiment_id(environ), *arguments
            )
        except NotFoundError as error:
            return _error(request, str(error), 404)
        except RequestError as error:
            return _error(request, str(error), 400)
        return http_util.Respond(request, content, "application/json")

    return route


def _file(file: Any, type_: str) -> Callable[..., Any]:
    """Route that returns one file of `static/`."""

    @wrappers.Request.application
    def route(request: wrappers.Request) -> wrappers.Response:
        return http_util.Respond(request, file.read_bytes(), type_)

    return route


def _error(request: wrappers.Request, message: str, code: int) -> wrappers.Response:
    return http_util.Respond(request, message, "text/plain", code=code)
