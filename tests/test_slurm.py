"""A cluster of Slurm with two nodes on this machine, which runs the script of the guide, `srun` alone, and `scancel`."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from test_two_hosts import totals

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel")
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
GUIDE = Path(__file__).parent.parent / "docs" / "guide" / "scale.md"
SECONDS = 300
MISSING = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed"),
    pytest.mark.skipif(bool(MISSING), reason=f"Slurm is not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="the daemons of Slurm need root"),
]
# Addresses as names, so that they need no entry in a file of hosts. Linux has all of 127.0.0.0/8.
SETTINGS = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
NodeName=127.0.0.1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={processors} State=UNKNOWN
NodeName=127.0.0.2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={processors} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """Two nodes. What it runs keeps to one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variables = {**os.environ, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}

    def call(self, *words: str) -> str:
        done = subprocess.run(words, env=self.variables, cwd=self.folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def begin(self, script: str) -> str:
        """Hand in a script; gives the number of the job."""
        (self.folder / "job.sh").write_text(script, encoding="utf-8")
        return self.call("sbatch", "--parsable", "--output", "%j.out", "job.sh").strip()

    def ended(self, job: str) -> str:
        """Wait for the end of a job; gives what it has printed."""
        ends = time.monotonic() + SECONDS
        while self.call("squeue", "--noheader", "--jobs", job).strip():
            assert time.monotonic() < ends, self.told(job)
            time.sleep(0.5)
        return self.told(job)

    def told(self, job: str) -> str:
        file = self.folder / f"{job}.out"
        return file.read_text(encoding="utf-8") if file.exists() else ""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    for above in [folder, *folder.parents][:-2]:
        above.chmod(above.stat().st_mode | 0o011)  # munge asks that everyone can reach its socket
    settings = {"host": socket.gethostname(), "ports": free_ports(3), "user": getpass.getuser(), "processors": os.cpu_count()}
    (folder / "slurm.conf").write_text(SETTINGS.format(folder=folder, **settings))
    cluster = Cluster(folder)
    munge = [f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key", f"--log-file={folder}/munge.log"]
    munge += [f"--pid-file={folder}/munge.pid", f"--seed-file={folder}/munge.seed"]
    daemons = [["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"]]
    daemons += [["slurmd", "-D", "-N", f"127.0.0.{number}"] for number in (1, 2)]
    running = []
    try:
        for words in daemons:
            with open(folder / f"{words[0]}.out", "ab") as out:
                running.append(subprocess.Popen(words, env=cluster.variables, stdout=out, stderr=out))
            time.sleep(1)
        ends = time.monotonic() + 60
        while cluster.call("sinfo", "--noheader", "--Node", "--format", "%t").split() != ["idle", "idle"]:
            assert time.monotonic() < ends, "".join(file.read_text() for file in folder.glob("*.log"))[-3000:]
            time.sleep(0.5)
        yield cluster
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(timeout=30)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file, draws = tmp_path_factory.mktemp("data") / "x.npz", np.random.default_rng(0)
    labels = np.repeat(np.arange(24), 8)
    np.savez(file, x=(draws.normal(size=(24, 8))[labels] + draws.normal(size=(192, 8))).astype("f"), y=labels)
    return file


def script_of_the_guide() -> str:
    """It asks for eight GPUs and takes the names of a cluster; here each node has a process."""
    text = re.search(r"^```text\n(#!/bin/bash\n#SBATCH.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.M | re.S)
    assert text is not None
    script = text[1]
    for name, here in (
        (" --gpus-per-node=8", ""),
        ("torchrun", f"{sys.executable} -P -m torch.distributed.run"),
        ("--nproc-per-node 8", "--nproc-per-node 1"),
    ):
        assert name in script
        script = script.replace(name, here)
    return script


def test_the_script_of_the_guide_and_srun_alone_train_as_one_process(cluster: Cluster, table: Path, tmp_path: Path) -> None:
    own = "--steps 12 --eval-every 6 --device cpu --no-report"
    script = script_of_the_guide().replace("/shared/photos", f"{table} {own}").replace("/shared/runs", str(tmp_path))
    script = re.sub(r"--out (\S+)", rf"--out {tmp_path}/torchrun", script)
    script += f"srun --ntasks 2 {sys.executable} -P -m dmlcore train --data {table} {own} --out {tmp_path}/srun\n"
    script += f"{sys.executable} -P -m dmlcore train --data {table} {own} --out {tmp_path}/alone\n"
    told = cluster.ended(cluster.begin(script))
    alone = totals(tmp_path / "alone")
    assert len(alone) == 12, told
    assert totals(tmp_path / "torchrun") == pytest.approx(alone, rel=1e-5), told
    assert totals(tmp_path / "srun") == pytest.approx(alone, rel=1e-5), told


def test_scancel_saves_a_checkpoint(cluster: Cluster, table: Path, tmp_path: Path) -> None:
    train = f"dmlcore train --data {table} --steps 100000 --eval-every 50000 --device cpu --out {tmp_path}/run"
    job = cluster.begin(f"#!/bin/bash\n#SBATCH --nodes=2 --ntasks-per-node=1\nsrun {sys.executable} -P -m {train}\n")
    ends, records = time.monotonic() + SECONDS, tmp_path / "run" / "metrics.jsonl"
    while not (records.exists() and records.read_text().count("\n") > 2):
        assert time.monotonic() < ends, cluster.told(job)
        time.sleep(0.1)
    cluster.call("scancel", job)
    told = cluster.ended(job)
    assert re.search(r"interrupted after step \d+ of 100000; the checkpoint of step \d+ is saved", told), told
