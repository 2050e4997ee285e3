"""The manifests of deploy/kubernetes, as rendered: valid, confined, and each service reaching only what it needs."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from _pytest.mark import ParameterSet

from deploy.nats import users
from llamaduo.bus import rights, topology
from llamaduo.settings import ServiceSettings
from services.inference.settings import InferenceSettings
from services.judge.settings import JudgeSettings
from tests.kustomization import Manifest, pod_of, render
from tests.support import ROOT, nats_binary

FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "gpu")
VERSION = "1.37"
OWN_KINDS = {"ScaledObject"}
"""Kinds that are not Kubernetes's own."""
EVALUATORS = {"judge": "evaluator-llm-judge", "judge-exact": "evaluator-exact-match"}


def named(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


ALL = {overlay: render(FOLDER / overlay) for overlay in OVERLAYS}
EVERY = [(f"{overlay}-{named(one)}", one) for overlay in OVERLAYS for one in ALL[overlay]]


def only(wanted: Callable[[Manifest], bool]) -> list[ParameterSet]:
    """Cases: the manifests of all overlays that this holds for."""
    return [pytest.param(one, id=name) for name, one in EVERY if wanted(one)]


PODS = only(lambda one: pod_of(one) is not None)


def of_kind(kind: str, overlay: str = "cpu") -> dict[str, Manifest]:
    return {one["metadata"]["name"]: one for one in ALL[overlay] if one["kind"] == kind}


def test_the_renderer_does_what_kustomize_does() -> None:
    """Where there is a kubectl; and without one that it puts in what the patches say."""
    deployment = of_kind("Deployment")["verdict"]
    assert deployment["metadata"]["namespace"] == "llamaduo"
    assert deployment["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"] == "/readyz"
    kubectl = shutil.which("kubectl")
    for overlay in OVERLAYS if kubectl else ():
        command = [str(kubectl), "kustomize", str(FOLDER / overlay)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        theirs = {named(one): one for one in yaml.safe_load_all(done.stdout)}
        assert theirs == {named(one): one for one in ALL[overlay]}


@pytest.mark.parametrize("manifest", only(lambda one: one["kind"] not in OWN_KINDS))
def test_a_manifest_is_valid(manifest: Manifest) -> None:
    kubernetes_validate.validate(manifest, VERSION, strict=True)
    spoiled = copy.deepcopy(manifest)
    spoiled["metadata"]["nmae"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(spoiled, VERSION, strict=True)


@pytest.mark.parametrize("manifest", PODS)
def test_a_pod_may_do_nothing_that_it_need_not(manifest: Manifest) -> None:
    spec = (pod_of(manifest) or {})["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName", "initContainers"} & set(spec)
    whole = spec["securityContext"]
    assert whole["runAsNonRoot"] is True and whole["runAsUser"] > 0
    assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert ":" in container["image"] and not container["image"].endswith(":latest")
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]} | (
            {"log"} if manifest["kind"] == "StatefulSet" else set()
        )
    for volume in spec["volumes"]:
        assert "hostPath" not in volume
        assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"]


@pytest.mark.parametrize("manifest", only(lambda one: one["kind"] in ("Deployment", "StatefulSet")))
def test_what_goes_on_for_ever_is_looked_after(manifest: Manifest) -> None:
    (container,) = (pod_of(manifest) or {})["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] in ports
    budget = of_kind("PodDisruptionBudget")[manifest["metadata"]["name"]]
    assert budget["spec"]["selector"] == manifest["spec"]["selector"]
    assert (
        manifest["spec"]["selector"]["matchLabels"].items()
        <= manifest["spec"]["template"]["metadata"]["labels"].items()
    )


def test_every_service_of_the_topology_is_there_as_a_user_of_its_own() -> None:
    wanted = set(rights.users())
    seen = {}
    for name, deployment in of_kind("Deployment").items():
        (container,) = (pod_of(deployment) or {})["spec"]["containers"]
        environment = {one["name"]: one["value"] for one in container["env"]}
        user = environment["LLAMADUO_NATS_USER"]
        assert user == EVALUATORS.get(name, name)
        assert environment.get("LLAMADUO_EVALUATOR") == (
            user.removeprefix("evaluator-") if name in EVALUATORS else None
        )
        seen[user] = name
    assert set(seen) == wanted


@pytest.mark.parametrize("manifest", PODS)
def test_a_secret_is_a_file_and_a_service_has_no_password_but_its_own(manifest: Manifest) -> None:
    text = yaml.safe_dump(manifest)
    assert "secretKeyRef" not in text and "secretRef" not in text
    spec = (pod_of(manifest) or {})["spec"]
    if manifest["kind"] == "StatefulSet":
        return
    (volume,) = [one for one in spec["volumes"] if one["name"] == "bus"]
    (container,) = spec["containers"]
    user = {one["name"]: one["value"] for one in container["env"]}["LLAMADUO_NATS_USER"]
    assert volume["secret"]["items"] == [{"key": users.password_variable(user), "path": "password"}]
    settings = of_kind("ConfigMap")["settings"]["data"]
    (mount,) = [one for one in container["volumeMounts"] if one["name"] == "bus"]
    assert settings["LLAMADUO_NATS_PASSWORD_FILE"] == f"{mount['mountPath']}/password"


def test_every_variable_is_a_setting() -> None:
    known = {
        f"LLAMADUO_{name}".upper()
        for model in (ServiceSettings, InferenceSettings, JudgeSettings)
        for name in model.model_fields
    }
    for overlay in OVERLAYS:
        assert set(re.findall(r"LLAMADUO_[A-Z_]+", yaml.safe_dump_all(ALL[overlay]))) <= known


def test_images_are_those_of_the_dockerfile() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE))
    images = {
        container["image"].removeprefix("llamaduo/").partition(":")[0]
        for one in ALL["cpu"]
        for container in (pod_of(one) or {"spec": {"containers": []}})["spec"]["containers"]
        if container["image"].startswith("llamaduo/")
    }
    assert images == {"cli", "synthesizer", "judge", "verdict", "trainer", "inference"} <= stages


