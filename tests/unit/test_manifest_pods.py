"""What pods may say, field by field: each mistake is told with its path, why it is one, and what to write."""

from typing import Any

import pytest
import yaml

from shoal.proto.manifest import parse

GOOD = """
apiVersion: v1
kind: Pod
metadata: {name: all, annotations: {note: x}}
spec:
  hostname: web
  subdomain: shop
  setHostnameAsFQDN: true
  activeDeadlineSeconds: 600
  shareProcessNamespace: true
  imagePullSecrets: [{name: registry}]
  hostAliases: [{ip: 10.1.2.3, hostnames: [db, db.shop]}, {ip: "::1", hostnames: [six]}]
  securityContext:
    runAsUser: 1000
    supplementalGroups: [2000]
    fsGroup: 3000
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
    sysctls: [{name: net.ipv4.ip_local_port_range, value: 1024 65000}, {name: kernel/shm_rmid_forced, value: "1"}]
  initContainers:
  - {name: prepare, image: "busybox:1", command: [sh, -c, "true"], volumeMounts: [{name: cache, mountPath: /cache}]}
  - name: proxy
    image: busybox:1
    restartPolicy: Always
    readinessProbe: {tcpSocket: {port: 80}}
    lifecycle: {preStop: {sleep: {seconds: 5}}}
  containers:
  - name: main
    image: nginx:1.22
    imagePullPolicy: Never
    terminationMessagePath: /tmp/end
    terminationMessagePolicy: FallbackToLogsOnError
    stdin: true
    stdinOnce: true
    tty: true
    ports: [{name: http, containerPort: 80}]
    env:
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: APP, valueFrom: {fieldRef: {fieldPath: "metadata.labels['example.com/app']"}}}
    - {name: NOTE, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['note']"}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}
    - {name: MEM, valueFrom: {resourceFieldRef: {containerName: proxy, resource: requests.memory, divisor: 1Mi}}}
    - {name: KEY, valueFrom: {secretKeyRef: {name: s, key: a.b, optional: true}}}
    - {name: TEXT, valueFrom: {configMapKeyRef: {name: c, key: a}}}
    envFrom: [{prefix: DB_, secretRef: {name: s}}, {configMapRef: {name: c, optional: true}}]
    volumeMounts:
    - {name: cache, mountPath: /cache, subPathExpr: $(NAME), mountPropagation: HostToContainer}
    - {name: conf, mountPath: /etc/conf/a.conf, subPath: a.conf, readOnly: true}
    - {name: secret, mountPath: /etc/secret}
    - {name: about, mountPath: /etc/about}
    - {name: all, mountPath: /etc/all}
    - {name: host, mountPath: /host}
    - {name: data, mountPath: /data}
    livenessProbe: {httpGet: {path: /healthz, port: http, httpHeaders: [{name: X-Probe, value: "1"}]}, periodSeconds: 5}
    readinessProbe: {exec: {command: [cat, /ready]}, successThreshold: 2}
    startupProbe: {grpc: {port: 80, service: shop}, failureThreshold: 30, terminationGracePeriodSeconds: 5}
    lifecycle: {postStart: {exec: {command: ["true"]}}, preStop: {httpGet: {port: 80}}}
    securityContext:
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      runAsNonRoot: true
      capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}
      seccompProfile: {type: Localhost, localhostProfile: profiles/web.json}
  volumes:
  - {name: cache, emptyDir: {medium: Memory, sizeLimit: 64Mi}}
  - {name: conf, configMap: {name: c, items: [{key: a, path: a.conf, mode: 0400}], optional: true}}
  - {name: secret, secret: {secretName: s, defaultMode: 0400}}
  - name: about
    downwardAPI:
      items:
      - {path: labels, fieldRef: {fieldPath: metadata.labels}}
      - {path: cpu, resourceFieldRef: {containerName: main, resource: limits.cpu}}
  - name: all
    projected:
      sources:
      - {configMap: {name: c, items: [{key: a, path: x/a}]}}
      - {secret: {name: s}}
      - {downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}
  - {name: host, hostPath: {path: /var/log, type: Directory}}
  - {name: data, persistentVolumeClaim: {claimName: data, readOnly: true}}
"""


