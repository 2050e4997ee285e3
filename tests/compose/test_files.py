"""The deployment's files, checked without an engine: compose file, Dockerfiles, the bus's users, their passwords."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.make_env import completed
from deploy.make_env import main as make_env
from deploy.nats import users
from deploy.requirements_of import requirements
from llamaduo.bus import rights
from tests.support import ROOT, nats_binary

BIN = Path(sys.executable).parent
DOCKERFILES = [ROOT / "deploy" / "Dockerfile", ROOT / "tests" / "compose" / "standins" / "nats" / "Dockerfile"]
GPU = ["--file", "docker-compose.yml", "--file", "docker-compose.gpu.yml"]
OFFLINE = ["--file", "docker-compose.yml", "--file", "tests/compose/docker-compose.offline.yml"]
ML = {"torch", "transformers", "vllm", "trl", "peft", "datasets", "bitsandbytes", "accelerate"}


def config(env_file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`docker compose config`, which needs no engine."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "LLAMADUO_"))}
    command = [str(BIN / "docker-compose"), "--env-file", str(env_file), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def env_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("env") / ".env"
    make_env(path)
    return path


@pytest.fixture(scope="module")
def services(env_file: Path) -> dict[str, Any]:
    done = config(env_file, "--profile", "*", "config", "--format", "json")
    assert done.returncode == 0, done.stderr
    parsed: dict[str, Any] = json.loads(done.stdout)["services"]
    return parsed


@pytest.mark.parametrize("files", [[], OFFLINE, GPU])
def test_the_compose_file_is_sound(env_file: Path, files: list[str]) -> None:
    done = config(env_file, *files, "--profile", "*", "config", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")


def test_on_a_gpu_the_same_services_run_and_two_of_them_use_it_in_turn(
    env_file: Path, services: dict[str, Any]
) -> None:
    done = config(env_file, *GPU, "--profile", "*", "config", "--format", "json")
    assert done.returncode == 0, done.stderr
    with_gpu: dict[str, Any] = json.loads(done.stdout)["services"]
    assert set(with_gpu) == set(services)
    changed = {name for name, service in with_gpu.items() if service != services[name]}
    assert changed == {"trainer", "inference"}
    devices = [with_gpu[name]["deploy"]["resources"]["reservations"]["devices"] for name in sorted(changed)]
    assert devices[0] == devices[1] and devices[0][0]["device_ids"] == ["0"]
    for name in changed:
        place = with_gpu[name]["environment"]["LLAMADUO_ACCELERATOR_DIR"]
        assert {"source": "accelerator", "target": place} in [
            {key: volume[key] for key in ("source", "target")} for volume in with_gpu[name]["volumes"]
        ]
    assert with_gpu["trainer"]["build"]["args"] == {"DEVICE": "cuda"}
    assert "USER 10001:10001" in stages()[with_gpu["inference"]["build"]["target"]]


def test_a_missing_password_is_named_with_what_to_do(tmp_path: Path) -> None:
    empty = tmp_path / ".env"
    empty.write_text("")
    done = config(empty, "config", "--quiet")
    assert done.returncode != 0
    assert "NATS_PASSWORD_OPERATOR" in done.stderr and "deploy/make_env.py" in done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_dockerfiles_are_sound(path: Path) -> None:
    done = subprocess.run([str(BIN / "hadolint"), str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def stages() -> dict[str, str]:
    """Target -> its part of the Dockerfile."""
    text = DOCKERFILES[0].read_text()
    assert "# syntax" not in text and "<<" not in text, "needs no frontend from a registry"
    parts = re.split(r"^FROM \S+ AS (\S+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_target_runs_as_nobody_special(services: dict[str, Any]) -> None:
    targets = {service["build"]["target"] for service in services.values() if "build" in service}
    for target in targets:
        assert "USER 10001:10001" in stages()[target], target
    assert targets == {"cli", "synthesizer", "judge", "verdict", "emulator", "trainer", "inference"}


def test_an_image_holds_only_its_own_service() -> None:
    for target, text in stages().items():
        copied = set(re.findall(r"^COPY services/(\w+) ", text, flags=re.MULTILINE))
        assert copied <= {target.removesuffix("-cuda")}, target


def test_light_images_hold_no_ml_library() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    asked = requirements(text, ["synthesizer", "judge", "verdict", "emulator"])
    assert len(asked) > 8
    assert not {re.split(r"[\[=<>~ ]", line)[0] for line in asked} & ML


def test_the_file_of_users_follows_the_topology() -> None:
    present = users.TARGET.read_text()
    assert present == users.render(users.others_in(present)), "run: python -m deploy.nats.users"


def test_the_server_reads_its_configuration(env_file: Path) -> None:
    passwords = dict(line.split("=", 1) for line in env_file.read_text().splitlines())
    command = [nats_binary(), "-t", "-c", str(ROOT / "deploy" / "nats" / "nats.conf")]
    done = subprocess.run(command, env=passwords, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
    assert done.returncode != 0, "the server would start with no passwords"


def test_every_user_is_somebody_with_a_password_of_its_own(services: dict[str, Any]) -> None:
    server = services["nats"]["environment"]
    of_users = {users.password_variable(user): user for user in [*rights.users(), rights.OPERATOR]}
    assert set(server) == set(of_users)
    assert len(set(server.values())) == len(server)
    used = {}
    for name, service in services.items():
        environment = service.get("environment", {})
        if user := environment.get("LLAMADUO_NATS_USER"):
            used[user] = name
            assert environment["LLAMADUO_NATS_PASSWORD"] == server[users.password_variable(user)], name
            assert not any(key.startswith("NATS_PASSWORD") for key in environment), f"{name} knows others' passwords"
    assert set(used) == set(of_users.values())


def test_somebody_elses_evaluator_gets_a_user_and_keeps_it(tmp_path: Path) -> None:
    target = tmp_path / "users.conf"
    users.main(target, ["--evaluator", "calm"])
    users.main(target, ["--evaluator", "pairwise"])
    users.main(target, [])
    text = target.read_text()
    assert users.others_in(text) == {"calm": False, "pairwise": True}
    assert "user: evaluator-calm\n      password: $NATS_PASSWORD_EVALUATOR_CALM\n" in text
    users.main(target, ["--remove", "calm"])
    users.main(target, ["--remove", "pairwise"])
    assert target.read_text() == users.render()
    for wrong in (["--evaluator", "Not A Name"], ["--evaluator", "exact-match"], ["--remove", "calm"]):
        with pytest.raises(SystemExit):
            users.main(target, wrong)


def test_only_those_who_need_it_reach_the_outside(services: dict[str, Any]) -> None:
    outside = {name for name, service in services.items() if "outside" in service["networks"]}
    assert outside == {"nats", "synthesizer", "judge", "trainer", "inference", "emulator", "cli"}
    watching = {name for name, service in services.items() if "watch" in service["networks"]}
    assert watching == {"prometheus", "grafana"} and set(services["grafana"]["networks"]) == {"watch"}
    for name, service in services.items():
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1", f"{name} would be open to the network"


def test_passwords_are_random_private_and_kept(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("OTHER=1\nNATS_PASSWORD_OPERATOR=mine")
    make_env(path)
    lines = path.read_text().splitlines()
    assert lines[:2] == ["OTHER=1", "NATS_PASSWORD_OPERATOR=mine"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = path.read_text()
    make_env(path)
    assert path.read_text() == first
    assert completed("", ["A"]) != completed("", ["A"])