# --- who reaches whom


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def reached(labels: dict[str, str]) -> set[tuple[str, int]]:
    """(app, port) and ("outside", port) that a pod with these labels may speak to, by the rules of both ends."""
    pods = {
        one["metadata"]["name"]: (pod_of(one) or {})["metadata"]["labels"]
        for one in ALL["cpu"]
        if pod_of(one) is not None
    }
    policies = of_kind("NetworkPolicy").values()
    found: set[tuple[str, int]] = set()
    for policy in policies:
        if "Egress" not in policy["spec"]["policyTypes"] or not selects(policy["spec"]["podSelector"], labels):
            continue
        for rule in policy["spec"].get("egress", []):
            for port in [one["port"] for one in rule["ports"]]:
                for peer in rule["to"]:
                    if "ipBlock" in peer:
                        found.add(("outside", port))
                    elif "namespaceSelector" in peer:
                        found.add(("names", port))
                    else:
                        found |= {(app, port) for app, its in pods.items() if selects(peer["podSelector"], its)}
    taken = {
        (app, port)
        for app, its in pods.items()
        for policy in policies
        if selects(policy["spec"]["podSelector"], its)
        for rule in policy["spec"].get("ingress", [])
        for peer in rule["from"]
        if "namespaceSelector" not in peer and selects(peer["podSelector"], labels)
        for port in [one["port"] for one in rule["ports"]]
    }
    return {one for one in found if one[0] in ("outside", "names")} | (found & taken)


