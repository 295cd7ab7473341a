#!/bin/bash
# xpk starts a workload again after exit codes 42 and 127 to 255; 43 is a run that was stuck. Whether
# machines are spot machines is decided when the cluster is created.
set -euo pipefail
xpk workload create --project=@{project} --zone=@{zone} --cluster=@{cluster} --workload=@{name} \
  --tpu-type=@{type} --num-slices=@{slices} --docker-image=@{image} \
  --max-restarts=@{retries} --restart-on-exit-codes=43 --termination-grace-period-seconds=@{grace} \
  --command=@{quoted}
