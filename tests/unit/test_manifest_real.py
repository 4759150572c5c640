"""Manifests as they lie in people's repositories, and our own examples, are taken as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.proto import podsecurity
from shoal.proto.defaults import apply_defaults
from shoal.proto.manifest import parse
from shoal.proto.v1 import objects_pb2 as o

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "deploy/examples").glob("*.yaml"))

NGINX = """
apiVersion: apps/v1
kind: Deployment
metadata:
  name: nginx-deployment
  labels: {app: nginx}
  creationTimestamp: null
spec:
  replicas: 3
  selector: {matchLabels: {app: nginx}}
  strategy: {}
  template:
    metadata:
      creationTimestamp: null
      labels: {app: nginx}
    spec:
      containers:
      - name: nginx
        image: nginx:1.25
        imagePullPolicy: IfNotPresent
        ports: [{name: http, containerPort: 80, protocol: TCP}]
        env:
        - name: POD_IP
          valueFrom: {fieldRef: {fieldPath: status.podIP}}
        envFrom: [{configMapRef: {name: nginx-env}}]
        livenessProbe:
          httpGet: {path: /healthz, port: http, scheme: HTTP, httpHeaders: [{name: Host, value: example.org}]}
          initialDelaySeconds: 10
          periodSeconds: 10
          timeoutSeconds: 5
          failureThreshold: 3
          successThreshold: 1
        readinessProbe: {httpGet: {path: /ready, port: 80}, initialDelaySeconds: 5, periodSeconds: 5}
        lifecycle: {preStop: {exec: {command: [/usr/sbin/nginx, -s, quit]}}}
        resources: {}
        terminationMessagePath: /dev/termination-log
        terminationMessagePolicy: File
        volumeMounts:
        - {name: conf, mountPath: /etc/nginx/nginx.conf, subPath: nginx.conf, readOnly: true}
        - {name: certs, mountPath: /etc/nginx/certs, readOnly: true}
        - {name: cache, mountPath: /var/cache/nginx}
      restartPolicy: Always
      securityContext: {}
      terminationGracePeriodSeconds: 30
      volumes:
      - {name: conf, configMap: {name: nginx-conf, items: [{key: nginx.conf, path: nginx.conf}], defaultMode: 420}}
      - {name: certs, secret: {secretName: nginx-certs, defaultMode: 0400, optional: true}}
      - {name: cache, emptyDir: {sizeLimit: 500Mi}}
status: {}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: nginx-conf}
data:
  nginx.conf: |
    events {}
    http { server { listen 80; } }
"""
POSTGRES = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: postgres-data, labels: {app: postgres}}
spec:
  accessModes: ["ReadWriteOnce"]
  storageClassName: local
  resources: {requests: {storage: 10Gi}}
---
apiVersion: v1
kind: Secret
metadata: {name: postgres}
type: Opaque
data: {POSTGRES_PASSWORD: c2VjcmV0}
---
apiVersion: v1
kind: Pod
metadata: {name: postgres-0, labels: {app: postgres}}
spec:
  hostname: postgres-0
  subdomain: postgres
  securityContext: {runAsUser: 999, runAsGroup: 999, fsGroup: 999, fsGroupChangePolicy: OnRootMismatch}
  initContainers:
  - name: permissions
    image: busybox:1.36
    command: ["sh", "-c", "mkdir -p /var/lib/postgresql/data/pgdata"]
    volumeMounts: [{name: data, mountPath: /var/lib/postgresql/data}]
  containers:
  - name: postgres
    image: postgres:16-alpine
    args: ["-c", "max_connections=200"]
    ports: [{containerPort: 5432, name: postgres}]
    env:
    - {name: POSTGRES_USER, value: app}
    - {name: PGDATA, value: /var/lib/postgresql/data/pgdata}
    - name: POSTGRES_PASSWORD
      valueFrom: {secretKeyRef: {name: postgres, key: POSTGRES_PASSWORD}}
    livenessProbe:
      exec: {command: [pg_isready, -U, app]}
      initialDelaySeconds: 30
    readinessProbe:
      exec: {command: ["sh", "-c", "exec pg_isready -U app -h 127.0.0.1 -p 5432"]}
    startupProbe: {tcpSocket: {port: postgres}, failureThreshold: 30, periodSeconds: 2}
    resources: {requests: {cpu: 250m, memory: 256Mi}, limits: {memory: 1Gi}}
    volumeMounts:
    - {name: data, mountPath: /var/lib/postgresql/data}
    - {name: shm, mountPath: /dev/shm}
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: postgres-data}}
  - {name: shm, emptyDir: {medium: Memory}}
"""
REDIS = """
apiVersion: v1
kind: ConfigMap
metadata: {name: redis}
data: {redis.conf: "maxmemory 64mb\\nmaxmemory-policy allkeys-lru\\n"}
---
apiVersion: v1
kind: Pod
metadata: {name: redis}
spec:
  containers:
  - name: redis
    image: redis:7.2
    command: [redis-server, /redis-master/redis.conf]
    env: [{name: MASTER, value: "true"}]
    ports: [{containerPort: 6379}]
    resources: {limits: {cpu: "0.1"}}
    volumeMounts: [{mountPath: /redis-master-data, name: data}, {mountPath: /redis-master, name: config}]
  volumes:
  - {name: data, emptyDir: {}}
  - {name: config, configMap: {name: redis, items: [{key: redis.conf, path: redis.conf}]}}
"""
PROMETHEUS = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: prometheus, namespace: monitoring}
spec:
  selector: {matchLabels: {app: prometheus}}
  template:
    metadata:
      labels: {app: prometheus}
      annotations: {prometheus.io/scrape: "true", prometheus.io/port: "9090"}
    spec:
      securityContext: {runAsNonRoot: true, runAsUser: 65534, fsGroup: 65534}
      initContainers:
      - name: config-reloader
        image: example.org/config-reloader:v0.70.0
        restartPolicy: Always
        args: [--config-file=/etc/prometheus/prometheus.yml, "--reload-url=http://localhost:9090/-/reload"]
        env:
        - {name: POD_NAME, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: metadata.name}}}
        - {name: GOMEMLIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
        securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, readOnlyRootFilesystem: true}
        volumeMounts: [{name: config, mountPath: /etc/prometheus, readOnly: true}]
      containers:
      - name: prometheus
        image: prom/prometheus:v2.53.0
        args: [--config.file=/etc/prometheus/prometheus.yml, --storage.tsdb.path=/prometheus, --web.enable-lifecycle]
        ports: [{name: web, containerPort: 9090}]
        livenessProbe: {httpGet: {path: /-/healthy, port: web}, failureThreshold: 6, timeoutSeconds: 3}
        readinessProbe: {httpGet: {path: /-/ready, port: web}}
        startupProbe: {httpGet: {path: /-/ready, port: web}, failureThreshold: 60, periodSeconds: 15}
        terminationMessagePolicy: FallbackToLogsOnError
        volumeMounts:
        - {name: config, mountPath: /etc/prometheus}
        - {name: storage, mountPath: /prometheus, subPath: prometheus-db}
      terminationGracePeriodSeconds: 600
      volumes:
      - name: config
        projected:
          sources:
          - {configMap: {name: prometheus, items: [{key: prometheus.yml, path: prometheus.yml}]}}
          - {secret: {name: prometheus-tls, optional: true}}
      - {name: storage, persistentVolumeClaim: {claimName: prometheus}}
