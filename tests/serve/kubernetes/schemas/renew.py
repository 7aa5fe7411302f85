"""Write `published.json` again from what its projects publish as packages; the README beside says which.

python -m tests.serve.kubernetes.schemas.renew
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PUBLISHED = HERE / "published.json"
KUBERNETES = ("kubernetes-validate==1.37.0", "v1.37.0-local-strict")
KSERVE = "kserve==0.21.0"
KEDA = "cloudcoil.models.keda==2.16.1.0"
KINDS = {
    "Deployment": "io.k8s.api.apps.v1.Deployment",
    "Service": "io.k8s.api.core.v1.Service",
    "PodDisruptionBudget": "io.k8s.api.policy.v1.PodDisruptionBudget",
    "InferenceService": "kserve.V1beta1InferenceService",
    "ScaledObject": "keda.ScaledObject",
}
PLAIN = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "object": {},
    "datetime": {"type": "string"},
    "ResourceQuantity": {"type": ["string", "number"]},
    "KnativeURL": {"type": "string"},
}
REF = "#/$defs/"
KEDA_SCHEMA = """
import json
from cloudcoil.models.keda.v1alpha1 import ScaledObject
print(json.dumps(ScaledObject.model_json_schema(by_alias=True)))
"""


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "-q", *arguments], check=True)


def wheel(requirement: str, folder: Path) -> zipfile.ZipFile:
    pip("download", "--no-deps", "-d", str(folder), requirement)
    return zipfile.ZipFile(next(folder.glob(f"{re.split('[-.=]', requirement)[0]}*.whl")))


def of_kubernetes(folder: Path) -> dict[str, Any]:
    """Definitions of the Kubernetes API, without properties that it does not know."""
    name = f"kubernetes_validate/kubernetes-json-schema/{KUBERNETES[1]}/_definitions.json"
    return json.loads(wheel(KUBERNETES[0], folder).read(name))["$defs"]


def of_kserve(folder: Path, known: dict[str, Any]) -> dict[str, Any]:
    """Definitions that KServe's SDK was generated from: its classes hold the types of their fields."""
    found = {}
    with wheel(KSERVE, folder) as files:
        for name in files.namelist():
            if name.startswith("kserve/models/"):
                for node in ast.parse(files.read(name)).body:
                    if isinstance(node, ast.ClassDef):
                        found[node.name] = node
    return {f"kserve.{name}": _kserve_class(node, found, known) for name, node in found.items()}


def _kserve_class(node: ast.ClassDef, classes: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    values = {
        n.targets[0].id: ast.literal_eval(n.value)
        for n in node.body
        if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name) and isinstance(n.value, ast.Dict)
    }
    types, names = values["openapi_types"], values["attribute_map"]
    needed = re.findall(r"Invalid value for `(\w+)`, must not be `None`", ast.unparse(node))
    return {
        "type": "object",
        "properties": {names[field]: _kserve_type(kind, classes, known) for field, kind in types.items()},
        "required": sorted({names[field] for field in needed}),
        "additionalProperties": False,
    }


def _kserve_type(kind: str, classes: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    if kind in PLAIN:
        return PLAIN[kind]
    if kind.startswith("list["):
        return {"type": "array", "items": _kserve_type(kind[5:-1], classes, known)}
    if kind.startswith("dict("):
        return {"type": "object", "additionalProperties": _kserve_type(kind[5:-1].split(", ")[1], classes, known)}
    if kind in classes:
        return {"$ref": f"{REF}kserve.{kind}"}
    flat = kind.removeprefix("K8sIo").lower()  # as ApiAppsV1DeploymentStrategy, or V1Container of the core
    for name in known:
        own = name.removeprefix("io.k8s.").replace(".", "").lower()
        if own in (flat, f"apicore{flat}", f"apimachinerypkgapismeta{flat}"):
            return {"$ref": REF + name}
    return {}  # of a project besides; nothing here uses it


def of_keda(folder: Path) -> dict[str, Any]:
    """The ScaledObject, as models that were made from KEDA's CRDs describe it."""
    place = folder / "keda"
    pip("install", "--target", str(place), KEDA)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(place)!r})\n{KEDA_SCHEMA}"]
    whole = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    parts = {"ScaledObject": {k: v for k, v in whole.items() if k != "$defs"}, **whole["$defs"]}
    text = json.dumps(parts).replace(f'"{REF}', f'"{REF}keda.')
    return {f"keda.{name}": _strict(part) for name, part in json.loads(text).items()}


def _strict(part: dict[str, Any]) -> dict[str, Any]:
    """Without properties that it does not know, and without null, which pydantic takes for what is left out."""
    if "properties" in part:
        part = {**part, "additionalProperties": part.get("additionalProperties", False)}
    return json.loads(json.dumps(part), object_hook=_no_null)


def _no_null(value: dict[str, Any]) -> dict[str, Any]:
    choices = [one for one in value.get("anyOf", ()) if one != {"type": "null"}]
    if len(choices) == 1:
        value = {**{k: v for k, v in value.items() if k not in ("anyOf", "default")}, **choices[0]}
    return {k: v for k, v in value.items() if k not in ("title", "default") or not isinstance(v, str | type(None))}


def plain(value: Any, *, names: bool = False) -> Any:
    """Without what only people read; `names` says that the keys are properties' names."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    if not isinstance(value, dict):
        return value
    kept = {k: v for k, v in value.items() if names or not (k in ("description", "title", "default", "examples")
                                                            or k.startswith("x-kubernetes"))}  # fmt: skip
    return {k: plain(v, names=k in ("properties", "$defs") and not names) for k, v in kept.items()}


def reached(known: dict[str, Any]) -> dict[str, Any]:
    """Definitions that the kinds above need; what a cluster writes into `status` is left out."""
    found, open_ = {}, list(KINDS.values())
    while open_:
        name = open_.pop()
        if name not in found:
            part = plain(known[name])
            if name in KINDS.values():
                part["properties"].pop("status", None)
                part["required"] = sorted({"apiVersion", "kind", "metadata", "spec"})
            found[name] = part
            open_ += re.findall(rf'"{re.escape(REF)}([^"]+)"', json.dumps(part))
    return dict(sorted(found.items()))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        known = of_kubernetes(Path(name))
        for part in json.loads(json.dumps(known)):
            known[part] = json.loads(json.dumps(known[part]).replace("_definitions.json", ""))
        known |= of_kserve(Path(name), known) | of_keda(Path(name))
    written = {"kinds": {kind: {"$ref": REF + name} for kind, name in KINDS.items()}, "$defs": reached(known)}
    PUBLISHED.write_text(json.dumps(written, separators=(",", ":"), sort_keys=True) + "\n", encoding="utf-8")
    print(f"{PUBLISHED.name}: {len(written['$defs'])} definitions, {PUBLISHED.stat().st_size} bytes")


if __name__ == "__main__":
    main()
