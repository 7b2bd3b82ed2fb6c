"""The page at /docs: the OpenAPI document as plain HTML, which needs no script and no network."""

from html import escape
from typing import Any

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} API</title></head><body>
<h1>{title} {version}</h1>
<p>The same as a document for programs: <a href="openapi.json">openapi.json</a>. The chat page: <a href="./">/</a>.</p>
{routes}
</body></html>"""


def page_of(document: dict[str, Any]) -> str:
    """Every route with the fields of its body."""
    schemas = document["components"]["schemas"]
    routes = [
        _route(method, path, operation, schemas)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    return PAGE.format(
        **{name: escape(document["info"][name]) for name in ("title", "version")}, routes="".join(routes)
    )


def _route(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    fields = _fields(schemas.get(body.get("$ref", "").rpartition("/")[2], {}))
    return f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation.get('summary', ''))}</p>{fields}"


def _fields(schema: dict[str, Any]) -> str:
    if not schema:
        return ""
    required = schema.get("required", ())
    rows = [
        f"<tr><td><code>{escape(name)}</code>{' (required)' if name in required else ''}</td>"
        f"<td>{escape(_kind(value))}</td></tr>"
        for name, value in schema.get("properties", {}).items()
    ]
    return f"<table>{''.join(rows)}</table>"


def _kind(schema: dict[str, Any]) -> str:
    """A field's type in words."""
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "const" in schema or "enum" in schema:
        return " or ".join(map(repr, schema.get("enum", [schema.get("const")])))
    if "anyOf" in schema:
        return ", or ".join(dict.fromkeys(_kind(part) for part in schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    limits = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    said = [f"{word} {schema[name]}" for name, word in limits.items() if name in schema]
    return " ".join([schema.get("type", "any"), *said])
