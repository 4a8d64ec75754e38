"""A plan for programs: JSON with stable keys, Helm values, and KEDA's ScaledObjects."""

from typing import Any

import yaml

from trt_mtp.build.gpus import gpu_by_product_name, gpu_types
from trt_mtp.controller.plan.check import Spread
from trt_mtp.controller.plan.erlang import MAX_LOAD
from trt_mtp.controller.plan.groups import Group
from trt_mtp.controller.plan.plan import Alternative, Plan
from trt_mtp.controller.plan.text import reason, variant_name

SLOW_DOWN_S = 600  # before replicas are taken away: SuperSONIC's, whose fleets are Triton's, too
GPU = "nvidia.com/gpu"
PROMETHEUS = "http://prometheus-operated.monitoring.svc:9090"  # where kube-prometheus puts it


def to_json_value(plan: Plan) -> dict[str, Any]:
    """The plan as `trt-mtp plan --json` prints it; times in milliseconds."""
    return {
        "schema_version": 1,
        "replicas": [_group(group) for group in plan.fleet.groups],
        "cost": plan.cost,
        "best_single": _best_single(plan.best_single),
        "schedule_everywhere": _schedule(plan.schedule_everywhere),
        "router_gain": round(plan.router_gain, 4),
        "tasks": {
            task: {"tpot_ms": _spread(tpot), "ttft_ms": _spread(ttft)}
            for task, (tpot, ttft) in plan.tasks.items()
        },
        "headroom": round(plan.headroom, 4),
        "reason": reason(plan),
    }


def _group(group: Group) -> dict[str, Any]:
    mode = group.mode
    return {
        "draft_length": mode.draft_length,
        "schedule": _lengths(group),
        "batch": mode.batch,
        "count": group.count,
    }


def _lengths(group: Group) -> dict[str, int] | None:
    schedule = group.mode.schedule
    return None if schedule is None else {str(bound): length for bound, length in schedule}


def _best_single(one: Alternative) -> dict[str, Any]:
    length = None if one.fleet is None else one.fleet.groups[0].mode.draft_length
    return {"draft_length": length, "cost": one.cost}


def _schedule(one: Alternative) -> dict[str, Any]:
    if one.fleet is None:
        return {"schedule": None, "batch": None, "count": None, "cost": None}
    group = one.fleet.groups[0]
    return {
        "schedule": _lengths(group),
        "batch": group.mode.batch,
        "count": group.count,
        "cost": one.cost,
    }


def _spread(value: Spread) -> dict[str, float]:
    return {"p50": round(value.p50, 2), "p99": round(value.p99, 2)}


def helm_values(plan: Plan) -> str:
    """The variants as values of the chart (charts/trt-mtp), a Deployment of Triton for each."""
    variants = [_variant(plan, group) for group in plan.fleet.groups]
    return _commented(plan) + yaml.safe_dump({"variants": variants}, sort_keys=False)


def _commented(plan: Plan) -> str:
    """On one line, whatever the profile's notes are: what follows would be values of its own."""
    return f"# {' '.join(reason(plan).split())}.\n"


def _name(plan: Plan, group: Group) -> str:
    return variant_name(group.mode, [other.mode for other in plan.fleet.groups])


def _variant(plan: Plan, group: Group) -> dict[str, Any]:
    schedule, gpus = group.mode.schedule, _num_gpus(plan)
    lengths = ",".join(f"{bound}:{length}" for bound, length in schedule or ())
    return {
        "name": _name(plan, group),
        "draftLength": group.mode.draft_length,
        **({"draftLenSchedule": lengths} if lengths else {}),
        "maxBatchSize": group.mode.batch,
        **({"tensorParallel": gpus} if gpus > 1 else {}),
        "replicas": group.count,
        "keda": {
            "inFlightPerReplica": in_flight(group),
            "minReplicas": _fewest(plan, group),
            "maxReplicas": _most(plan, group),
        },
        **({"resources": {"requests": {GPU: gpus}, "limits": {GPU: gpus}}} if gpus else {}),
    }


def _num_gpus(plan: Plan) -> int:
    """GPUs of one replica; 0 for a profile of a machine without one."""
    machine = plan.deployment.machine
    known = machine in gpu_types() or gpu_by_product_name(machine) is not None
    return plan.deployment.gpus_per_replica if known else 0


def in_flight(group: Group) -> int:
    """Requests per replica at which another one is added: the batch less its margin."""
    return max(1, round(MAX_LOAD * group.mode.batch))


def _fewest(plan: Plan, group: Group) -> int:
    """Never none: a length that is gone is one that the router can't choose."""
    return min(1 + plan.wishes.spare, group.count)


def _most(plan: Plan, group: Group) -> int:
    """All GPUs that no other group has."""
    others = plan.fleet.num_replicas - group.count
    return max(plan.wishes.gpus // plan.deployment.gpus_per_replica - others, group.count)


def keda(plan: Plan) -> str:
    """A ScaledObject for each variant: on requests in flight on it, quickly up and slowly down."""
    objects = [_scaled_object(plan, group) for group in plan.fleet.groups]
    return _commented(plan) + yaml.safe_dump_all(objects, sort_keys=False)


def _scaled_object(plan: Plan, group: Group) -> dict[str, Any]:
    name = f"trt-mtp-{_name(plan, group)}"
    # requests that wait may go to any variant
    query = (
        f'(sum(trt_mtp_gateway_requests_in_flight{{variant="{_name(plan, group)}"}}) or vector(0)) '
        f"+ (sum(trt_mtp_gateway_requests_waiting) or vector(0)) / {len(plan.fleet.groups)}"
    )
    down = {"scaleDown": {"stabilizationWindowSeconds": SLOW_DOWN_S}}
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": {"name": name},
            "minReplicaCount": _fewest(plan, group),
            "maxReplicaCount": _most(plan, group),
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": down}},
            "triggers": [
                {
                    "type": "prometheus",
                    "metricType": "AverageValue",
                    "metadata": {
                        "serverAddress": PROMETHEUS,
                        "query": query,
                        "threshold": str(in_flight(group)),
                    },
                }
            ],
        },
    }
