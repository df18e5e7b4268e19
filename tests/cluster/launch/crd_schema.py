"""The fields of KubeRay's resources, as JSON schemas: names, types and allowed values.

Read from KubeRay's API reference for ``ray.io/v1`` at v1.6.2. The resources' own levels have all fields of that version
and refuse any other; pods have only those that our manifests use, since their definition is Kubernetes' own and long.
Fields that KubeRay does not demand but that our manifests should always say are required here.
"""

from __future__ import annotations

from typing import Any

VERSION = "1.6.2"

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
ANYTHING: Schema = {"type": "object"}
STRINGS: Schema = {"type": "object", "additionalProperties": STRING}
NAME: Schema = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}
QUANTITY: Schema = {
    "anyOf": [COUNT, {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"}],
}


def one_of(*values: str) -> Schema:
    return {"enum": [*values]}


def record(required: str = "", **fields: Schema) -> Schema:
    """An object with these fields and no others."""
    return {"type": "object", "additionalProperties": False, "properties": fields, "required": required.split()}


def array(items: Schema, least: int = 0) -> Schema:
    return {"type": "array", "items": items, "minItems": least}


METADATA = record("name", name=NAME, namespace=NAME, labels=STRINGS, annotations=STRINGS)

AMOUNTS: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"cpu": QUANTITY, "memory": QUANTITY, "nvidia.com/gpu": COUNT},
    "required": ["cpu", "memory"],
}
CONTAINER = record(
    "name image resources env volumeMounts",
    name=NAME,
    image=STRING,
    imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    resources=record("requests limits", requests=AMOUNTS, limits=AMOUNTS),
    env=array(record("name value", name=STRING, value=STRING)),
    ports=array(record("name containerPort", name={**NAME, "maxLength": 15}, containerPort=COUNT)),
    volumeMounts=array(record("name mountPath", name=NAME, mountPath=STRING, readOnly=BOOLEAN)),
)
POD = record(
    "spec",
    metadata=record(labels=STRINGS, annotations=STRINGS),
    spec=record(
        "containers volumes",
        containers=array(CONTAINER, least=1),
        volumes=array(
            record("name persistentVolumeClaim", name=NAME, persistentVolumeClaim=record("claimName", claimName=NAME))
        ),
        restartPolicy=one_of("Always", "OnFailure", "Never"),
        securityContext=record(fsGroup=COUNT, runAsUser=COUNT, runAsGroup=COUNT, runAsNonRoot=BOOLEAN),
        tolerations=array(
            record(
                key=STRING,
                operator=one_of("Exists", "Equal"),
                value=STRING,
                effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
            )
        ),
        nodeSelector=STRINGS,
        serviceAccountName=STRING,
    ),
)

AUTOSCALER = record(
    resources=ANYTHING,
    image=STRING,
    imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    securityContext=ANYTHING,
    idleTimeoutSeconds=COUNT,
    upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    version=one_of("v1", "v2"),
    env=array(ANYTHING),
    envFrom=array(ANYTHING),
    volumeMounts=array(ANYTHING),
)
HEAD = record(
    "rayStartParams template",
    template=POD,
    headService=ANYTHING,
    enableIngress=BOOLEAN,
    resources=STRINGS,
    labels=STRINGS,
    rayStartParams=STRINGS,
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
)
WORKERS = record(
    "groupName replicas minReplicas maxReplicas rayStartParams template",
    suspend=BOOLEAN,
    groupName=STRING,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    idleTimeoutSeconds=COUNT,
    resources=STRINGS,
    labels=STRINGS,
    rayStartParams=STRINGS,
    template=POD,
    scaleStrategy=record(workersToDelete=array(STRING)),
    numOfHosts=COUNT,
)
CLUSTER = record(
    "rayVersion authOptions headGroupSpec workerGroupSpecs",
    upgradeStrategy=record(type=one_of("Recreate", "None")),
    authOptions=record("mode", mode=one_of("disabled", "token"), secretName=STRING, enableK8sTokenAuth=BOOLEAN),
    suspend=BOOLEAN,
    managedBy=one_of("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"),
    autoscalerOptions=AUTOSCALER,
    headServiceAnnotations=STRINGS,
    enableInTreeAutoscaling=BOOLEAN,
    gcsFaultToleranceOptions=ANYTHING,
    headGroupSpec=HEAD,
    rayVersion=STRING,
    workerGroupSpecs=array(WORKERS, least=1),
)
JOB = record(
    "entrypoint rayClusterSpec",
    activeDeadlineSeconds=COUNT,
    backoffLimit=COUNT,
    rayClusterSpec=CLUSTER,
    submitterPodTemplate=ANYTHING,
    metadata=STRINGS,
    clusterSelector=STRINGS,
    submitterConfig=record(backoffLimit=COUNT),
    managedBy=one_of("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"),
    deletionStrategy=ANYTHING,
    entrypoint=STRING,
    runtimeEnvYAML=STRING,
    jobId=STRING,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    entrypointResources=STRING,
    entrypointNumCpus=NUMBER,
    entrypointNumGpus=NUMBER,
    ttlSecondsAfterFinished=COUNT,
    preRunningDeadlineSeconds=COUNT,
    shutdownAfterJobFinishes=BOOLEAN,
    suspend=BOOLEAN,
)
SERVICE = record(
    "serveConfigV2 rayClusterConfig",
    rayClusterDeletionDelaySeconds=COUNT,
    serviceUnhealthySecondThreshold=COUNT,
    deploymentUnhealthySecondThreshold=COUNT,
    serveService=ANYTHING,
    upgradeStrategy=record(
        type=one_of("NewClusterWithIncrementalUpgrade", "NewCluster", "None"), clusterUpgradeOptions=ANYTHING
    ),
    managedBy=one_of("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"),
    serveConfigV2=STRING,
    rayClusterConfig=CLUSTER,
    excludeHeadPodFromServeSvc=BOOLEAN,
)
CLAIM = record(
    "accessModes storageClassName resources",
    accessModes=array(one_of("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"), least=1),
    storageClassName=STRING,
    resources=record("requests", requests=record("storage", storage=QUANTITY)),
)

KINDS: dict[str, Schema] = {
    kind: record(
        "apiVersion kind metadata spec", apiVersion=one_of(api), kind=one_of(kind), metadata=METADATA, spec=spec
    )
    for kind, api, spec in (
        ("RayCluster", "ray.io/v1", CLUSTER),
        ("RayJob", "ray.io/v1", JOB),
        ("RayService", "ray.io/v1", SERVICE),
        ("PersistentVolumeClaim", "v1", CLAIM),
    )
}