"""
EXPORTER = """
apiVersion: v1
kind: Pod
metadata: {name: node-exporter}
spec:
  hostNetwork: true
  hostPID: true
  containers:
  - name: exporter
    image: prom/node-exporter:v1.8.1
    args: [--path.procfs=/host/proc, --path.sysfs=/host/sys, --path.rootfs=/host/root]
    securityContext: {readOnlyRootFilesystem: true, capabilities: {drop: [ALL], add: [SYS_TIME]}}
    volumeMounts:
    - {name: proc, mountPath: /host/proc, readOnly: true}
    - {name: sys, mountPath: /host/sys, readOnly: true, mountPropagation: HostToContainer}
    - {name: root, mountPath: /host/root, readOnly: true, mountPropagation: HostToContainer}
  tolerations: [{operator: Exists}]
  volumes:
  - {name: proc, hostPath: {path: /proc}}
  - {name: sys, hostPath: {path: /sys, type: ""}}
  - {name: root, hostPath: {path: /, type: Directory}}
"""
REAL = {"nginx": NGINX, "postgres": POSTGRES, "redis": REDIS, "prometheus": PROMETHEUS, "node-exporter": EXPORTER}


def pod_specs(text: str) -> list[o.PodSpec]:
    specs = []
    for found in parse(text).objects:
        message = found.message
        apply_defaults(message)
        if isinstance(message, o.Pod):
            specs.append(message.spec)
        elif isinstance(message, o.Deployment):
            specs.append(message.spec.template.spec)
    return specs


@pytest.mark.parametrize("name", REAL)
def test_a_manifest_as_people_write_it(name: str) -> None:
    parsed = parse(REAL[name], name)
    assert ([str(error) for error in parsed.errors], parsed.unsupported) == ([], [])
    levels = ["privileged"] if name == "node-exporter" else ["baseline"]
    found = [podsecurity.violations(spec, "spec", level) for spec in pod_specs(REAL[name]) for level in levels]
    assert found and found == [[]] * len(found)


def test_a_node_exporter_needs_a_privileged_namespace() -> None:
    [spec] = pod_specs(EXPORTER)
    assert [problem.path for problem in podsecurity.violations(spec, "spec", "baseline")] == [
        "spec.hostNetwork",
        "spec.hostPID",
        "spec.volumes[0].hostPath",
        "spec.volumes[1].hostPath",
        "spec.volumes[2].hostPath",
        "spec.containers[0].securityContext.capabilities.add[0]",
    ]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_our_examples(path: Path) -> None:
    parsed = parse(path.read_text(), path.name)
    assert ([str(error) for error in parsed.errors], parsed.unsupported) == ([], [])
    assert parsed.objects
    level = "restricted" if path.name == "everyday.yaml" else "baseline"
    assert [podsecurity.violations(spec, "spec", level) for spec in pod_specs(path.read_text())] == [[]] * len(
        pod_specs(path.read_text())
    )