def test_all_that_is_not_allowed_is_denied() -> None:
    deny = of_kind("NetworkPolicy")["nothing"]["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_a_service_reaches_the_bus_and_those_who_need_it_the_outside() -> None:
    names = {("names", 53)}
    bus = names | {("nats", 4222)}
    outside = bus | {("outside", 443)}
    wanted = {
        "synthesizer": outside, "judge": outside, "trainer": outside, "inference": outside,
        "verdict": bus, "judge-exact": bus, "bootstrap": bus, "nats": names | {("nats", 6222)},
    }  # fmt: skip
    for one in ALL["cpu"]:
        if pod_of(one) is not None:
            name = one["metadata"]["name"]
            assert reached((pod_of(one) or {})["metadata"]["labels"]) == wanted[name], name
    assert reached({"app": "stranger"}) == names


def test_the_outside_is_not_the_cluster() -> None:
    for policy in of_kind("NetworkPolicy").values():
        for rule in policy["spec"].get("egress", []):
            for peer in rule["to"]:
                if "ipBlock" in peer:
                    assert {"10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"} <= set(
                        peer["ipBlock"]["except"]
                    )


# --- scale


def test_replicas_follow_what_waits_at_a_durable_that_there_is() -> None:
    durables = {durable.name for contract in topology.SERVICES.values() for durable in contract.durables}
    deployments, ports = of_kind("Deployment"), of_kind("Service")["nats"]["spec"]["ports"]
    scaled = of_kind("ScaledObject")
    assert set(scaled) == {"judge", "inference"}
    for name, one in scaled.items():
        assert (one["apiVersion"], set(one["spec"])) == (
            "keda.sh/v1alpha1",
            {"scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod", "triggers"},
        )
        target = deployments[one["spec"]["scaleTargetRef"]["name"]]
        assert "replicas" not in target["spec"], "each apply would set back what KEDA has set"
        assert 1 <= one["spec"]["minReplicaCount"] < one["spec"]["maxReplicaCount"]
        (trigger,) = one["spec"]["triggers"]
        told = trigger["metadata"]
        assert trigger["type"] == "nats-jetstream" and told["stream"] == topology.EVENTS and told["account"] == "$G"
        assert told["consumer"] in durables and int(told["lagThreshold"]) > 0
        assert told["consumer"].endswith(EVALUATORS.get(name, name))
        host, _, port = told["natsServerMonitoringEndpoint"].partition(":")
        assert host.startswith("nats.llamaduo.svc") and int(port) in [one["port"] for one in ports]


def test_on_a_gpu_trainer_and_inference_have_one_each_and_nobody_else_has() -> None:
    for overlay, wanted in (("cpu", set()), ("gpu", {"trainer", "inference"})):
        with_gpu = set()
        for one in ALL[overlay]:
            for container in (pod_of(one) or {"spec": {"containers": []}})["spec"]["containers"]:
                limits = container["resources"]["limits"]
                if "nvidia.com/gpu" in limits:
                    with_gpu.add(one["metadata"]["name"])
                    assert limits["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"] == "1"
                    assert container["image"].endswith("-cuda:0.1.0")
        assert with_gpu == wanted
    for name in ("trainer", "inference"):
        strategy = of_kind("Deployment", "gpu")[name]["spec"]["strategy"]
        surge = strategy.get("rollingUpdate", {}).get("maxSurge", 0)
        assert surge == 0 and (strategy["type"] == "Recreate" or "rollingUpdate" in strategy), "a device too few"


# --- the bus


def test_there_are_three_servers_and_all_is_kept_on_each() -> None:
    nats, job = of_kind("StatefulSet")["nats"], of_kind("Job")["bootstrap"]
    assert nats["spec"]["replicas"] == 3
    assert (pod_of(job) or {})["spec"]["containers"][0]["args"] == ["bootstrap", "--replicas", "3"]
    urls = of_kind("ConfigMap")["settings"]["data"]["LLAMADUO_NATS_URL"].split(",")
    assert urls == [f"nats://nats-{number}.nats:4222" for number in range(3)]
    config = of_kind("ConfigMap")["nats-config"]["data"]["cluster.conf"]
    assert re.findall(r'"nats://(\S+)"', config) == [f"nats-{number}.nats:6222" for number in range(3)]


def test_a_server_reads_its_configuration_with_passwords_from_files(tmp_path: Path) -> None:
    """By the very command of the container, with this machine's paths."""
    secrets, config = tmp_path / "users", tmp_path / "etc"
    secrets.mkdir()
    config.mkdir()
    names = [users.password_variable(user) for user in [*rights.users(), rights.OPERATOR]]
    for name in names:
        (secrets / name).write_text(f"-007 it's $HOME {name}")
    for file, text in of_kind("ConfigMap")["nats-config"]["data"].items():
        (config / file).write_text(text)
    shell, flag, script = (pod_of(of_kind("StatefulSet")["nats"]) or {})["spec"]["containers"][0]["command"]
    assert (shell, flag) == ("sh", "-c")
    script = script.replace("/run/secrets/users", str(secrets)).replace("/etc/llamaduo", str(config))
    own = {"PATH": "/usr/bin:/bin", "NATS_SERVER_NAME": "nats-0"}
    checking = script.replace("exec nats-server", f"exec {nats_binary()} -t")
    done = subprocess.run([shell, flag, checking], env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [shell, flag, re.sub("exec .*", "env", script)], env=own, capture_output=True, text=True, check=True
    )
    assert {f'{name}="-007 it\'s $HOME {name}"' for name in names} <= set(done.stdout.splitlines())
    (secrets / names[0]).unlink()
    done = subprocess.run([shell, flag, checking], env=own, capture_output=True, text=True, check=False)
    assert done.returncode != 0, "the server would start with a password missing"
