#!/usr/bin/env bash
# Build, verify, calibrate, roll out, report. Safe to run again; ends as `trt-mtp rollout` does:
# 0 done, 1 failed, 2 bad input, 3 in progress, 4 aborted by a gate, 5 inconclusive.
#
#   rollout.sh CHECKPOINT DRAFT_LENGTH ROLLOUT.yaml
#
# The YAML names $ENGINES/k<DRAFT_LENGTH> as what.variant. Servers and gateways are running
# already, with their users on them; docs/rollout.md says how they are started.
set -euo pipefail

checkpoint=$1 draft_length=$2 rollout=$3
out=${OUT:-out} engines=${ENGINES:-engines}
read -ra trt_mtp <<< "${TRT_MTP:-trt-mtp}"
read -ra build_options <<< "${BUILD_OPTIONS:-}"
read -ra calibrate <<< "${CALIBRATE:---embedded $checkpoint --engines $engines --budget 3m}"

mkdir -p "$out"
run() { "${trt_mtp[@]}" "$@"; }

# draft length 0 is what every answer is compared with
run build "$checkpoint" --draft-lengths "0,$draft_length" --output "$engines" \
    ${build_options[@]+"${build_options[@]}"} --json > "$out/build.json"
run verify "$engines" --json > "$out/verify.json"
# 3: measured, but nothing is decided; the rollout's gates decide then
run calibrate "${calibrate[@]}" --draft-lengths "0,$draft_length" --output "$out/profile.json" \
    || test $? -eq 3
run report "$out/profile.json" --output "$out/report.html"

run rollout validate "$rollout"
run rollout plan "$rollout" --json > "$out/plan.json"
code=0
run rollout start "$rollout" --json > "$out/rollout.json" || code=$?
run rollout history "$rollout" --json > "$out/history.json"
run rollout explain "$rollout" || true
exit "$code"
