"""The dashboard: one page at ``/`` and its files. They hold no data; all of that comes from ``/v1`` with a token."""

from __future__ import annotations

from functools import lru_cache
from html import escape

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from api.dashboard.files import Asset, DashboardFiles
from domain.errors import NotFound

router = APIRouter(include_in_schema=False)

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
}

BARE_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Pruneloop</title>
<meta name="viewport" content="width=device-width, initial-scale=1"></head>
<body><h1>Pruneloop</h1>
<p>The API runs, but the dashboard's libraries are not installed here ({missing}).</p>
<p>Where the server runs, say <code>python -m api.dashboard.install</code> and start it again. It fetches them from the npm
registry, in the versions that <code>api/dashboard/package-lock.json</code> holds by their hashes.</p>
<p>Without them everything works from the command line: <code>pruneloop jobs</code>, <code>pruneloop watch JOB</code>. The API is
described by <a href="/openapi.json">/openapi.json</a>.</p></body></html>
"""


@lru_cache(maxsize=1)
def dashboard_files() -> DashboardFiles:
    return DashboardFiles()


@router.get("/", operation_id="dashboard", summary="The dashboard", response_class=HTMLResponse)
def front_page(request: Request) -> Response:
    files = dashboard_files()
    if files.missing:
        page = BARE_PAGE.format(missing=escape(", ".join(files.missing)))
        return HTMLResponse(page, headers={**HEADERS, "Cache-Control": "no-store"})
    return _answer(request, files.index, "no-cache")


@router.get("/dashboard/{version}/{name:path}", operation_id="dashboardFile", summary="A file of the dashboard")
def dashboard_file(request: Request, version: str, name: str) -> Response:
    files = dashboard_files()
    asset = files.asset(name) if version == files.version else None
    if asset is None:
        raise NotFound("There is no such file of the dashboard; load / again.", metadata={"name": name})
    return _answer(request, asset, "public, max-age=31536000, immutable")


def _answer(request: Request, asset: Asset, cache_control: str) -> Response:
    headers = {**HEADERS, "Cache-Control": cache_control, "Vary": "Accept-Encoding"}
    body = asset.body
    if asset.gzipped is not None and "gzip" in request.headers.get("accept-encoding", ""):
        body = asset.gzipped
        headers["Content-Encoding"] = "gzip"
    return Response(body, media_type=asset.media_type, headers=headers)
