"""What Kubernetes has and Shoal has not (yet): fields by message type, and kinds. Named so that they can be refused.

Source: k8s.io/api core/v1, apps/v1 (1.34) and the list of built-in API groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# The kinds of this version, with the apiVersion that each must have.
API_VERSIONS: Mapping[str, str] = {
    "Namespace": "v1",
    "Node": "v1",
    "Pod": "v1",
    "ReplicaSet": "apps/v1",
    "Deployment": "apps/v1",
    "ConfigMap": "v1",
    "Secret": "v1",
    "Event": "v1",
    "PersistentVolume": "v1",
    "PersistentVolumeClaim": "v1",
    "StorageClass": "storage.k8s.io/v1",
    "PriorityClass": "scheduling.k8s.io/v1",
    "PodDisruptionBudget": "policy/v1",
    "PodGroup": "scheduling.x-k8s.io/v1alpha1",
    "Death": "shoal.dev/v1",
}
CLUSTER_SCOPED = frozenset({"Namespace", "Node", "PersistentVolume", "StorageClass", "PriorityClass"})


def _named(names: str, **hints: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), "") | hints


_WRITTEN = "it is written by the system; remove it"
_VOLUME_HINT = (
    "use emptyDir, hostPath, configMap, secret, downwardAPI, projected or persistentVolumeClaim; other storage can be"
    " mounted on the nodes and shown with hostPath"
)
_VOLUME_PLUGINS = (
    "nfs iscsi gcePersistentDisk awsElasticBlockStore glusterfs rbd flexVolume cinder cephfs flocker fc azureFile"
    " azureDisk vsphereVolume quobyte photonPersistentDisk portworxVolume scaleIO storageos csi"
)
_GANG = "make a PodGroup, and give its pods the label scheduling.x-k8s.io/pod-group: NAME"
_CPU_ONLY = "write requests and limits under the containers' resources"

# message type -> field -> what to do instead ("" when there is nothing to say)
UNSUPPORTED_FIELDS: Mapping[str, Mapping[str, str]] = {
    "ObjectMeta": _named("", managedFields=_WRITTEN, selfLink=_WRITTEN, clusterName="remove it"),
    "NamespaceStatus": _named("conditions"),
    "NodeSpec": _named("podCIDRs providerID configSource externalID"),
    "NodeStatus": _named(
        "phase daemonEndpoints volumesInUse volumesAttached config runtimeHandlers features declaredFeatures"
    ),
    "NodeSystemInfo": _named("systemUUID kubeProxyVersion swap"),
    "PodSpec": _named(
        "ephemeralContainers dnsPolicy automountServiceAccountToken dnsConfig readinessGates enableServiceLinks os"
        " hostUsers resourceClaims hostnameOverride",
        runtimeClassName="there is one runtime; spec.overhead may be given without it",
        workloadRef=_GANG,
        schedulingGroup=_GANG,
        serviceAccountName="remove it: pods carry no identity towards the API",
        serviceAccount="remove it: pods carry no identity towards the API",
        resources=_CPU_ONLY,
    ),
    "Container": _named("resizePolicy restartPolicyRules volumeDevices"),
    "VolumeMount": _named("recursiveReadOnly"),
    "EnvVarSource": _named("fileKeyRef"),
    "Volume": dict.fromkeys(_named(_VOLUME_PLUGINS + " gitRepo ephemeral image"), _VOLUME_HINT),
    "VolumeProjection": _named(
        "clusterTrustBundle podCertificate", serviceAccountToken="remove it: pods carry no identity towards the API"
    ),
    "Lifecycle": _named("stopSignal"),
    "ResourceRequirements": _named("claims"),
    "SecurityContext": _named("seLinuxOptions windowsOptions procMount appArmorProfile"),
    "PodSecurityContext": _named(
        "seLinuxOptions windowsOptions supplementalGroupsPolicy appArmorProfile seLinuxChangePolicy"
    ),
    "PersistentVolumeSpec": _named("mountOptions volumeAttributesClassName")
    | dict.fromkeys(_named(_VOLUME_PLUGINS), "use local, or hostPath"),
    "LocalVolumeSource": _named("fsType"),
    "PersistentVolumeStatus": _named("lastPhaseTransitionTime"),
    "PersistentVolumeClaimSpec": _named("dataSource dataSourceRef volumeAttributesClassName"),
    "PersistentVolumeClaimStatus": _named(
        "allocatedResources allocatedResourceStatuses currentVolumeAttributesClassName modifyVolumeStatus"
    ),
    "StorageClass": _named("parameters mountOptions allowedTopologies"),
    "Condition": _named("observedGeneration"),
    "PodStatus": _named(
        "ephemeralContainerStatuses resize resourceClaimStatuses"
        " extendedResourceClaimStatus allocatedResources resources"
    ),
    "ContainerStatus": _named("allocatedResources allocatedResourcesStatus resources volumeMounts user stopSignal"),
    "ReplicaSetSpec": _named("minReadySeconds"),
    "ReplicaSetStatus": _named("terminatingReplicas"),
    "DeploymentSpec": _named(
        "minReadySeconds revisionHistoryLimit paused progressDeadlineSeconds rollbackTo",
        strategy="remove it: a changed template is replaced one new pod up, then one old pod down",
    ),
    "DeploymentStatus": _named("terminatingReplicas"),
    "PodGroupSpec": _named(
        "queue priorityClassName networkTopology subGroupPolicy",
        minResources="remove it: what the members request is counted",
        minTaskMember="use minMember",
    ),
    "Event": _named("eventTime series action related reportingComponent reportingInstance"),
}
_MEANT_WHEN_EMPTY = frozenset({"valueFrom"})  # `valueFrom: {}` is a half-written reference, not nothing


_ONE_BY_ONE = {"maxSurge": 1, "maxUnavailable": 0}
# message type -> unsupported field -> the values that are so anyway
HOLDS_ANYWAY: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "PodSpec": {
        "dnsPolicy": ("ClusterFirst",),
        "automountServiceAccountToken": (False,),
        "enableServiceLinks": (True, False),  # there are no services whose variables could be missing
        "serviceAccountName": ("default",),
        "serviceAccount": ("default",),
        "hostUsers": (True,),
        "os": ({"name": "linux"},),
    },
    "VolumeMount": {"recursiveReadOnly": ("Disabled",)},
    "SecurityContext": {"procMount": ("Default",)},
    "PodSecurityContext": {"supplementalGroupsPolicy": ("Merge",)},
    "ReplicaSetSpec": {"minReadySeconds": (0,)},
    "DeploymentSpec": {
        "minReadySeconds": (0,),
        "paused": (False,),
        "strategy": ({"type": "RollingUpdate"}, {"type": "RollingUpdate", "rollingUpdate": _ONE_BY_ONE}),
    },
}


def says_nothing(message: str, name: str, value: Any) -> bool:
    """Whether an unsupported field may stay because its value is that of leaving it out: null, {}, [] or ""
    (generators write `strategy: {}`, `creationTimestamp: null`), or what is so anyway."""
    if value is None or (name not in _MEANT_WHEN_EMPTY and value in ({}, [], "")):
        return True
    same = HOLDS_ANYWAY.get(message, {}).get(name, ())
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in same)  # 0 is not False


# Every other kind of Kubernetes' built-in API groups, by group ("" is core), with those that only its tools read.
OTHER_KINDS: Mapping[str, str] = {
    kind: group
    for group, kinds in {
        "": "Binding ComponentStatus Endpoints LimitRange PodTemplate"
        " ReplicationController ResourceQuota Service ServiceAccount Status Eviction",
        "apps": "ControllerRevision DaemonSet StatefulSet",
        "batch": "Job CronJob",
        "autoscaling": "HorizontalPodAutoscaler Scale",
        "policy": "PodSecurityPolicy",
        "networking.k8s.io": "Ingress IngressClass NetworkPolicy IPAddress ServiceCIDR",
        "rbac.authorization.k8s.io": "Role RoleBinding ClusterRole ClusterRoleBinding",
        "storage.k8s.io": "VolumeAttachment CSIDriver CSINode CSIStorageCapacity VolumeAttributesClass",
        "apiextensions.k8s.io": "CustomResourceDefinition ConversionReview",
        "apiregistration.k8s.io": "APIService",
        "admissionregistration.k8s.io": "MutatingWebhookConfiguration ValidatingWebhookConfiguration"
        " ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding MutatingAdmissionPolicy"
        " MutatingAdmissionPolicyBinding",
        "admission.k8s.io": "AdmissionReview",
        "certificates.k8s.io": "CertificateSigningRequest ClusterTrustBundle PodCertificateRequest",
        "coordination.k8s.io": "Lease LeaseCandidate",
        "discovery.k8s.io": "EndpointSlice",
        "flowcontrol.apiserver.k8s.io": "FlowSchema PriorityLevelConfiguration",
        "node.k8s.io": "RuntimeClass",
        "scheduling.k8s.io": "Workload",
        "resource.k8s.io": "ResourceClaim ResourceClaimTemplate ResourceSlice DeviceClass DeviceTaintRule"
        " ResourcePoolStatusRequest",
        "authentication.k8s.io": "TokenRequest TokenReview SelfSubjectReview",
        "authorization.k8s.io": "LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview"
        " SubjectAccessReview",
        "storagemigration.k8s.io": "StorageVersionMigration",
        "internal.apiserver.k8s.io": "StorageVersion",
        "kubelet.config.k8s.io": "KubeletConfiguration CredentialProviderConfig",
        "kubeproxy.config.k8s.io": "KubeProxyConfiguration",
        "kubescheduler.config.k8s.io": "KubeSchedulerConfiguration",
        "kubeadm.k8s.io": "ClusterConfiguration InitConfiguration JoinConfiguration",
        "kustomize.config.k8s.io": "Kustomization Component",
        "audit.k8s.io": "Policy",
        "apiserver.config.k8s.io": "EncryptionConfiguration",
    }.items()
    for kind in kinds.split()
}
KIND_HINTS: Mapping[str, str] = {
    "DaemonSet": "use a Deployment",
    "StatefulSet": "use a Deployment",
    "ReplicationController": "use a ReplicaSet or a Deployment",
    "Job": 'use a Pod with restartPolicy "OnFailure"',
    "ResourceQuota": "give the pods limits",
}
