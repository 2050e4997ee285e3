"""As much of kustomize as our kustomizations use, so that what they render is checked where there is no kubectl."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
KNOWN = {
    "apiVersion", "kind", "namespace", "resources", "images", "patches", "configMapGenerator", "generatorOptions",
}  # fmt: skip
CLUSTER_WIDE = {"Namespace"}


def load(path: Path) -> list[Manifest]:
    """The documents of a file."""
    return [one for one in yaml.safe_load_all(path.read_text("utf-8")) if one is not None]


def render(folder: Path) -> list[Manifest]:
    """What `kubectl kustomize FOLDER` prints, in the order of the resources. AssertionError on what is not known."""
    (config,) = load(folder / "kustomization.yaml")
    assert not set(config) - KNOWN, f"{folder}: {sorted(set(config) - KNOWN)} is not known here"
    found: list[Manifest] = []
    for name in config.get("resources", []):
        path = folder / name
        found += render(path) if path.is_dir() else load(path)
    for made in config.get("configMapGenerator", []):
        assert config["generatorOptions"] == {"disableNameSuffixHash": True}
        data = {file: (folder / file).read_text("utf-8") for file in made["files"]}
        found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": made["name"]}, "data": data})
    for patch in config.get("patches", []):
        steps: list[dict[str, Any]] = yaml.safe_load((folder / patch["path"]).read_text("utf-8"))
        targets = [one for one in found if _is_meant(one, patch["target"])]
        assert targets, f"{folder}: {patch['target']} is nothing here"
        for target in targets:
            for step in steps:
                _apply(target, copy.deepcopy(step))
    for image in config.get("images", []):
        for one in found:
            _rename(one, image)
    if namespace := config.get("namespace"):
        for one in found:
            if one["kind"] not in CLUSTER_WIDE:
                one["metadata"]["namespace"] = namespace
    return found


def pod_of(manifest: Manifest) -> Manifest | None:
    """The pod template that a manifest holds, if it does."""
    template = manifest.get("spec", {}).get("template")
    return template if isinstance(template, dict) and "containers" in template.get("spec", {}) else None


def _is_meant(manifest: Manifest, target: dict[str, str]) -> bool:
    assert set(target) <= {"kind", "name"}
    return manifest["kind"] == target["kind"] and target.get("name") in (None, manifest["metadata"]["name"])


def _apply(manifest: Manifest, step: dict[str, Any]) -> None:
    """One step of a JSON patch (RFC 6902)."""
    *path, last = [part.replace("~1", "/").replace("~0", "~") for part in step["path"].split("/")[1:]]
    place: Any = manifest
    for part in path:
        place = place[int(part)] if isinstance(place, list) else place[part]
    key: Any = int(last) if isinstance(place, list) else last
    if step["op"] == "test":
        assert place[key] == step["value"], step
    elif step["op"] == "replace":
        assert isinstance(place, list) or key in place, step
        place[key] = step["value"]
    else:
        assert step["op"] == "add" and isinstance(place, dict), step
        place[key] = step["value"]


def _rename(manifest: Manifest, image: dict[str, str]) -> None:
    for container in (pod_of(manifest) or {"spec": {"containers": []}})["spec"]["containers"]:
        name, _, tag = container["image"].partition(":")
        if name == image["name"]:
            container["image"] = f"{image.get('newName', name)}:{image.get('newTag', tag)}"
