"""Errors as RFC 9457 problem documents: the one place that maps classes to HTTP answers."""

from __future__ import annotations

import msgspec
from aiohttp import web

from holdfast_contract.errors import HoldfastError, InternalError, NotFound, TooLarge, UsageError
from holdfast_contract.protocol.http import Problem

PROBLEM_TYPE = "application/problem+json"


def problem_of(error: HoldfastError, request_id: str, status: int | None = None) -> Problem:
    """Return the document that tells `error`; `status` only where HTTP has a finer one."""
    return Problem(
        type=f"urn:holdfast:problem:{error.code}",
        title=error.code.replace("-", " ").capitalize(),
        status=status or error.http_status,
        code=error.code,
        detail=error.message,
        hint=error.hint,
        exit=error.exit_code,
        details=error.details,
        request_id=request_id,
    )


def problem_response(
    error: HoldfastError, request_id: str, status: int | None = None
) -> web.Response:
    """Return the answer that tells `error`."""
    document = problem_of(error, request_id, status)
    headers = {"WWW-Authenticate": "Bearer"} if document.status == 401 else None
    return web.Response(
        body=msgspec.json.encode(document),
        status=document.status,
        content_type=PROBLEM_TYPE,
        headers=headers,
    )


def error_of_http(error: web.HTTPException) -> HoldfastError:
    """Return what aiohttp found wrong with a request in our words."""
    if error.status == 404:
        return NotFound("no such route", hint="GET /v1/openapi.json lists the routes")
    if error.status == 413:
        return TooLarge("the request is too large")
    if error.status == 405:
        return UsageError("this route does not know this method")
    if error.status < 500:
        return UsageError(f"the request is malformed: {error.reason}")
    return InternalError("the request could not be answered")
