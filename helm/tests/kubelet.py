"""Runs the Jobs and Pods of the stand-in once each, as processes on this machine: the program in place of the image."""

import base64
import pathlib
import subprocess
import tempfile
import threading

import check
from apiserver import Refused, now

PROGRAM = check.ROOT / "target/debug/tasker-worker-rust"


class Kubelet:
    def __init__(self, cluster, names):
        # What the cluster's DNS knows: a text, and what stands for it on this machine.
        self.cluster, self.names = cluster, names
        cluster.created = self.created

    def created(self, key, item):
        if life := {"Job": self.job, "Pod": self.pod}.get(item["kind"]):
            threading.Thread(target=life, args=(key, item), daemon=True).start()

    def job(self, key, job):
        template, name = job["spec"]["template"], f"{key[3]}-{job['metadata']['uid'][:5]}"
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": key[3], "uid": job["metadata"]["uid"]}
        labels = template["metadata"]["labels"] | {"batch.kubernetes.io/job-name": key[3]}
        pod = ("v1", "pods", key[2], name)
        self.cluster.create(pod, {
            "apiVersion": "v1", "kind": "Pod", "spec": template["spec"],
            "metadata": template["metadata"] | {"name": name, "labels": labels, "ownerReferences": [owner]},
        })
        with self.cluster.changed:
            self.cluster.changed.wait_for(lambda: self.cluster.get(pod).get("status"))
        ends = {"Succeeded": ("Complete", "succeeded"), "Failed": ("Failed", "failed")}
        condition, count = ends[self.cluster.get(pod)["status"]["phase"]]
        status = {"startTime": job["metadata"]["creationTimestamp"], count: 1, "conditions": [{"type": condition, "status": "True"}]}
        self.cluster.update(key, lambda old: old | {"status": status | {"completionTime": now()}})

    def pod(self, key, pod):
        try:
            code, log = self.run(pod)
        except (Refused, KeyError, subprocess.TimeoutExpired) as error:
            code, log = 128, f"the container did not run: {error!r}"
        self.cluster.logs[pod["metadata"]["uid"]] = log
        status = {"phase": "Failed" if code else "Succeeded"}
        self.cluster.update(key, lambda old: old | {"status": status})

    def run(self, pod):
        (container,) = pod["spec"]["containers"]
        namespace = pod["metadata"]["namespace"]
        with tempfile.TemporaryDirectory() as folder:
            for volume in pod["spec"]["volumes"]:
                here = pathlib.Path(folder, volume["name"])
                here.mkdir()
                for item in volume["secret"]["items"]:
                    (here / item["path"]).write_text(self.secret(namespace, volume["secret"]["secretName"], item["key"]))
            mounts = {mount["mountPath"]: f"{folder}/{mount['name']}" for mount in container["volumeMounts"]}
            environment = {}
            for variable in container["env"]:
                value = variable.get("value")
                if value is None:
                    wanted = variable["valueFrom"]["secretKeyRef"]
                    value = self.secret(namespace, wanted["name"], wanted["key"])
                for path, mounted in mounts.items():
                    value = value.replace(path, mounted)
                environment[variable["name"]] = value
            # The image's folder, too, has the templates in config/.
            done = subprocess.run([PROGRAM, *container["args"]], env=environment, cwd=check.ROOT, text=True, timeout=60,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            return done.returncode, done.stdout

    def secret(self, namespace, name, key):
        text = base64.b64decode(self.cluster.get(("v1", "secrets", namespace, name))["data"][key]).decode()
        for known, here in self.names.items():
            text = text.replace(known, here)
        return text