def told(changes: dict[str, Any]) -> list[str]:
    """What is said of the good pod with these fields (paths as in messages; None removes) put in."""
    tree = yaml.safe_load(GOOD)
    for path, value in changes.items():
        put(tree, path, value)
    return [f"{problem.path}: {problem.message}" for problem in parse(yaml.safe_dump(tree), "f").errors]


def put(tree: Any, path: str, value: Any) -> None:
    *way, last = [int(step) if step.isdigit() else step for step in path.replace("]", "").replace("[", ".").split(".")]
    for step in way:
        tree = tree.setdefault(step, {}) if isinstance(tree, dict) else tree[step]
    if value is None:
        del tree[last]
    elif isinstance(tree, list) and last == len(tree):
        tree.append(value)
    else:
        tree[last] = value


def test_a_pod_with_everything_is_fine() -> None:
    assert told({}) == []


C, INIT, V = "spec.containers[0]", "spec.initContainers[0]", "spec.volumes"
M, E = f"{C}.volumeMounts", f"{C}.env[0]"
FIELD, AMOUNT = f"{E}.valueFrom.fieldRef.fieldPath", f"{C}.env[3].valueFrom.resourceFieldRef"
HTTP = f"{C}.livenessProbe.httpGet"
VOLUME, NOWHERE = {"name": "v"}, {"name": "c", "image": "x:1"}
MISTAKES: list[tuple[dict[str, Any], str]] = [
    # init containers and sidecars
    ({f"{INIT}.name": "main"}, f'{C}.name: "main" is another container\'s name too'),
    (
        {f"{INIT}.livenessProbe": {"exec": {"command": ["x"]}}},
        f"{INIT}.livenessProbe: is for containers that go on running",
    ),
    ({f"{INIT}.lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}, f"{INIT}.lifecycle: is for containers that go on"),
    ({f"{INIT}.restartPolicy": "Never"}, f'{INIT}.restartPolicy: must be "Always", which makes a sidecar'),
    ({f"{C}.restartPolicy": "Always"}, f"{C}.restartPolicy: is for init containers: use the pod's own"),
    ({f"{INIT}.image": "Bad Image"}, f"{INIT}.image:"),
    ({"spec.initContainers": [dict(NOWHERE, name=f"c{n}") for n in range(101)]}, "has 101 items: at most 100"),
    # images, messages, input
    ({f"{C}.imagePullPolicy": "ifnotpresent"}, f'{C}.imagePullPolicy: "ifnotpresent" is not valid: did you mean "IfN'),
    ({f"{C}.terminationMessagePath": "end"}, f"{C}.terminationMessagePath: \"end\" must begin with '/'"),
    ({f"{C}.terminationMessagePolicy": "Logs"}, f"{C}.terminationMessagePolicy: "),
    ({f"{C}.stdin": False}, f"{C}.stdinOnce: does nothing without stdin"),
    ({f"{C}.command": ["a\0b"]}, f"{C}.command[0]: holds a NUL"),
    ({f"{C}.args": ["x" * 131072]}, f"{C}.args[0]: has 131072 bytes: programs take at most 131071"),
    ({f"{C}.args": ["x"] * 1001}, f"{C}.args: has 1001 items: at most 1000"),
    # environment
    ({f"{C}.env[0]": {"name": "A", "value": "x" * 131070}}, f"{C}.env[0].value: has 131072 bytes"),
    ({f"{C}.env": [{"name": f"A{n}"} for n in range(1001)]}, f"{C}.env: has 1001 items"),
    ({f"{E}.value": "x"}, f"{E}.valueFrom: is given beside value: keep one"),
    ({f"{E}.valueFrom": {}}, f"{E}.valueFrom: must have one of fieldRef, resourceFieldRef, configMapKeyRef"),
    ({f"{E}.valueFrom.secretKeyRef": {"name": "s", "key": "k"}}, "valueFrom: has fieldRef and secretKeyRef: keep one"),
    ({FIELD: "metadata.nam"}, f'{FIELD}: "metadata.nam" is no field of a pod that can be had: did you mean "meta'),
    ({FIELD: "spec.hostname"}, "there are metadata.name, metadata.namespace, metadata.uid, spec.nodeName"),
    ({FIELD: ""}, f"{FIELD}: is missing: there are metadata.name"),
    ({FIELD: "metadata.labels"}, "has many values: write metadata.labels['key']"),
    ({FIELD: 'metadata.labels["a"]'}, "write metadata.labels['key'], with single quotes"),
    ({FIELD: "metadata.labels['a b']"}, "is not a valid key"),
    ({FIELD: "spec.serviceAccountName"}, "pods carry no identity"),
    ({f"{E}.valueFrom.fieldRef.apiVersion": "v2"}, '"v2" is not the version of Pod'),
    ({f"{AMOUNT}.containerName": "mian"}, f'{AMOUNT}.containerName: the pod has no container "mian": did you mean "ma'),
    ({f"{AMOUNT}.resource": "limits.gpu"}, f"{AMOUNT}.resource: "),
    ({f"{AMOUNT}.divisor": "1Mi"}, f'{AMOUNT}.divisor: "1Mi" does not divide limits.cpu: use one of 1, 1m'),
    ({f"{C}.env[5].valueFrom.secretKeyRef.name": ""}, "secretKeyRef.name: is missing: name the object"),
    ({f"{C}.env[5].valueFrom.secretKeyRef.key": None}, "secretKeyRef.key: is missing: name the key"),
    ({f"{C}.env[5].valueFrom.secretKeyRef.key": "a/b"}, 'secretKeyRef.key: "a/b" is not a valid name'),
    ({f"{C}.envFrom[0]": {"prefix": "A"}}, f"{C}.envFrom[0]: must have one of configMapRef, secretRef"),
    ({f"{C}.envFrom[0].prefix": "A="}, f"{C}.envFrom[0].prefix: "),
    ({f"{C}.envFrom[0].secretRef.name": "S_"}, 'envFrom[0].secretRef.name: "S_" is not a valid name'),
    # probes and hooks
    ({f"{C}.livenessProbe": {"periodSeconds": 5}}, f"{C}.livenessProbe: must have one of exec, httpGet, tcpSocket, gr"),
    ({f"{C}.livenessProbe.exec": {"command": ["x"]}}, f"{C}.livenessProbe: has exec and httpGet: keep one"),
    ({f"{C}.livenessProbe.successThreshold": 2}, "successThreshold: must be 1 for a livenessProbe, but it is 2"),
    ({f"{C}.startupProbe.successThreshold": 2}, "successThreshold: must be 1 for a startupProbe"),
    ({f"{C}.livenessProbe.timeoutSeconds": -1}, f"{C}.livenessProbe.timeoutSeconds: must be from 1 to"),
    ({f"{C}.livenessProbe.failureThreshold": -1}, f"{C}.livenessProbe.failureThreshold: must be from 1 to"),
    ({f"{C}.livenessProbe.initialDelaySeconds": -1}, f"{C}.livenessProbe.initialDelaySeconds: must be from 0 to"),
    ({f"{C}.readinessProbe.terminationGracePeriodSeconds": 5}, "is not used by a readinessProbe, which ends nothing"),
    ({f"{C}.startupProbe.terminationGracePeriodSeconds": 0}, "terminationGracePeriodSeconds: must be from 1"),
    ({f"{C}.readinessProbe.exec.command": []}, f"{C}.readinessProbe.exec.command: is missing"),
    ({f"{HTTP}.port": "htpt"}, f'{HTTP}.port: the container has no port "htpt": did you mean "http"?'),
    ({f"{HTTP}.port": "80"}, f'{HTTP}.port: "80" is a text, which names a port: remove the quotes'),
    ({f"{HTTP}.port": 0}, f"{HTTP}.port: must be from 1 to 65535"),
    ({f"{HTTP}.port": None}, f"{HTTP}.port: is missing"),
    ({"spec.initContainers[1].readinessProbe.tcpSocket.port": "web"}, "none of its ports has a name; write the number"),
    ({f"{HTTP}.scheme": "https"}, f'{HTTP}.scheme: "https" is not valid: did you mean "HTTPS"?'),
    ({f"{HTTP}.path": "/a\nb"}, f"{HTTP}.path: holds a control character"),
    ({f"{HTTP}.host": "a b"}, f"{HTTP}.host: "),
    ({f"{HTTP}.httpHeaders[0].name": "X Y"}, f"{HTTP}.httpHeaders[0].name: "),
    ({f"{HTTP}.httpHeaders[0].value": "a\r\nb: c"}, f"{HTTP}.httpHeaders[0].value: holds a control character"),
    ({f"{C}.startupProbe.grpc.port": 70000}, f"{C}.startupProbe.grpc.port: must be from 1 to 65535"),
    ({f"{C}.startupProbe.grpc.port": "http"}, f"{C}.startupProbe.grpc.port: must be a whole number"),
    ({f"{C}.lifecycle.preStop": {}}, f"{C}.lifecycle.preStop: must have one of exec, httpGet, tcpSocket, sleep"),
    ({f"{C}.lifecycle.preStop": {"sleep": {"seconds": 31}}}, "from 0 to 30, the pod's terminationGracePeriodSeconds"),
    ({f"{C}.lifecycle.postStart.exec.command": []}, f"{C}.lifecycle.postStart.exec.command: is missing"),
    # volumes
    ({f"{V}[1].name": "cache"}, f'{V}[1].name: "cache" is another volume\'s name too'),
    ({f"{V}[0].name": "Cache"}, f'{V}[0].name: "Cache" is not a valid name'),
    ({f"{V}[0].secret": {"secretName": "s"}}, f"{V}[0]: has emptyDir and secret: keep one of them"),
    ({f"{V}[0].nfs": {"server": "x"}}, f"{V}[0].nfs: not supported yet: use emptyDir, hostPath, configMap, secret"),
    ({f"{V}[0].emptyDir.medium": "memory"}, f'{V}[0].emptyDir.medium: "memory" is not valid: did you mean "Memory"?'),
    ({f"{V}[0].emptyDir.medium": "HugePages-2Mi"}, "huge pages are not supported yet"),
    ({f"{V}[0].emptyDir.sizeLimit": "-1"}, f"{V}[0].emptyDir.sizeLimit: must be 0 or more"),
    ({f"{V}[1].configMap.name": ""}, f"{V}[1].configMap.name: is missing"),
    ({f"{V}[1].configMap.items[0].path": "../a"}, "items[0].path: \"../a\" must not climb with '..'"),
    ({f"{V}[1].configMap.items[0].path": "..data"}, "items[0].path: \"..data\" must not begin with '..'"),
    ({f"{V}[1].configMap.items[0].path": "/a"}, "items[0].path: \"/a\" must not begin with '/'"),
    ({f"{V}[1].configMap.items[0].path": ""}, f"{V}[1].configMap.items[0].path: is missing"),
    ({f"{V}[1].configMap.items[0].key": "a/b"}, f"{V}[1].configMap.items[0].key: "),
    ({f"{V}[1].configMap.items[1]": {"key": "b", "path": "./a.conf"}}, 'items[1].path: "./a.conf" is another item\'s'),
    ({f"{V}[1].configMap.items[0].mode": 644}, "must be from 0 to 0777 (octal), but it is 644 (decimal): write 0644"),
    ({f"{V}[2].secret.defaultMode": -1}, f"{V}[2].secret.defaultMode: must be from 0 to 0777"),
    ({f"{V}[2].secret.secretName": None}, f"{V}[2].secret.secretName: is missing"),
    ({f"{V}[2].secret.name": "s"}, f"{V}[2].secret.name: unknown field"),
    ({f"{V}[3].downwardAPI.items[0].fieldRef.fieldPath": "status.podIP"}, '"status.podIP" can be had in env only'),
    ({f"{V}[3].downwardAPI.items[1].resourceFieldRef.containerName": None}, "containerName: is missing: name one of"),
    ({f"{V}[3].downwardAPI.items[0].fieldRef": None}, "items[0]: must have one of fieldRef, resourceFieldRef"),
    ({f"{V}[4].projected.sources[0]": {}}, f"{V}[4].projected.sources[0]: must have one of configMap, secret, downw"),
    (
        {f"{V}[4].projected.sources[0].configMap.items[0].path": "name"},
        'sources[2].downwardAPI.items[0].path: "name" is',
    ),
    ({f"{V}[5].hostPath.path": "var"}, f"{V}[5].hostPath.path: \"var\" must begin with '/'"),
    ({f"{V}[5].hostPath.path": "/a/../etc"}, "must not climb with '..'"),
    ({f"{V}[5].hostPath.type": "Dir"}, f'{V}[5].hostPath.type: "Dir" is not valid'),
    ({f"{V}[6].persistentVolumeClaim.claimName": ""}, f"{V}[6].persistentVolumeClaim.claimName: is missing"),
    ({V: [dict(VOLUME, name=f"v{n}") for n in range(201)]}, f"{V}: has 201 items: at most 200"),
    # mounts
    ({f"{M}[0].name": "cach"}, f'{M}[0].name: the pod has no volume "cach": did you mean "cache"?'),
    ({f"{M}[0].name": "zzz"}, 'the pod has no volume "zzz": there are about, all, cache'),
    ({f"{M}[1].mountPath": "/cache/"}, f'{M}[1].mountPath: "/cache" is where "cache" is mounted'),
    ({f"{M}[0].mountPath": "cache"}, f"{M}[0].mountPath: \"cache\" must begin with '/'"),
    ({f"{M}[0].mountPath": "/a:b"}, f"{M}[0].mountPath: \"/a:b\" must not have a ':'"),
    ({f"{M}[0].mountPath": "/a/../../b"}, f'{M}[0].mountPath: "/a/../../b" must not climb'),
    ({f"{M}[0].mountPath": "/"}, f"{M}[0].mountPath: must not be '/'"),
    ({f"{M}[0].mountPath": "//proc/sys"}, f'{M}[0].mountPath: "//proc/sys" is the kernel\'s own view'),
    ({f"{M}[0].mountPath": "/" + "x" * 4095}, f"{M}[0].mountPath: has 4096 bytes"),
    ({f"{M}[1].subPath": "a/../../b"}, f'{M}[1].subPath: "a/../../b" must not climb'),
    ({f"{M}[1].subPath": "/etc"}, f"{M}[1].subPath: \"/etc\" must not begin with '/'"),
    ({f"{M}[0].subPath": "x"}, f"{M}[0].subPathExpr: is given beside subPath"),
    ({f"{M}[0].subPathExpr": "/$(NAME)"}, f"{M}[0].subPathExpr: "),
    ({f"{M}[0].subPathExpr": "`id`"}, f"{M}[0].subPathExpr: holds a backtick"),
    ({f"{M}[0].mountPropagation": "Bidirectional"}, "Bidirectional is for privileged containers only"),
    ({f"{M}[0].mountPropagation": "Both"}, f"{M}[0].mountPropagation: "),
    # the pod
    ({"spec.hostAliases[0].ip": "10.1.2"}, 'spec.hostAliases[0].ip: "10.1.2" is not an address'),
    ({"spec.hostAliases[0].hostnames": []}, "spec.hostAliases[0].hostnames: are missing"),
    ({"spec.hostAliases[0].hostnames": ["a b"]}, "spec.hostAliases[0].hostnames[0]: "),
    ({"spec.hostname": "a.b"}, 'spec.hostname: "a.b" is not a valid name'),
    ({"spec.subdomain": "x" * 64}, "has 64 characters: at most 63"),
    ({"spec.activeDeadlineSeconds": 0}, "spec.activeDeadlineSeconds: must be from 1 to"),
    ({"spec.imagePullSecrets": [{}]}, "spec.imagePullSecrets[0].name: is missing"),
    ({"spec.hostPID": True}, "spec.shareProcessNamespace: excludes hostPID"),
    # security
    ({"spec.securityContext.supplementalGroups": [-1]}, "spec.securityContext.supplementalGroups[0]: must be from 0"),
    ({"spec.securityContext.fsGroup": -1}, "spec.securityContext.fsGroup: must be from 0"),
    ({"spec.securityContext.fsGroupChangePolicy": "Never"}, "spec.securityContext.fsGroupChangePolicy: "),
    ({"spec.securityContext.seccompProfile.type": "runtime/default"}, 'type: "runtime/default" is not valid: did you'),
    (
        {"spec.securityContext.seccompProfile.localhostProfile": "x"},
        'localhostProfile: is used with type "Localhost" on',
    ),
    ({f"{C}.securityContext.seccompProfile.localhostProfile": None}, "localhostProfile: is missing"),
    ({f"{C}.securityContext.seccompProfile.localhostProfile": "../x"}, "must not climb"),
    (
        {f"{C}.securityContext.capabilities.add": ["CAP_SYS_TIME"]},
        'add[0]: "CAP_SYS_TIME" is not a capability: write S',
    ),
    ({f"{C}.securityContext.privileged": True}, "allowPrivilegeEscalation: cannot be false for a privileged container"),
    ({f"{C}.securityContext.capabilities.add": ["SYS_ADMIN"]}, "cannot be false for a container with the capability"),
    (
        {"spec.securityContext.sysctls[0].name": "kernel.panic"},
        'sysctls[0].name: "kernel.panic" does not belong to a pod',
    ),
    ({"spec.securityContext.sysctls[1].name": "net/ipv4/ip_local_port_range"}, "is set twice: keep one"),
    ({"spec.securityContext.sysctls[1].name": "a b"}, 'sysctls[1].name: "a b" is not the name of a kernel setting'),
    ({"spec.securityContext.sysctls[1].value": "1\n2"}, "sysctls[1].value: must be one line"),
    ({"spec.hostNetwork": True}, 'sysctls[0].name: "net.ipv4.ip_local_port_range" is the node\'s own with hostNetwork'),
    ({"spec.hostIPC": True}, 'sysctls[1].name: "kernel.shm_rmid_forced" is the node\'s own with hostIPC'),
]


@pytest.mark.parametrize(("changes", "expected"), MISTAKES, ids=lambda value: value if isinstance(value, str) else "")
def test_mistake(changes: dict[str, Any], expected: str) -> None:
    found = told(changes)
    assert any(expected in problem for problem in found), found


PV = """
{apiVersion: v1, kind: PersistentVolume, metadata: {name: v}, spec: {capacity: {storage: 1Gi}, accessModes:
  [ReadWriteOnce], storageClassName: hand, local: {path: /mnt/disk}, nodeAffinity: {required: {nodeSelectorTerms: [
  {matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node-1]}]}]}}}}
"""
PVC = """
{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: v}, spec: {accessModes: [ReadWriteOnce],
  resources: {requests: {storage: 1Gi}}, storageClassName: "", selector: {matchLabels: {a: b}}}}
"""
SC = """
{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: fast}, provisioner: shoal.dev/local,
  reclaimPolicy: Retain, volumeBindingMode: WaitForFirstConsumer}
"""
TERM = "spec.nodeAffinity.required.nodeSelectorTerms[0].matchExpressions[0]"
STORAGE_MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    (PV, {"spec.capacity": {}}, "spec.capacity.storage: is missing: say how much"),
    (PV, {"spec.capacity.storage": "0"}, "spec.capacity.storage: must be more than 0, but it is 0"),
    (PV, {"spec.accessModes": []}, "spec.accessModes: are missing"),
    (PV, {"spec.accessModes": ["readwriteonce"]}, 'accessModes[0]: "readwriteonce" is not valid: did you mean "Read'),
    (PV, {"spec.accessModes": ["ReadWriteOncePod", "ReadWriteOnce"]}, "ReadWriteOncePod excludes every other mode"),
    (PV, {"spec.persistentVolumeReclaimPolicy": "Recycle"}, '"Recycle" is not supported'),
    (PV, {"spec.volumeMode": "Block"}, "spec.volumeMode: raw block devices are not supported yet"),
    (PV, {"spec.local": None}, "spec: must have one of local, hostPath"),
    (PV, {"spec.hostPath": {"path": "/x"}}, "spec: has local and hostPath: keep one"),
    (PV, {"spec.local.path": "disk"}, "spec.local.path: \"disk\" must begin with '/'"),
    (PV, {"spec.nfs": {"server": "x"}}, "spec.nfs: not supported yet: use local, or hostPath"),
    (PV, {"spec.nodeAffinity": None}, "spec.nodeAffinity.required: is missing: a local volume must say on which node"),
    (PV, {f"{TERM}.operator": "Is"}, f"{TERM}.operator: "),
    (PV, {f"{TERM}.values": []}, f"{TERM}.values: are missing: In needs at least one"),
    (PV, {f"{TERM}.operator": "Exists"}, f"{TERM}.values: are not used by Exists"),
    (PV, {f"{TERM}.operator": "Gt"}, f"{TERM}.values: must be one whole number"),
    (PV, {"spec.nodeAffinity.required.nodeSelectorTerms": []}, "nodeSelectorTerms: is missing"),
    (PV, {"spec.claimRef": {"name": "x"}}, "spec.claimRef.namespace: is missing"),
    (PV, {"spec.storageClassName": "A B"}, "spec.storageClassName: "),
    (PV, {"metadata.namespace": "x"}, "a PersistentVolume belongs to no namespace"),
    (PVC, {"spec.resources": {}}, "spec.resources.requests.storage: is missing"),
    (PVC, {"spec.resources.requests.storage": "-1Gi"}, "must be more than 0, but it is -1Gi"),
    (PVC, {"spec.resources.requests.cpu": "1"}, "spec.resources.requests.cpu: volumes have storage only"),
    (PVC, {"spec.accessModes": ["RWO"]}, "spec.accessModes[0]: "),
    (PVC, {"spec.volumeMode": "block"}, 'spec.volumeMode: "block" is not valid'),
    (PVC, {"spec.selector.matchLabels": {"a b": "c"}}, "spec.selector.matchLabels"),
    (PVC, {"spec.dataSource": {"name": "x"}}, "spec.dataSource: not supported yet"),
    (PVC, {"spec.volumeName": "A_"}, "spec.volumeName: "),
    (SC, {"provisioner": "ebs.csi.aws.com"}, 'provisioner: "ebs.csi.aws.com" is not here: there are shoal.dev/local,'),
    (SC, {"provisioner": None}, "provisioner: is missing: there are"),
    (SC, {"reclaimPolicy": "Recycle"}, "reclaimPolicy: "),
    (SC, {"volumeBindingMode": "immediate"}, 'did you mean "Immediate"?'),
    (SC, {"volumeBindingMode": "Immediate"}, 'volumeBindingMode: must be "WaitForFirstConsumer": a folder is made'),
    (SC, {"allowVolumeExpansion": True}, "allowVolumeExpansion: is not supported"),
    (SC, {"parameters": {"type": "ssd"}}, "parameters: not supported yet"),
]


@pytest.mark.parametrize("text", [PV, PVC, SC], ids=["PV", "PVC", "SC"])
def test_storage_that_is_fine(text: str) -> None:
    assert parse(text).errors == []


@pytest.mark.parametrize(("text", "changes", "expected"), STORAGE_MISTAKES)
def test_storage_mistake(text: str, changes: dict[str, Any], expected: str) -> None:
    tree = yaml.safe_load(text)
    for path, value in changes.items():
        put(tree, path, value)
    found = [f"{problem.path}: {problem.message}" for problem in parse(yaml.safe_dump(tree), "f").errors]
    assert any(expected in problem for problem in found), found


def test_what_cannot_be_read_is_told_once() -> None:
    assert told({f"{V}[5].hostPath": "/var/log"}) == [
        f'{V}[5].hostPath: must be a set of fields, but it is the text "/var/log"'
    ]
