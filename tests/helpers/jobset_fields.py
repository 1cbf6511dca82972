"""The fields of a JobSet (jobset.x-k8s.io/v1alpha2) as a JSON schema: names, types, choices and what is required.

From the fields that the resource's definition (kubernetes-sigs/jobset, commit 0107852) declares, without its texts. The
template of a Job is checked against Kubernetes' own schema, as a Job.
"""

from typing import Any

TEXT, NUMBER, FLAG = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "array", "items": TEXT}
RULE_NAME = "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"


def one_of(*choices: str) -> dict[str, Any]:
    return {"enum": list(choices)}


def fields(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def many(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


METADATA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", "maxLength": 63},
        "namespace": TEXT,
        "labels": {"type": "object", "additionalProperties": TEXT},
        "annotations": {"type": "object", "additionalProperties": TEXT},
    },
    "required": ["name"],
    "additionalProperties": False,
}
FAILURE_RULE = fields(
    "action",
    "name",
    action=one_of("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
    name={"type": "string", "pattern": RULE_NAME},
    onJobFailureReasons=many(
        one_of(
            "BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy"
        )
    ),
    targetReplicatedJobs=TEXTS,
)
REPLICATED_JOB = fields(
    "name",
    "template",
    name=TEXT,
    groupName=TEXT,
    replicas=NUMBER,
    dependsOn=many(fields("name", "status", name=TEXT, status=one_of("Ready", "Complete"))),
    template={"type": "object"},
)
JOBSET = fields(
    "apiVersion",
    "kind",
    "metadata",
    "spec",
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=METADATA,
    spec=fields(
        coordinator=fields("replicatedJob", replicatedJob=TEXT, jobIndex=NUMBER, podIndex=NUMBER),
        failurePolicy=fields(
            maxRestarts=NUMBER, restartStrategy=one_of("Recreate", "BlockingRecreate"), rules=many(FAILURE_RULE)
        ),
        managedBy=TEXT,
        network=fields(enableDNSHostnames=FLAG, publishNotReadyAddresses=FLAG, subdomain=TEXT),
        replicatedJobs=many(REPLICATED_JOB),
        startupPolicy=fields("startupPolicyOrder", startupPolicyOrder=one_of("AnyOrder", "InOrder")),
        successPolicy=fields("operator", operator=one_of("All", "Any"), targetReplicatedJobs=TEXTS),
        suspend=FLAG,
        ttlSecondsAfterFinished=COUNT,
    ),
)
