#!/bin/bash
# Asks for the slices, runs the container on every host as the machines start, asks again for slices
# that were taken away, and deletes them when the run has ended. Run it where it can go on: in tmux.
set -euo pipefail
where=(--project=@{project} --zone=@{zone})
startup=$(mktemp)
cat >"$startup" <<'STARTUP'
#!/bin/bash
# Runs on every host. 42: stopped by a signal, with the step saved; 43: stuck; 134 and 137: killed,
# mostly because another host was. The same command goes on with the run.
@{login}
code=42 tries=0
while [[ $code =~ ^(42|43|134|137)$ ]] && [ $tries -le @{retries} ]; do
  docker run --rm --privileged --network=host --stop-timeout=@{grace} @{image} @{command}
  code=$? tries=$((tries + 1))
done
echo $code >/var/tmp/vitlab.exit
STARTUP

create() {
  gcloud compute tpus queued-resources create @{name} "${where[@@]}" @{nodes} \
    --accelerator-type=@{type} --runtime-version=@{runtime} \
    --metadata-from-file=startup-script="$startup"@{spot}
}
delete() { gcloud compute tpus queued-resources delete @{name} "${where[@@]}" --force --quiet; }
state() { gcloud compute tpus queued-resources describe @{name} "${where[@@]}" --format='value(state.state)'; }
exit_code() {
  gcloud compute tpus tpu-vm ssh @{first} "${where[@@]}" --worker=0 --command='cat /var/tmp/vitlab.exit 2>/dev/null' || true
}

tries=0
create
while sleep 60; do
  case "$(state)" in
    ACTIVE)
      code=$(exit_code)
      if [[ $code =~ ^[0-9]+$ ]]; then
        delete
        exit "$code"
      fi
      ;;
    SUSPENDING | SUSPENDED | FAILED)
      delete
      tries=$((tries + 1))
      if [ $tries -gt @{retries} ]; then exit 42; fi
      create
      ;;
  esac
done
