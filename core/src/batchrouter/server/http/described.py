"""The OpenAPI document, as true as the contract: how callers are known, and what refusals are."""

from typing import Any

from fastapi import FastAPI

__all__ = ["IDEMPOTENCY_KEY", "LIST_PARAMETERS", "REFUSALS", "describe"]

#: For a router's `responses`; with a default there, FastAPI adds no 422 of its own.
REFUSALS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "A refusal; clients branch on `error.code`.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["error"],
                    "properties": {
                        "error": {
                            "type": "object",
                            "required": ["code", "message", "details"],
                            "properties": {
                                "code": {"type": "string"},
                                "message": {"type": "string"},
                                "details": {"type": "object"},
                            },
                        }
                    },
                }
            }
        },
    }
}


def _parameter(name: str, schema: dict[str, Any], *, place: str = "query") -> dict[str, Any]:
    return {"name": name, "in": place, "required": False, "schema": schema}


IDEMPOTENCY_KEY = _parameter(
    "Idempotency-Key", {"type": "string", "minLength": 8, "maxLength": 128}, place="header"
)

LIST_PARAMETERS = [
    _parameter("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 20}),
    _parameter("after", {"type": "string"}),
    _parameter("state", {"type": "array", "items": {"type": "string"}}),
    _parameter("updated_after", {"type": "string", "format": "date-time"}),
    _parameter("view", {"type": "string", "enum": ["full", "summary"], "default": "full"}),
]


def describe(app: FastAPI) -> None:
    """Have the document say that everything under `/v1` needs a key."""
    usual = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = usual()
            schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes["api_key"] = {"type": "http", "scheme": "bearer"}
            for path, operations in document["paths"].items():
                if path.startswith("/v1/"):
                    for operation in operations.values():
                        operation["security"] = [{"api_key": []}]
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi
